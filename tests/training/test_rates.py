"""Learning rates by kind: which number is which, and that a factor is a learning rate."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from tiny import flat, problem, unchanged

import glora_jax
from glora_jax.method import presets
from glora_jax.training import loop
from glora_jax.training.adapter_loss import prepare
from glora_jax.training.losses import subnet_loss, supernet_loss
from glora_jax.training.rates import Kind, kinds
from glora_jax.training.recipe import Recipe
from glora_jax.training.side_by_side import Training, train_many

KEY = jax.random.key(5)
RECIPE = Recipe(
  epochs=1,
  batch_size=8,
  warmup_epochs=0,
  learning_rate=1e-2,
  weight_decay=0.1,
)
STACK = ('blocks', 'dense')


def run_of(genome):
  """What `fit` takes of a subnet."""
  adapted, variables, *_ = problem()
  subnet = adapted.fix(genome)
  return subnet_loss(subnet, unchanged, train=True), *subnet.split(variables)


def fit(genome, recipe):
  _, _, images, labels = problem()
  return loop.fit(*run_of(genome), images, labels, recipe, KEY, progress=False)


def mixed():
  """A vector for A and a LoRA for B in the first layer, and the other way around in the second."""
  genome = np.zeros((len(problem().adapted.spec), 5), np.int8)
  genome[:2] = [[2, 4, 1, 0, 2], [4, 2, 3, 1, 0]]
  return genome


def test_shared_storage_is_what_the_genome_makes_of_it():
  adapted = problem().adapted
  trainable, _ = problem().split()
  found = kinds(trainable, adapted.groups, adapted.head_paths, mixed())
  supports = found['glora'][STACK[0]][STACK[1]]
  assert supports['A_up'].shape == (2, 1, 1)
  assert supports['A_up'].ravel().tolist() == [Kind.VECTOR, Kind.UP]
  assert supports['B_up'].ravel().tolist() == [Kind.UP, Kind.VECTOR]
  # What starts at zero in C is its down factor, where its vector is, too.
  assert supports['C_down'].ravel().tolist() == [Kind.VECTOR, Kind.UP]
  assert supports['A_down'] == supports['C_up'] == Kind.DOWN
  assert supports['D'] == supports['E'] == Kind.VECTOR
  assert set(map(int, jax.tree.leaves(found['params']))) == {Kind.HEAD}


def test_a_supernets_shared_storage_is_a_factor_and_the_base_is_no_head():
  adapted, variables, *_ = problem()
  found = kinds(variables, adapted.groups, adapted.head_paths)
  supports = found['glora'][STACK[0]][STACK[1]]
  assert supports['A_up'] == supports['B_up'] == supports['C_down'] == Kind.UP
  assert found['params']['blocks']['dense']['kernel'] == Kind.BASE
  assert found['params']['head']['kernel'] == Kind.HEAD


def first_step(genome, recipe):
  """What the first step adds to the trained numbers."""
  _, _, images, labels = problem()
  loss_fn, trainable, frozen = run_of(genome)
  loss_fn, optimizer = prepare(loss_fn, recipe, trainable, len(labels))
  gradient = jax.jit(jax.grad(loss_fn, has_aux=True))
  grads, _ = gradient(trainable, frozen, images, labels, KEY)
  updates, _ = optimizer.update(grads, optimizer.init(trainable), trainable)
  return updates


@pytest.mark.parametrize(
  'field, kind',
  [
    ('down_rate', Kind.DOWN),
    ('up_rate', Kind.UP),
    ('vector_rate', Kind.VECTOR),
    ('head_rate', Kind.HEAD),
  ],
)
def test_a_factor_moves_its_kind_as_that_learning_rate_would_and_nothing_else(field, kind):
  plain = first_step(mixed(), RECIPE)
  faster = first_step(mixed(), dataclasses.replace(RECIPE, learning_rate=4e-2))
  found = first_step(mixed(), dataclasses.replace(RECIPE, **{field: 4.0}))
  adapted = problem().adapted
  at = kinds(plain, adapted.groups, adapted.head_paths, mixed())
  expected = jax.tree.map(lambda k, slow, fast: np.where(k == kind, fast, slow), at, plain, faster)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), found, expected)
  assert not np.allclose(flat(found), flat(plain))
  assert not np.allclose(flat(found), flat(faster))


def test_all_factors_together_are_the_learning_rate():
  genome = presets.preset(problem().adapted.spec, 'full')
  factors = dict.fromkeys(('down_rate', 'up_rate', 'vector_rate', 'head_rate'), 2.0)
  found = fit(genome, dataclasses.replace(RECIPE, **factors))
  expected = fit(genome, dataclasses.replace(RECIPE, learning_rate=2e-2, final_learning_rate=2e-5))
  np.testing.assert_allclose(flat(found.trainable), flat(expected.trainable), rtol=1e-4, atol=1e-6)


def test_a_factor_of_0_leaves_a_kind_where_it_starts():
  genome = presets.preset(problem().adapted.spec, 'lora')
  _, trainable, _ = run_of(genome)
  state = fit(genome, dataclasses.replace(RECIPE, down_rate=0.0))
  start, end = (tree['glora'][STACK[0]][STACK[1]] for tree in (trainable, state.trainable))
  np.testing.assert_array_equal(start['B_down'], end['B_down'])
  assert np.abs(end['B_up']).max() > 1e-3


def test_factors_of_1_are_the_very_same_optimizer():
  loss_fn, trainable, _ = run_of(mixed())
  same_loss, optimizer = prepare(loss_fn, RECIPE, trainable, 24)
  assert same_loss is loss_fn
  state = optimizer.init(trainable)
  expected = RECIPE.optimizer(24).init(trainable)
  assert jax.tree.structure(state) == jax.tree.structure(expected)
  _, with_factor = prepare(loss_fn, dataclasses.replace(RECIPE, up_rate=2.0), trainable, 24)
  assert jax.tree.structure(with_factor.init(trainable)) == jax.tree.structure(expected)


@pytest.mark.parametrize('update_used_only', [False, True])
def test_side_by_side_has_the_rates_of_apart(update_used_only):
  _, _, images, labels = problem()
  recipe = dataclasses.replace(
    RECIPE, up_rate=4.0, head_rate=0.5, update_used_only=update_used_only
  )
  runs = [Training(*run_of(mixed()), KEY)]
  (together,) = train_many(runs, images, labels, recipe, progress=False)
  apart = fit(mixed(), recipe)
  np.testing.assert_allclose(flat(together.trainable), flat(apart.trainable), rtol=1e-3, atol=2e-4)


def test_each_of_those_side_by_side_has_a_gradient_of_its_own_to_shorten():
  _, _, images, labels = problem()
  recipe = dataclasses.replace(RECIPE, max_grad_norm=0.05, down_rate=2.0)
  runs = [Training(*run_of(mixed()), KEY, rate) for rate in (1.0, 3.0)]
  together = train_many(runs, images, labels, recipe, progress=False)
  for found, rate in zip(together, (1.0, 3.0), strict=True):
    apart = fit(
      mixed(),
      dataclasses.replace(
        recipe,
        learning_rate=rate * recipe.learning_rate,
        final_learning_rate=rate * recipe.final_learning_rate,
      ),
    )
    np.testing.assert_allclose(flat(found.trainable), flat(apart.trainable), rtol=1e-3, atol=2e-4)
  unbounded = fit(mixed(), dataclasses.replace(recipe, max_grad_norm=0.0))
  assert not np.allclose(flat(unbounded.trainable), flat(together[0].trainable), atol=1e-3)


def test_ties_and_storage_of_their_own_have_kinds():
  adapted = glora_jax.adapt(
    problem().adapted.model,
    problem().images[:1],
    space=glora_jax.SearchSpace((2, 4), tied=False),
  )
  trainable, _ = adapted.split(adapted.init(KEY, problem().variables['params']))
  loss_fn = supernet_loss(adapted, unchanged, lambda key: mixed())
  supports = loss_fn.kinds(trainable)['glora'][STACK[0]][STACK[1]]
  assert supports['A_vector'] == supports['C_vector'] == supports['D_constant'] == Kind.VECTOR
  assert supports['A_up'] == Kind.UP
