"""The training loop: what is trained, what is not, resumption, divergence."""

import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import NUM_IMAGES, flat, problem, unchanged

from glora_jax.method.draws import sample_genome
from glora_jax.training import loop
from glora_jax.training.batches import batch_indices
from glora_jax.training.loop import TrainState
from glora_jax.training.losses import supernet_loss
from glora_jax.training.recipe import Recipe
from glora_jax.training.side_by_side import Training, train_many

RECIPE = Recipe(epochs=6, batch_size=6, warmup_epochs=1, learning_rate=3e-2)
STEPS_PER_EPOCH = 4
KEY = jax.random.key(4)


@pytest.fixture(scope='module')
def loss_fn():
  """The loss of a supernet that drops features and paths."""
  spec = problem().adapted.spec
  return supernet_loss(
    problem().adapted, unchanged, lambda key: sample_genome(key, spec), train=True
  )


@pytest.fixture(scope='module')
def fit(loss_fn):
  def fit(recipe=RECIPE, images=None, **options):
    labels = problem().labels
    images = problem().images if images is None else images
    return loop.fit(
      loss_fn, *problem().split(), images, labels, recipe, KEY, progress=False, **options
    )

  return fit


@pytest.fixture(scope='module')
def whole(fit):
  """The state after all epochs."""
  return fit()


@pytest.fixture(scope='module')
def first_epoch(fit):
  """The state after one epoch."""
  return fit(stop_epoch=1)


@pytest.mark.parametrize('dtype, warned', [('bfloat16', True), ('float32', False)])
def test_arrays_in_which_steps_are_rounded_away_are_named(caplog, dtype, warned):
  trainable = {'params': {'head': {'kernel': jnp.ones((3, 2), dtype)}}, 'steps': jnp.ones(2)}
  loop.fit(
    lambda trainable, *_: (jnp.sum(trainable['params']['head']['kernel'] ** 2), {}),
    trainable,
    {},
    jnp.ones((4, 3)),
    jnp.zeros(4),
    Recipe(epochs=1, batch_size=4, warmup_epochs=0),
    KEY,
    progress=False,
  )
  assert (
    'rounded away, and float16 may end in NaN: params/head/kernel. Give' in caplog.text
  ) == warned


def test_training_lowers_the_loss_and_moves_every_support(fit):
  losses = []
  state = fit(
    Recipe(epochs=40, batch_size=6, warmup_epochs=1, learning_rate=3e-2),
    on_dispatch=lambda state, means: losses.append(means['loss']),
    steps_per_dispatch=4,
  )
  assert len(losses) == 40
  assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
  assert state.step == 40 * STEPS_PER_EPOCH
  start, _ = problem().split()
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), start, state.trainable)
  assert all(jax.tree.leaves(moved)), moved


def test_gradients_and_optimizer_state_exist_for_supports_and_head_alone(first_epoch):
  trainable, _ = problem().split()
  moments = [leaf for leaf in jax.tree.leaves(first_epoch.opt_state) if leaf.ndim]
  assert sum(leaf.size for leaf in moments) == 2 * flat(trainable).size  # AdamW's two


def test_a_step_is_adamw_on_the_sampled_subnet(loss_fn, first_epoch):
  """The compiled loop against the same steps written out one by one."""
  trainable, frozen = problem().split()
  order_key, step_key = jax.random.split(KEY)
  optimizer = RECIPE.optimizer(NUM_IMAGES)
  opt_state = optimizer.init(trainable)

  @jax.jit
  def step(trainable, opt_state, images, labels, key):
    grads, _ = jax.grad(loss_fn, has_aux=True)(trainable, frozen, images, labels, key)
    updates, opt_state = optimizer.update(grads, opt_state, trainable)
    return optax.apply_updates(trainable, updates), opt_state

  for number, index in enumerate(batch_indices(order_key, 0, STEPS_PER_EPOCH, NUM_IMAGES, 6)):
    batch = problem().images[index], problem().labels[index]
    trainable, opt_state = step(trainable, opt_state, *batch, jax.random.fold_in(step_key, number))
  np.testing.assert_allclose(flat(first_epoch.trainable), flat(trainable), rtol=1e-3, atol=1e-5)


def test_resumed_training_equals_uninterrupted_training_bit_for_bit(fit, whole):
  half = fit(stop_epoch=2)
  assert half.step == 2 * STEPS_PER_EPOCH
  chex.assert_trees_all_equal(whole, fit(state=half))


def test_a_given_state_can_be_gone_on_from_again(fit, first_epoch):
  kept = jax.tree.map(np.array, first_epoch)
  again = [fit(state=first_epoch, stop_epoch=2) for _ in range(2)]
  chex.assert_trees_all_equal(*again)
  chex.assert_trees_all_equal(first_epoch, kept)


def test_the_number_of_steps_per_dispatch_changes_nothing(fit, whole):
  chex.assert_trees_all_equal(whole, fit(steps_per_dispatch=3))


class Stream:
  """Batches in the order of their indices, whose reading is an event."""

  def __init__(self, events):
    self.events = events

  def batches(self, indices):
    for number, index in enumerate(indices):
      self.events.append(f'read {number}')
      yield problem().images[index], problem().labels[index]


