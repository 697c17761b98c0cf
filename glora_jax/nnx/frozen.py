"""A plain NNX model as a pure function of nested dictionaries of arrays."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import flax
import jax
from flax import nnx

from glora_jax.tree import flatten, path_name, plain_path

STATISTICS = 'batch_stats'  # name of their collection among the variables


def require_module(model: Any, call: str) -> None:
  """Raises ValueError unless a model is one of NNX, as a call of `glora_jax.nnx` takes it."""
  if not isinstance(model, nnx.Module):
    given = f'the class {model.__name__}' if isinstance(model, type) else type(model).__name__
    raise ValueError(
      f'glora_jax.nnx.{call} takes an NNX model, and not {given}; linen models go '
      'to glora_jax.adapt, functions of parameters and inputs to glora_jax.adapt_function.'
    )


class Frozen:
  """An NNX model with the `apply` of a linen one, and as a function of its parameters.

  All its further state stays what it is at the beginning, at every call.

  Attributes:
    graphdef: what is static of the model.
    states: its parameters, its batch statistics, and all else.
  """

  def __init__(self, model: nnx.Module):
    self.__name__ = type(model).__name__
    self.graphdef, *self.states = nnx.split(model, nnx.Param, nnx.BatchStat, ...)

  def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
    """What the model's call returns with other parameters."""
    return self.merged({'params': params})(*args, **kwargs)

  def variables(self) -> dict[str, Any]:
    """Parameters and, where there are any, batch statistics."""
    values = {'params': nested(self.states[0]), STATISTICS: nested(self.states[1])}
    return {name: value for name, value in values.items() if value or name == 'params'}

  def kinds_of_state(self) -> dict[str, int]:
    """Numbers of the variables that are no parameters, by the name of their type."""
    further = (nnx.to_flat_state(state) for state in self.states[1:])
    return collections.Counter(type(leaf).__name__ for flat in further for _, leaf in flat)

  def merged(self, variables: Mapping[str, Any]) -> nnx.Module:
    """The model with other values for its parameters, and for its batch statistics if given."""
    params, statistics, rest = self.states
    states = [
      _filled(params, variables['params']),
      _filled(statistics, variables.get(STATISTICS, {})),
      rest,
    ]
    return nnx.merge(self.graphdef, *states, copy=True)

  def apply(
    self, variables: Mapping[str, Any], *args: Any, method: str = '__call__', **kwargs: Any
  ) -> Any:
    """What a method of the model returns with the variables' parameters and statistics.

    Raises:
      ValueError: of some state there is only the shape.
    """
    merged = self.merged(variables)
    for path, leaf in nnx.to_flat_state(nnx.state(merged)):
      if isinstance(leaf.get_value(), jax.ShapeDtypeStruct):
        raise ValueError(
          f'Of {path_name(plain_path(path))} in {self.__name__} there is only the shape, which '
          'nnx.eval_shape gives; give parameters with values, and adapt a model whose other state '
          'has some.'
        )
    return getattr(merged, method)(*args, **kwargs)


def nested(state: Any) -> dict[str, Any]:
  """The values of a state as nested dictionaries with names for numbers."""
  flat = {tuple(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
  return flax.traverse_util.unflatten_dict(flat)


def _filled(state: Any, values: Mapping[str, Any]) -> Any:
  """A state with other values, where there are any.

  Raises:
    ValueError: a value is none of the state's.
  """
  new = flatten(values)
  leaves = [
    (path, leaf.replace(new.pop(plain_path(path), leaf.get_value())))
    for path, leaf in nnx.to_flat_state(state)
  ]
  if new:
    raise ValueError(
      f'The model has no {", ".join(map(path_name, new))}; pass values by the names that '
      'glora_jax.nnx.params gives.'
    )
  return nnx.from_flat_state(leaves)
