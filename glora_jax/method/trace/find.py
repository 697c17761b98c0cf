"""Finds the linear layers of any function: the parameters that are multiplied by activations.

The function is traced once, so nothing is computed, and its program is searched for products
(`dot_general`, `ragged_dot_general` and, on request, convolutions) of a parameter with something
that depends on the input, whatever module it is in. Each axis of the kernel has a role:

- 'in': the product sums over it.
- 'stack': it counts layers. The product shares it with the activations (`e` in
  `einsum('ebd,edf->ebf')`) or groups by it, a scan goes through it, or items are selected from it.
- 'out': all others.

The parameter that is added along exactly the stack and the outputs is the bias.

`find` walks the program (`walk`), which records products and sums (`Events`), decides the roles of
the kernels' axes (`_kernels`), and then numbers the layers and finds their biases (`_sites`).
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.checks import validate
from glora_jax.method.sample import Sample, is_array
from glora_jax.method.site import TABLE, Layout, Site, interleave
from glora_jax.method.trace.events import UNUSED, Events, Position, Role, Use, Value
from glora_jax.method.trace.view import (
  NO_AXIS,
  Atom,
  Index,
  Scope,
  View,
  common_parts,
  is_matrix,
  size_of,
)
from glora_jax.method.trace.walk import walk
from glora_jax.tree import KeyPath, flatten, path_name, update

Shape = Sequence[int]
LOOKUPS = dict.fromkeys(('gather', 'dynamic_slice'), TABLE)  # of an embedding
_KINDS = {'conv_general_dilated': 'Conv', 'ragged_dot_general': 'RaggedDot', **LOOKUPS}


class Found(NamedTuple):
  """The linear layers of a function.

  Attributes:
    sites: its kernels in the order of their first uses; their layers are numbered (`Site.rows`).
    uncovered: the other matrices among its parameters: by path, why each is in no layer.
    unused: paths of all parameters that the call does not use.
    outputs: paths of the kernels of output layers: the last one on every way to some output.
    outside: if modules say which layers a model has, those that only its program shows.
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
  stacks: Mapping[str, int] = types.MappingProxyType({}),
) -> Found:
  """The linear layers of `function(params, *inputs, **kwargs)`.

  Args:
    function: any pure function that JAX can trace.
    params: its parameters, any pytree, or their shapes. Leaves that are not arrays are kept.
    inputs: further arguments. Arrays may be `jax.ShapeDtypeStruct`; all else is kept.
    kwargs: keyword arguments, likewise.
    convs: whether convolutions count as linear layers, with a whole window as inputs.
    embeddings: whether embedding lookups do, with one-hot vectors as inputs.
    stacks: output axes that count layers: numbers of axes, by regular expressions that are searched
      for in the parameters' paths.

  Returns:
    The layers, and the matrices that are in none.

  Raises:
    ValueError: `stacks` do not fit.
    Exception: an error of the function on these inputs, with a note of their shapes.

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
  leaves = {path: nn.meta.unbox(leaf) for path, leaf in flatten(params).items()}
  arrays = {path: leaf for path, leaf in leaves.items() if is_array(leaf)}
  sample = Sample(inputs, kwargs)

  def run(values, input_arrays):
    args, keywords = sample.arguments(input_arrays)
    return function(update(params, dict(zip(arrays, values, strict=True))), *args, **keywords)

  shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays.values()]
  with sample.explained(getattr(function, '__name__', type(function).__name__)):
    program = jax.make_jaxpr(run)(shapes, sample.arrays)
  values = [
    # A parameter with a leading axis of size one is made to be repeated over a batch.
    Value(view=View.of(path, array.shape), repeated=array.shape[:1] == (1,))
    for path, array in arrays.items()
  ]
  values += [Value(depends=True)] * len(sample.arrays)
  events = Events()
  results = walk(program, values, Position(events, convs, embeddings=embeddings))
  kernels, reasons = _kernels(events, arrays)
  _make_stacks(kernels, stacks)
  sites = _sites(kernels, events, arrays)
  covered = {path for site in sites for path in (site.kernel_path, site.bias_path)}
  reasons = {**events.others, **reasons}
  matrices = [
    path
    for path, array in arrays.items()
    if is_matrix(array.shape, events.indexed_axes[path])
    or any(is_matrix(use.view.shape) for use in events.uses.get(path, ()))
  ]
  return Found(
    sites,
    {path: reasons.get(path, UNUSED) for path in matrices if path not in covered},
    unused=tuple(path for path in arrays if path not in {*events.others, *events.uses}),
    outputs=tuple(dict.fromkeys(value.layer for value in results if value.layer)),
  )


class _Kernel(NamedTuple):
  """A parameter that is multiplied by activations.

  Attributes:
    uses: its products in execution order; lookups come first.
    roles: the roles of its axes.
  """

  uses: list[Use]
  roles: tuple[Role, ...]


def _kernels(
  events: Events, arrays: Mapping[KeyPath, Any]
) -> tuple[dict[KeyPath, _Kernel], dict[KeyPath, str]]:
  """The kernels in the order of their first uses, and why other parameters cannot be kernels."""
  kernels, reasons = {}, dict(events.forbids)
  for path, uses in events.uses.items():
    # Lookups decide the roles of a table, since a tied head may multiply by its transpose.
    uses = sorted(uses, key=lambda use: use.kind not in LOOKUPS)
    roles = _axis_roles(uses, arrays[path].shape)
    if not jnp.issubdtype(arrays[path].dtype, jnp.inexact):
      reasons[path] = f'integers: {arrays[path].dtype}'
    elif path in reasons:
      reasons[path] += ', also used in a matmul'
    elif isinstance(roles, str):
      reasons[path] = roles
    else:
      kernels[path] = _Kernel(uses, roles)
  return kernels, reasons


def _make_stacks(kernels: dict[KeyPath, _Kernel], stacks: Mapping[str, int]) -> None:
  """Turns the output axes that a user names into stacks; see `find`.

  Raises:
    ValueError: an expression matches no kernel's path, or is invalid; or an axis is not one of
      several output axes.
  """
  validate(stacks, Mapping, 'stacks')
  for pattern, axis in stacks.items():
    try:
      paths = [path for path in kernels if re.search(pattern, path_name(path))]
    except (re.error, TypeError) as error:
      raise ValueError(f'stacks: {pattern!r} is not a regular expression: {error}.') from error
    if not paths:
      raise ValueError(
        f"stacks: the pattern '{pattern}' matches no linear layer; the layers are: "
        f'{", ".join(map(path_name, kernels))}.'
      )
    for path in paths:
      roles = kernels[path].roles
      axes = range(-len(roles), len(roles))
      is_output = axis in axes and roles[axis] == 'out' and roles.count('out') > 1
      if not is_output:
        raise ValueError(
          f'stacks: axis {axis} of {path_name(path)} cannot be made a stack; its axes are '
          f'{", ".join(roles)}, and one of several outputs can.'
        )
      axis %= len(roles)
      with_stack = (*roles[:axis], 'stack', *roles[axis + 1 :])
      kernels[path] = kernels[path]._replace(roles=with_stack)


def _sites(
  kernels: Mapping[KeyPath, _Kernel], events: Events, arrays: Mapping[KeyPath, Any]
) -> tuple[Site, ...]:
  """The kernels with their biases; the rows number all layers in execution order.

  Layers of a stack that do not run come last.
  """
  shapes = {path: array.shape for path, array in arrays.items()}
  layouts = {path: _layout_of(kernel) for path, kernel in kernels.items()}
  biases = {
    path: _bias_of(kernel.uses, events.sums, layouts[path], shapes)
    for path, kernel in kernels.items()
  }
  indices = {
    path: [*np.ndindex(*(shapes[path][axis] for axis in layout.stack))]
    for path, layout in layouts.items()
  }
  uses = [use for kernel in kernels.values() for use in kernel.uses]
  uses.sort(key=lambda use: use.scope)
  # A layer that runs several times has the row of its first run: a dictionary keeps its place.
  layers = dict.fromkeys(_layers(uses, layouts))
  layers |= dict.fromkeys((path, index) for path in kernels for index in indices[path])
  rows = {layer: row for row, layer in enumerate(layers)}
  users = Counter([*kernels, *(bias.path for bias in biases.values() if bias)])
  sites = []
  for path, kernel in kernels.items():
    use, bias = kernel.uses[0], biases[path]
    if bias and users[bias.path] > 1:  # several layers add it, or it is a kernel
      bias = None
    site = Site(
      kernel_path=path,
      bias_path=bias.path if bias else None,
      kernel_shape=shapes[path],
      dtype=np.dtype(arrays[path].dtype),
      layout=bias.layout if bias else layouts[path],
      kind=_KINDS.get(use.kind, 'Dot'),
      is_convolution=use.kind == 'conv_general_dilated',
      is_grouped=path in events.grouped,
      is_tied=len({use.kind in LOOKUPS for use in kernel.uses}) > 1,
      rows=tuple(rows[path, index] for index in indices[path]),
    )
    sites.append(site)
  return tuple(sites)


def _axis_roles(uses: Sequence[Use], shape: Shape) -> tuple[Role, ...] | str:
  """The roles of a parameter's axes, or why they cannot be decided.

  Each axis has the role of the operand's dimension that it lies in, and one that items are selected
  from is a stack. Items of fixed numbers decide nothing, unless they are all that is used of an
  axis: then it is a stack, too. The uses must agree, except on axes of size one.

  Args:
    uses: its products, the lookups first: if there are any, they alone decide.
    shape: its shape.
  """
  found: list[list[Role]] = [[] for _ in shape]
  for use in [use for use in uses if use.kind in LOOKUPS] or uses:
    for dim, role in zip(use.view.dims, use.roles, strict=True):
      for atom in dim:
        if atom.is_axis:
          found[atom.axis].append(role)
    for atom, at in use.view.indices:
      # An item of a fixed number may be a slice of the outputs.
      if not isinstance(at, int):
        found[atom.axis].append('stack')
  by_axis = [set(roles) for roles, size in zip(found, shape, strict=True) if size > 1]
  if any({'in', 'out'} <= roles for roles in by_axis):
    return 'used in matmuls in two ways, once transposed'
  if any(len(roles) > 1 for roles in by_axis):
    return 'used in matmuls in two ways: an axis is a stack in one of them'
  # An axis without a role has only items of fixed numbers in use.
  result: tuple[Role, ...] = tuple(roles[0] if roles else 'stack' for roles in found)
  if 'in' not in result or 'out' not in result:
    return 'used in a matmul without an axis of inputs or of outputs'
  return result


def _layout_of(kernel: _Kernel) -> Layout:
  """The layout of a kernel without bias.

  Its stack has the axes in the order in which the first use selects from them, outer scans first,
  and then those that a product shares with the activations.
  """
  indexed = (index.atom.axis for index in kernel.uses[0].view.indices)
  axes: dict[Role, list[int]] = {'stack': [], 'in': [], 'out': []}
  for axis in dict.fromkeys([*indexed, *range(len(kernel.roles))]):
    axes[kernel.roles[axis]].append(axis)
  return Layout(tuple(axes['stack']), tuple(sorted(axes['in'])), tuple(sorted(axes['out'])))


def _layers(
  uses: Sequence[Use], layouts: Mapping[KeyPath, Layout]
) -> Iterator[tuple[KeyPath, tuple[int, ...]]]:
  """The layers that uses run, in execution order: the kernel's path and the index in its stack.

  Args:
    uses: uses of kernels, in execution order.
    layouts: the kernels' layouts, by path.
  """
  # If a scan selects from no kernel, all its iterations run the same layers: one is enough.
  selecting = {index.at for use in uses for index in use.view.indices}
  looped = [
    (use, [(scope, length if scope in selecting else 1) for scope, length in use.scans])
    for use in uses
  ]
  for use, numbers in interleave(looped):
    path = use.view.path
    iterations = {scope: number for (scope, _), number in zip(use.scans, numbers, strict=True)}
    for index in _stack_indices(use, layouts[path].stack, iterations):
      yield path, index


def _stack_indices(
  use: Use, stack: Sequence[int], iterations: Mapping[Hashable, int]
) -> Iterator[tuple[int, ...]]:
  """The indices in a kernel's stack that a use runs.

  An axis of the stack may be several atoms. The use selects one item of each, or uses it in full,
  and an index is the sum of the items' offsets along the axis.

  Args:
    use: the use.
    stack: axes of the stack.
    iterations: numbers of the iterations of the scans around the use, by scope.
  """
  offsets: dict[int, list[list[int]]] = {axis: [] for axis in stack}
  in_full = (Index(atom, None) for dim in use.view.dims for atom in dim)
  for atom, at in [*in_full, *use.view.indices]:
    if atom.axis in offsets:
      number = iterations[at] if isinstance(at, tuple) else at  # a tuple is the scope of a scan
      numbers = range(atom.size) if number is None else [number]
      offsets[atom.axis].append([(atom.start + number) * atom.stride for number in numbers])
  along = [sorted(map(sum, itertools.product(*offsets[axis]))) for axis in stack]
  return itertools.product(*along)


class _Bias(NamedTuple):
  """A parameter that is added to products of a kernel, and the layout of both."""

  path: KeyPath
  layout: Layout


def _bias_of(
  uses: Sequence[Use],
  sums: Mapping[Scope, Sequence[tuple[View, View]]],
  layout: Layout,
  shapes: Mapping[KeyPath, Shape],
) -> _Bias | None:
  """The parameter that is added to all products of a kernel along exactly its outputs.

  Args:
    uses: the kernel's products.
    sums: the additions to products; see `Events`.
    layout: the kernel's layout.
    shapes: shapes of all parameters, by path.
  """
  biases: set[_Bias | None] = set()
  for use in uses:
    candidates = (
      (bias.path, _with_bias(layout, product, bias, shapes))
      for product, bias in sums.get(use.scope, ())
    )
    biases.add(next((_Bias(path, fitted) for path, fitted in candidates if fitted), None))
  return biases.pop() if len(biases) == 1 else None


class _Pair(NamedTuple):
  """A part of a kernel's axis, and the part of a bias's axis that is added along it."""

  kernel: Atom
  bias: Atom


def _with_bias(
  layout: Layout, product: View, added: View, shapes: Mapping[KeyPath, Shape]
) -> Layout | None:
  """The layout of a kernel and its bias; None if the added array is not its bias.

  The two views have equally many dimensions. The addition repeats the bias along those in which it
  has size one; along the others, parts of the kernel's axes lie along parts of the bias's. With
  heads `einsum('bd,dhk->bhk', x, kernel) + bias.reshape(h, k)` the bias of h * k numbers has two
  parts, one along the kernel's h and one along its k. It is the kernel's bias if

  - all of its axes lie along the kernel's stack and outputs, and cover them: unlike a table of
    positions, or a vector that all experts add;
  - one of its axes lies along each axis of the stack, so that each layer has its own bias;
  - its other axes, read row-major, are whole output axes one after another. The layout lists the
    outputs in that order, which may differ from the kernel's, so that `Layout.matrices` and
    `Layout.vectors` flatten them alike (tests/method/trace/test_random_products.py).
  """
  kernel_shape, bias_shape = shapes[product.path], shapes[added.path]
  kernel_axes = {axis for axis in (*layout.stack, *layout.outputs) if kernel_shape[axis] > 1}
  pairs = _pairs(product, added)
  if (
    pairs is None
    or not _covers([pair.kernel for pair in pairs], kernel_axes, kernel_shape)
    or not _covers([pair.bias for pair in pairs], set(range(len(bias_shape))), bias_shape)
  ):
    return None
  # By axis of the bias, row-major: the parts of the kernel that lie along it.
  row_major = sorted(pairs, key=lambda pair: -pair.bias.stride)
  along = [
    [pair.kernel for pair in row_major if pair.bias.axis == axis] for axis in range(len(bias_shape))
  ]
  stack = _bias_stack(layout.stack, along, bias_shape)
  if stack is None:
    return None
  parts = [atom for axis, atoms in enumerate(along) if axis not in stack for atom in atoms]
  outputs = _row_major_axes(parts)
  if outputs is None or set(outputs) - set(layout.outputs):
    return None
  of_size_one = [axis for axis in layout.outputs if axis not in outputs]
  return dataclasses.replace(layout, outputs=(*outputs, *of_size_one), bias_stack=stack)


def _pairs(kernel: View, bias: View) -> list[_Pair] | None:
  """The parts of axes that lie along each other.

  Of a kernel [d, 2, 3], in a product [b, 2, 3], and a bias of 6 numbers as [2, 3]: along the
  kernel's axis 1 the bias's atom of 2 items with stride 3, along axis 2 that of 3 with stride 1.

  If one scan, or one index, selects an item of each, the axes that it selects from lie along each
  other, too.

  None if one array varies where the other does not, if they run in opposite directions, or if
  items of them are selected by different scans or indices.
  """
  kernel_indices, bias_indices = (
    [index for index in view.indices if index.atom.size > 1] for view in (kernel, bias)
  )
  if [index.at for index in kernel_indices] != [index.at for index in bias_indices]:
    return None
  kernel_dims = [*kernel.dims, *((index.atom,) for index in kernel_indices)]
  bias_dims = [*bias.dims, *((index.atom,) for index in bias_indices)]
  pairs = []
  for kernel_dim, bias_dim in zip(kernel_dims, bias_dims, strict=True):
    if size_of(bias_dim) == 1:  # the addition broadcasts it
      bias_dim = (Atom(NO_AXIS, size_of(kernel_dim)),)
    parts = common_parts(kernel_dim, bias_dim)
    if parts is None or any(first.is_axis != second.is_axis for first, second in parts):
      return None
    pairs += [_Pair(*atoms) for atoms in parts if atoms[0].is_axis]
  if any(pair.kernel.stride * pair.bias.stride < 0 for pair in pairs):
    return None
  return pairs


def _covers(atoms: Sequence[Atom], axes: set[int], shape: Shape) -> bool:
  """Whether atoms make up all of some axes, and no others."""
  sizes: dict[int, int] = defaultdict(lambda: 1)
  for atom in atoms:
    sizes[atom.axis] *= atom.size
  return set(sizes) <= axes and all(sizes[axis] == shape[axis] for axis in axes)


def _bias_stack(
  stack: Sequence[int], along: Sequence[Sequence[Atom]], bias_shape: Shape
) -> tuple[int, ...] | None:
  """For each stack axis of a kernel the axis of the bias that lies along it, and along no other.

  None if a stack axis has none. Axes of size one have no atoms to compare, so a stack axis of size
  one gets the bias's first free axis of size one.

  Args:
    stack: the axes of the kernel.
    along: for each axis of the bias the parts of the kernel that lie along it, row-major.
    bias_shape: shape of the bias.
  """
  free = [axis for axis, atoms in enumerate(along) if not atoms and bias_shape[axis] == 1]
  bias_stack = []
  for axis in stack:
    fitting = [number for number, atoms in enumerate(along) if _row_major_axes(atoms) == [axis]]
    if not fitting and free:
      fitting = [free.pop(0)]
    if len(fitting) != 1:
      return None
    bias_stack += fitting
  return tuple(bias_stack)


def _row_major_axes(atoms: Sequence[Atom]) -> list[int] | None:
  """The axes that atoms are made of, one after another; None if they are not in row-major order."""
  axes = []
  for axis, parts in itertools.groupby(atoms, lambda atom: atom.axis):
    strides = [atom.stride for atom in parts]
    if axis in axes or strides != sorted(strides, reverse=True):
      return None
    axes.append(axis)
  return axes
