"""Training: what is trained, what is not, order, resumption, divergence."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import randomized

import glora_jax
from glora_jax.method import genomes
from glora_jax.models.vit import ViT
from glora_jax.training import loop
from glora_jax.training.loop import TrainState
from glora_jax.training.losses import supernet_loss
from glora_jax.training.recipe import Recipe

RECIPE = Recipe(epochs=6, batch_size=8, warmup_epochs=1, learning_rate=3e-2)


@pytest.fixture(scope='module')
def problem():
  """A small ViT to adapt, 32 images, and the loss of its supernet."""
  model = ViT(3, patch_size=8, width=12, depth=2, num_heads=2, drop_path=0.1)
  labels = jnp.arange(32) % 3
  patterns = jax.random.normal(jax.random.key(5), (3, 16, 16, 3))
  images = 2 * patterns[labels] + jax.random.normal(jax.random.key(0), (32, 16, 16, 3))
  adapted = glora_jax.adapt(model, images[:1])
  variables = adapted.init(
    jax.random.key(1), randomized(model.init(jax.random.key(2), images[:1])['params'], 3)
  )
  loss_fn = supernet_loss(
    adapted, lambda key, x: x, lambda key: genomes.sample_genome(key, adapted.spec), train=True
  )
  return adapted, variables, images, labels, loss_fn


def fit(problem, recipe=RECIPE, **options):
  adapted, variables, images, labels, loss_fn = problem
  trainable, frozen = adapted.split(variables)
  return loop.fit(
    loss_fn, trainable, frozen, images, labels, recipe, jax.random.key(4), progress=False, **options
  )


def test_training_lowers_the_loss_and_moves_every_support(problem):
  losses = []
  state = fit(
    problem,
    Recipe(epochs=40, batch_size=8, warmup_epochs=1, learning_rate=3e-2),
    on_dispatch=lambda state, means: losses.append(means['loss']),
    steps_per_dispatch=4,
  )
  assert len(losses) == 40
  assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
  assert state.step == 40 * 4
  start = problem[0].split(problem[1])[0]
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), start, state.trainable)
  assert all(jax.tree.leaves(moved)), moved


def test_gradients_and_optimizer_state_exist_for_supports_and_head_alone(problem):
  state = fit(problem, stop_epoch=1)
  trained = sum(leaf.size for leaf in jax.tree.leaves(problem[0].split(problem[1])[0]))
  assert (
    sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim) == 2 * trained
  )  # AdamW's two moments


def test_a_step_is_adamw_on_the_sampled_subnet(problem):
  """The compiled loop against the same steps written out one by one."""
  adapted, variables, images, labels, loss_fn = problem
  trainable, frozen = adapted.split(variables)
  key = jax.random.key(4)
  state = fit(problem, stop_epoch=1)
  order_key, step_key = jax.random.split(key)
  optimizer = RECIPE.optimizer(32)
  opt_state = optimizer.init(trainable)
  gradient = jax.jit(jax.grad(loss_fn, has_aux=True))
  for step, index in enumerate(loop.batch_indices(order_key, 0, 4, 32, 8)):
    grads, _ = gradient(
      trainable, frozen, images[index], labels[index], jax.random.fold_in(step_key, step)
    )
    updates, opt_state = optimizer.update(grads, opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
  # Some gradients are zero but for rounding (a key's bias moves no softmax), and AdamW blows those up to whole steps.
  flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
  agree = np.isclose(flat(state.trainable), flat(trainable), rtol=1e-3, atol=1e-5)
  assert agree.mean() > 0.98


def test_resumed_training_equals_uninterrupted_training_bit_for_bit(problem):
  whole = fit(problem)
  half = fit(problem, stop_epoch=2)
  assert half.step == 8
  resumed = fit(problem, state=half)
  jax.tree.map(np.testing.assert_array_equal, whole.trainable, resumed.trainable)


def test_the_number_of_steps_per_dispatch_changes_nothing(problem):
  jax.tree.map(
    np.testing.assert_array_equal,
    fit(problem).trainable,
    fit(problem, steps_per_dispatch=3).trainable,
  )


def test_the_callers_arrays_survive_donation(problem):
  fit(problem, stop_epoch=1)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(problem[1]))


def test_every_epoch_is_its_own_permutation_without_the_partial_batch():
  key = jax.random.key(0)
  rows = loop.batch_indices(key, 0, 9, 32, 10)
  epochs = rows.reshape(3, 30)
  for epoch in epochs:
    assert len(set(epoch.tolist())) == 30
  assert not np.array_equal(epochs[0], epochs[1])
  for first, last in ((0, 1), (2, 5), (4, 9)):
    np.testing.assert_array_equal(loop.batch_indices(key, first, last, 32, 10), rows[first:last])


def test_a_diverging_loss_stops_with_the_last_good_state(problem):
  adapted, variables, images, labels, _ = problem
  trainable, frozen = adapted.split(variables)
  start = trainable['params']['head']['bias']

  def loss_fn(trainable, frozen, images, labels, key):
    # Becomes NaN as soon as the head's bias has moved far enough.
    bias = trainable['params']['head']['bias']
    loss = jnp.sum(bias) + jnp.where(jnp.abs(bias - start).max() > 0.1, jnp.nan, 0)
    return loss, {}

  with pytest.raises(loop.NonFiniteLossError, match=r'not finite at step (\d+)') as caught:
    loop.fit(loss_fn, trainable, frozen, images, labels, RECIPE, jax.random.key(0), progress=False)
  state = caught.value.state
  assert 0 < state.step < 24
  assert all(
    np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.trainable, state.opt_state))
  )
  # It is the very state that training ends with when it is told to end there.
  again = TrainState(trainable, RECIPE.optimizer(32).init(trainable), 0)
  for step in range(state.step):
    updates, opt_state = RECIPE.optimizer(32).update(
      jax.grad(lambda t: jnp.sum(t['params']['head']['bias']))(again.trainable),
      again.opt_state,
      again.trainable,
    )
    again = TrainState(optax.apply_updates(again.trainable, updates), opt_state, step + 1)
  np.testing.assert_allclose(
    state.trainable['params']['head']['bias'], again.trainable['params']['head']['bias'], rtol=1e-5
  )


def test_defaults_are_the_official_recipe():
  recipe = Recipe()
  assert (recipe.epochs, recipe.batch_size, recipe.warmup_epochs) == (500, 64, 10)
  assert (recipe.learning_rate, recipe.initial_learning_rate, recipe.final_learning_rate) == (
    1e-4,
    1e-6,
    1e-5,
  )
  assert recipe.weight_decay == 1e-4


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'epochs': -1}, 'cannot be negative'),
    ({'warmup_epochs': 501}, 'more than epochs=500'),
    ({'learning_rate': 0}, 'must be above 0'),
    ({'batch_size': 0}, 'at least 1'),
  ],
)
def test_wrong_recipes_are_explained(fields, message):
  with pytest.raises(ValueError, match=message):
    Recipe(**fields)


def test_a_batch_larger_than_the_data_is_explained():
  with pytest.raises(ValueError, match='batch_size=64 is larger than the 10 training images'):
    Recipe().steps_per_epoch(10)
