"""A structure read off one gradient: what to train where, without a supernet."""

from __future__ import annotations

import concurrent.futures
import functools
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from threadpoolctl import threadpool_limits

from glora_jax.limits import Domain, Limits, shown
from glora_jax.mesh import settle
from glora_jax.method.adapted import COLLECTION, Adapted
from glora_jax.method.draws import check_budget
from glora_jax.method.genomes import count_params
from glora_jax.method.space import FLAT_FORMS, Layer, Spec, Tensor
from glora_jax.method.summary import layer_table
from glora_jax.method.validation import check_key
from glora_jax.search.allocation import (
  UNIT_FORMS,
  Measure,
  Values,
  check_measure,
  layer_values,
  squares,
  stack_rows,
  xavier_norm,
)
from glora_jax.search.choice import (
  Curve,
  bought,
  choose,
  require_something,
  trace_curve,
  unit_costs,
)
from glora_jax.search.fold_gradients import Ahead, Batches, Loss, Passes, Settings, measure
from glora_jax.search.forecast import Forecast, forecast
from glora_jax.search.row_gradients import RowGradients
from glora_jax.search.starting_values import aligned

log = logging.getLogger(__name__)

_FOLDS = Domain.of_annotation(int, Limits(at_least=2))
_MAX_RANK = Domain.of_annotation(int, Limits(at_least=1))
_RHO = Domain.of_annotation(float, Limits(above=0))
_FLOOR = Domain.of_annotation(bool)


class Unit(NamedTuple):
  """One thing that could be bought, for tables and pictures.

  Attributes:
    row: row of the genome.
    layer: name of the layer.
    form: 'A.vector', 'A.lora', 'B.lora', 'C.vector' or 'E.vector'.
    part: of a LoRA, the number of the rank-one part, from 1; 0 for a vector.
    value: mean over the folds.
    error: standard error of the mean, by the folds.
    cost: trained parameters.
    bought: whether the genome has it.
  """

  row: int
  layer: str
  form: str
  part: int
  value: float
  error: float
  cost: int
  bought: bool


@dataclass(frozen=True, eq=False)
class Allocation:
  """A structure, and why it was chosen.

  Attributes:
    genome: canonical genome, int8 [rows, 5].
    variables: the variables that were given, with the aligned starting values: down factors on the
      gradient's singular vectors, everything else of the supports at the base model.
    spec: the layers.
    values: what every unit is worth on every fold, float64 [fold, row] and [fold, row, rank].
    curve: value by budget, with the proposed budget at its knee.
    budget: most trained parameters.
    proposed: whether the budget is the knee's, since none was given.
    forecast: whether the choice will matter.
    signal: share of the folds' squared gradients by the kernels that folds have in common; None
      where it is not known.

  Example:
    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> import glora_jax
    >>> model, batches = nn.Dense(2), list(jax.random.normal(jax.random.key(0), (8, 16, 4)))
    >>> space = glora_jax.SearchSpace(A='none', B='none', C='none', D='none', E=('none', 'vector'))
    >>> adapted = glora_jax.adapt(model, batches[0], space=space)
    >>> params = model.init(jax.random.key(2), batches[0])['params']
    >>> variables = adapted.init(jax.random.key(1), params)
    >>> def loss(forward, batch, key):
    ...   return jnp.square(forward(batch) - 1).mean()  # a bias of one is missing
    >>> allocation = glora_jax.allocate(
    ...   adapted, variables, loss, batches, budget=2, key=jax.random.key(3), progress=False
    ... )
    >>> [(unit.form, unit.cost, unit.bought) for unit in allocation.units()]
    [('E.vector', 2, True)]
  """

  genome: np.ndarray
  variables: dict[str, Any]
  spec: Spec
  values: Values
  curve: Curve
  budget: int
  proposed: bool
  forecast: Forecast
  signal: float | None = None

  def count_params(self) -> int:
    """Trained parameters of the genome, heads not counted."""
    return count_params(self.spec, self.genome)

  def units(self) -> Iterator[Unit]:
    """Every unit on offer, row by row."""
    mean, folds = self.values.mean(), len(self.values.E_vector)
    errors = Values(*(part.std(axis=0, ddof=1) / folds**0.5 for part in self.values))
    number = mean.B_lora.shape[-1]
    costs, has = unit_costs(self.spec, number), bought(self.spec, self.genome, number)
    for row, layer in enumerate(self.spec):
      for (tensor, form), *arrays in zip(UNIT_FORMS, mean, errors, costs, has, strict=True):
        columns = (np.atleast_1d(array[row]) for array in arrays)
        for index, (value, error, cost, is_bought) in enumerate(zip(*columns, strict=True)):
          part = index + 1 if form == 'lora' else 0
          if _is_offered(layer, tensor, part):
            place = (row, layer.name, f'{tensor}.{form}', part)
            yield Unit(*place, float(value), float(error), int(cost), bool(is_bought))

  def summary(self) -> str:
    """The structure as a table, what it costs, and what is forecast."""
    chosen = 'the knee of the curve' if self.proposed else 'as given'
    advantage, reliable, word = self.forecast
    noiseless = 100 * reliable
    lines = layer_table(self.spec, self.genome)
    lines += [
      f'trains {self.count_params():,} parameters of a budget of {self.budget:,} ({chosen})',
      f'the choice {word}: held out it is worth {advantage:.2f} times a random one of its size',
      f'{noiseless:.0f}% of the differences between units are more than noise',
    ]
    return '\n'.join(lines)


