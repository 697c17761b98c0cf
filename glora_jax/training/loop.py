"""One training step, many steps as one compiled call, and the loop over them.

`minimize` knows neither models nor GLoRA, only a `loss_fn(trainable, frozen, batch, key)`. It
trains one run, or several side by side. Everything random is a function of the key and the step
number, so a run that resumes from a saved state ends with the same bytes as one that was never
interrupted.
"""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from glora_jax import mesh as meshes
from glora_jax.checks import shown, validate
from glora_jax.compiling import keep_last, reported
from glora_jax.method.forward import loss_and_metrics
from glora_jax.method.sample import check_key
from glora_jax.method.validation import check_only_arrays
from glora_jax.progress import progress_bar
from glora_jax.training.batches import Draw, Loader, Resident, Source, source_of, split_traced
from glora_jax.training.gradient import by_device, part_by_part
from glora_jax.training.recipe import Recipe, warn_of_rounding
from glora_jax.tree import by_name, differences, flatten, join

log = logging.getLogger(__name__)

Metrics = dict[str, jax.Array]
# (trainable, frozen, batch, key) -> loss, or (loss, metrics), all scalars.
LossFn = Callable[[Any, Any, Any, jax.Array], Any]
Look = Callable[['TrainState', dict[str, Any]], bool | None]


class TrainState(NamedTuple):
  """The state of a training run, or of n runs side by side, stacked along a leading axis [n].

  Attributes:
    trainable: tree of arrays.
    opt_state: the optimizer's state for them.
    step: number of completed steps; for n runs a NumPy array, int [n].
    frozen: tree of arrays that are not trained, common to all runs; None in a saved state.

  Example:
    >>> trainable, frozen = {'params': {'head': 1.0}}, {'params': {'body': 2.0}}
    >>> state = TrainState(trainable, opt_state=(), step=3, frozen=frozen)
    >>> sorted(state.variables['params'])
    ['body', 'head']
  """

  trainable: Any
  opt_state: Any
  step: Any
  frozen: Any = None

  @property
  def variables(self) -> Any:
    """The variables of the adapted model, as from `Adapted.join`; for n runs a list of n."""
    if not np.ndim(self.step):
      return join(self.trainable, self.frozen)
    runs = (jax.tree.map(operator.itemgetter(run), self.trainable) for run in range(len(self.step)))
    return [join(trainable, self.frozen) for trainable in runs]


class NonFiniteLossError(RuntimeError):
  """The loss or its gradient became NaN or infinite.

  Attributes:
    state: the last good state, before that step.
    learning_rate: the recipe's; None if `tx` was the optimizer.
  """

  def __init__(self, state: TrainState, learning_rate: float | None = None):
    self.state = state
    self.learning_rate = learning_rate
    rate = '' if learning_rate is None else f', with learning_rate={learning_rate:g}'
    super().__init__(
      f'The loss or its gradient was not finite at step {state.step}{rate}. Lower the learning '
      'rate, clip the gradients (max_grad_norm=1), or check the examples and the pretrained '
      'weights.'
    )

  def __reduce__(self) -> tuple:
    return type(self), (self.state, self.learning_rate)  # or unpickling passes the message as state


