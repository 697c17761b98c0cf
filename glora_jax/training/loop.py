"""One training step, many steps as one compiled call, and the loop over them.

`fit` knows neither models nor GLoRA: it minimizes a `loss_fn(trainable, frozen, batch, key)`, in
one run or in several side by side. Everything random is a function of the key and the step number,
so that a run that is resumed from a saved state ends exactly where the undisturbed one ends.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from glora_jax import mesh as meshes
from glora_jax.checks import shown, validate
from glora_jax.compiling import reported
from glora_jax.method.sample import check_key
from glora_jax.method.validation import as_numbers, check_labelled, check_loss, check_only_arrays
from glora_jax.training.batches import ImageStream, feed, split_traced
from glora_jax.training.gradient import by_device, part_by_part
from glora_jax.training.recipe import Recipe, warn_of_rounding
from glora_jax.tree import differences

log = logging.getLogger(__name__)

Metrics = dict[str, jax.Array]
# (trainable, frozen, (images, labels), key) -> (loss, metrics), all scalars.
LossFn = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, Metrics]]


class TrainState(NamedTuple):
  """All that a training run needs to go on, or n runs side by side: then all have an axis [n].

  Attributes:
    trainable: tree of arrays.
    opt_state: the optimizer's state for them.
    step: number of steps that are done; of several runs NumPy's int [n].
  """

  trainable: Any
  opt_state: Any
  step: Any


class NonFiniteLossError(RuntimeError):
  """The loss or its gradient became NaN or infinite.

  Attributes:
    state: the last good state, before that step.
    learning_rate: the recipe's; None where the optimizer is another.
  """

  def __init__(self, state: TrainState, learning_rate: float | None = None):
    self.state = state
    self.learning_rate = learning_rate
    rate = '' if learning_rate is None else f', with learning_rate={learning_rate:g}'
    super().__init__(
      f'The loss or its gradient was not finite at step {state.step}{rate}. Lower the learning '
      'rate, clip the gradients (max_grad_norm=1), or check the images, the labels and the '
      'pretrained weights.'
    )

  def __reduce__(self) -> tuple:
    return type(self), (self.state, self.learning_rate)  # as other processes get it


class Carry(NamedTuple):
  """What a compiled step hands to the next: a `TrainState`, and whether it is still moving.

  Attributes:
    trainable: tree of arrays.
    opt_state: the optimizer's state for them.
    step: number of steps that are done, int32 [].
    finite: whether every loss and every gradient was finite so far, bool [].
  """

  trainable: Any
  opt_state: Any
  step: jax.Array
  finite: jax.Array


def make_step(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  accumulate: int = 1,
  mesh: jax.sharding.Mesh | None = None,
  whole: bool = True,
) -> Callable[..., tuple[Carry, Metrics]]:
  """Makes one training step, not compiled.

  Args:
    loss_fn: see `fit`.
    optimizer: what makes updates of gradients.
    accumulate: see `Recipe`.
    mesh: see `fit`.
    whole: whether the frozen arrays are whole on every device of the mesh, so that each takes the
      gradient of its own images. Where some lie in parts, the compiler splits the batch.

  Returns:
    `step_fn(carry, frozen, batch, key, rate=None) -> (carry, metrics)`; the rate is a factor on the
    updates. From the first loss or gradient on that is not finite nothing is updated any more: the
    carry stays the last good state.
  """
  gradient_fn = jax.value_and_grad(functools.partial(_checked_result, loss_fn), has_aux=True)
  if accumulate > 1:
    gradient_fn = part_by_part(gradient_fn, accumulate)
  if mesh is not None and whole:
    gradient_fn = by_device(gradient_fn, mesh, axis=int(accumulate > 1))

  def step_fn(carry, frozen, batch, key, rate=None):
    if accumulate > 1:
      cut = (rows.reshape(accumulate, -1, *rows.shape[1:]) for rows in batch)
      batch = tuple(split_traced(mesh, rows, axis=1) for rows in cut)
    step_key = jax.random.fold_in(key, carry.step)
    (loss, metrics), grads = gradient_fn(carry.trainable, frozen, batch, step_key)
    updates, opt_state = optimizer.update(grads, carry.opt_state, carry.trainable)
    if rate is not None:
      updates = jax.tree.map(lambda leaf: rate.astype(leaf.dtype) * leaf, updates)
    trainable = optax.apply_updates(carry.trainable, updates)
    # A loss can be finite where its gradient is not: that of the root of 0, for instance. The
    # gradient's norm could overflow, and zeros become NaN where a number is not finite.
    zeros = [0 * leaf for leaf in jax.tree.leaves(grads)]
    finite = carry.finite & jnp.isfinite(loss)
    finite &= jnp.isfinite(sum(jnp.vdot(leaf, leaf) for leaf in zeros))
    new_carry = Carry(trainable, opt_state, carry.step + 1, finite)
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_carry, carry)
    return kept._replace(finite=finite), {'loss': loss, **metrics}

  return step_fn


def _checked_result(loss_fn: LossFn, *arguments: Any) -> Any:
  """What a user's loss function gives, after a look at whether training can minimize it."""
  result = loss_fn(*arguments)
  is_pair = isinstance(result, tuple) and len(result) == 2
  if not is_pair or not isinstance(result[1], Mapping):
    raise TypeError(
      f'The loss function returned {shown(result)}; it must return the pair (loss, metrics), '
      'metrics a dictionary that may be empty.'
    )
  loss, metrics = result
  for name, value in metrics.items():
    is_array = isinstance(value, jax.Array | np.ndarray | np.generic | float | int)
    if not is_array or jnp.shape(value):
      given = f'{jnp.result_type(value)} {list(jnp.shape(value))}' if is_array else shown(value)
      raise ValueError(f'The metric {shown(name)} is {given}; it must be one number.')
  check_loss(loss)
  return result


