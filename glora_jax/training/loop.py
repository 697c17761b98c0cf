"""Training: the recipe, one step, many steps per dispatch.

`fit` knows neither models nor GLoRA: it minimizes `loss_fn(trainable, frozen, images, labels, key)` over a resident data set.
Everything random is a function of the key and the step number, so a run that is resumed from a saved state ends exactly
where the undisturbed one ends.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from glora_jax import mesh as meshes
from glora_jax.training.recipe import Recipe

log = logging.getLogger(__name__)

STREAMED_STEPS = (
  8  # per dispatch, where images come with it: what is held ready is this many batches
)

LossFn = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


class TrainState(NamedTuple):
  """All that a training run needs to go on: `step` counts the steps done."""

  trainable: Any
  opt_state: Any
  step: int


class NonFiniteLossError(RuntimeError):
  """The loss became NaN or infinite. `state` is the last good one, before that step."""

  def __init__(self, state: TrainState):
    self.state = state
    super().__init__(
      f'The loss was not finite at step {state.step}; the state before that step was kept. '
      'Lower the learning rate, or check the images and the pretrained weights.'
    )


def batch_indices(
  key: jax.Array, first: int, last: int, num_examples: int, batch_size: int
) -> np.ndarray:
  """Indices of the images of steps `first` to `last - 1`, int32 [steps, batch].

  Every epoch is its own permutation, a function of the key and the epoch alone; the partial batch at its end is dropped.
  """
  per_epoch = num_examples // batch_size
  epochs = range(first // per_epoch, -(-last // per_epoch))
  order = [
    np.asarray(_permutation(key, epoch, num_examples))[: per_epoch * batch_size] for epoch in epochs
  ]
  rows = np.concatenate(order).reshape(-1, batch_size)
  offset = first - epochs.start * per_epoch
  return rows[offset : offset + last - first].astype(np.int32)


@functools.partial(jax.jit, static_argnums=2)
def _permutation(key, epoch, num_examples):
  return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)


def make_step(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  accumulate: int = 1,
  mesh: jax.sharding.Mesh | None = None,
) -> Callable:
  """One training step, not compiled: `((trainable, opt_state, step, finite), frozen, images, labels, key) -> (the same, metrics)`.

  From the first non-finite loss on nothing is updated any more: what is carried stays the last good state, and `finite` False.
  """
  gradient = jax.value_and_grad(loss_fn, has_aux=True)

  def mean_gradient(trainable, frozen, images, labels, key):
    if accumulate == 1:
      return gradient(trainable, frozen, images, labels, key)
    parts = lambda x: _deal(mesh, x.reshape(accumulate, -1, *x.shape[1:]), axis=1)
    keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(accumulate))
    batch = parts(images), parts(labels), keys
    zeros = lambda shape: jnp.zeros(shape.shape, shape.dtype)
    start = jax.tree.map(
      zeros, jax.eval_shape(gradient, trainable, frozen, *jax.tree.map(lambda x: x[0], batch))
    )
    add = lambda total, part: (
      jax.tree.map(jnp.add, total, gradient(trainable, frozen, *part)),
      None,
    )
    total, _ = jax.lax.scan(add, start, batch)
    return jax.tree.map(lambda x: x / accumulate, total)

  def one(carry, frozen, images, labels, key):
    trainable, opt_state, step, finite = carry
    (loss, metrics), grads = mean_gradient(
      trainable, frozen, images, labels, jax.random.fold_in(key, step)
    )
    updates, new_opt_state = optimizer.update(grads, opt_state, trainable)
    finite &= jnp.isfinite(loss)
    keep = functools.partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))
    carry = keep(
      (optax.apply_updates(trainable, updates), new_opt_state, step + 1),
      (trainable, opt_state, step),
    )
    return (*carry, finite), {'loss': loss, **metrics}

  return one


def make_steps(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  accumulate: int = 1,
  mesh: jax.sharding.Mesh | None = None,
) -> Callable:
  """Many training steps as one compiled function; `accumulate` as in `Recipe`, `mesh` as in `fit`.

  Returns:
    `steps(trainable, opt_state, step, frozen, images, labels, indices, key)` with `indices` int32 [steps, batch], giving
    `(trainable, opt_state, done, metrics)`: `done` steps were taken, and metrics are arrays [steps]. From the first
    non-finite loss on nothing is updated any more, so what comes back is the last good state. With `indices` None, images and
    labels come batch by batch, [steps, batch, ...].
  """
  step_once = make_step(loss_fn, optimizer, accumulate, mesh)
  whole = {} if mesh is None else {'out_shardings': meshes.replicated(mesh)}

  @functools.partial(jax.jit, donate_argnums=(0, 1), **whole)
  def steps(trainable, opt_state, step, frozen, images, labels, indices, key):
    def one(carry, batch):
      if indices is not None:
        index = _deal(mesh, batch)  # each device takes its own rows of what it holds whole
        batch = images[index], labels[index]
      return step_once(carry, frozen, *(_deal(mesh, rows) for rows in batch), key)

    start = (trainable, opt_state, jnp.int32(step), jnp.bool_(True))
    (trainable, opt_state, done, _), metrics = jax.lax.scan(
      one, start, (images, labels) if indices is None else indices
    )
    return trainable, opt_state, done, metrics

  return steps


def _deal(mesh, rows, axis=0):
  return rows if mesh is None else jax.lax.with_sharding_constraint(rows, meshes.dealt(mesh, axis))


def steps_per_call(per_epoch: int, most: int) -> int:
  """Whole epochs per call where they are short, whole fractions of one where they are long: one shape, one compilation."""
  if per_epoch < most:
    return per_epoch * (most // per_epoch)
  fraction = max(n for n in range(1, most + 1) if per_epoch % n == 0)
  return fraction if fraction > most // 4 else most


def fit(
  loss_fn: LossFn,
  trainable: Any,
  frozen: Any,
  images: Any,
  labels: Any,
  recipe: Recipe,
  key: jax.Array,
  *,
  state: TrainState | None = None,
  stop_epoch: int | None = None,
  steps_per_dispatch: int = 50,
  on_dispatch: Callable[[TrainState, dict[str, float]], None] | None = None,
  title: str = 'train',
  progress: bool = True,
  mesh: jax.sharding.Mesh | None = None,
) -> TrainState:
  """Minimizes a loss by the recipe.

  Args:
    loss_fn: `(trainable, frozen, images, labels, key) -> (loss, metrics)`, scalars.
    trainable, frozen: trees of arrays; only `trainable` gets gradients and optimizer state.
    images, labels: the whole training set on the device, [n, ...] and int [n]; `loss_fn` sees batches of their rows. Or `images` is
      a stream, with `batches(indices)`, and the labels are its own (`data.pipeline.Stream`): the same rows in the same order.
    recipe: see `Recipe`.
    key: decides order, and is handed on to `loss_fn`, folded with the step.
    state: where to go on from; None starts from `trainable`.
    stop_epoch: stop after so many epochs of the recipe's schedule; None goes to its end.
    steps_per_dispatch: most steps per compiled call; also how often progress and `on_dispatch` hear of it.
    on_dispatch: called with the state and the mean metrics since the last call; save and log there.
    title: of the progress bar.
    progress: whether to show the bar.
    mesh: batches are dealt to all its devices, of all processes, and the trained state is whole on every one. What of `frozen` lies on
      it already stays there as it is (`mesh.shard`); the rest is replicated. None for one device.

  Returns:
    The final state.

  Raises:
    ValueError: the batch size does not fit the images or the mesh.
    NonFiniteLossError: with the last good state in `.state`.
  """
  num_examples = len(labels)
  streamed = hasattr(images, 'batches')
  if streamed:
    steps_per_dispatch = min(steps_per_dispatch, STREAMED_STEPS)
  else:
    chex.assert_equal_shape_prefix([images, labels], 1)
  per_epoch = recipe.steps_per_epoch(num_examples)
  optimizer = recipe.optimizer(num_examples)
  last = per_epoch * (recipe.epochs if stop_epoch is None else stop_epoch)
  chunk = steps_per_call(per_epoch, steps_per_dispatch)
  if mesh is not None:
    meshes.require_divisible(mesh, recipe.batch_size // recipe.accumulate)
    trainable, frozen = meshes.replicate(mesh, trainable), meshes.settle(mesh, frozen)
    if not streamed:
      images, labels = meshes.replicate(mesh, (images, labels))
  if state is None:
    trainable = jax.tree.map(
      jnp.copy, trainable
    )  # the compiled steps donate their input; the caller's arrays stay alive
    state = TrainState(trainable, optimizer.init(trainable), 0)
  if mesh is not None:
    state = TrainState(*meshes.replicate(mesh, state[:2]), state.step)
  if 0 < state.step < last:
    log.info('%s: resumed at step %d', title, state.step)
  order_key, step_key = jax.random.split(key)
  steps = make_steps(loss_fn, optimizer, recipe.accumulate, mesh)
  feed = (
    _feed(images, order_key, state.step, last, num_examples, recipe.batch_size, mesh)
    if streamed
    else None
  )

  start = time.perf_counter()
  with tqdm(
    total=last,
    initial=min(state.step, last),
    desc=title,
    unit='step',
    disable=not (progress and meshes.primary()),
  ) as bar:
    while state.step < last:
      stop = min(state.step + chunk, last)
      if streamed:
        block = [
          np.stack(rows) for rows in zip(*itertools.islice(feed, stop - state.step), strict=True)
        ]
        block, indices = (
          [rows if mesh is None else meshes.from_hosts(mesh, rows, axis=1) for rows in block],
          None,
        )
      else:
        block, indices = (
          (images, labels),
          batch_indices(order_key, state.step, stop, num_examples, recipe.batch_size),
        )
      trainable, opt_state, done, metrics = steps(
        state.trainable, state.opt_state, state.step, frozen, *block, indices, step_key
      )
      before, state = state.step, TrainState(trainable, opt_state, int(done))
      if state.step < stop:
        raise NonFiniteLossError(state)
      means = {name: float(np.mean(values)) for name, values in metrics.items()}
      start, begun = time.perf_counter(), start
      speed = {'images/s': f'{(state.step - before) * recipe.batch_size / (start - begun):.0f}'}
      bar.set_postfix({name: f'{value:.3f}' for name, value in means.items()} | speed)
      bar.update(state.step - before)
      if on_dispatch is not None:
        on_dispatch(state, means)
  return state


def _feed(stream, key, first, last, num_examples, batch_size, mesh):
  """The batches of steps `first` to `last - 1`, in the order that resident images are taken in, one epoch's indices at a time.

  On a mesh every process decodes the rows that its own devices take.
  """
  per_epoch = num_examples // batch_size
  mine = slice(None) if mesh is None else meshes.local_rows(mesh, batch_size)
  while first < last:
    end = min((first // per_epoch + 1) * per_epoch, last)
    yield from stream.batches(batch_indices(key, first, end, num_examples, batch_size)[:, mine])
    first = end
