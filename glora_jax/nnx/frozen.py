"""A plain NNX model as a pure function of nested dictionaries of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax
from flax import nnx

from glora_jax.tree import flatten

STATISTICS = 'batch_stats'  # name of their collection among the variables


class Frozen:
  """A plain NNX model with the `apply` of a linen one, whose further state does not move.

  Attributes:
    name: name of the model's class.
    graphdef: what is static of the model.
    states: its parameters, its batch statistics, and all else.
  """

  def __init__(self, model: nnx.Module):
    self.name = type(model).__name__
    self.graphdef, *self.states = nnx.split(model, nnx.Param, nnx.BatchStat, ...)

  def variables(self) -> dict[str, Any]:
    """Parameters and, where there are any, batch statistics."""
    values = {'params': _nested(self.states[0]), STATISTICS: _nested(self.states[1])}
    return {name: value for name, value in values.items() if value or name == 'params'}

  def apply(
    self, variables: Mapping[str, Any], *args: Any, method: str = '__call__', **kwargs: Any
  ) -> Any:
    """What a method of the model returns with the variables' parameters and statistics."""
    parameters, statistics, rest = self.states
    states = [
      _filled(parameters, variables['params']),
      _filled(statistics, variables.get(STATISTICS, {})),
      rest,
    ]
    model = nnx.merge(self.graphdef, *states, copy=True)
    return getattr(model, method)(*args, **kwargs)


def _nested(state: Any) -> dict[str, Any]:
  """The values of a state as nested dictionaries with names for numbers."""
  flat = {tuple(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
  return flax.traverse_util.unflatten_dict(flat)


def _filled(state: Any, values: Mapping[str, Any]) -> Any:
  """A state with other values, where there are any."""
  new = flatten(values)
  leaves = [
    (path, leaf.replace(new.get(tuple(map(str, path)), leaf.get_value())))
    for path, leaf in nnx.to_flat_state(state)
  ]
  return nnx.from_flat_state(leaves)