def make_steps(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  accumulate: int = 1,
  mesh: jax.sharding.Mesh | None = None,
  whole: bool = True,
) -> Callable[..., tuple[Any, Any, jax.Array, Metrics]]:
  """Makes many training steps as one compiled function.

  Args:
    loss_fn: see `fit`.
    optimizer: what makes updates of gradients.
    accumulate: see `Recipe`.
    mesh: see `fit`.
    whole: see `make_step`.

  Returns:
    `steps(trainable, opt_state, step, frozen, images, labels, indices, key, rates=None)`, which
    returns `(trainable, opt_state, done, metrics)`. The first three are a `TrainState`, the
    arguments `images`, `labels` and `indices` those of a `batches.Block`. `done` counts the steps
    that are done, as `step` does: from the first loss or gradient on that is not finite none is.
    The metrics are arrays [step]. The memory of the first two arguments is reused.
    Of n runs side by side, rates are float [n], keys [n], indices [step, n, batch] and metrics
    [step, n]; a run that is behind the others has stopped.
  """
  step_fn = make_step(loss_fn, optimizer, accumulate, mesh, whole)
  replicated = {} if mesh is None else {'out_shardings': meshes.replicated(mesh)}

  def streamed_step(carry, batch, frozen, key, rate=None):
    return step_fn(carry, frozen, tuple(split_traced(mesh, rows) for rows in batch), key, rate)

  def resident_step(carry, index, images, labels, frozen, key, rate):
    index = split_traced(mesh, index)  # each device takes its own rows of what it holds whole
    return streamed_step(carry, (images[index], labels[index]), frozen, key, rate)

  step_of_runs = jax.vmap(resident_step, in_axes=(0, 0, None, None, None, 0, 0))

  @functools.partial(jax.jit, donate_argnums=(0, 1), **replicated)
  def steps(trainable, opt_state, step, frozen, images, labels, indices, key, rates=None):
    step = jnp.int32(step)
    finite = jnp.bool_(True) if rates is None else step == step.max()
    carry = Carry(trainable, opt_state, step, finite)
    if indices is None:
      carry, metrics = jax.lax.scan(
        lambda carry, batch: streamed_step(carry, batch, frozen, key), carry, (images, labels)
      )
    else:
      step_by_index = resident_step if rates is None else step_of_runs
      carry, metrics = jax.lax.scan(
        lambda carry, index: step_by_index(carry, index, images, labels, frozen, key, rates),
        carry,
        indices,
      )
    return carry.trainable, carry.opt_state, carry.step, metrics

  return steps