def test_the_next_images_of_a_stream_come_while_the_steps_before_them_run(fit, whole):
  """A block is read when the steps before it are dispatched, and before anyone waits for them."""
  events = []
  state = fit(
    images=Stream(events), steps_per_dispatch=1, on_dispatch=lambda *_: events.append('done')
  )
  steps = 6 * STEPS_PER_EPOCH
  expected = [event for n in range(1, steps) for event in (f'read {n}', 'done')]
  assert events == ['read 0', *expected, 'done']
  # Two programs, which round otherwise; one batch of other images would move A by 0.1.
  chex.assert_trees_all_close(state, whole, rtol=1e-3, atol=1e-5)


def test_the_first_epoch_of_a_stream_is_that_of_the_images(fit, first_epoch):
  """Before AdamW has made more of what two programs round otherwise."""
  state = fit(images=Stream([]), steps_per_dispatch=1, stop_epoch=1)
  chex.assert_trees_all_close(state, first_epoch, rtol=1e-5, atol=1e-6)


def test_all_calls_of_a_training_are_one_program_where_images_are_left_over(monkeypatch):
  programs, make_steps = [], loop.make_steps

  def remembered(*arguments):
    programs.append(make_steps(*arguments))
    return programs[-1]

  def loss_fn(trainable, frozen, images, labels, key):
    return jnp.mean((images @ trainable['slope'] - labels) ** 2), {}

  monkeypatch.setattr(loop, 'make_steps', remembered)
  images = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
  recipe = Recipe(epochs=3, batch_size=3, warmup_epochs=1)
  start, calls = {'slope': jnp.zeros(1)}, []
  loop.fit(
    loss_fn,
    start,
    {},
    images,
    images[:, 0],
    recipe,
    KEY,
    steps_per_dispatch=2,
    on_dispatch=lambda state, means: calls.append(state.step),
    progress=False,
  )
  assert calls == [2, 4, 6]
  assert [program._cache_size() for program in programs] == [1]


def test_the_callers_arrays_survive_donation(first_epoch):
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(problem().variables))


def test_a_diverging_loss_stops_with_the_last_good_state():
  start = {'bias': jnp.arange(3.0)}

  def loss_fn(trainable, frozen, images, labels, key):
    moved = jnp.abs(trainable['bias'] - start['bias']).max()
    return jnp.sum(trainable['bias']) + jnp.where(moved > 0.1, jnp.nan, 0), {}

  images, labels = problem().images, problem().labels
  with pytest.raises(loop.NonFiniteLossError, match=r'not finite at step (\d+)') as caught:
    loop.fit(loss_fn, start, {}, images, labels, RECIPE, KEY, progress=False)
  state = caught.value.state
  assert 0 < state.step < 6 * STEPS_PER_EPOCH
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state[:2]))

  # It is the very state that training ends with when it is told to end there.
  optimizer = RECIPE.optimizer(NUM_IMAGES)
  expected = TrainState(start, optimizer.init(start), 0)
  ones = {'bias': jnp.ones(3)}  # the gradient of a sum
  for step in range(state.step):
    updates, opt_state = optimizer.update(ones, expected.opt_state, expected.trainable)
    trainable = optax.apply_updates(expected.trainable, updates)
    expected = TrainState(trainable, opt_state, step + 1)
  np.testing.assert_allclose(state.trainable['bias'], expected.trainable['bias'], rtol=1e-5)


def test_what_is_said_of_a_loss_that_is_not_finite_goes_to_other_processes():
  error = loop.NonFiniteLossError(TrainState({'w': np.ones(2)}, (), 3), 0.5)
  received = pickle.loads(pickle.dumps(error))
  assert (str(received), received.state.step, received.learning_rate) == (str(error), 3, 0.5)


def distance(trainable, frozen, images, labels, key):
  """A finite loss, 0 from `w` = 0 on, whose gradient is NaN there: that of the root of 0."""
  return jnp.sqrt(jnp.sum((images @ trainable['w'] - labels) ** 2)), {}


@pytest.mark.parametrize('accumulate, epochs', [(1, 1), (2, 1), (1, 2)])
def test_a_gradient_that_is_not_finite_moves_nothing_at_the_last_step_either(accumulate, epochs):
  recipe = Recipe(epochs=epochs, batch_size=4, warmup_epochs=0, accumulate=accumulate)
  start, images, labels = {'w': jnp.zeros(3)}, jnp.ones((4, 3)), jnp.zeros(4)
  with pytest.raises(loop.NonFiniteLossError, match='The loss or its gradient was not') as caught:
    loop.fit(distance, start, {}, images, labels, recipe, KEY, progress=False)
  state = caught.value.state
  chex.assert_trees_all_equal(state, TrainState(start, recipe.optimizer(4).init(start), 0))

  (state,) = train_many(
    [Training(distance, start, {}, KEY)], images, labels, recipe, progress=False
  )
  chex.assert_trees_all_equal(state, caught.value.state)


