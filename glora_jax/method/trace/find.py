"""Any function's linear layers, found by use: the parameters that meet activations in products.

The function is traced once, so nothing is computed, and its program is read: which parameter enters
a product (`dot_general`, `ragged_dot_general` and, on request, convolutions) against something that
depends on the input, whoever wrote the module that it lies in. Axes that are summed over are
inputs. Axes that are shared with the activations, scanned over, grouped or indexed one by one are a
stack of layers, and all others are outputs. A parameter that is added along exactly the outputs is
the bias.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.checks import validate
from glora_jax.method.sample import Sample, is_array
from glora_jax.method.site import TABLE, Layout, Site, interleave
from glora_jax.method.trace.events import UNUSED, Events, Position, Role, Use, Value
from glora_jax.method.trace.view import NO_AXIS, Atom, Scope, View, common_parts, size_of
from glora_jax.method.trace.walk import walk
from glora_jax.tree import KeyPath, flatten, path_name, update

Shape = Sequence[int]
LOOKUPS = dict.fromkeys(('gather', 'dynamic_slice'), TABLE)  # of rows
_KINDS = {'conv_general_dilated': 'Conv', 'ragged_dot_general': 'RaggedDot', **LOOKUPS}


class Found(NamedTuple):
  """What was found in a function.

  Attributes:
    sites: its linear layers in the order of their first uses, with their rows.
    uncovered: why the other matrices among its parameters are in none, in a few words, by path.
    unused: paths of all parameters that the call does not use.
    outputs: paths of the kernels whose layers the function's outputs are: what follows such a layer
      meets no other activations.
    outside: linear layers by use alone, in a model whose modules say which its layers are.
  """

  sites: tuple[Site, ...]
  uncovered: Mapping[KeyPath, str]
  unused: tuple[KeyPath, ...] = ()
  outputs: tuple[KeyPath, ...] = ()
  outside: tuple[Site, ...] = ()


def find(
  function: Callable[..., Any],
  params: Any,
  inputs: tuple,
  kwargs: Mapping[str, Any],
  *,
  convs: bool = False,
  embeddings: bool = False,
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
    embeddings: whether tables that are looked up do, of one-hot inputs.
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
    Value(view=View.of(path, array.shape), repeated=array.shape[:1] == (1,))
    for path, array in arrays.items()
  ]
  values += [Value(depends=True, token=number) for number, _ in enumerate(sample.arrays)]
  events = Events()
  results = walk(program, values, Position(events, convs, embeddings=embeddings))
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
  events: Events, arrays: Mapping[KeyPath, Any]
) -> tuple[dict[KeyPath, _Kernel], dict[KeyPath, str]]:
  """The kernels in the order of their first uses, and why other parameters can be none."""
  kernels, reasons = {}, dict(events.forbids)
  for path, own in events.uses.items():
    # A table is what its lookups say, which come first; others (a tied head) may be transposed.
    own.sort(key=lambda use: use.kind not in LOOKUPS)
    roles = _axis_roles(own, arrays[path].shape)
    if not jnp.issubdtype(arrays[path].dtype, jnp.inexact):
      reasons[path] = f'integers: {arrays[path].dtype}'
    elif path in reasons:
      reasons[path] += ', also used in a matmul'
    elif isinstance(roles, str):
      reasons[path] = roles
    else:
      kernels[path] = own, roles
  return kernels, reasons


def _split(kernels: dict[KeyPath, _Kernel], split: Mapping[str, int]) -> None:
  """Makes stacks of the axes of outputs that a user wants to be some.

  Raises:
    ValueError: an expression is found in no kernel's path or is none, or an axis is none of its
      outputs.
  """
  validate(split, Mapping, 'split')
  for pattern, axis in split.items():
    try:
      found = [path for path in kernels if re.search(pattern, path_name(path))]
    except (re.error, TypeError) as error:
      raise ValueError(f'split: {pattern!r} is not a regular expression: {error}.') from error
    if not found:
      raise ValueError(
        f"split: the pattern '{pattern}' matches no linear layer; the layers are: "
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
  kernels: Mapping[KeyPath, _Kernel], events: Events, arrays: Mapping[KeyPath, Any]
) -> tuple[Site, ...]:
  """The kernels with their biases, and with rows in execution order; what does not run is last."""
  shapes = {path: array.shape for path, array in arrays.items()}
  layouts = {path: _layout_of(uses[0], roles) for path, (uses, roles) in kernels.items()}
  biased = {
    path: found
    for path, (uses, _) in kernels.items()
    if (found := _bias_of(uses, events.sums, layouts[path], shapes))
  }
  owners = Counter([*kernels, *(bias for bias, _ in biased.values())])
  uses = sorted((use for own, _ in kernels.values() for use in own), key=lambda use: use.scope)
  indices = {
    path: [*np.ndindex(*(shapes[path][axis] for axis in layout.stack))]
    for path, layout in layouts.items()
  }
  every = dict.fromkeys(_layers(uses, layouts))
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


def _axis_roles(uses: Sequence[Use], shape: Shape) -> tuple[Role, ...] | str:
  """What the axes of a parameter are, or why that cannot be said.

  An axis of which single items are taken is a stack, unless it is also used as a whole.

  Args:
    uses: the products that it enters.
    shape: its shape.
  """
  found: list[list[Role]] = [[] for _ in shape]
  uses = [use for use in uses if use.kind in LOOKUPS] or uses
  for use in uses:  # of an axis as a whole, or in parts
    for dim, role in zip(use.view.dims, use.roles, strict=True):
      for atom in dim:
        if atom.axis != NO_AXIS:
          found[atom.axis].append(role)
    for atom, by in use.view.taken:
      if not isinstance(by, int):
        found[atom.axis].append('stack')
  ways = [set(own) for own, size in zip(found, shape, strict=True) if size > 1]
  if any({'in', 'out'} <= own for own in ways):
    return 'used in matmuls in two ways, once transposed'
  if any(len(own) > 1 for own in ways):
    return 'used in matmuls in two ways: an axis is a stack in one of them'
  roles: tuple[Role, ...] = tuple(axis[0] if axis else 'stack' for axis in found)
  if 'in' not in roles or 'out' not in roles:
    return 'used in a matmul without an axis of inputs or of outputs'
  return roles


def _layout_of(use: Use, roles: Sequence[Role]) -> Layout:
  """The layout of a kernel without bias.

  The stack's axes are first those that were taken, in the order in which they were.

  Args:
    use: its first use.
    roles: what its axes are.
  """
  axes: dict[Role, list[int]] = {'stack': [], 'in': [], 'out': []}
  for axis in dict.fromkeys([*(taken.atom.axis for taken in use.view.taken), *range(len(roles))]):
    axes[roles[axis]].append(axis)
  return Layout(tuple(axes['stack']), tuple(sorted(axes['in'])), tuple(sorted(axes['out'])))


def _layers(
  uses: Sequence[Use], layouts: Mapping[KeyPath, Layout]
) -> Iterator[tuple[KeyPath, tuple[int, ...]]]:
  """The layers that uses run, in execution order: the kernel's path and the index in its stack.

  Args:
    uses: uses of kernels, in execution order.
    layouts: those of the kernels, by path.
  """
  stacked = {taken.by for use in uses for taken in use.view.taken}  # others have the same layers
  looped = [
    (use, [(scope, length if scope in stacked else 1) for scope, length in use.scans])
    for use in uses
  ]
  for use, numbers in interleave(looped):
    path = use.view.path
    counters = {scope: number for (scope, _), number in zip(use.scans, numbers, strict=True)}
    yield from ((path, index) for index in _indices(use, layouts[path].stack, counters))


def _indices(
  use: Use, stack: Sequence[int], counters: Mapping[Hashable, int]
) -> Iterator[tuple[int, ...]]:
  """The indices in a kernel's stack that a use runs."""
  parts: dict[int, list[list[int]]] = {axis: [] for axis in stack}
  wholes = ((atom, None) for dim in use.view.dims for atom in dim)
  for atom, by in [*wholes, *use.view.taken]:
    if atom.axis in parts:
      number = counters[by] if isinstance(by, tuple) else by
      numbers = range(atom.size) if number is None else [number]
      parts[atom.axis].append([(atom.start + number) * atom.stride for number in numbers])
  choices = [sorted(map(sum, itertools.product(*parts[axis]))) for axis in stack]
  return itertools.product(*choices)