def initial_state(
  trainable: Any, optimizer: optax.GradientTransformation, runs: int | None = None
) -> TrainState:
  """The state before the first step, of one run or of so many side by side, by what they train."""
  if runs is None:
    return TrainState(trainable, optimizer.init(trainable), 0)
  opt_state = jax.vmap(optimizer.init, axis_size=runs)(trainable)
  return TrainState(trainable, opt_state, np.zeros(runs, np.int32))


def _own_state(
  trainable: Any,
  state: TrainState | None,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh | None,
  runs: int | None,
) -> TrainState:
  """Where training starts; the steps reuse its arrays' memory, and the caller's stay alive."""
  begin = functools.partial(initial_state, optimizer=optimizer, runs=runs)
  if state is not None:
    _check_trees(state, jax.eval_shape(begin, trainable))
  start = begin(trainable) if state is None else state
  own: Any = jax.tree.map(jnp.copy, meshes.replicate(mesh, start[:2]))
  return TrainState(own[0], own[1], start.step)


def _check_trees(state: TrainState, start: TrainState) -> None:
  """Raises ValueError unless a state has the arrays that training starts with."""
  for field, origin in (('trainable', 'structure'), ('opt_state', 'optimizer')):
    given, expected = (
      {
        jax.tree_util.keystr(path, simple=True, separator='/'): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(each, field))
      }
      for each in (state, start)
    )
    if problems := '; '.join(differences(given, expected)):
      raise ValueError(
        f'state.{field} has other arrays ({problems}); continue with the {origin} that it was '
        'trained with.'
      )


def _first_step(state: TrainState, recipe: Recipe, per_epoch: int) -> int:
  """The step at which training continues, checked."""
  first = validate(np.max(state.step), int, 'state.step', least=0)
  if first > recipe.epochs * per_epoch:
    raise ValueError(
      f'state.step={first} is more than epochs={recipe.epochs} of {per_epoch} steps; continue with '
      'the batch size and the epochs that it was trained with.'
    )
  return first


def _checked_data(loss_fn: LossFn, images: Any, labels: Any) -> tuple[Any, Any]:
  """The images and labels, as arrays unless they are a stream."""
  labels = as_numbers('labels', labels)
  if not isinstance(images, ImageStream):
    images = as_numbers('images', images)
    check_labelled(images, labels)
  _check_labels(loss_fn, labels)
  return images, labels


def _check_labels(loss_fn: LossFn, labels: Any) -> None:
  """Raises ValueError unless the labels are classes, as far as the loss knows these."""
  getattr(loss_fn, 'check_labels', lambda labels: None)(labels)


def _means(metrics: Metrics, stopped: Any) -> dict[str, Any]:
  """Means over steps: a number each, or of several runs NumPy's [n], NaN where one has stopped."""
  means = {name: np.mean(values, axis=0) for name, values in metrics.items()}
  if not np.ndim(stopped):
    return {name: float(mean) for name, mean in means.items()}
  return {name: np.where(stopped, np.nan, mean) for name, mean in means.items()}


def _keys_of_runs(keys: jax.Array) -> tuple[list[jax.Array], jax.Array]:
  """What orders the images of each run, and the keys of their steps, [n]."""
  orders, steps = zip(*map(jax.random.split, keys), strict=True)
  return list(orders), jnp.stack(steps)


def _checked_runs(
  key: Any, trainable: Any, rates: Any, state: TrainState | None, images: Any, mesh: Any
) -> tuple[int | None, jax.Array | None]:
  """The number of runs side by side and their rates, float [n]; None for one run alone."""
  is_typed = hasattr(key, 'dtype') and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
  is_one = not (is_typed and np.ndim(key) == 1 and len(key))
  check_key(key if is_one else key[0])
  runs = None if is_one else len(key)
  if state is not None:
    validate(state, TrainState, 'state')
    if np.shape(state.step) != (() if is_one else (runs,)):
      raise ValueError(f'state.step={shown(state.step)} must have the shape of the keys.')
  if runs is None:
    if rates is not None:
      raise ValueError(f'rates={shown(rates)} are for several keys; pass one key for each run.')
    return None, None
  if mesh is not None or isinstance(images, ImageStream):
    raise ValueError(
      'Runs side by side each have their own order of images; pass resident images and no mesh, '
      'or train one run after the other.'
    )
  if any(np.shape(leaf)[:1] != (runs,) for leaf in jax.tree.leaves(trainable)):
    raise ValueError(f'Every array of trainable must have an axis [{runs}], a start for each key.')
  checked = np.ones(runs, np.float32) if rates is None else np.asarray(rates, np.float32)
  if checked.shape != (runs,) or not (np.isfinite(checked) & (checked > 0)).all():
    raise ValueError(f'rates={shown(rates)} must be {runs} numbers above 0, one for each key.')
  return runs, jnp.asarray(checked)


