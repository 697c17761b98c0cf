"""Component dropout: which rank-one parts it takes, its mean, and that a resumed run repeats it."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import flat, problem, unchanged
from trees import randomized

import glora_jax
from glora_jax.method import presets
from glora_jax.method.draws import sample_genome
from glora_jax.training import loop
from glora_jax.training.component_dropout import drop_components
from glora_jax.training.consistency import Consistency
from glora_jax.training.losses import subnet_loss, supernet_loss
from glora_jax.training.recipe import Recipe
from glora_jax.training.side_by_side import Training, train_many

KEY = jax.random.key(5)
RECIPE = Recipe(epochs=2, batch_size=8, warmup_epochs=0, learning_rate=1e-2, component_dropout=0.5)


def loss_of(name, **options):
  """The loss of a preset's subnet, or of the supernet, and the halves of what it takes."""
  adapted, variables, *_ = problem()
  if name == 'supernet':
    sample = functools.partial(sample_genome, spec=adapted.spec)
    return supernet_loss(adapted, unchanged, sample, train=True, **options), *problem().split()
  subnet = adapted.fix(presets.preset(adapted.spec, name))
  return subnet_loss(subnet, unchanged, train=True, **options), *subnet.split(variables)


def fit(name, recipe, **options):
  _, _, images, labels = problem()
  loss_fn, trainable, frozen = loss_of(name)
  return loop.fit(
    loss_fn, trainable, frozen, images, labels, recipe, KEY, progress=False, **options
  )


def test_no_type_is_promoted_by_itself():
  adapted, variables, *_ = problem()
  genome = presets.preset(adapted.spec, 'full')
  drop = functools.partial(drop_components, groups=adapted.groups, genome=genome, probability=0.5)
  with jax.numpy_dtype_promotion('strict'):
    shapes = jax.eval_shape(drop, KEY, variables['glora'])
  assert jax.tree.structure(shapes) == jax.tree.structure(variables['glora'])


def test_the_mean_output_over_many_masks_is_the_undropped_one():
  inputs = jax.random.normal(KEY, (2, 6))
  adapted = glora_jax.adapt(nn.Dense(3), inputs)
  params = {'kernel': jnp.ones((6, 3)), 'bias': jnp.zeros(3)}
  variables = adapted.init(KEY, params)
  variables = {**variables, 'glora': randomized(variables['glora'], 4, 0.3)}
  genome = np.array([[3, 3, 2, 2, 2]])  # LoRAs for A, B and C

  def output(key):
    supports = drop_components(key, variables['glora'], adapted.groups, genome, 0.3)
    return adapted.apply({**variables, 'glora': supports}, inputs, genome=genome)

  outputs = jax.jit(jax.vmap(output))(jax.random.split(KEY, 20_000))
  spread = np.std(outputs, axis=0)
  assert spread.min() > 0.05
  error = np.mean(outputs, axis=0) - adapted.apply(variables, inputs, genome=genome)
  assert np.abs(error / spread).max() < 5 / np.sqrt(20_000)


def test_only_up_factors_of_rows_with_a_lora_change():
  adapted, variables, *_ = problem()
  supports = randomized(variables['glora'], 4)
  genome = np.zeros((len(adapted.spec), 5), np.int8)
  genome[:, 0] = 2  # vectors for A, which lie in its up factor
  genome[1, 1] = 4  # a LoRA for B in the second layer
  dropped = drop_components(KEY, supports, adapted.groups, jnp.asarray(genome), 0.5)
  changed = jax.tree.map(lambda a, b: np.asarray(a != b), supports, dropped)
  where = changed['blocks']['dense'].pop('B_up')
  assert not any(leaf.any() for leaf in jax.tree.leaves(changed))
  assert not where[0].any()
  assert where[1].all()  # zero or doubled


def test_a_layer_loses_the_same_parts_whatever_stands_beside_it():
  adapted, variables, *_ = problem()
  supports = randomized(variables['glora'], 4)
  genome = presets.preset(adapted.spec, 'lora')
  drop = functools.partial(drop_components, KEY, supports, adapted.groups, probability=0.5)
  alone = genome.copy()
  alone[0, 1] = 0
  first, second = (drop(genome=rows)['blocks']['dense']['B_up'] for rows in (genome, alone))
  np.testing.assert_array_equal(first[1], second[1])
  assert not np.array_equal(first[0] == 0, first[1] == 0)


