"""Runs side by side: equal to running them apart, in their order, each with its own fate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import randomized

import glora_jax
from glora_jax.method import presets
from glora_jax.method.genomes import sample_genome
from glora_jax.models.vit import ViT
from glora_jax.training import loop, side_by_side
from glora_jax.training.losses import subnet_loss, supernet_loss
from glora_jax.training.recipe import Recipe
from glora_jax.training.side_by_side import Training, subnet_runs, train_many

RECIPE = Recipe(epochs=3, batch_size=8, warmup_epochs=1, learning_rate=1e-2)


@pytest.fixture(scope='module')
def problem():
  model = ViT(3, patch_size=8, width=12, depth=2, num_heads=2, drop_path=0.1)
  images, labels = jax.random.normal(jax.random.key(0), (24, 16, 16, 3)), jnp.arange(24) % 3
  adapted = glora_jax.adapt(model, images[:1])
  variables = adapted.init(
    jax.random.key(1), randomized(model.init(jax.random.key(2), images[:1])['params'], 3)
  )
  return adapted, variables, images, labels


def flat(trainable):
  """All numbers but the keys' biases: those move no softmax, so their gradients are rounding, and AdamW makes whole steps of that."""

  def kept(path, leaf):
    return np.ravel(
      leaf[:, np.r_[:12, 24:36]] if jax.tree_util.keystr(path).endswith("['qkv']['E']") else leaf
    )

  return np.concatenate(jax.tree.leaves(jax.tree_util.tree_map_with_path(kept, trainable)))


def test_presets_and_seeds_side_by_side_are_those_trained_apart(problem):
  adapted, variables, images, labels = problem
  runs = []
  losses = {
    name: subnet_loss(adapted.fix(presets.preset(adapted.spec, name)), lambda key, x: x, train=True)
    for name in ('lora', 'bitfit')
  }
  for seed in range(2):
    for name, loss in losses.items():  # interleaved, so that the groups' order is not the runs'
      runs.append(
        Training(
          loss,
          *adapted.fix(presets.preset(adapted.spec, name)).split(variables),
          jax.random.key(seed),
        )
      )
  together = train_many(runs, images, labels, RECIPE, steps_per_dispatch=4, progress=False)
  for run, state in zip(runs, together, strict=True):
    apart = loop.fit(
      run.loss_fn, run.trainable, run.frozen, images, labels, RECIPE, run.key, progress=False
    )
    assert state.step == apart.step == 9
    np.testing.assert_allclose(flat(state.trainable), flat(apart.trainable), rtol=1e-3, atol=2e-4)
    assert (
      np.mean(np.isclose(flat(state.trainable), flat(run.trainable), rtol=1e-3, atol=2e-4)) < 0.7
    )  # training moved most of them
  assert not np.allclose(
    together[0].trainable['params']['head']['kernel'],
    together[2].trainable['params']['head']['kernel'],
    atol=1e-3,
  )


def test_a_rate_is_a_factor_on_the_recipes_and_seeds_of_a_supernet_are_runs_too(problem):
  adapted, variables, images, labels = problem
  loss = supernet_loss(
    adapted, lambda key, x: x, lambda key: sample_genome(key, adapted.spec), train=True
  )
  halves, key = adapted.split(variables), jax.random.key(0)
  half, whole = train_many(
    [Training(loss, *halves, key, rate=0.5), Training(loss, *halves, key)],
    images,
    labels,
    RECIPE,
    progress=False,
  )
  scaled = {
    name: getattr(RECIPE, name) / 2
    for name in ('learning_rate', 'initial_learning_rate', 'final_learning_rate')
  }
  for state, fields in ((half, scaled), (whole, {})):
    recipe = Recipe(epochs=3, batch_size=8, warmup_epochs=1, **{'learning_rate': 1e-2, **fields})
    apart = loop.fit(loss, *halves, images, labels, recipe, key, progress=False)
    kernel = lambda state: state.trainable['params']['head']['kernel']
    np.testing.assert_allclose(kernel(state), kernel(apart), rtol=1e-3, atol=2e-4)