def test_metrics_of_any_type_are_the_means_of_the_parts_of_a_batch():
  def loss_fn(trainable, frozen, images, labels, key):
    is_first = (labels == 0).any()
    metrics = {'bool': is_first, 'int8': jnp.int8(100), 'float16': jnp.float16(3e4), 'number': 3}
    return jnp.sum(trainable**2), metrics

  recipe = Recipe(epochs=1, batch_size=4, warmup_epochs=0, accumulate=4)
  images, labels, found = jnp.ones((4, 3)), jnp.array([0, 1, 0, 0]), []
  state = loop.fit(
    loss_fn,
    1.0,
    {},
    images,
    labels,
    recipe,
    KEY,
    on_dispatch=lambda state, means: found.append(means),
    progress=False,
  )
  expected = {'bool': 0.75, 'int8': 100, 'float16': np.float16(3e4), 'number': 3, 'loss': 1}
  assert found == [expected]
  assert state.trainable < 1


def test_a_gradient_of_16_bits_keeps_its_type_and_no_part_is_rounded_away():
  def loss_fn(trainable, frozen, images, labels, key):
    return jnp.sum(trainable.astype(jnp.float32) * labels.mean()), {}

  optimizer = optax.sgd(1.0)
  start, labels = jnp.zeros(2, jnp.bfloat16), jnp.array([256.0] + [1.0] * 255)
  carry = loop.Carry(start, optimizer.init(start), 0, True)
  step = loop.make_step(loss_fn, optimizer, accumulate=256)
  carry, _ = step(carry, {}, jnp.ones((256, 3)), labels, KEY)
  assert carry.trainable.dtype == jnp.bfloat16
  assert (carry.trainable == jnp.bfloat16(-labels.mean())).all()


def test_a_gradient_whose_norm_is_more_than_a_number_can_be_is_followed():
  def loss_fn(trainable, frozen, images, labels, key):
    return 1e18 * jnp.sum(trainable['w']), {}

  recipe = Recipe(epochs=1, batch_size=4, warmup_epochs=0)
  start, images, labels = {'w': jnp.zeros(1000)}, jnp.ones((4, 3)), jnp.zeros(4)
  state = loop.fit(loss_fn, start, {}, images, labels, recipe, KEY, progress=False)
  np.testing.assert_allclose(state.trainable['w'], -recipe.learning_rate, rtol=1e-5)


@pytest.mark.parametrize(
  'options, sentence',
  [
    ({'recipe': None}, 'recipe=None is no Recipe'),
    ({'loss_fn': 0.5}, 'loss_fn=0.5 is no function'),
    ({'state': {'step': 3}}, "state={'step': 3} is no TrainState"),
    ({'key': 0}, 'key=0 must be one random key'),
    ({'labels': None}, 'The labels are None; they must be an array of numbers'),
    ({'images': 'x'}, "The images are 'x'; they must be an array of numbers"),
    ({'labels': [0, 1, -1, 2]}, 'The label -1 of image 2 is no class'),
    ({'labels': [0.0, 1.0, 1.0, 1.0]}, 'The labels are float'),
    ({'steps_per_dispatch': 0}, 'steps_per_dispatch=0 must be at least 1'),
    ({'stop_epoch': 7}, 'stop_epoch=7 must be at least 0 and at most 6'),
  ],
)
def test_arguments_that_cannot_be_are_refused(options, sentence, loss_fn):
  trainable, frozen = problem().split()
  arguments = {
    'loss_fn': loss_fn,
    'trainable': trainable,
    'frozen': frozen,
    'images': problem().images[:4],
    'labels': problem().labels[:4],
    'recipe': RECIPE,
    'key': KEY,
  }
  with pytest.raises(ValueError, match=sentence):
    loop.fit(**{**arguments, **options}, progress=False)


@pytest.mark.parametrize(
  'result, sentence',
  [
    (jnp.zeros(()), r'it must give the pair \(loss, metrics\)'),
    ((jnp.zeros(()), [1.0]), r'it must give the pair \(loss, metrics\)'),
    ((jnp.zeros(3), {}), r'The loss is float32 \[3\]; it must be one floating-point number'),
    ((jnp.zeros((), int), {}), r'The loss is int32 \[\]; it must be one floating-point number'),
    ((jnp.zeros((), complex), {}), r'The loss is complex64 \[\]; it must be one floating-point'),
    ((jnp.zeros(()), {'by_part': {'a': 1.0}}), "The metric 'by_part' is {'a': 1.0}; it must be a"),
    ((jnp.zeros(()), {'accuracy': None}), "The metric 'accuracy' is None; it must be a number"),
  ],
)
def test_a_loss_that_cannot_be_minimized_is_refused(result, sentence):
  step = loop.make_step(lambda *_: result, optax.sgd(0.1))
  carry = loop.Carry({'w': jnp.zeros(2)}, optax.sgd(0.1).init({'w': jnp.zeros(2)}), 0, True)
  with pytest.raises(ValueError, match=sentence):
    step(carry, {}, jnp.zeros((2, 3)), jnp.zeros(2, int), KEY)
