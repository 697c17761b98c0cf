"""The training loop: what is trained, what is not, resumption, divergence."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from comparing import assert_trees_equal, vector
from numpy.testing import assert_allclose
from tiny import NUM_IMAGES, Stream, problem

from glora_jax.training import loop
from glora_jax.training.batches import batch_indices
from glora_jax.training.fit import step_loss
from glora_jax.training.loop import TrainState
from glora_jax.training.losses import classification
from glora_jax.training.recipe import Recipe

RECIPE = Recipe(epochs=6, batch_size=6, warmup=1 / 6, learning_rate=3e-2)
STEPS_PER_EPOCH = 4
KEY = jax.random.key(4)


LOSS = step_loss(problem().adapted, classification(train=True))  # drops features and paths


def fit(data=problem().data, **options):
  return loop.minimize(LOSS, *problem().split(), data, RECIPE, KEY, progress=False, **options)


def at_the_first_epochs_end(state, means):
  return state.step == STEPS_PER_EPOCH


def minimized(loss, start, **options):
  """The state after training with a loss(trainable)."""
  recipe = Recipe(**{'epochs': 1, 'batch_size': 4, 'warmup': 0.0} | options.pop('fields', {}))

  def loss_fn(trainable, frozen, batch, key):
    return loss(trainable)

  return loop.minimize(loss_fn, start, {}, jnp.ones(4), recipe, KEY, progress=False, **options)


def test_arrays_in_which_steps_are_rounded_away_are_named(caplog):
  trainable = {'params': {'head': {'kernel': jnp.ones((3, 2), 'bfloat16')}}, 'steps': jnp.ones(2)}
  minimized(lambda tree: jnp.sum(tree['params']['head']['kernel'] ** 2), trainable)
  assert 'may end in NaN: params/head/kernel. Pass' in caplog.text


def test_a_step_is_adamw_on_the_sampled_subnet():
  """The compiled loop against the same steps written out one by one."""
  trainable, frozen = problem().split()
  order_key, step_key = jax.random.split(KEY)
  optimizer = RECIPE.optimizer(STEPS_PER_EPOCH)
  opt_state = optimizer.init(trainable)

  @jax.jit
  def step(trainable, opt_state, batch, key):
    grads, _ = jax.grad(LOSS, has_aux=True)(trainable, frozen, batch, key)
    updates, opt_state = optimizer.update(grads, opt_state, trainable)
    return optax.apply_updates(trainable, updates), opt_state

  for number, index in enumerate(batch_indices(order_key, 0, STEPS_PER_EPOCH, NUM_IMAGES, 6)):
    batch = problem().images[index], problem().labels[index]
    trainable, opt_state = step(trainable, opt_state, batch, jax.random.fold_in(step_key, number))
  assert_allclose(
    vector(fit(every=1, look=at_the_first_epochs_end).trainable),
    vector(trainable),
    rtol=1e-3,
    atol=1e-5,
  )


def test_the_next_images_of_a_stream_come_while_the_steps_before_them_run():
  """A block is read when the steps before it are dispatched, and before anyone waits for them."""
  events = []
  fit(
    data=Stream(events),
    every=1,
    look=lambda *at: events.append(None) or at_the_first_epochs_end(*at),
  )
  happened = ['done' if event is None else 'read' for event in events]
  assert happened == ['read', *['read', 'done'] * STEPS_PER_EPOCH]


def test_what_is_said_of_a_loss_that_is_not_finite_goes_to_other_processes():
  error = loop.NonFiniteLossError(TrainState({'w': np.ones(2)}, (), 3), 0.5)
  received = pickle.loads(pickle.dumps(error))
  assert (str(received), received.state.step, received.learning_rate) == (str(error), 3, 0.5)


def test_any_optimizer_takes_the_place_of_the_recipes_and_its_state_resumes():
  def loss(tree):
    return sum(map(jnp.sum, tree.values()))

  start = {'moved': jnp.zeros(2), 'kept': jnp.zeros(2)}
  mask = {'moved': 'sgd', 'kept': 'none'}
  tx = optax.partition({'sgd': optax.sgd(0.5, momentum=0.5), 'none': optax.set_to_zero()}, mask)
  train = functools.partial(minimized, loss, start, tx=tx)
  half, whole = train(fields={'epochs': 2}, look=lambda *_: True), train(fields={'epochs': 2})
  assert_allclose(whole.trainable['moved'], -0.5 - 0.75)
  assert_trees_equal(whole.trainable['kept'], start['kept'])
  assert_trees_equal(train(fields={'epochs': 2}, state=half), whole)


@pytest.mark.parametrize('accumulate, epochs', [(2, 1), (1, 2)])
def test_a_gradient_that_is_not_finite_moves_nothing_at_the_last_step_either(accumulate, epochs):
  def distance(trainable, frozen, batch, key):
    """Is finite, 0 from `w` = 0 on, where its gradient is NaN: that of the root of 0."""
    images, labels = batch
    return jnp.sqrt(jnp.sum((images @ trainable['w'] - labels) ** 2)), {}

  recipe = Recipe(epochs=epochs, batch_size=4, warmup=0.0, accumulate=accumulate)
  start, data = {'w': jnp.zeros(3)}, (jnp.ones((4, 3)), jnp.zeros(4))
  with pytest.raises(loop.NonFiniteLossError, match='at step 0, with learning_rate=') as caught:
    loop.minimize(distance, start, {}, data, recipe, KEY, progress=False)
  state = caught.value.state
  assert_trees_equal(state, TrainState(start, recipe.optimizer(1).init(start), 0, {}))
  starts = jax.tree.map(lambda leaf: leaf[None], start)
  found = loop.minimize(distance, starts, {}, data, recipe, KEY[None], progress=False)
  assert_trees_equal(jax.tree.map(lambda leaf: leaf[0], found), state)


def test_a_gradient_of_16_bits_keeps_its_type_and_no_part_is_rounded_away():
  def loss_fn(trainable, frozen, batch, key):
    mean = batch[1].mean()
    return jnp.sum(trainable.astype(jnp.float32) * mean), {'mean': mean}

  optimizer = optax.sgd(1.0)
  start, labels = jnp.zeros(2, jnp.bfloat16), jnp.array([256.0] + [1.0] * 255)
  carry = loop.Carry(start, optimizer.init(start), 0, True)
  step = loop.make_step(loss_fn, optimizer, accumulate=256)
  carry, metrics = step(carry, {}, (jnp.ones((256, 3)), labels), KEY)
  assert carry.trainable.dtype == jnp.bfloat16
  assert (carry.trainable == jnp.bfloat16(-labels.mean())).all()
  assert_allclose(metrics['mean'], labels.mean(), rtol=1e-6)


def test_a_gradient_whose_norm_is_more_than_a_number_can_be_is_followed():
  state = minimized(lambda tree: 1e18 * jnp.sum(tree), jnp.zeros(1000))
  assert_allclose(state.trainable, -Recipe().learning_rate, rtol=1e-5)


def test_a_compiled_step_grows_with_the_number_of_arrays_and_not_with_its_square():
  def loss_fn(trainable, frozen, batch, key):
    x = batch.sum()
    for array in trainable:
      x = jnp.tanh(array * x).sum()
    return x

  def num_instructions(arrays):
    trainable, optimizer = [jnp.ones(3)] * arrays, Recipe().optimizer(10)
    state, data, indices = optimizer.init(trainable), jnp.ones(1), np.zeros((1, 1), int)
    rest = trainable, state, 0, {}, data, indices, jax.random.key(0)
    return loop.make_steps(loss_fn, optimizer).lower(*rest).compile().as_text().count(' = ')

  assert num_instructions(64) < 5 * num_instructions(16)


def test_a_training_of_no_arrays_takes_its_steps():
  assert minimized(lambda tree: jnp.sum(jnp.ones(2)), {}, fields={'epochs': 4}).step == 4