def fit(
  loss_fn: LossFn,
  trainable: Any,
  frozen: Any,
  images: jax.Array | np.ndarray | ImageStream,
  labels: jax.Array | np.ndarray,
  recipe: Recipe,
  key: jax.Array,
  *,
  tx: optax.GradientTransformation | None = None,
  rates: Any = None,
  state: TrainState | None = None,
  stop_epoch: int | None = None,
  steps_per_dispatch: int = 50,
  on_dispatch: Callable[[TrainState, dict[str, Any]], None] | None = None,
  title: str = 'train',
  progress: bool = True,
  mesh: jax.sharding.Mesh | None = None,
) -> TrainState:
  """Minimizes a loss by the recipe, in one run or in several side by side.

  An array of keys [n] trains n runs in one program by `vmap`, with the results of n separate runs:
  seeds, or learning rates to compare. On an accelerator small runs together cost little more than
  one; on CPU nothing is gained.

  Args:
    loss_fn: `(trainable, frozen, batch, key) -> (loss, metrics)`, scalars, the loss a mean over the
      batch, which is (images, labels).
    trainable: tree of arrays; only these get gradients and optimizer state. For several runs every
      array starts with an axis [n].
    frozen: tree of arrays, which several runs share.
    images: the whole training set on the device, [n, ...], or a stream of it with
      `batches(indices)`, which yields the rows of these indices. Several runs take no stream, since
      each has its own order.
    labels: int [n]; a stream's labels are its own.
    recipe: epochs, batches and optimizer.
    key: random key. It decides the order of the images and, folded with the step, goes to
      `loss_fn`. For several runs an array of keys [n], as from `jax.random.split`.
    tx: the optimizer, with its schedule; then only epochs, batch size and parts of the recipe
      count. `optax.partition` and `optax.masked` treat arrays differently. None for the recipe's.
    rates: for several runs, factors on the optimizer's updates, [n]; with the recipe's optimizer
      they are factors on the learning rate.
    state: state to continue from, of the same structure, optimizer and batch size; it is not
      changed. None starts from `trainable`.
    stop_epoch: the epoch of the recipe's schedule to stop after; None goes to its end.
    steps_per_dispatch: most steps per compiled call, after each of which progress is shown and
      `on_dispatch` called.
    on_dispatch: called with the state and the mean metrics since the last call, to save or log
      them. The state's arrays are valid until it returns, as the next steps reuse their memory:
      copy what you keep. For several runs the means are NumPy arrays [n], NaN where one stopped.
    title: text before the progress bar.
    progress: whether to show the bar.
    mesh: devices of all processes that every batch is split over; the trained state is whole on
      each of them. The loss is called on every device, with its images and the same key (see
      `mesh.own_key`), and losses, metrics and gradients are averaged. Arrays of `frozen` that are
      already on the mesh stay there; if some are sharded (`glora_jax.shard`), the loss is called
      once, with the whole batch. The rest is replicated. None for one device, and for several runs.

  Returns:
    The final state. If the loss or gradient of one of several runs is not finite, that run stops at
    its last good state (see its `step`) with a warning; the others go on.

  Raises:
    TypeError: an argument has another type.
    ValueError: an argument is out of range; there is not one label for each
      image, or a label is not a class; the loss or a metric is not a number; the batch size does
      not fit the images or the mesh; `state` has other arrays or more steps than this training; or
      several runs lack a start or rate each, or have a stream or mesh.
    NonFiniteLossError: the loss or gradient of a single run became NaN or infinite; its `.state` is
      the last good one.

  Example:
    >>> def loss_fn(trainable, frozen, batch, key):
    ...   images, labels = batch
    ...   errors = images @ trainable['slope'] - labels
    ...   return jnp.mean(errors**2), {'largest_error': jnp.abs(errors).max()}
    >>> images = jnp.linspace(-1, 1, 8)[:, None]
    >>> recipe = Recipe(epochs=100, batch_size=4, learning_rate=0.1, weight_decay=0.0)
    >>> state = fit(
    ...   loss_fn,
    ...   {'slope': jnp.zeros(1)},
    ...   {},
    ...   images,
    ...   3 * images[:, 0],
    ...   recipe,
    ...   jax.random.key(0),
    ...   progress=False,
    ... )
    >>> print(state.step, state.trainable['slope'].round(1))
    200 [3.]

    Two learning rates side by side:

    >>> state = fit(
    ...   loss_fn,
    ...   {'slope': jnp.zeros((2, 1))},
    ...   {},
    ...   images,
    ...   3 * images[:, 0],
    ...   recipe,
    ...   jax.random.split(jax.random.key(0)),
    ...   rates=[1.0, 0.001],
    ...   progress=False,
    ... )
    >>> print(state.step, state.trainable['slope'].round(1)[:, 0])
    [200 200] [3. 0.]
  """
  validate(loss_fn, Callable, 'loss_fn')
  validate(recipe, Recipe, 'recipe')
  validate(tx, optax.GradientTransformation | None, 'tx')
  check_only_arrays('arrays to train with', (trainable, frozen))
  steps_per_dispatch = validate(steps_per_dispatch, int, 'steps_per_dispatch', least=1)
  stop_epoch = validate(stop_epoch, int | None, 'stop_epoch', least=0, most=recipe.epochs)
  if mesh is not None:
    meshes.require_mesh(mesh)
  images, labels = _checked_data(loss_fn, images, labels)
  runs, rates = _checked_runs(key, trainable, rates, state, images, mesh)

  order_key, step_key = jax.random.split(key) if runs is None else _keys_of_runs(key)
  warn_of_rounding(trainable)
  optimizer = recipe.optimizer(len(labels)) if tx is None else tx
  per_epoch = recipe.steps_per_epoch(len(labels))
  last = per_epoch * (recipe.epochs if stop_epoch is None else stop_epoch)
  meshes.require_divisible(mesh, recipe.batch_size // recipe.accumulate)

  frozen = meshes.settle(mesh, frozen)
  state = _own_state(trainable, state, optimizer, mesh, runs)
  first = _first_step(state, recipe, per_epoch)
  if 0 < first < last:
    log.info('%s: resumed at step %d', title, first)

  size, limits = recipe.batch_size, (first, last)
  blocks = feed(images, labels, order_key, size, limits, steps_per_dispatch, mesh)
  steps = reported(
    'training steps',
    make_steps(loss_fn, optimizer, recipe.accumulate, mesh, meshes.are_whole(frozen)),
  )
  show = progress and meshes.primary()
  with tqdm(total=last, initial=min(first, last), desc=title, unit='step', disable=not show) as bar:
    block = next(blocks, None)
    while block is not None:
      trainable, opt_state, done, metrics = steps(
        state.trainable,
        state.opt_state,
        state.step,
        frozen,
        block.images,
        block.labels,
        block.indices,
        step_key,
        rates,
      )
      _check_labels(loss_fn, labels)
      following = next(blocks, None)  # read and put on the device while these steps run
      state = TrainState(trainable, opt_state, int(done) if runs is None else np.asarray(done))
      stopped = np.less(state.step, block.stop)
      if stopped.all():
        break
      means = _means(metrics, stopped)
      bar.set_postfix(
        {name: f'{np.asarray(mean)[~stopped].mean():.3f}' for name, mean in means.items()}
      )
      bar.update(block.stop - bar.n)
      if on_dispatch is not None:
        on_dispatch(state, means)
      block = following
  behind = np.flatnonzero(np.less(state.step, last))
  if len(behind) and runs is None:
    raise NonFiniteLossError(state, recipe.learning_rate if tx is None else None)
  if len(behind):
    stops = ', '.join(f'run {run} at step {state.step[run]}' for run in behind)
    log.warning(
      '%s: the loss or its gradient was not finite, and training stopped: %s', title, stops
    )
  return state
