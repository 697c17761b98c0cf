"""A structure read off one gradient: what to train where, without a supernet."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import threadpool_limits

from glora_jax.limits import check_flag, check_whole, shown
from glora_jax.mesh import on_host, require_mesh, settle
from glora_jax.method.adapted import Adapted
from glora_jax.method.draws import check_budget
from glora_jax.method.genomes import count_params
from glora_jax.method.groups import Group
from glora_jax.method.sample import check_key
from glora_jax.method.space import Spec
from glora_jax.method.supports import COLLECTION
from glora_jax.method.validation import check_only_arrays
from glora_jax.search.allocated import (
  CLEAR,
  Allocation,
  check_priors,
  mean_of,
  pooled,
  share_of,
)
from glora_jax.search.allocation import (
  Measure,
  Values,
  aligned_factors,
  layer_values,
  left_vectors,
  squares,
  stack_rows,
  xavier_norm,
)
from glora_jax.search.checked import NoGradientError
from glora_jax.search.choice import (
  Curve,
  choose,
  require_something,
  trace_curve,
)
from glora_jax.search.fold_gradients import Ahead, Batches, Loss, Passes, Settings, measure
from glora_jax.search.row_gradients import RowGradients
from glora_jax.settings import Number, taken
from glora_jax.tree import replace

log = logging.getLogger(__name__)

Priors = Allocation | Sequence[Allocation]
Prior = Priors | Callable[[], Priors | None]

_DEFAULT_FOLDS = 8


def allocate(
  adapted: Adapted,
  variables: Mapping[str, Any],
  loss: Loss,
  batches: Batches,
  *,
  budget: int | None = None,
  key: jax.Array,
  folds: int | None = None,
  max_rank: int = 8,
  mesh: jax.sharding.Mesh | None = None,
  value: Measure = 'squared',
  rho: float = 2.0,
  floor: bool = True,
  prior: Prior | None = None,
  progress: bool = True,
  ahead: Ahead | None = None,
) -> Allocation:
  """Decides from one gradient which layers to train, in which form and with which rank.

  The gradient of the loss at the base model, in folds, says what every vector and every rank-one
  part would be worth (`search.allocation`); those that are worth most for their parameters are
  bought until the budget is full (`search.choice`). Where held out nothing more is worth anything,
  as with few or hard examples, the rest goes by the mean gradient of all folds. No supernet is
  trained, no validation image used.

  Considered are the alleles on offer among A none, vector, LoRA; B none, LoRA; C none, vector, the
  latter where a layer has fewer inputs than outputs; E none, vector; and of C and E one in a row. A
  space with LoRAs of B alone gives every layer its rank.

  Args:
    adapted: the adapted model.
    variables: its variables, from `Adapted.init`, with a head that is warm already: a random head's
      gradient says little. Gradients are those of the base model with this head.
    loss: `loss(forward, batch, key)` is the mean over a batch, a finite scalar. `forward` is called
      like the model: `forward(*inputs, **kwargs)`.
    batches: list of batches, or a function that gives them again, from the first, at every call.
      A batch is a tree of arrays. All of one shape are best: each shape is compiled by itself.
      Batch i belongs to fold i % folds.
    budget: most trained parameters; None for the knee of the curve of value by budget.
    key: random key.
    folds: number of folds, at least 2; None for 8, or for as many as a list has batches where these
      are fewer.
    max_rank: most rank-one parts that are considered in a layer.
    mesh: devices that every batch is dealt to along its first axis; None for one device.
    value: how a unit is valued on a fold, by its gradient there, g, and the other folds' mean, m:
      'squared' m * g, the default; 'sign' sign(m) * g, the decrease by one step of the sign;
      'preconditioned' m / sqrt(v) * g, with the other folds' mean square v; 'seen' the squared mean
      of all folds, nothing held out. They choose alike; the others are for comparison.
    rho: a row's rank is at most so many times the rank that all rows could have, rounded up.
    floor: whether all rows get the vectors of A and E first, where the budget is ample.
    prior: what was allocated on the same model by another loss with more or clearer examples, of
      any budget, or a list of what was by several, which count alike; values of both are pooled
      (`allocated.pooled`). Which layers pay is mostly the backbone's doing, so that a task whose
      own gradient is noise gains. Or a function that gives it, or None, and is called where the own
      gradient is not clear alone.
    progress: whether to show a bar.
    ahead: what `compile_ahead` returned for the same arguments, with any head.

  Returns:
    The allocation: `genome`, `variables` to train it from, and the reasons.

  Raises:
    ValueError: an argument is of another type or out of range, the variables or a prior are those
      of another model, nothing that is considered is on offer, the budget fits no unit, or none is
      given and no unit is worth anything, there are fewer batches than folds, a loss or its
      gradient is not finite, or no layer has a gradient.

  Example:
    >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
    >>> import glora_jax
    >>> class Mlp(nn.Module):
    ...   @nn.compact
    ...   def __call__(self, x):
    ...     return nn.Dense(2, name='head')(nn.relu(nn.Dense(8, name='hidden')(x)))
    >>> x = jax.random.normal(jax.random.key(0), (64, 4))
    >>> batches = [(x[i : i + 8], (x[i : i + 8, 0] > 0).astype(int)) for i in range(0, 64, 8)]
    >>> space = glora_jax.SearchSpace((1, 2), A=('none', 'vector'), C='none', D='none')
    >>> adapted = glora_jax.adapt(Mlp(), x, space=space)
    >>> variables = adapted.init(jax.random.key(1), Mlp().init(jax.random.key(2), x)['params'])
    >>> def loss(forward, batch, key):
    ...   images, labels = batch
    ...   losses = optax.softmax_cross_entropy_with_integer_labels(forward(images), labels)
    ...   return losses.mean()
    >>> allocation = glora_jax.allocate(
    ...   adapted, variables, loss, batches, budget=12, key=jax.random.key(3), progress=False
    ... )
    >>> allocation.count_params() <= 12
    True
    >>> structure = adapted.fix(allocation.genome)  # to be trained from allocation.variables
  """
  taken(value, 'value', Measure)
  folds, max_rank = _counts(folds, max_rank, batches)
  rho = taken(rho, 'rho', Number, gt=0)
  check_flag(floor, 'floor')
  _check_devices(mesh, ahead)
  check_key(key)
  _check_model(adapted, variables, loss)
  budget = check_budget(budget)
  require_something(adapted.spec, budget)
  number = _number(adapted.spec, max_rank)
  priors = () if callable(prior) else check_priors(adapted.spec, prior, number)
  settings = Settings(folds, number, mesh, progress)
  found = measure(adapted, variables, loss, batches, key, settings, ahead)
  # On two busy cores 8 decompositions of 96 x 96 took 1.5 s with BLAS' threads, 13 ms without.
  with threadpool_limits(1, 'blas'):
    read = _read_off(adapted, variables[COLLECTION], found, settings.max_rank, value)
  _require_gradients(read.values)
  if callable(prior):
    priors = check_priors(adapted.spec, prior() if read.signal < CLEAR else None, number)
  if priors:
    read = _with_priors(read, priors)
  new = {**variables, COLLECTION: settle(mesh, read.supports)}
  return _decide(adapted.spec, read, new, budget, rho=rho, floor=floor)


def compile_ahead(
  adapted: Adapted,
  variables: Mapping[str, Any],
  loss: Loss,
  batches: Batches,
  *,
  folds: int | None = None,
  max_rank: int = 8,
) -> Ahead | None:
  """Starts to compile what `allocate` will run, while a head is warmed: shapes alone matter.

  On one device, for batches like the first; for others `allocate` compiles by itself.

  Args:
    adapted: see `allocate`, as for all of these.
    variables: the variables.
    loss: what is differentiated.
    batches: the batches.
    folds: number of folds; None as in `allocate`.
    max_rank: most rank-one parts.

  Returns:
    What `allocate` takes as `ahead`; None under `jax.disable_jit`.

  Raises:
    ValueError: there is no batch, or a number is out of its range.
  """
  folds, max_rank = _counts(folds, max_rank, batches)
  _check_model(adapted, variables, loss)
  if jax.config.jax_disable_jit:  # pyrefly: ignore[missing-attribute]
    return None
  return passes_of(adapted, variables, loss, batches, Settings(folds, max_rank)).start_compiling()


def passes_of(
  adapted: Adapted,
  variables: Mapping[str, Any],
  loss: Loss,
  batches: Batches,
  settings: Settings,
) -> Passes:
  """Passes as `allocate` makes them, of variables that may be shapes."""
  variables = {**variables, 'params': adapted.full_precision(variables['params'])}
  size = _number(adapted.spec, settings.max_rank)
  settings = dataclasses.replace(settings, max_rank=size)
  return Passes(adapted, variables, loss, batches, jax.random.key(0), settings)


def _number(spec: Spec, max_rank: int) -> int:
  """Rank-one parts that are considered in a layer, at most."""
  return min(max_rank, max(max(layer.space.ranks) for layer in spec))


def _require_gradients(values: Values) -> None:
  """Says so where no unit is worth anything; raises NoGradientError where no layer has one."""
  if not any(part.any() for part in values):
    raise NoGradientError(
      'No adapted layer has a gradient: a head of zeros hides the loss from all of them, and one '
      'that is certain of every label leaves none. Train the head first, as a linear probe, or for '
      'fewer epochs.'
    )
  if max(part.mean(0).max() for part in values) <= 0:
    log.warning('Held out, no unit is worth anything: the folds have no gradient in common.')


class _Read(NamedTuple):
  """What was read off the gradients.

  Attributes:
    values: see `Allocation`.
    seen: the same by the mean gradient of all folds, without their axis.
    supports: the supports, which start on the gradients' directions.
    signal: see `Allocation`.
    borrowed: see `Allocation`.
  """

  values: Values
  seen: Values
  supports: Any
  signal: float
  borrowed: float = 0.0


def _read_off(
  adapted: Adapted,
  supports: Any,
  found: Iterator[RowGradients],
  number: int,
  value: Measure,
) -> _Read:
  """Goes through the gradients once, a group at a time."""
  rows: dict[Measure, dict[int, Values]] = {value: {}, 'seen': {}}
  common, whole = 0.0, 0.0
  # Decompositions leave the interpreter to other threads.
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
    for group in adapted.groups:
      gradients = [next(found) for _ in group.rows]
      norm = xavier_norm(group.in_features, max(group.space.ranks))
      for measured, found_rows in rows.items():
        values_of = functools.partial(layer_values, number=number, norm=norm, measure=measured)
        of_group = threads.map(values_of, (row.gradients for row in gradients))
        found_rows |= zip(group.rows, of_group, strict=True)
      for row in gradients:
        common, whole = np.add((common, whole), squares(row.gradients.kernel))
      supports = _aligned(group, supports, gradients, norm)
  order = range(len(adapted.spec))
  values, seen = (stack_rows([rows[by][row] for row in order]) for by in (value, 'seen'))
  signal = float(common / whole) if whole else 0.0
  return _Read(values, seen.mean(), supports, signal)


def _aligned(group: Group, supports: Any, rows: list[RowGradients], norm: float) -> Any:
  """The supports with a group's down factors on the singular vectors of the mean gradient."""
  given = group.own(supports)
  flat = {
    name: np.asarray(on_host(array)).reshape(-1, *array.shape[len(group.stack_shape) :])
    for name, array in given.items()
  }
  layers = []
  for index, (gradients, basis, scaled_basis) in enumerate(rows):
    directions = {'B_down': _directions(gradients.kernel, basis, group)}
    if gradients.scaled_kernel is not None:
      directions['A_down'] = _directions(gradients.scaled_kernel, scaled_basis, group)
    layer = {name: array[index] for name, array in flat.items()}
    layers.append(aligned_factors(layer, directions, norm))
  for name, array in given.items():
    stacked = np.stack([layer[name] for layer in layers]).reshape(array.shape)
    supports = replace(supports, (*group.path, name), jnp.asarray(stacked, array.dtype))
  return supports


