"""An allocated structure, and the reasons for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from glora_jax.method.coverage import layer_table
from glora_jax.method.genomes import count_params
from glora_jax.method.space import FLAT_FORMS, Layer, Spec, Tensor
from glora_jax.search.choice import Curve, chosen_units, unit_costs
from glora_jax.search.unit_scores import UNIT_FORMS, UnitScores


class Unit(NamedTuple):
  """A vector or one rank of a LoRA, which could be chosen alone; for tables and pictures.

  Attributes:
    layer: name of the layer.
    form: 'A.vector', 'A.lora', 'B.lora', 'C.vector' or 'E.vector'.
    rank: the rank of a LoRA, from 1; 0 for a vector.
    score: its score.
    cost: trained parameters.
    chosen: whether the genome has it.
  """

  layer: str
  form: str
  rank: int
  score: float
  cost: int
  chosen: bool


@dataclass(frozen=True, eq=False)
class Allocation:
  """A structure, and why it was chosen.

  Attributes:
    genome: canonical genome, int8 [layers, 5].
    variables: the variables that were passed, with aligned starting values: down factors along the
      gradient's singular vectors, the rest of the adapter at the base model.
    spec: the layers.
    scores: scores of all units, float64 [layer] and [layer, rank]; pooled with a prior's, if there
      is one.
    curve: score by budget, with the proposed budget at its knee.
    budget: maximum number of trained parameters.
    proposed: whether the budget is the knee, because none was given.
    signal: share of the squared mean gradient of the kernels that is not noise between batches, an
      estimate that may be negative; None if unknown.
    borrowed: weight of the prior in the scores, from 0 to 1.

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
    >>> [(unit.form, unit.cost, unit.chosen) for unit in allocation.units()]
    [('E.vector', 2, True)]
  """

  genome: np.ndarray
  variables: dict[str, Any]
  spec: Spec
  scores: UnitScores
  curve: Curve
  budget: int
  proposed: bool
  signal: float | None = None
  borrowed: float = 0.0

  def count_params(self) -> int:
    """Trained parameters of the genome, heads not counted."""
    return count_params(self.spec, self.genome)

  def units(self) -> Iterator[Unit]:
    """Every unit that the search spaces allow, layer by layer."""
    ranks = self.scores.B_lora.shape[-1]
    costs, chosen = unit_costs(self.spec, ranks), chosen_units(self.spec, self.genome, ranks)
    for index, layer in enumerate(self.spec):
      for (tensor, form), *fields in zip(UNIT_FORMS, self.scores, costs, chosen, strict=True):
        columns = (np.atleast_1d(field[index]) for field in fields)
        for number, (score, cost, is_chosen) in enumerate(zip(*columns, strict=True), 1):
          rank = number if form == 'lora' else 0
          if _is_allowed(layer, tensor, rank):
            name = f'{tensor}.{form}'
            yield Unit(layer.name, name, rank, float(score), int(cost), bool(is_chosen))

  def summary(self) -> str:
    """The structure as a table, and its number of trained parameters."""
    source = 'the knee of the curve' if self.proposed else 'as given'
    lines = layer_table(self.spec, self.genome)
    lines.append(
      f'trains {self.count_params():,} parameters of a budget of {self.budget:,} ({source})'
    )
    if self.signal is not None:
      lines.append(f'{max(self.signal, 0.0):.2f} of the squared gradient is signal')
    if self.borrowed:
      lines.append(f'weight of the prior: {100 * self.borrowed:.0f}%')
    return '\n'.join(lines)


def _is_allowed(layer: Layer, tensor: Tensor, rank: int) -> bool:
  """Whether a layer's space allows a unit: a vector (rank 0), or a rank of a LoRA."""
  flat = len(FLAT_FORMS[tensor])  # the codes of LoRAs follow these
  choices = layer.choices(tensor)
  if rank:
    return any(code >= flat and layer.space.ranks[code - flat] >= rank for code in choices)
  is_cheaper = layer.in_features < layer.out_features  # C's vector, [in], than E's, [out]
  return FLAT_FORMS[tensor].index('vector') in choices and (tensor != 'C' or is_cheaper)
