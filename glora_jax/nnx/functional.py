"""GLoRA on Flax NNX models: `nnx.split`, merge the supports up front, `nnx.merge`.

An NNX model bridged into linen (`nnx.bridge.ToLinen`) hides its layers from `glora_jax.adapt`:
adapt it with this module before bridging. A linen model bridged into NNX (`nnx.bridge.ToNNX`) is
adapted with `glora_jax.adapt` as the linen model that it is, and folded parameters are put into the
bridged one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import numpy as np
from flax import nnx

from glora_jax.method.adapt import DEFAULT_HEADS, assemble
from glora_jax.method.adapted import Adapted
from glora_jax.method.layout import Layout
from glora_jax.method.quantized import check_unquantized
from glora_jax.method.selection import Selection, Selector
from glora_jax.method.site import Site
from glora_jax.method.space import SearchSpace
from glora_jax.tree import Path, flatten


def adapt(
  model: nnx.Module,
  *,
  space: SearchSpace | Mapping[str, SearchSpace] = SearchSpace(),
  select: Selector | None = None,
  heads: Selector | None = DEFAULT_HEADS,
) -> Adapted:
  """Attaches GLoRA to an unmodified NNX model: to its `nnx.Linear` and `nnx.LinearGeneral`.

  No sample inputs are needed: the layers stand in the module tree, and rows follow its order (names
  sorted), which need not be that of execution. All state but `nnx.Param` (batch statistics, random
  streams) stays what it is now.

  Args:
    model: any NNX model; it is not changed.
    space: the alleles on offer; see `glora_jax.adapt`.
    select: which linear layers to adapt, by the attributes' names joined by '/'; see
      `glora_jax.adapt`.
    heads: which modules to train in full, likewise; None for none.

  Returns:
    The adapted model, whose `apply` calls the model.

  Raises:
    ValueError: no linear layer, or one whose kernel is stacked by `nnx.vmap` or `nnx.scan`.

  Example:
    >>> import glora_jax, jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model, x = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), jnp.ones((2, 4))
    >>> model = nnx.Sequential(model)
    >>> adapted = glora_jax.nnx.adapt(model)
    >>> variables = adapted.init(jax.random.key(0), glora_jax.nnx.params(model))
    >>> genome = glora_jax.preset(adapted.spec, 'lora')
    >>> outputs = adapted.apply(variables, x, genome=genome)  # the model itself is not changed
    >>> folded = glora_jax.nnx.with_params(model, adapted.fold(variables, genome))
    >>> type(folded).__name__, bool(jnp.allclose(folded(x), outputs))
    ('Sequential', True)
  """
  check_unquantized(type(model).__name__, model)
  sites: list[Site] = []
  for path, module in nnx.iter_graph(model):
    if isinstance(module, (nnx.Linear, nnx.LinearGeneral)):
      first_row = sum(len(site.rows) for site in sites)
      sites.append(_site(tuple(map(str, path)), module, first_row))
  if not sites:
    raise ValueError(f'{type(model).__name__} has no nnx.Linear or nnx.LinearGeneral to adapt.')
  selection = Selection(space, select, heads)
  return assemble(_Functional(model), params(model), sites, selection)


def params(model: nnx.Module) -> dict[str, Any]:
  """The model's `nnx.Param` values as a nested dictionary with string keys.

  Example:
    >>> import glora_jax
    >>> from flax import nnx
    >>> params = glora_jax.nnx.params(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    >>> {name: value.shape for name, value in params.items()}
    {'bias': (3,), 'kernel': (4, 3)}
  """
  return _with_string_keys(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def with_params(model: nnx.Module, new: Any) -> nnx.Module:
  """A copy of a model with other values for its `nnx.Param`, those of `adapted.fold` for instance.

  Args:
    model: any NNX model; it is not changed.
    new: values as a nested dictionary with string keys, as `params` returns them.

  Returns:
    A model of the same class.

  Example:
    >>> import glora_jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    >>> new = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}
    >>> glora_jax.nnx.with_params(model, new)(jnp.ones(4)).tolist()
    [4.0, 4.0, 4.0]
  """
  return _Functional(model).merged(new)


class _Functional:
  """An NNX model with the `apply` of a linen one."""

  def __init__(self, model: nnx.Module):
    self.graph, self.state, self.rest = nnx.split(model, nnx.Param, ...)

  def merged(self, params: Any) -> nnx.Module:
    """The model with other values for its parameters."""
    own_paths = {
      tuple(map(str, path)): path
      for path in flax.traverse_util.flatten_dict(nnx.to_pure_dict(self.state))
    }
    values = {own_paths[path]: value for path, value in flatten(params).items()}
    state = nnx.clone(self.state)
    nnx.replace_by_pure_dict(state, flax.traverse_util.unflatten_dict(values))
    return nnx.merge(self.graph, state, self.rest, copy=True)

  def apply(
    self, variables: Mapping[str, Any], *args: Any, method: str = '__call__', **kwargs: Any
  ) -> Any:
    """What a method of the model returns with the variables' parameters."""
    return getattr(self.merged(variables['params']), method)(*args, **kwargs)


def _site(path: Path, module: Any, first_row: int) -> Site:
  """An NNX linear module, whose layers are counted from a row on.

  Raises:
    ValueError: the kernel is stacked.
  """
  kernel = module.kernel.get_value()
  bias = None if module.bias is None else module.bias.get_value()
  stack = len(getattr(module, 'batch_axis', {}) or {})
  inputs_end = stack + _length(module.in_features)
  if kernel.ndim != inputs_end + _length(module.out_features):
    raise ValueError(
      f'{"/".join(path)} has a stacked kernel {kernel.shape}; only single nnx layers can be '
      'adapted. Leave it out, or keep its layers in a list.'
    )
  dims = tuple(range(kernel.ndim))
  layout = Layout(dims[:stack], dims[stack:inputs_end], dims[inputs_end:], dims[:stack])
  return Site(
    kernel_path=(*path, 'kernel'),
    bias_path=None if bias is None else (*path, 'bias'),
    kernel_shape=kernel.shape,
    bias_shape=None if bias is None else bias.shape,
    dtype=np.dtype(kernel.dtype),
    layout=layout,
    local=layout,
    lifts=(),
    local_ndim=kernel.ndim,
    kind=type(module).__name__,
    rows=tuple(range(first_row, first_row + math.prod(kernel.shape[:stack]))),
  )


def _length(sizes: int | Sequence[int]) -> int:
  return 1 if isinstance(sizes, int) else len(sizes)


def _with_string_keys(nested: Mapping[Any, Any]) -> dict[str, Any]:
  return {
    str(key): _with_string_keys(value) if isinstance(value, dict) else value
    for key, value in nested.items()
  }