def test_a_diverging_run_stops_alone_at_its_last_good_state(caplog):
  def loss(trainable, frozen, images, labels, key):
    value = jnp.sum(trainable['w'])  # falls by the learning rate in every step
    return jnp.where(value < -0.5, jnp.nan, value), {}

  start = lambda value: {'w': jnp.float32(value)}
  recipe = Recipe(
    epochs=4,
    batch_size=2,
    warmup_epochs=0,
    learning_rate=0.1,
    final_learning_rate=0.1,
    weight_decay=0,
  )
  images, labels = jnp.zeros((10, 1)), jnp.zeros(10, jnp.int32)
  runs = [Training(loss, start(value), {}, jax.random.key(0)) for value in (10.0, 0.0)]
  fine, stopped = train_many(runs, images, labels, recipe, steps_per_dispatch=3, progress=False)
  assert fine.step == 20
  np.testing.assert_allclose(fine.trainable['w'], 10 - 20 * 0.1, rtol=1e-4)
  assert 5 <= stopped.step <= 7
  np.testing.assert_allclose(stopped.trainable['w'], -0.1 * stopped.step, rtol=1e-4)
  assert f'run 1 at step {stopped.step}' in caplog.text


@pytest.fixture
def programs(monkeypatch):
  """The loss of every group that is trained."""
  made, make = [], side_by_side._make_steps
  monkeypatch.setattr(
    side_by_side,
    '_make_steps',
    lambda loss_fn, *rest: (made.append(loss_fn), make(loss_fn, *rest))[1],
  )
  return made


def test_runs_on_other_frozen_arrays_are_another_group(programs):
  def loss(trainable, frozen, images, labels, key):
    return jnp.sum((trainable['w'] - frozen['goal']) ** 2), {}

  recipe = Recipe(epochs=2, batch_size=2, warmup_epochs=0, learning_rate=0.1)
  images, labels, goals = (
    jnp.zeros((4, 1)),
    jnp.zeros(4, jnp.int32),
    ({'goal': jnp.float32(5)}, {'goal': jnp.float32(-5)}),
  )
  runs = [
    Training(loss, {'w': jnp.float32(start)}, goals[which], jax.random.key(0))
    for start, which in ((0, 0), (0, 1), (1, 0))
  ]
  states = train_many(runs, images, labels, recipe, progress=False)
  assert programs == [loss, loss]
  for run, state in zip(runs, states, strict=True):
    apart = loop.fit(
      loss, run.trainable, run.frozen, images, labels, recipe, run.key, progress=False
    )
    np.testing.assert_allclose(state.trainable['w'], apart.trainable['w'], rtol=1e-5)


def test_a_table_of_subnets_and_starts_is_a_group_for_each_subnet_and_its_states_join_to_variables(
  problem, programs
):
  adapted, variables, images, labels = problem
  keys = [jax.random.key(seed) for seed in range(2)]
  starts = [adapted.init(key, variables['params']) for key in keys]
  genomes = [presets.preset(adapted.spec, name) for name in ('lora', 'bitfit')]
  runs = subnet_runs(adapted, genomes, starts, keys, lambda key, x: x, train=True)
  states = train_many(runs, images, labels, RECIPE, progress=False)
  assert len(programs) == 2
  forward = jax.jit(lambda variables, genome: adapted.apply(variables, images, genome=genome))
  for number, (run, state) in enumerate(zip(runs, states, strict=True)):
    genome, start = genomes[number // 2], starts[number % 2]
    trained, subnet = adapted.join(state.trainable, run.frozen), adapted.fix(genome)
    assert jax.tree.structure(trained) == jax.tree.structure(start)
    logits = forward(trained, genome)
    assert np.abs(logits - forward(start, genome)).max() > 1e-2
    # The supports that a genome does not use are of no consequence.
    np.testing.assert_array_equal(
      logits, forward(subnet.join(state.trainable, subnet.split(start)[1]), genome)
    )
  down = lambda tree: tree['glora']['blocks']['attn']['qkv']['B_down']
  np.testing.assert_array_equal(down(runs[1].trainable), down(starts[1]))


def test_what_cannot_be_is_explained():
  class Stream:
    batches = None

  run, labels = (
    Training(lambda *_: (0.0, {}), {'w': jnp.float32(0)}, {}, jax.random.key(0)),
    jnp.zeros(8, jnp.int32),
  )
  recipe = Recipe(epochs=1, batch_size=4, warmup_epochs=0)
  with pytest.raises(ValueError, match='train_many takes resident images'):
    train_many([run], Stream(), labels, recipe)
  with pytest.raises(ValueError, match='rate=0 of run 1 must be above 0'):
    train_many(
      [run, Training(run.loss_fn, run.trainable, {}, run.key, rate=0)],
      jnp.zeros((8, 1)),
      labels,
      recipe,
    )
