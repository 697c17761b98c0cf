"""Runs side by side: equal to running them apart, in their order, each with its own fate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import randomized

import glora_jax
from glora_jax import space, training
from glora_jax.many import Training, train_many
from glora_jax.models.vit import ViT
from glora_jax.supernet import subnet_loss, supernet_loss

RECIPE = training.Recipe(epochs=3, batch_size=8, warmup_epochs=1, learning_rate=1e-2)


@pytest.fixture(scope='module')
def problem():
  model = ViT(3, patch_size=8, width=12, depth=2, num_heads=2, drop_path=0.1)
  images, labels = jax.random.normal(jax.random.key(0), (24, 16, 16, 3)), jnp.arange(24) % 3
  adapted = glora_jax.adapt(model, images[:1])
  variables = adapted.init(jax.random.key(1), randomized(model.init(jax.random.key(2), images[:1])['params'], 3))
  return adapted, variables, images, labels


flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_presets_and_seeds_side_by_side_are_those_trained_apart(problem):
  adapted, variables, images, labels = problem
  runs = []
  losses = {name: subnet_loss(adapted.fix(space.preset(adapted.spec, name)), lambda key, x: x, train=True) for name in ('lora', 'bitfit')}
  for seed in range(2):
    for name, loss in losses.items():  # interleaved, so that the groups' order is not the runs'
      runs.append(Training(loss, *adapted.fix(space.preset(adapted.spec, name)).split(variables), jax.random.key(seed)))
  together = train_many(runs, images, labels, RECIPE, steps_per_dispatch=4, progress=False)
  for run, state in zip(runs, together, strict=True):
    apart = training.fit(run.loss_fn, run.trainable, run.frozen, images, labels, RECIPE, run.key, progress=False)
    assert state.step == apart.step == 9
    # Some gradients are zero but for rounding (a key's bias moves no softmax), and AdamW blows those up to whole steps.
    agree = np.isclose(flat(state.trainable), flat(apart.trainable), rtol=1e-3, atol=2e-4)
    assert agree.mean() > 0.97
    assert np.mean(np.isclose(flat(state.trainable), flat(run.trainable), rtol=1e-3, atol=2e-4)) < 0.7  # training moved most of them
  assert not np.allclose(together[0].trainable['params']['head']['kernel'], together[2].trainable['params']['head']['kernel'], atol=1e-3)


def test_a_rate_is_a_factor_on_the_recipes_and_seeds_of_a_supernet_are_runs_too(problem):
  adapted, variables, images, labels = problem
  loss = supernet_loss(adapted, lambda key, x: x, lambda key: space.sample_genome(key, adapted.spec), train=True)
  halves, key = adapted.split(variables), jax.random.key(0)
  half, whole = train_many([Training(loss, *halves, key, rate=0.5), Training(loss, *halves, key)], images, labels, RECIPE, progress=False)
  scaled = {name: getattr(RECIPE, name) / 2 for name in ('learning_rate', 'initial_learning_rate', 'final_learning_rate')}
  for state, fields in ((half, scaled), (whole, {})):
    recipe = training.Recipe(epochs=3, batch_size=8, warmup_epochs=1, **{'learning_rate': 1e-2, **fields})
    apart = training.fit(loss, *halves, images, labels, recipe, key, progress=False)
    kernel = lambda state: state.trainable['params']['head']['kernel']
    np.testing.assert_allclose(kernel(state), kernel(apart), rtol=1e-3, atol=2e-4)


def test_a_diverging_run_stops_alone_at_its_last_good_state(caplog):
  def loss(trainable, frozen, images, labels, key):
    value = jnp.sum(trainable['w'])  # falls by the learning rate in every step
    return jnp.where(value < -0.5, jnp.nan, value), {}

  start = lambda value: {'w': jnp.float32(value)}
  recipe = training.Recipe(epochs=4, batch_size=2, warmup_epochs=0, learning_rate=0.1, final_learning_rate=0.1, weight_decay=0)
  images, labels = jnp.zeros((10, 1)), jnp.zeros(10, jnp.int32)
  runs = [Training(loss, start(value), {}, jax.random.key(0)) for value in (10.0, 0.0)]
  fine, stopped = train_many(runs, images, labels, recipe, steps_per_dispatch=3, progress=False)
  assert fine.step == 20
  np.testing.assert_allclose(fine.trainable['w'], 10 - 20 * 0.1, rtol=1e-4)
  assert 5 <= stopped.step <= 7
  np.testing.assert_allclose(stopped.trainable['w'], -0.1 * stopped.step, rtol=1e-4)
  assert f'run 1 at step {stopped.step}' in caplog.text
