"""GLoRA on any pure function of parameters and inputs, whatever library it is written with."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn

from glora_jax.method.adapt import DEFAULT_HEADS, assemble
from glora_jax.method.adapted import Adapted
from glora_jax.method.quantized import check_unquantized
from glora_jax.method.sample import is_array
from glora_jax.method.selection import Selection, Selector
from glora_jax.method.space import SearchSpace
from glora_jax.method.trace.find import Found, find, named_reasons
from glora_jax.tree import flatten, map_with_path


def adapt_function(  # noqa: PLR0913
  function: Callable[..., Any],
  params: Any,
  *sample_inputs: Any,
  space: SearchSpace | Mapping[str, SearchSpace] = SearchSpace(),
  select: Selector | None = None,
  heads: Selector | None = DEFAULT_HEADS,
  ties: Sequence[Sequence[str]] = (),
  convs: bool = False,
  split: Mapping[str, int] = types.MappingProxyType({}),
  **kwargs: Any,
) -> Adapted:
  """Attaches GLoRA to a pure function: of plain JAX, Equinox, Haiku or any other library.

  The function is traced, and the linear layers are found by how it uses its parameters: those that
  meet activations in a product. A layer has the name of its parameter: the keys that lead to it,
  joined by '/' (without a last 'kernel').

  Args:
    function: called as `function(params, *inputs, **kwargs)`.
    params: its parameters, or their shapes, any pytree: nested dictionaries and lists, dataclasses,
      an Equinox module. What is no array is taken as it is; for gradients by all of the params, let
      them hold arrays alone (`eqx.partition(model, eqx.is_array)`).
    *sample_inputs: what the function is called with; only shapes and dtypes matter
      (`jax.ShapeDtypeStruct` will do).
    space: the alleles on offer; see `adapt`.
    select: which linear layers to adapt, by name; see `adapt`.
    heads: which parameters to train in full: by their names, or those of what they lie in; see
      `adapt`.
    ties: layers to adapt as one; see `adapt`.
    convs: whether kernels of convolutions count as linear layers.
    split: axes of a layer's outputs that are to be a stack with one row each, as in
      `{'kv_einsum/w': 0}`: by a regular expression that is searched in the parameter's path, the
      number of the axis.
    **kwargs: further arguments of the call.

  Returns:
    The adapted function. Its `init` takes the params, and `apply` the function's other arguments.

  Raises:
    ValueError: the function closes over its parameters, has no linear layer, or the choices do not
      fit; one sentence. What the function itself raises on the sample inputs passes through.

  Example:
    >>> import glora_jax, jax, jax.numpy as jnp
    >>> params = [{'w': jnp.ones((4, 8)), 'b': jnp.zeros(8)}, {'w': jnp.ones((8, 3))}]
    >>> def mlp(params, x):
    ...   return jnp.tanh(x @ params[0]['w'] + params[0]['b']) @ params[1]['w']
    >>> adapted = glora_jax.adapt_function(mlp, params, jnp.zeros((1, 4)), heads='^1')
    >>> [layer.name for layer in adapted.spec]
    ['0/w']
    >>> variables, x = adapted.init(jax.random.key(0), params), jnp.ones((2, 4))
    >>> genome = glora_jax.preset(adapted.spec, 'lora')
    >>> outputs = adapted.apply(variables, x, genome=genome)
    >>> bool(jnp.allclose(outputs, mlp(adapted.fold(variables, genome), x)))
    True
  """
  selection = Selection(space, select, heads, ties, convs)
  adapted = Function(function)
  check_unquantized(adapted.__name__, params)
  found = find(function, params, sample_inputs, kwargs, convs=convs, split=split)
  arrays = map_with_path(lambda _, leaf: leaf if is_array(nn.meta.unbox(leaf)) else None, params)
  _check_found(adapted.__name__, found, arrays)
  return assemble(adapted, arrays, found.sites, selection, found=found)


class Function:
  """A function with the `apply` of a linen model.

  Attributes:
    function: called as `function(params, *inputs, **kwargs)`.
  """

  def __init__(self, function: Callable[..., Any]):
    self.function = function
    self.__name__ = getattr(function, '__name__', type(function).__name__)

  def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """What the function returns with the variables' parameters."""
    return self.function(variables['params'], *args, **kwargs)


def _check_found(name: str, found: Found, arrays: Any) -> None:
  """Raises ValueError unless there is a linear layer."""
  paths = set(flatten(arrays))
  if found.sites:
    return
  if not paths:
    raise ValueError(f'The params of {name} hold no array; give those that it computes with.')
  if paths == set(found.unused):
    raise ValueError(
      f'{name} uses none of its params on its inputs: it must be called as {name}(params, *inputs) '
      'and compute with these, not with arrays that it closes over.'
    )
  raise ValueError(
    f'{name} has no linear layer that GLoRA can adapt: '
    f'{named_reasons(found.uncovered) or "it has no matrix among its parameters"}.'
  )
