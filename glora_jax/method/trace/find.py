"""Any function's linear layers, found by use: the parameters that meet activations in products.

The function is traced once, so nothing is computed, and its program is read: which parameter enters
a product (`dot_general`, `ragged_dot_general` and, on request, convolutions) against something that
depends on the input, whoever wrote the module that it lies in. Axes that are summed over are
inputs. Axes that are shared with the activations, scanned over, grouped or indexed one by one are a
stack of layers, and all others are outputs. A parameter that is added along exactly the outputs is
the bias.
"""

from __future__ import annotations

import itertools
import re
import types
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.limits import shown
from glora_jax.method.sample import Sample, is_array
from glora_jax.method.site import Site
from glora_jax.method.trace.events import UNUSED, Events, Position, Role, Use, Value
from glora_jax.method.trace.kernels import axis_roles, bias_of, layers, layout_of
from glora_jax.method.trace.view import View
from glora_jax.method.trace.walk import walk
from glora_jax.tree import Path, flatten, path_name, update

_KINDS = {'conv_general_dilated': 'Conv', 'ragged_dot_general': 'RaggedDot'}


class Found(NamedTuple):
  """What was found in a function.

  Attributes:
    sites: its linear layers in the order of their first uses, with their rows.
    uncovered: why the other matrices among its parameters are in none, in a few words, by path.
    unused: paths of all parameters that the call does not use.
    outputs: paths of the kernels whose layers the function's outputs are: what follows such a layer
      meets no other activations.
    refused: why linear modules cannot be adapted, by the path of their kernel.
    outside: linear layers by use alone, in a model whose modules say which its layers are.
  """

  sites: tuple[Site, ...]
  uncovered: Mapping[Path, str]
  unused: tuple[Path, ...] = ()
  outputs: tuple[Path, ...] = ()
  refused: Mapping[Path, str] = types.MappingProxyType({})
  outside: tuple[Site, ...] = ()


def find(
  function: Callable[..., Any],
  params: Any,
  inputs: tuple,
  kwargs: Mapping[str, Any],
  *,
  convs: bool = False,
  split: Mapping[str, int] = types.MappingProxyType({}),
) -> Found:
  """The linear layers of `function(params, *inputs, **kwargs)`.

  Args:
    function: any pure function that JAX can trace.
    params: its parameters, any pytree, or their shapes. What is no array is taken as it is.
    inputs: further arguments. Arrays may be `jax.ShapeDtypeStruct`; everything else is taken as it
      is.
    kwargs: keyword arguments, likewise.
    convs: whether kernels of convolutions count as linear layers, of all inputs of a window.
    split: axes of outputs that are to be stacks: by a regular expression that is searched in the
      parameter's path, the number of the axis.

  Returns:
    The layers, and the matrices that are in none.

  Raises:
    ValueError: `split` does not fit.
    Exception: what the function raises on these inputs, with a note that says which they are.

  Example:
    >>> params = {'embed': jnp.ones((5, 4)), 'mlp': {'w': jnp.ones((4, 3)), 'b': jnp.zeros(3)}}
    >>> def apply(params, tokens):
    ...   return params['embed'][tokens] @ params['mlp']['w'] + params['mlp']['b']
    >>> found = find(apply, params, (jnp.zeros(2, int),), {})
    >>> [(site.name, site.bias_path, site.layout.inputs) for site in found.sites]
    [('mlp/w', ('mlp', 'b'), (0,))]
    >>> found.uncovered
    {('embed',): 'embedding lookup'}
  """
  arrays = {
    path: bare for path, leaf in flatten(params).items() if is_array(bare := nn.meta.unbox(leaf))
  }
  sample = Sample(inputs, kwargs)

  def run(leaves, given):
    args, keywords = sample.arguments(given)
    return function(update(params, dict(zip(arrays, leaves, strict=True))), *args, **keywords)

  shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays.values()]
  with sample.explained(getattr(function, '__name__', type(function).__name__)):
    program = jax.make_jaxpr(run)(shapes, sample.arrays)
  values = [
    # A leading axis of size one is there to be repeated over a batch.
    Value(view=View.whole(path, array.shape), repeated=array.shape[:1] == (1,))
    for path, array in arrays.items()
  ]
  values += [Value(depends=True, token=number) for number, _ in enumerate(sample.arrays)]
  events = Events()
  results = walk(program, values, Position(events, convs))
  kernels, reasons = _kernels(events, arrays)
  _split(kernels, split)
  sites = _sites(kernels, events, arrays)
  covered = {path for site in sites for path in (site.kernel_path, site.bias_path)}
  reasons = {**events.others, **reasons}
  uncovered = {
    path: reasons.get(path, UNUSED)
    for path, array in arrays.items()
    if path not in covered
    and (
      _is_matrix(array.shape, events.stacked[path])
      or any(_is_matrix(use.view.shape) for use in events.uses.get(path, ())[-1:])
    )
  }
  return Found(
    sites,
    uncovered,
    unused=tuple(path for path in arrays if path not in {*events.others, *events.uses}),
    outputs=tuple(dict.fromkeys(value.layer for value in results if value.layer)),
  )