def _directions(gradients: np.ndarray, basis: np.ndarray | None, group: Group) -> np.ndarray:
  """The first singular vectors of the mean gradient among the inputs."""
  number = min(max(group.space.ranks), *gradients.shape[1:])
  vectors = left_vectors(gradients.mean(0), number)
  return vectors if basis is None else basis @ vectors


def _with_priors(read: _Read, priors: Sequence[Allocation]) -> _Read:
  """Values that are pooled with those of other losses."""
  share = share_of(read.signal, float(np.mean([prior.signal or 0.0 for prior in priors])))
  log.info(
    "Of the folds' squared gradients %.3f are common; %.0f%% of the values are the prior's.",
    read.signal,
    100 * share,
  )
  values = pooled(read.values, mean_of([prior.values.mean() for prior in priors]), share)
  return read._replace(values=values, borrowed=share)


def _decide(
  spec: Spec,
  read: _Read,
  variables: dict[str, Any],
  budget: int | None,
  **options: Any,
) -> Allocation:
  """The second half of `allocate`: from values to the structure."""
  values = read.values
  curve = trace_curve(spec, values.mean())
  proposed = budget is None
  if budget is None:
    budget = _proposed(curve)
    log.info('No budget was given; the knee of the curve is at %s parameters.', f'{budget:,}')
  judged = choose(spec, values.mean(), budget, **options)
  rest = None if proposed else read.seen
  genome = choose(spec, values.mean(), budget, rest=rest, **options)
  unjudged = count_params(spec, genome) - count_params(spec, judged)
  if unjudged:
    log.info(
      'Held out, %s of the %s parameters are worth nothing; the mean gradient of all folds has '
      'chosen them.',
      f'{unjudged:,}',
      f'{count_params(spec, genome):,}',
    )
  return Allocation(
    genome,
    variables,
    spec,
    values,
    curve,
    budget,
    proposed,
    read.signal,
    unjudged,
    read.borrowed,
  )