def allocate(  # noqa: PLR0913
  adapted: Adapted,
  variables: Mapping[str, Any],
  loss: Loss,
  batches: Batches,
  *,
  budget: int | None = None,
  key: jax.Array,
  folds: int = 8,
  max_rank: int = 8,
  mesh: jax.sharding.Mesh | None = None,
  value: Measure = 'squared',
  rho: float = 2.0,
  floor: bool = True,
  progress: bool = True,
  ahead: Ahead | None = None,
) -> Allocation:
  """Decides from one gradient which layers to train, in which form and with which rank.

  The gradient of the loss at the base model, in folds, says what every vector and every rank-one
  part would be worth (`search.allocation`); those that are worth most for their parameters are
  bought until the budget is full (`search.choice`). No supernet is trained, no validation image
  used.

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
    folds: number of folds; at least 2.
    max_rank: most rank-one parts that are considered in a layer.
    mesh: devices that every batch is dealt to along its first axis; None for one device.
    value: how a unit is valued on a fold, by its gradient there, g, and the other folds' mean, m:
      'squared' m * g, the default; 'sign' sign(m) * g, the decrease by one step of the sign;
      'preconditioned' m / sqrt(v) * g, with the other folds' mean square v; 'seen' the squared mean
      of all folds, nothing held out. They choose alike; the others are for comparison.
    rho: a row's rank is at most so many times the rank that all rows could have, rounded up.
    floor: whether all rows get the vectors of A and E first, where the budget is ample.
    progress: whether to show a bar.
    ahead: what `compile_ahead` returned for the same arguments, with any head.

  Returns:
    The allocation: `genome`, `variables` to train it from, and the reasons.

  Raises:
    ValueError: an argument is of another type or out of range, the variables are those of another
      model, nothing that is considered is on offer, the budget fits no unit, there are fewer
      batches than folds, a loss is not finite, or no layer has a gradient.

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
    >>> subnet = adapted.fix(allocation.genome)  # to be trained from allocation.variables
  """
  check_measure(value)
  _check_counts(folds, max_rank)
  _RHO.check(rho, 'rho')
  _FLOOR.check(floor, 'floor')
  check_key(key)
  _check_model(adapted, variables, loss)
  budget = check_budget(budget)
  require_something(adapted.spec, budget)
  settings = Settings(folds, _number(adapted.spec, max_rank), mesh, progress)
  found = measure(adapted, variables, loss, batches, key, settings, ahead)
  # On two busy cores 8 decompositions of 96 x 96 took 1.5 s with BLAS' threads, 13 ms without.
  with threadpool_limits(1, 'blas'):
    read = _read_off(adapted, variables[COLLECTION], found, settings.max_rank, value)
  _require_gradients(read.values)
  new = {**variables, COLLECTION: settle(mesh, read.supports)}
  return _decide(adapted.spec, read, new, budget, key, rho=rho, floor=floor)