@pytest.mark.parametrize('name', ['lora', 'supernet'])
def test_without_dropout_the_loss_keeps_its_bits_and_with_it_the_key_decides(name):
  _, _, images, labels = problem()

  def loss(key, probability):
    loss_fn, trainable, frozen = loss_of(name, component_dropout=probability)
    moved = {**trainable, 'glora': randomized(trainable['glora'], 4)}
    return float(jax.jit(loss_fn)(moved, frozen, images, labels, key)[0])

  loss_fn, trainable, frozen = loss_of(name)
  moved = {**trainable, 'glora': randomized(trainable['glora'], 4)}
  before = float(jax.jit(loss_fn)(moved, frozen, images, labels, KEY)[0])
  assert loss(KEY, 0.0) == before
  assert loss(KEY, 0.5) == loss(KEY, 0.5) != before


def test_every_path_of_a_supernet_is_dropped_by_its_own_genome():
  adapted, _, images, labels = problem(drop=0.0)
  trainable, frozen = adapted.split(problem(drop=0.0).variables)
  trainable = {**trainable, 'glora': randomized(trainable['glora'], 4)}
  lora = presets.preset(adapted.spec, 'lora')
  vectors = presets.preset(adapted.spec, 'ssf')

  def loss(genomes, probability):
    loss_fn = supernet_loss(
      adapted, unchanged, lambda key: jnp.asarray(genomes), component_dropout=probability
    )
    return loss_fn(trainable, frozen, images, labels, KEY)[0]

  assert abs(loss([lora, vectors], 0.5) - loss([lora, vectors], 0.0)) > 1e-3
  assert abs(loss([vectors, lora], 0.5) - loss([vectors, lora], 0.0)) > 1e-3
  np.testing.assert_allclose(loss([vectors] * 2, 0.5), loss([vectors] * 2, 0.0))


def test_the_two_passes_of_consistency_lose_different_parts():
  _, _, images, labels = problem(drop=0.0)
  adapted, variables, *_ = problem(drop=0.0)
  subnet = adapted.fix(presets.preset(adapted.spec, 'lora'))
  trainable, frozen = subnet.split(variables)
  trainable = {**trainable, 'glora': randomized(trainable['glora'], 4)}

  def loss(weight, probability):
    consistency = Consistency(weight=weight, sigma=0.0)
    loss_fn = subnet_loss(subnet, unchanged, consistency=consistency, component_dropout=probability)
    return loss_fn(trainable, frozen, images, labels, KEY)[0]

  np.testing.assert_allclose(loss(1.0, 0.0), loss(1e-9, 0.0), rtol=1e-6)
  assert loss(1.0, 0.5) > loss(1e-9, 0.5) + 1e-3


@pytest.mark.parametrize('name', ['lora', 'supernet'])
def test_a_resumed_run_with_dropout_ends_where_the_undisturbed_one_ends(name):
  whole = fit(name, RECIPE)
  half = fit(name, RECIPE, stop_epoch=jnp.float32(1))
  resumed = fit(name, RECIPE, state=half)
  np.testing.assert_array_equal(flat(resumed.trainable), flat(whole.trainable))
  plain = fit(name, dataclasses.replace(RECIPE, component_dropout=0.0))
  assert not np.allclose(flat(plain.trainable), flat(whole.trainable), atol=1e-3)


def test_side_by_side_and_apart_drop_the_same():
  _, _, images, labels = problem()
  runs = [Training(*loss_of('lora'), KEY)]
  (together,) = train_many(runs, images, labels, RECIPE, progress=False)
  apart = fit('lora', RECIPE)
  np.testing.assert_allclose(flat(together.trainable), flat(apart.trainable), rtol=1e-3, atol=2e-4)


def test_a_loss_that_knows_no_supports_is_told_so():
  def loss_fn(trainable, frozen, images, labels, key):
    return jnp.sum(trainable['w']), {}

  with pytest.raises(ValueError, match=r'component_dropout=0.5 needs .* take one of subnet_loss'):
    loop.fit(loss_fn, {'w': jnp.zeros(1)}, {}, jnp.zeros((8, 1)), jnp.zeros(8), RECIPE, KEY)
