"""GLoRA on Flax NNX models, through the same pure functions: `nnx.split`, merge the supports up front, `nnx.merge`.

Example:
  >>> from glora_jax import nnx as glora_nnx                                    # doctest: +SKIP
  >>> adapted = glora_nnx.adapt(model, space=SearchSpace((4,)))
  >>> variables = adapted.init(key, glora_nnx.params(model))
  >>> logits = adapted.apply(variables, x, genome=genome)                       # the model itself is not changed
  >>> folded = glora_nnx.with_params(model, adapted.fold(variables, genome))    # a plain NNX model of the same class

An NNX model bridged into linen (`nnx.bridge.ToLinen`) hides its layers from `glora_jax.adapt`: adapt it here before bridging.
A linen model bridged into NNX (`nnx.bridge.ToNNX`) is adapted with `glora_jax.adapt` as the linen model that it is, and folded
parameters are put into the bridged one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax
import numpy as np
from flax import nnx

from glora_jax.method.adapt import DEFAULT_HEADS, Selector, assemble
from glora_jax.method.adapted import Adapted
from glora_jax.method.discover import Site
from glora_jax.method.layout import Layout
from glora_jax.method.space import SearchSpace
from glora_jax.tree import flatten


def adapt(
  model: nnx.Module,
  *,
  space: SearchSpace | Mapping[str, SearchSpace] = SearchSpace(),
  select: Selector | None = None,
  heads: Selector | None = DEFAULT_HEADS,
) -> Adapted:
  """Attaches GLoRA to an unmodified NNX model: to its `nnx.Linear` and `nnx.LinearGeneral`.

  No sample inputs are needed: the layers stand in the module tree, and rows follow its order (names sorted), which need not be
  that of execution. All state but `nnx.Param` (batch statistics, random streams) stays what it is now.

  Args:
    model: any NNX model; it is not changed.
    space, select, heads: see `glora_jax.adapt`; paths are the attributes' names, joined by '/'.

  Returns:
    An `Adapted`, whose `apply` calls the model.

  Raises:
    ValueError: no linear layer, or one whose kernel is stacked by `nnx.vmap` or `nnx.scan`.
  """
  sites = []
  for path, module in nnx.iter_graph(model):
    if isinstance(module, (nnx.Linear, nnx.LinearGeneral)):
      sites.append(_site(tuple(map(str, path)), module, len(sites)))
  if not sites:
    raise ValueError(f'{type(model).__name__} has no nnx.Linear or nnx.LinearGeneral to adapt.')
  return assemble(_Functional(model), params(model), sites, space=space, select=select, heads=heads)


def params(model: nnx.Module) -> dict[str, Any]:
  """The model's `nnx.Param` values as a nested dictionary with string keys."""
  return _with_string_keys(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def with_params(model: nnx.Module, new: Any) -> nnx.Module:
  """A copy of the model with other values for its `nnx.Param`, `adapted.fold`'s for instance."""
  return _Functional(model).merged(new)


class _Functional:
  """An NNX model with the `apply` of a linen one."""

  def __init__(self, model):
    self.graph, self.state, self.rest = nnx.split(model, nnx.Param, ...)

  def merged(self, params):
    values = {
      tuple(map(str, path)): path
      for path in flax.traverse_util.flatten_dict(nnx.to_pure_dict(self.state))
    }
    pure = flax.traverse_util.unflatten_dict(
      {values[path]: value for path, value in flatten(params).items()}
    )
    state = nnx.clone(self.state)
    nnx.replace_by_pure_dict(state, pure)
    return nnx.merge(self.graph, state, self.rest, copy=True)

  def apply(self, variables, *args, method: str = '__call__', **kwargs):
    return getattr(self.merged(variables['params']), method)(*args, **kwargs)


def _site(path, module, row):
  as_tuple = lambda value: (value,) if isinstance(value, int) else tuple(value)
  fan_in, fan_out = as_tuple(module.in_features), as_tuple(module.out_features)
  batch = tuple(range(len(getattr(module, 'batch_axis', {}) or {})))
  kernel, bias = (
    module.kernel.get_value(),
    module.bias.get_value() if module.bias is not None else None,
  )
  if kernel.ndim != len(batch) + len(fan_in) + len(fan_out):
    raise ValueError(
      f'{"/".join(path)} has a stacked kernel {kernel.shape}; only single nnx layers can be adapted. Leave it out, '
      'or keep its layers in a list.'
    )
  first = len(batch)
  layout = Layout(
    batch,
    tuple(range(first, first + len(fan_in))),
    tuple(range(first + len(fan_in), kernel.ndim)),
    batch,
  )
  stack = math.prod(kernel.shape[:first])
  return Site(
    path=path,
    kernel_shape=kernel.shape,
    bias_shape=None if bias is None else bias.shape,
    dtype=np.dtype(kernel.dtype),
    layout=layout,
    local=layout,
    lifts=(),
    local_ndim=kernel.ndim,
    kind=type(module).__name__,
    rows=tuple((row, n) for n in range(stack)),
  )


def _with_string_keys(tree):
  return {
    str(key): _with_string_keys(value) if isinstance(value, dict) else value
    for key, value in tree.items()
  }