def _proposed(curve: Curve) -> int:
  """The budget at the knee of a curve; raises ValueError where nothing is worth anything."""
  if len(curve.params) == 1:
    raise ValueError(
      'budget=None takes the knee of the curve of value by budget, and held out no unit is worth '
      'anything; give a budget, which the mean gradient of all folds fills, or more examples.'
    )
  return int(curve.params[curve.knee])


def _counts(folds: Any, max_rank: Any, batches: Batches) -> tuple[int, int]:
  """The numbers of folds and of ranks; raises ValueError where one is out of range."""
  if folds is None:
    number = len(batches) if isinstance(batches, Sized) else _DEFAULT_FOLDS
    folds = number if 2 <= number < _DEFAULT_FOLDS else _DEFAULT_FOLDS
  # One fold judges what the others choose.
  return check_whole(folds, 'folds', 2), check_whole(max_rank, 'max_rank', 1)


def _check_devices(mesh: Any, ahead: Any) -> None:
  """Raises ValueError unless these are devices and a program, or None."""
  if mesh is not None:
    require_mesh(mesh)
  if not isinstance(ahead, Ahead | None):
    raise ValueError(
      f'ahead={shown(ahead)} must be what compile_ahead returned, or None to compile here.'
    )


def _check_model(adapted: Any, variables: Any, loss: Any) -> None:
  """Raises ValueError unless these are an adapted model, its variables, and a function."""
  if not isinstance(adapted, Adapted):
    raise ValueError(
      f'allocate takes what glora_jax.adapt returned, and not {type(adapted).__name__}.'
    )
  if adapted.genome is not None:
    raise ValueError(
      'allocate reads a structure off a gradient, and that of this model is fixed; give it '
      'adapted.fix(None), with variables from its init.'
    )
  adapted.check_variables(variables)
  check_only_arrays('variables', variables)
  if not callable(loss):
    raise ValueError(f'loss={shown(loss)} must be a function, loss(forward, batch, key).')