def compile_ahead(
  adapted: Adapted,
  variables: Mapping[str, Any],
  loss: Loss,
  batches: Batches,
  *,
  folds: int = 8,
  max_rank: int = 8,
) -> Ahead:
  """Starts to compile what `allocate` will run, while a head is warmed: shapes alone matter.

  On one device, for batches like the first; for others `allocate` compiles by itself.

  Args:
    adapted: see `allocate`, as for all of these.
    variables: the variables.
    loss: what is differentiated.
    batches: the batches.
    folds: number of folds.
    max_rank: most rank-one parts.

  Returns:
    What `allocate` takes as `ahead`.

  Raises:
    ValueError: there is no batch, or a number is out of its range.
  """
  _check_counts(folds, max_rank)
  _check_model(adapted, variables, loss)
  settings = Settings(folds, _number(adapted.spec, max_rank))
  variables = {**variables, 'params': adapted.full_precision(variables['params'])}
  return Passes(adapted, variables, loss, batches, jax.random.key(0), settings).start_compiling()


def _number(spec: Spec, max_rank: int) -> int:
  """Rank-one parts that are considered in a layer, at most."""
  return min(max_rank, max(max(layer.space.ranks) for layer in spec))


def _require_gradients(values: Values) -> None:
  """Says so where no unit is worth anything; raises ValueError where no layer has a gradient."""
  if not any(part.any() for part in values):
    raise ValueError(
      'No adapted layer has a gradient: a head of zeros hides the loss from all of them. Train the '
      'head first, as a linear probe.'
    )
  if max(part.mean(0).max() for part in values) <= 0:
    log.warning('Held out, no unit is worth anything: the folds have no gradient in common.')


class _Read(NamedTuple):
  """What was read off the gradients: see `Allocation`; `supports` start on their directions."""

  values: Values
  supports: Any
  signal: float


def _read_off(
  adapted: Adapted,
  supports: Any,
  found: Iterator[RowGradients],
  number: int,
  value: Measure,
) -> _Read:
  """Goes through the gradients once, a group at a time."""
  rows: dict[int, Values] = {}
  common, whole = 0.0, 0.0
  # Decompositions leave the interpreter to other threads.
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
    for group in adapted.groups:
      gradients = [next(found) for _ in group.rows]
      norm = xavier_norm(group.in_features, max(group.space.ranks))
      values_of = functools.partial(layer_values, number=number, norm=norm, measure=value)
      rows |= zip(
        group.rows, threads.map(values_of, (row.gradients for row in gradients)), strict=True
      )
      for row in gradients:
        common, whole = np.add((common, whole), squares(row.gradients.kernel))
      supports = aligned(group, supports, gradients, norm)
  values = stack_rows([rows[row] for row in range(len(adapted.spec))])
  return _Read(values, supports, signal=float(common / whole) if whole else 0.0)


def _decide(
  spec: Spec,
  read: _Read,
  variables: dict[str, Any],
  budget: int | None,
  key: jax.Array,
  **options: Any,
) -> Allocation:
  """The second half of `allocate`: from values to the structure."""
  values = read.values
  curve = trace_curve(spec, values.mean())
  proposed = budget is None
  if budget is None:
    budget = int(curve.params[curve.knee])
    log.info('No budget was given; the knee of the curve is at %s parameters.', f'{budget:,}')
  genome = choose(spec, values.mean(), budget, **options)
  rng = np.random.default_rng(np.asarray(jax.random.key_data(jax.random.fold_in(key, 1))))
  expected = forecast(spec, values, budget, rng, **options)
  return Allocation(genome, variables, spec, values, curve, budget, proposed, expected, read.signal)


def _check_counts(folds: int, max_rank: int) -> None:
  _FOLDS.check(folds, 'folds')  # one fold judges what the others choose
  _MAX_RANK.check(max_rank, 'max_rank')


def _check_model(adapted: Any, variables: Any, loss: Any) -> None:
  """Raises ValueError unless these are an adapted model, its variables, and a function."""
  if not isinstance(adapted, Adapted):
    raise ValueError(
      f'allocate takes what glora_jax.adapt returned, and not {type(adapted).__name__}.'
    )
  adapted.check_variables(variables)
  if not callable(loss):
    raise ValueError(f'loss={shown(loss)} must be a function, loss(forward, batch, key).')


def _is_offered(layer: Layer, tensor: Tensor, part: int) -> bool:
  """Whether a unit can be bought: a vector (part 0), or a rank-one part of a LoRA."""
  flat = len(FLAT_FORMS[tensor])
  offered = layer.offered(tensor)
  if part:
    return any(code >= flat and layer.space.ranks[code - flat] >= part for code in offered)
  is_cheaper = layer.in_features < layer.out_features
  return FLAT_FORMS[tensor].index('vector') in offered and (tensor != 'C' or is_cheaper)