def _bias_of(
  uses: Sequence[Use],
  sums: Mapping[Scope, Sequence[tuple[View, View]]],
  layout: Layout,
  shapes: Mapping[KeyPath, Shape],
) -> tuple[KeyPath, Layout] | None:
  """The parameter that is added to all products of a kernel along exactly its outputs.

  With it comes the layout of both.

  Args:
    uses: the kernel's products.
    sums: what is added to products; see `Events`.
    layout: the kernel's layout.
    shapes: shapes of all parameters, by path.
  """
  found: set[tuple[KeyPath, Layout] | None] = set()
  for use in uses:
    fitting = [
      (bias.path, fitted)
      for product, bias in sums.get(use.scope, ())
      if (fitted := _with_bias(layout, product, bias, shapes)) is not None
    ]
    found.add(fitting[0] if fitting else None)
  return found.pop() if len(found) == 1 else None


# A part of an axis of a kernel, and the part of an axis of a bias that lies along it.
_Pair = tuple[Atom, Atom]


def _with_bias(
  layout: Layout, product: View, added: View, shapes: Mapping[KeyPath, Shape]
) -> Layout | None:
  """A kernel's layout with that of the bias that is added; None if it is no bias of the kernel."""
  pairs = _pairs(product, added)
  if pairs is None:
    return None
  kernel_shape, bias_shape = shapes[product.path], shapes[added.path]
  wanted = {axis for axis in (*layout.stack, *layout.outputs) if kernel_shape[axis] > 1}
  if not _covers([kernel for kernel, _ in pairs], wanted, kernel_shape):
    return None
  if not _covers([bias for _, bias in pairs], set(range(len(bias_shape))), bias_shape):
    return None
  # For every axis of the bias the parts of the kernel's axes that lie along it, row-major.
  ordered = sorted(pairs, key=lambda pair: -pair[1].stride)
  along = [[k for k, bias in ordered if bias.axis == axis] for axis in range(len(bias_shape))]
  stack = _bias_stack(layout.stack, along, bias_shape)
  if stack is None:
    return None
  outputs = [atom for axis, atoms in enumerate(along) if axis not in stack for atom in atoms]
  order = _row_major_axes(outputs)
  if order is None or set(order) - set(layout.outputs):
    return None
  alone = [axis for axis in layout.outputs if axis not in order]  # of size one
  return dataclasses.replace(layout, outputs=(*order, *alone), bias_stack=stack)


