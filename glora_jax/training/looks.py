"""What a training does every so many steps: it measures, calls back, saves, and may stop.

`evaluate` is the mean loss over examples that are not trained on. `Looks` is the `look` of
`loop.minimize` that `fit` makes of its arguments.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax import checks
from glora_jax import mesh as meshes
from glora_jax.compiling import keep_last
from glora_jax.method.adapted import Adapted
from glora_jax.method.forward import Forward, Loss, check_data, loss_and_metrics
from glora_jax.method.validation import as_batch, as_data, is_data, size_of
from glora_jax.training.batches import Stream
from glora_jax.training.checkpoints import TrainingCheckpoints
from glora_jax.training.loop import TrainState

log = logging.getLogger(__name__)

Measure = Callable[[Any], Mapping[str, float]]  # variables -> the loss and metrics
Callback = Callable[[int, dict[str, Any]], bool | None]


def evaluate(
  adapted: Adapted,
  variables: Any,
  loss: Loss,
  data: Any,
  *,
  batch_size: int = 64,
  mesh: jax.sharding.Mesh | None = None,
) -> dict[str, float]:
  """The mean loss and metrics over all examples of a data set.

  Args:
    adapted: the adapted model, with a fixed structure.
    variables: its variables.
    loss: see `fit`. It gets the same key for every batch; it should run the model without dropout.
    data: a data set, or an iterable of batches, see `fit`.
    batch_size: number of examples at a time, for a data set.
    mesh: devices that a batch is split over where it divides; None for one.

  Returns:
    'loss' and the metrics, 'accuracy' for instance: means over the examples, the means of the
    batches weighed by their sizes.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: there are no examples, or as in `fit`.

  Example:
    >>> import flax.linen as nn
    >>> import glora_jax
    >>> model, x = nn.Dense(4), jnp.eye(4)
    >>> adapted = glora_jax.adapt(model, x)
    >>> params = {'kernel': 9 * jnp.eye(4), 'bias': jnp.zeros(4)}
    >>> variables = adapted.init(jax.random.key(0), params)
    >>> loss = glora_jax.classification()
    >>> glora_jax.evaluate(adapted, variables, loss, (x, jnp.array([0, 1, 2, 2])))['accuracy']
    0.75
  """
  checks.validate(adapted, Adapted, 'adapted')
  size = checks.validate(batch_size, int, 'batch_size', least=1)
  program, sums, number = _program(adapted, checks.validate(loss, Callable, 'loss')), {}, 0
  check_data(loss, data, adapted)
  for batch in _in_order(data, size):
    count = size_of(batch)
    for name, mean in program(variables, _on_devices(mesh, batch, count)).items():
      sums.setdefault(name, []).append((mean, count))
    number += count
  if not number:
    raise ValueError('There are no examples to evaluate.')
  check_data(loss, data, adapted)
  return {
    name: sum(float(mean) * count for mean, count in means) / number for name, means in sums.items()
  }


@keep_last
def _program(adapted: Adapted, loss: Loss) -> Callable[[Any, Any], dict[str, jax.Array]]:
  """The loss and metrics of one batch, compiled."""

  def measure(variables, batch):
    result = loss(Forward(adapted, variables), batch, jax.random.key(0))
    value, metrics = loss_and_metrics(result)
    return {'loss': value, **metrics}

  return jax.jit(measure)


def _in_order(data: Any, size: int) -> Iterator[Any]:
  """The batches of a data set, or those that it is."""
  if isinstance(data, Stream):
    for start in range(0, len(data), size):
      yield from data.batches(np.arange(start, min(start + size, len(data)))[None])
  elif is_data(data):
    arrays = as_data(data)
    for start in range(0, size_of(arrays), size):
      yield jax.tree.map(lambda array: array[start : start + size], arrays)  # noqa: B023
  else:
    yield from map(as_batch, data)


def _on_devices(mesh: jax.sharding.Mesh | None, batch: Any, count: int) -> Any:
  """A batch, split over the devices if it divides, else on each."""
  place = meshes.replicate if mesh is None or count % mesh.size else meshes.split_rows
  return place(mesh, batch)


def measure_of(
  validate: Any, adapted: Adapted, loss: Loss, batch_size: int, mesh: jax.sharding.Mesh | None
) -> Measure | None:
  """The function that measures variables, of the argument `validate` of `fit`; None for none.

  Raises:
    TypeError: it is neither data nor a function, or an iterator, which could be read only once.
    ValueError: it is data, and the structure is free.
  """
  if validate is None:
    return None
  if callable(validate) and not isinstance(validate, Stream | Iterable):

    def measure(variables):
      found = validate(variables)
      found = found if isinstance(found, Mapping) else {'loss': found}
      return {name: float(value) for name, value in found.items()}

    return measure
  if isinstance(validate, Iterator) or not isinstance(validate, Stream | Iterable):
    raise TypeError(
      f'validate={checks.shown(validate)} must be a data set, a list of batches, or a function of '
      'the variables.'
    )
  if adapted.genome is None:
    raise ValueError(
      'validate needs a structure to measure, and this one is free; pass a function of the '
      'variables.'
    )
  return lambda variables: evaluate(
    adapted, variables, loss, validate, batch_size=batch_size, mesh=mesh
  )


def _measured(measure: Measure, state: TrainState) -> dict[str, Any]:
  """The measurements of a state; of several runs arrays [n]."""
  if not np.ndim(state.step):
    return dict(measure(state.variables))
  runs = [measure(variables) for variables in state.variables]
  return {name: np.array([run[name] for run in runs]) for name in runs[0]}


@dataclasses.dataclass
class Looks:
  """What `fit` does between steps; called as the `look` of `loop.minimize`.

  Attributes:
    measure: the function that measures variables, or None.
    patience: see `fit`.
    callback: see `fit`.
    checkpoints: where states are saved, or None.
    best: with patience, the state with the lowest validation loss.
    least: that loss.
    waited: number of looks since then.
    is_done: whether the training has ended.
  """

  measure: Measure | None = None
  patience: int | None = None
  callback: Callback | None = None
  checkpoints: TrainingCheckpoints | None = None
  best: TrainState | None = None
  least: float = math.inf
  waited: int = 0
  is_done: bool = False

  def has_work(self) -> bool:
    """Whether there is anything to do."""
    return any(each is not None for each in (self.measure, self.callback, self.checkpoints))

  def __call__(self, state: TrainState, means: dict[str, Any]) -> bool:
    """Measures, calls back and saves; returns whether the training is to stop."""
    if self.measure is not None:
      found = _measured(self.measure, state)
      means |= {f'val_{name}': value for name, value in found.items()}
      self._compare(state, found['loss'])
    step = int(np.max(state.step))
    if self.callback is not None and self.callback(step, dict(means)):
      self.is_done = True
    if self.checkpoints is not None:
      self.checkpoints.save(self._packed(state))
    return self.is_done

  def _compare(self, state: TrainState, loss: float) -> None:
    """Keeps the best state, and counts the looks since then."""
    if self.patience is None:
      return
    self.waited += 1
    if loss < self.least or self.best is None:
      # A copy: the next steps reuse the memory of the state.
      trainable, opt_state = jax.tree.map(jnp.copy, (state.trainable, state.opt_state))
      self.best, self.least, self.waited = TrainState(trainable, opt_state, state.step), loss, 0
    elif self.waited >= self.patience:
      self.is_done = True
      log.info(
        'No lower validation loss in %d looks: stopped at step %d; the best is of step %d.',
        self.waited,
        state.step,
        self.best.step,
      )

  def restore(self, start: TrainState) -> TrainState | None:
    """The newest saved state, shaped as the first one; None if there is none."""
    if self.checkpoints is None:
      return None
    if self.patience is not None:
      self.best = start
    saved = self.checkpoints.latest(self._packed(start))
    self.best = None
    if saved is None:
      return None
    (trainable, best), (opt_state, opt_state_of_best, numbers) = saved.trainable, saved.opt_state
    least, waited, step, is_done = np.asarray(numbers).view(np.float64)
    self.least, self.waited, self.is_done = float(least), int(waited), bool(is_done)
    if best is not None:
      self.best = TrainState(best, opt_state_of_best, int(step))
    return saved._replace(trainable=trainable, opt_state=opt_state, frozen=start.frozen)

  def _packed(self, state: TrainState) -> TrainState:
    """A state as it is saved: with the best one, and what decides when to stop."""
    best = self.best or TrainState(None, None, 0)
    numbers = np.array([self.least, self.waited, best.step, self.is_done], np.float64)
    return TrainState(
      (state.trainable, best.trainable),
      # As the bits of float64, since JAX would round them to float32.
      (state.opt_state, best.opt_state, numbers.view(np.uint32)),
      state.step,
    )

  def chosen(self, state: TrainState) -> TrainState:
    """The result of the training: the best state with patience, else the last."""
    return state if self.best is None else self.best._replace(frozen=state.frozen)