class Carry(NamedTuple):
  """The carry of compiled steps: a `TrainState`, and whether it is still finite.

  Attributes:
    trainable: tree of arrays.
    opt_state: the optimizer's state for them.
    step: number of completed steps, int32 [].
    finite: whether every loss and gradient so far was finite, bool [].
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
  replicated: bool = True,
) -> Callable[..., tuple[Carry, Metrics]]:
  """Makes one training step, not compiled.

  Args:
    loss_fn: see `minimize`.
    optimizer: turns gradients into updates.
    accumulate: see `Recipe`.
    mesh: see `minimize`.
    replicated: whether the frozen arrays are replicated over the mesh. If so, each device computes
      the gradient of its own examples. If some are sharded, the compiler splits the batch.

  Returns:
    `step_fn(carry, frozen, batch, key, rate=None, weight=None) -> (carry, metrics)`; `rate` scales
    the updates, and `weight` the gradient. After the first loss or gradient that is
    not finite, no step updates anything: the carry stays the last good state.
  """

  def checked_fn(*arguments):
    return loss_and_metrics(loss_fn(*arguments))

  gradient_fn = jax.value_and_grad(checked_fn, has_aux=True)
  if accumulate > 1:
    gradient_fn = part_by_part(gradient_fn, accumulate)
  if mesh is not None and replicated:
    gradient_fn = by_device(gradient_fn, mesh, axis=int(accumulate > 1))

  def cut(rows):
    return split_traced(mesh, rows.reshape(accumulate, -1, *rows.shape[1:]), axis=1)

  def step_fn(carry, frozen, batch, key, rate=None, weight=None):
    if accumulate > 1:
      batch = jax.tree.map(cut, batch)
    step_key = jax.random.fold_in(key, carry.step)
    (loss, metrics), grads = gradient_fn(carry.trainable, frozen, batch, step_key)
    if weight is not None:
      grads = jax.tree.map(lambda leaf: weight.astype(leaf.dtype) * leaf, grads)
    updates, opt_state = optimizer.update(grads, carry.opt_state, carry.trainable)
    if rate is not None:
      updates = jax.tree.map(lambda leaf: rate.astype(leaf.dtype) * leaf, updates)
    trainable = optax.apply_updates(carry.trainable, updates)
    # A finite loss can have a gradient that is not, as the root has at 0. The gradient's norm would
    # be a cheap test, but overflows for large finite numbers. So the gradient is multiplied by 0
    # first: a finite number becomes 0, any other NaN. XLA would fuse a chain of sums into the
    # selection, again for each array, and compile for minutes. It does not fuse a reduction.
    zeros = [0 * leaf for leaf in jax.tree.leaves(grads)]
    tested = jnp.stack([loss, *(jnp.vdot(leaf, leaf) for leaf in zeros)])
    finite = carry.finite & jnp.isfinite(tested).all()
    new_carry = Carry(trainable, opt_state, carry.step + 1, finite)
    good = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_carry, carry)
    return good._replace(finite=finite), {'loss': loss, **metrics}

  return step_fn


@keep_last
def make_steps(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  accumulate: int = 1,
  mesh: jax.sharding.Mesh | None = None,
  replicated: bool = True,
) -> Callable[..., tuple[Any, Any, jax.Array, Metrics]]:
  """Makes many training steps as one compiled function.

  Args:
    loss_fn: see `minimize`.
    optimizer: turns gradients into updates.
    accumulate: see `Recipe`.
    mesh: see `minimize`.
    replicated: see `make_step`.

  Returns:
    `steps(trainable, opt_state, step, frozen, data, indices, key, rates=None, weight=None)`, which
    returns `(trainable, opt_state, done, metrics)`. The first four arguments are the fields of a
    `TrainState`; `data`, `indices` and `weight` are those of a `batches.Block`. `done` is the new
    `step`; it stops at the first loss or gradient that is not finite. The metrics are arrays
    [step]. The memory of the first two arguments is reused.
    `rates` is a factor on the updates, float []. For n runs side by side, rates are float [n], keys
    and `step` [n], indices [step, n, batch] and metrics [step, n]; a run that is behind the others
    has stopped.
  """
  step_fn = make_step(loss_fn, optimizer, accumulate, mesh, replicated)
  shardings = {} if mesh is None else {'out_shardings': meshes.replicated(mesh)}

  def step_of_run(carry, row, data, frozen, key, rate, weight):
    batch = row
    if data is not None:
      index = split_traced(mesh, row)  # each device indexes its own examples
      batch = jax.tree.map(lambda rows: rows[index], data)
    batch = jax.tree.map(functools.partial(split_traced, mesh), batch)
    return step_fn(carry, frozen, batch, key, rate, weight)

  step_of_runs = jax.vmap(step_of_run, in_axes=(0, 0, None, None, 0, 0, None))

  @functools.partial(jax.jit, donate_argnums=(0, 1), **shardings)
  def steps(trainable, opt_state, step, frozen, data, indices, key, rates=None, weight=None):
    step = jnp.int32(step)
    # A run that stopped in an earlier call is behind the others, and stays so.
    carry = Carry(trainable, opt_state, step, finite=step == step.max())
    rows, data = (data, None) if indices is None else (indices, data)
    step_of_all = step_of_runs if step.ndim else step_of_run
    carry, metrics = jax.lax.scan(
      lambda carry, row: step_of_all(carry, row, data, frozen, key, rates, weight), carry, rows
    )
    return carry.trainable, carry.opt_state, carry.step, metrics

  return steps


# Equal recipes have the same optimizer, so that `make_steps` returns the steps that it has made.
_optimizer = functools.lru_cache(maxsize=16)(Recipe.optimizer)


def initial_state(
  trainable: Any, optimizer: optax.GradientTransformation, runs: int | None = None
) -> TrainState:
  """The state before the first step, of one run or of `runs` runs side by side."""
  if runs is None:
    return TrainState(trainable, optimizer.init(trainable), 0)
  opt_state = jax.vmap(optimizer.init, axis_size=runs)(trainable)
  return TrainState(trainable, opt_state, np.zeros(runs, np.int32))


def _start_state(
  trainable: Any,
  frozen: Any,
  state: TrainState | None,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh | None,
  runs: int | None,
) -> TrainState:
  """The state that training starts from: a copy, as the steps reuse its memory.

  Raises:
    ValueError: `state` has other arrays than the trainable ones and the optimizer.
  """
  begin = functools.partial(initial_state, optimizer=optimizer, runs=runs)
  if state is not None:
    begun = jax.eval_shape(begin, trainable)
    for field, origin in (('trainable', 'structure'), ('opt_state', 'optimizer')):
      found, expected = (by_name(flatten(getattr(each, field))) for each in (state, begun))
      if problems := '; '.join(differences(found, expected)):
        raise ValueError(
          f'state.{field} has other arrays ({problems}); continue with the {origin} that it was '
          'trained with.'
        )
  start = begin(trainable) if state is None else state
  placed = meshes.replicate(mesh, start[:2])
  trainable, opt_state = jax.tree.map(jnp.copy, placed)
  return TrainState(trainable, opt_state, start.step, frozen)


def _steps_per_epoch(source: Source, recipe: Recipe, mesh: jax.sharding.Mesh | None) -> int | None:
  """The number of steps of an epoch, None if it is unknown.

  Raises:
    ValueError: the batches do not divide over the mesh, or cannot be iterated for all epochs.
  """
  if not isinstance(source, Loader):
    meshes.require_divisible(mesh, recipe.batch_size // recipe.accumulate)
    return recipe.steps_per_epoch(source.num_examples)
  if source.is_one_pass and recipe.steps is None and recipe.epochs > 1:
    raise ValueError(
      f'batches is an iterator, which is empty after the first of {recipe.epochs} epochs; pass a '
      'list or another iterable that starts anew in each.'
    )
  return source.per_epoch


def _first_step(state: TrainState, source: Source, limit: int) -> int:
  """The step at which training continues.

  Raises:
    ValueError: it is beyond the last step, or an iterator would have to start anew.
  """
  first = validate(np.max(state.step), int, 'state.step', least=0)
  if first > limit:
    raise ValueError(
      f'state.step={first} is more than the {limit} steps of this training; continue with the '
      'batch size and the epochs that it was trained with.'
    )
  if isinstance(source, Loader) and source.is_one_pass and first:
    raise ValueError(
      f'batches is an iterator, which cannot go on at state.step={first}; pass a list or another '
      'iterable that starts anew.'
    )
  return first


def _interval(every: int | Literal['epoch'], per_epoch: int | None) -> int:
  """The steps between two looks.

  Raises:
    ValueError: an epoch's number of steps is unknown.
  """
  if every != 'epoch':
    return validate(every, int, 'every', least=1)
  if per_epoch is None:
    raise ValueError("every='epoch', and the number of batches is unknown; pass a number of steps.")
  return per_epoch


def _means(metrics: Sequence[Metrics], stopped: Any) -> dict[str, Any]:
  """Means over the steps: floats, or for n runs NumPy arrays [n], NaN for a run that stopped."""
  means = {
    name: np.mean(np.concatenate([np.asarray(call[name]) for call in metrics]), axis=0)
    for name in metrics[0]
  }
  if not np.ndim(stopped):
    return {name: float(mean) for name, mean in means.items()}
  return {name: np.where(stopped, np.nan, mean) for name, mean in means.items()}


def _keys_of_runs(keys: jax.Array) -> tuple[list[jax.Array], jax.Array]:
  """The keys of each run's order of examples, a list, and of its steps, [n]."""
  orders, steps = zip(*map(jax.random.split, keys), strict=True)
  return list(orders), jnp.stack(steps)