# The products of a parameter that is a kernel, in execution order, and what its axes are.
_Kernel = tuple[list[Use], tuple[Role, ...]]


def _kernels(
  events: Events, arrays: Mapping[Path, Any]
) -> tuple[dict[Path, _Kernel], dict[Path, str]]:
  """The kernels in the order of their first uses, and why other parameters can be none."""
  kernels, reasons = {}, dict(events.forbids)
  for path, own in events.uses.items():
    roles = axis_roles(own, arrays[path].shape)
    if not jnp.issubdtype(arrays[path].dtype, jnp.inexact):
      reasons[path] = f'integers: {arrays[path].dtype}'
    elif path in reasons:
      reasons[path] += ', also used in a matmul'
    elif isinstance(roles, str):
      reasons[path] = roles
    else:
      kernels[path] = own, roles
  return kernels, reasons


def _split(kernels: dict[Path, _Kernel], split: Mapping[str, int]) -> None:
  """Makes stacks of the axes of outputs that a user wants to be some.

  Raises:
    ValueError: an expression is found in no kernel's path or is none, or an axis is none of its
      outputs.
  """
  if not isinstance(split, Mapping):
    raise ValueError(
      f'split={shown(split)} must be a dictionary with an axis of the outputs for each regular '
      'expression.'
    )
  for pattern, axis in split.items():
    try:
      found = [path for path in kernels if re.search(pattern, path_name(path))]
    except (re.error, TypeError) as error:
      raise ValueError(f'split: {pattern!r} is not a regular expression: {error}.') from error
    if not found:
      raise ValueError(
        f"split: the pattern '{pattern}' matches no linear layer; there are: "
        f'{", ".join(map(path_name, kernels))}.'
      )
    for path in found:
      uses, roles = kernels[path]
      axes = range(-len(roles), len(roles))
      is_output = axis in axes and roles[axis] == 'out' and roles.count('out') > 1
      if not is_output:
        raise ValueError(
          f'split: axis {axis} of {path_name(path)} cannot be made a stack; its axes are '
          f'{", ".join(roles)}, and one of several outputs can.'
        )
      place = axis % len(roles)
      kernels[path] = uses, (*roles[:place], 'stack', *roles[place + 1 :])


def _sites(
  kernels: Mapping[Path, _Kernel], events: Events, arrays: Mapping[Path, Any]
) -> tuple[Site, ...]:
  """The kernels with their biases, and with rows in execution order; what does not run is last."""
  shapes = {path: array.shape for path, array in arrays.items()}
  layouts = {path: layout_of(uses[0], roles) for path, (uses, roles) in kernels.items()}
  biased = {
    path: found
    for path, (uses, _) in kernels.items()
    if (found := bias_of(uses, events.sums, layouts[path], shapes))
  }
  owners = Counter([*kernels, *(bias for bias, _ in biased.values())])
  uses = sorted((use for own, _ in kernels.values() for use in own), key=lambda use: use.scope)
  indices = {
    path: [*np.ndindex(*(shapes[path][axis] for axis in layout.stack))]
    for path, layout in layouts.items()
  }
  every = dict.fromkeys(layers(uses, layouts))
  every |= dict.fromkeys((path, index) for path, own in indices.items() for index in own)
  rows = {layer: row for row, layer in enumerate(every)}
  tokens: dict[Any, int] = {}
  sites = []
  for path, ((use, *_), _) in kernels.items():
    bias, layout = biased.get(path, (None, layouts[path]))
    if bias and owners[bias] > 1:  # several layers add it, or it is a kernel
      bias, layout = None, layouts[path]
    site = Site(
      kernel_path=path,
      bias_path=bias,
      kernel_shape=shapes[path],
      dtype=np.dtype(arrays[path].dtype),
      layout=layout,
      kind=_KINDS.get(use.kind, 'Dot'),
      is_convolution=use.kind == 'conv_general_dilated',
      input_id=tokens.setdefault(use.token, len(tokens)),
      shared=path in events.otherwise or path in events.others,
      rows=tuple(rows[path, index] for index in indices[path]),
    )
    sites.append(site)
  return tuple(sites)


def _is_matrix(shape: Sequence[int], stacked: Container[int] = ()) -> bool:
  """Whether an array has two axes or more, without stacks and leading axes of size one."""
  axes = (size for axis, size in enumerate(shape) if axis not in stacked)
  return len([*itertools.dropwhile(lambda size: size == 1, axes)]) > 1
