"""A structure that was read off a gradient, and the reasons for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from glora_jax.method.coverage import layer_table
from glora_jax.method.genomes import count_params
from glora_jax.method.space import FLAT_FORMS, Layer, Spec, Tensor
from glora_jax.search.allocation import UNIT_FORMS, Values
from glora_jax.search.choice import Curve, bought, unit_costs


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
    values: what every unit is worth on every fold, float64 [fold, row] and [fold, row, rank];
      pooled with a prior's, where one was given.
    curve: value by budget, with the proposed budget at its knee.
    budget: most trained parameters.
    proposed: whether the budget is the knee's, since none was given.
    signal: share of the folds' squared gradients by the kernels that folds have in common; None
      where it is not known.
    unjudged: trained parameters that were bought by the mean gradient of all folds, since held out
      nothing more was worth anything.
    borrowed: how much of the values a prior has said, from 0 to 1.

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
  unjudged: int = 0
  borrowed: float = 0.0

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
    """The structure as a table, and what it costs."""
    chosen = 'the knee of the curve' if self.proposed else 'as given'
    lines = layer_table(self.spec, self.genome)
    lines += [
      f'trains {self.count_params():,} parameters of a budget of {self.budget:,} ({chosen})',
      *self._about_unjudged(),
      *self._about_borrowed(),
    ]
    return '\n'.join(lines)

  def _about_unjudged(self) -> list[str]:
    if not self.unjudged:
      return []
    return [f'held out, {self.unjudged:,} of them are worth nothing: the folds agree too little']

  def _about_borrowed(self) -> list[str]:
    return [f"{100 * self.borrowed:.0f}% of the values are the prior's"] if self.borrowed else []


def _is_offered(layer: Layer, tensor: Tensor, part: int) -> bool:
  """Whether a unit can be bought: a vector (part 0), or a rank-one part of a LoRA."""
  flat = len(FLAT_FORMS[tensor])
  offered = layer.offered(tensor)
  if part:
    return any(code >= flat and layer.space.ranks[code - flat] >= part for code in offered)
  is_cheaper = layer.in_features < layer.out_features
  return FLAT_FORMS[tensor].index('vector') in offered and (tensor != 'C' or is_cheaper)