def are_several(key: Any) -> bool:
  """Whether a key is an array of keys [n], one for each of n runs."""
  is_typed = hasattr(key, 'dtype') and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
  return is_typed and np.ndim(key) == 1 and len(key) > 0


def _checked_runs(
  key: Any, trainable: Any, factors: Any, state: TrainState | None, source: Source, mesh: Any
) -> tuple[int | None, jax.Array | None]:
  """The number of runs side by side, None for a single run, and the factors, float [n] or [].

  Raises:
    TypeError: a key or the state has the wrong type.
    ValueError: several runs lack a start or a factor each, have no arrays, or have a mesh.
  """
  runs = len(key) if are_several(key) else None
  check_key(key if runs is None else key[0])
  shape = () if runs is None else (runs,)
  if state is not None:
    validate(state, TrainState, 'state')
    if np.shape(state.step) != shape:
      raise ValueError(f'state.step={shown(state.step)} must have the shape of the keys.')
  if runs is not None:
    if mesh is not None or not isinstance(source, Resident):
      raise ValueError(
        'Runs side by side each have their own order of examples; pass arrays and no mesh, or '
        'train one run after the other.'
      )
    if any(np.shape(leaf)[:1] != shape for leaf in jax.tree.leaves(trainable)):
      raise ValueError(
        f'Every array of trainable must have an axis [{runs}], a start for each key.'
      )
    factors = np.ones(runs) if factors is None else factors
  if factors is None:
    return runs, None
  checked = np.asarray(factors, np.float32)
  if checked.shape != shape or not (np.isfinite(checked) & (checked > 0)).all():
    raise ValueError(f'scale_updates={shown(factors)} must be numbers above 0, one for each key.')
  return runs, jnp.asarray(checked)