def _pairs(kernel: View, bias: View) -> list[_Pair] | None:
  """The parts of axes that lie along each other; None if one varies where the other does not."""
  kernel_items, bias_items = (
    [taken for taken in view.taken if taken.atom.size > 1] for view in (kernel, bias)
  )
  if [taken.by for taken in kernel_items] != [taken.by for taken in bias_items]:
    return None
  kernel_dims = [*kernel.dims, *((taken.atom,) for taken in kernel_items)]
  bias_dims = [*bias.dims, *((taken.atom,) for taken in bias_items)]
  pairs = []
  for kernel_dim, bias_dim in zip(kernel_dims, bias_dims, strict=True):
    if size_of(bias_dim) == 1:  # an addition repeats it
      bias_dim = (Atom(NO_AXIS, size_of(kernel_dim)),)
    parts = common_parts(kernel_dim, bias_dim)
    if parts is None or any((k.axis == NO_AXIS) != (b.axis == NO_AXIS) for k, b in parts):
      return None
    pairs += [part for part in parts if part[0].axis != NO_AXIS]
  return pairs


def _covers(atoms: Sequence[Atom], axes: set[int], shape: Shape) -> bool:
  """Whether atoms make up axes as a whole, and no others."""
  sizes: dict[int, int] = defaultdict(lambda: 1)
  for atom in atoms:
    sizes[atom.axis] *= atom.size
  return set(sizes) <= axes and all(sizes[axis] == shape[axis] for axis in axes)


def _bias_stack(
  stack: Sequence[int], along: Sequence[Sequence[Atom]], bias_shape: Shape
) -> tuple[int, ...] | None:
  """The axes of a bias that are a kernel's stack; None if there are none that are just these."""
  free = [axis for axis, atoms in enumerate(along) if not atoms and bias_shape[axis] == 1]
  found = []
  for axis in stack:
    fitting = [number for number, atoms in enumerate(along) if _row_major_axes(atoms) == [axis]]
    if not fitting and free:  # an axis of size one
      fitting = [free.pop(0)]
    if len(fitting) != 1:
      return None
    found += fitting
  return tuple(found)


def _row_major_axes(atoms: Sequence[Atom]) -> list[int] | None:
  """The axes that atoms make up one after another; None where they lie between each other."""
  axes = []
  for axis, parts in itertools.groupby(atoms, lambda atom: atom.axis):
    strides = [atom.stride for atom in parts]
    if axis in axes or strides != sorted(strides, reverse=True):
      return None
    axes.append(axis)
  return axes
