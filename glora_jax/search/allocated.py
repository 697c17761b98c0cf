"""An allocated structure, the reasons for it, and priors from other tasks.

Which layers matter depends mostly on the backbone: what one task's gradient finds serves others. A
task with a noisy gradient can borrow values from one with a clear gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from glora_jax.checks import validate
from glora_jax.method.coverage import layer_table
from glora_jax.method.genomes import count_params
from glora_jax.method.space import FLAT_FORMS, Layer, Spec, Tensor
from glora_jax.search.allocation import UNIT_FORMS, Values
from glora_jax.search.choice import Curve, bought, unit_costs
from glora_jax.search.transfer import Transfer, check_layers, check_values, describe

NOISE = 0.14  # a signal of this size is trusted by half
CLEAR = 0.3  # one of this size needs no other


class Unit(NamedTuple):
  """One thing that could be bought, for tables and pictures.

  Attributes:
    row: row of the genome.
    layer: name of the layer.
    form: 'A.vector', 'A.lora', 'B.lora', 'C.vector' or 'E.vector'.
    part: of a LoRA, the number of the rank-one part, from 1; 0 for a vector.
    value: its value.
    cost: trained parameters.
    bought: whether the genome has it.
  """

  row: int
  layer: str
  form: str
  part: int
  value: float
  cost: int
  bought: bool


@dataclass(frozen=True, eq=False)
class Allocation:
  """A structure, and why it was chosen.

  Attributes:
    genome: canonical genome, int8 [rows, 5].
    variables: the given variables with aligned starting values: down factors on the gradient's
      singular vectors, all other supports at the base model.
    spec: the layers.
    values: what every unit is worth, float64 [row] and [row, rank]; pooled with a prior's, where
      one was given.
    curve: value by budget, with the proposed budget at its knee.
    budget: most trained parameters.
    proposed: whether the budget is the knee, because none was given.
    signal: share of the squared mean gradient of the kernels that is not noise between batches, an
      estimate that may be negative; None if unknown.
    borrowed: weight of the prior in the values, from 0 to 1.

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
  signal: float | None = None
  borrowed: float = 0.0

  def count_params(self) -> int:
    """Trained parameters of the genome, heads not counted."""
    return count_params(self.spec, self.genome)

  def units(self) -> Iterator[Unit]:
    """Every unit on offer, row by row."""
    number = self.values.B_lora.shape[-1]
    costs, has = unit_costs(self.spec, number), bought(self.spec, self.genome, number)
    for row, layer in enumerate(self.spec):
      for (tensor, form), *arrays in zip(UNIT_FORMS, self.values, costs, has, strict=True):
        columns = (np.atleast_1d(array[row]) for array in arrays)
        for index, (value, cost, is_bought) in enumerate(zip(*columns, strict=True)):
          part = index + 1 if form == 'lora' else 0
          if _is_offered(layer, tensor, part):
            place = (row, layer.name, f'{tensor}.{form}', part)
            yield Unit(*place, float(value), int(cost), bool(is_bought))

  def summary(self) -> str:
    """The structure as a table, and its number of trained parameters."""
    chosen = 'the knee of the curve' if self.proposed else 'as given'
    lines = layer_table(self.spec, self.genome)
    lines.append(
      f'trains {self.count_params():,} parameters of a budget of {self.budget:,} ({chosen})'
    )
    if self.signal is not None:
      lines.append(f'{self.signal:.2f} of the squared gradient is signal')
    if self.borrowed:
      lines.append(f'the prior counts {100 * self.borrowed:.0f}%')
    return '\n'.join(lines)


def _is_offered(layer: Layer, tensor: Tensor, part: int) -> bool:
  """Whether a unit can be bought: a vector (part 0), or a rank-one part of a LoRA."""
  flat = len(FLAT_FORMS[tensor])
  offered = layer.choices(tensor)
  if part:
    return any(code >= flat and layer.space.ranks[code - flat] >= part for code in offered)
  is_cheaper = layer.in_features < layer.out_features
  return FLAT_FORMS[tensor].index('vector') in offered and (tensor != 'C' or is_cheaper)


def share_of(signal: float, other_signal: float) -> float:
  """How much of the pooled values the other loss says, from 0 to 1.

  Args:
    signal: share of the mean gradient's square that is not noise (`Allocation.signal`).
    other_signal: the other loss's.

  Returns:
    0 where the other loss has no larger signal; else less, the larger the own one is.

  Example:
    >>> share_of(NOISE, 0.9), share_of(-0.01, 0.9), share_of(0.5, 0.4)
    (0.5, 1.0, 0.0)
  """
  if other_signal <= max(signal, 0.0):
    return 0.0
  return NOISE / (max(signal, 0.0) + NOISE)


def pooled(own: Values, other: Values, share: float) -> Values:
  """Weighted means of two sets of values, on the scale of the own ones.

  Args:
    own: values.
    other: values by another loss, of the same rows and parts.
    share: weight of the other values, from 0 to 1; see `share_of`.

  Example:
    >>> own, other = Values(*np.eye(5)[:, :1]), Values(*np.full((5, 1), 4.0))
    >>> [round(float(part[0]), 2) for part in pooled(own, other, 0.5)]
    [0.6, 0.1, 0.1, 0.1, 0.1]
  """
  total = own.total()
  return Values(
    *(
      (1 - share) * first + share * total * second
      for first, second in zip(own, other.shares(), strict=True)
    )
  )


def check_priors(spec: Spec, prior: Any, number: int) -> tuple[Allocation | Transfer, ...]:
  """What a prior consists of: nothing, a single one or several.

  Args:
    spec: the layers.
    prior: an allocation, transferred scores, a list of them, or None.
    number: rank-one parts that are considered in a layer.

  Raises:
    TypeError: it is something else.
    ValueError: it has other rows or parts.
  """
  if prior is None:
    return ()
  several = isinstance(prior, Sequence) and not isinstance(prior, Transfer)
  priors = tuple(prior) if several else (prior,)
  for each in priors:
    validate(each, Allocation | Transfer, 'prior')
    theirs = [describe(layer) for layer in each.spec]
    check_layers('The prior', theirs, spec, 'allocate it on the same adapted model.')
    check_values(each.values, spec)
    parts = each.values.B_lora.shape[-1]
    if parts != number:
      raise ValueError(
        f'The prior has values of {parts} rank-one parts, but max_rank asks for {number}; use the '
        'same max_rank for both.'
      )
  return priors