class _Report:
  """Shows the metrics of each compiled call, and calls `look` where one is due."""

  def __init__(self, bar: Any, look: Look | None, interval: int | None, last: int):
    self.bar, self.look, self.interval, self.last = bar, look, interval, last
    self.measured: list[Metrics] = []  # since the last look
    self.told: dict[str, Any] = {}  # by that

  def __call__(self, state: TrainState, metrics: Metrics, step: int, stopped: np.ndarray) -> bool:
    """Returns whether the training is to stop."""
    means, is_done = _means([metrics], stopped), False
    self.measured.append(metrics)
    if self.look and self.interval and (step % self.interval == 0 or step == self.last):
      means = _means(self.measured, stopped)
      is_done = self.look(state, means)
      self.told = {name: value for name, value in means.items() if name not in metrics}
      self.measured = []
    shown = {**means, **self.told}
    self.bar.set_postfix(
      {name: f'{np.asarray(mean)[~stopped].mean():.3f}' for name, mean in shown.items()}
    )
    self.bar.update(step - self.bar.n)
    return bool(is_done)


def minimize(
  loss_fn: LossFn,
  trainable: Any,
  frozen: Any,
  batches: Any,
  recipe: Recipe,
  key: jax.Array,
  *,
  tx: optax.GradientTransformation | None = None,
  scale_updates: Any = None,
  state: TrainState | None = None,
  every: int | Literal['epoch'] = 'epoch',
  look: Look | None = None,
  title: str = 'train',
  progress: bool = True,
  mesh: jax.sharding.Mesh | None = None,
  draw: Draw | None = None,
) -> TrainState:
  """Minimizes any loss with a recipe; `fit` does so for an adapted model.

  Args:
    loss_fn: `(trainable, frozen, batch, key) -> loss`, or a pair with metrics, all scalars, the
      loss a mean over the batch.
    trainable: tree of arrays; only these have gradients and optimizer state. For n keys every array
      has a leading axis [n].
    frozen: tree of arrays, shared by several runs.
    batches: see `fit`, like all that follow.
    recipe: epochs, batches and optimizer.
    key: random key, or keys [n].
    tx: the optimizer.
    scale_updates: factor on the updates, or factors [n].
    state: state to continue from.
    every: steps between two calls of `look`.
    look: `look(state, means)`, called with the mean metrics of the steps since its last call, also
      after the last step. What it adds to them is shown; True stops the training. The next steps
      reuse the memory of the state's arrays. For several runs the means are NumPy arrays [n], NaN
      for a run that stopped.
    title: text before the progress bar.
    progress: whether to show the bar.
    mesh: devices that every batch is split over.
    draw: draws the examples of every epoch of a data set, see `batches.batch_indices`.

  Returns:
    The final state.

  Raises:
    TypeError: as in `fit`.
    ValueError: as in `fit`.
    NonFiniteLossError: as in `fit`.

  Example:
    >>> def loss_fn(trainable, frozen, batch, key):
    ...   x, y = batch
    ...   return jnp.mean((x @ trainable['slope'] - y) ** 2)
    >>> x = jnp.linspace(-1, 1, 8)[:, None]
    >>> recipe = Recipe(epochs=100, batch_size=4, learning_rate=0.1, weight_decay=0.0)
    >>> data, start = (x, 3 * x[:, 0]), {'slope': jnp.zeros(1)}
    >>> state = minimize(loss_fn, start, {}, data, recipe, jax.random.key(0), progress=False)
    >>> print(state.step, state.trainable['slope'].round(1))
    200 [3.]

    Two learning rates side by side:

    >>> starts, keys = {'slope': jnp.zeros((2, 1))}, jax.random.split(jax.random.key(0))
    >>> state = minimize(
    ...   loss_fn, starts, {}, data, recipe, keys, scale_updates=[1.0, 0.001], progress=False
    ... )
    >>> print(state.step, state.trainable['slope'].round(1)[:, 0])
    [200 200] [3. 0.]
  """
  validate(loss_fn, Callable, 'loss_fn')
  validate(recipe, Recipe, 'recipe')
  validate(tx, optax.GradientTransformation | None, 'tx')
  check_only_arrays('arrays to train with', (trainable, frozen))
  if mesh is not None:
    meshes.require_mesh(mesh)
  parts = recipe.accumulate * (1 if mesh is None else mesh.size)
  source = source_of(batches, recipe.batch_size, parts, draw)
  runs, factors = _checked_runs(key, trainable, scale_updates, state, source, mesh)

  order_key, step_key = jax.random.split(key) if runs is None else _keys_of_runs(key)
  warn_of_rounding(trainable)
  per_epoch = _steps_per_epoch(source, recipe, mesh)
  last = recipe.num_steps(per_epoch)
  interval = None if look is None else _interval(every, per_epoch)
  optimizer = _optimizer(recipe, per_epoch) if tx is None else tx

  frozen = meshes.settle(mesh, frozen)
  state = _start_state(trainable, frozen, state, optimizer, mesh, runs)
  reached = first = _first_step(state, source, last)
  if 0 < first < last:
    log.info('%s: resumed at step %d', title, first)

  blocks = source.blocks(order_key, (first, last), interval, mesh)
  steps = reported(
    'training steps',
    make_steps(loss_fn, optimizer, recipe.accumulate, mesh, meshes.are_replicated(frozen)),
  )
  show = progress and meshes.primary()
  with progress_bar(total=last, initial=first, desc=title, unit='step', wanted=show) as bar:
    report = _Report(bar, look, interval, last)
    block = next(blocks, None)
    while block is not None:
      trainable, opt_state, done, metrics = steps(
        state.trainable,
        state.opt_state,
        state.step,
        frozen,
        block.data,
        block.indices,
        step_key,
        factors,
        block.weight,
      )
      following = next(blocks, None)  # read and put on the device while these steps run
      number = int(done) if runs is None else np.asarray(done)
      state = TrainState(trainable, opt_state, number, frozen)
      reached = block.stop
      stopped = np.less(state.step, reached)
      if stopped.all():
        break
      if report(state, metrics, reached, stopped):
        break
      block = following
  behind = np.flatnonzero(np.less(state.step, reached))
  if len(behind) and runs is None:
    raise NonFiniteLossError(state, recipe.learning_rate if tx is None else None)
  if len(behind):
    stops = ', '.join(f'run {run} at step {state.step[run]}' for run in behind)
    log.warning(
      '%s: the loss or its gradient was not finite, and training stopped: %s', title, stops
    )
  return state
