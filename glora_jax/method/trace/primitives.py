"""The effects of primitives on a parameter: move its axes, select parts of it, multiply it."""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glora_jax.method.trace.events import (
  AN_INPUT,
  CONVOLUTION,
  ITEM_BY_ITEM,
  LOOKED_UP,
  Product,
  Role,
  Step,
  Use,
  Value,
  common_layer,
  origins_of,
)
from glora_jax.method.trace.view import NO_AXIS, Atom, View, is_matrix

Handler = Callable[[Step], list[Value]]

_ITEM_BY_ITEM = frozenset(
  (
    *('add', 'add_any', 'sub', 'mul', 'div', 'max', 'min', 'pow', 'select_n'),
    *('exp', 'log', 'neg', 'sqrt', 'rsqrt', 'tanh', 'logistic'),
  )
)
_OPAQUE = frozenset(
  ('pallas_call', 'shard_map', 'ffi_call', 'pure_callback', 'io_callback', 'custom_partitioning')
)
NO_LAYOUT = 'axes rearranged in an unsupported way'


def other(step: Step) -> list[Value]:
  """A primitive through which no parameter can be followed."""
  if step.name in _OPAQUE:
    step.note(step.operands, f'used in {step.name}', forbids=True)
  if step.depends:
    reason = ITEM_BY_ITEM if step.name in _ITEM_BY_ITEM else f'used in {step.name}'
    step.note(step.operands, reason)
    return step.results(depends=True, layer=common_layer(step.operands))
  is_alone = sum(not value.is_constant for value in step.operands) <= 1
  how = 'changed first' if is_alone else 'combined with other parameters first'
  origins = origins_of(step.operands, f'{how}: {step.name}')
  if not origins:
    numbers = [value.number for value in step.operands]
    is_known = None not in numbers and step.name in _OF_NUMBERS
    return step.results(number=int(_OF_NUMBERS[step.name](*numbers)) if is_known else None)
  return step.results(origins=origins, repeated=any(value.repeated for value in step.operands))


_OF_NUMBERS: Mapping[str, Callable[..., int]] = {
  'add': operator.add,
  'sub': operator.sub,
  'mul': operator.mul,
  'lt': operator.lt,
  'max': max,
  'min': min,
  'select_n': lambda which, *cases: cases[which],
}


def keep(step: Step) -> list[Value]:
  """A primitive that returns its operands, in another type for instance."""
  return list(step.operands)


def scale(step: Step) -> list[Value]:
  """Multiplication or division: by a constant, parameters and products stay the same."""
  constants = [value for value in step.operands if value.is_constant]
  followed = step.operands[: 1 if step.name == 'div' else None]
  views = [_view(value) for value in followed]
  of_result = [view for view in views if view and view.shape == step.out_shape]
  if len(of_result) != 1 or len(constants) < len(step.operands) - 1:
    return other(step)
  return [value for value in followed if _view(value)]


def _view(value: Value) -> View | None:
  return value.product.view if value.product else value.view


def rearrange(step: Step) -> list[Value]:
  """A primitive that moves the axes of its first operand."""
  first = step.operands[0]
  view = first.view and move_axes(step.name, step.params, first.view)
  if first.view and not view:
    return _hidden(step)
  product = first.product and move_axes(step.name, step.params, first.product.view)
  is_broadcast = step.name == 'broadcast_in_dim'
  return [
    dataclasses.replace(
      first,
      repeated=first.repeated
      or (is_broadcast and math.prod(step.shape(0)) < math.prod(step.out_shape)),
      view=view,
      product=Product(first.product.use, product) if first.product and product else None,
    )
  ]


def _hidden(step: Step) -> list[Value]:
  """The results if a parameter, the first operand, cannot be followed through the primitive."""
  first = step.operands[0]
  if first.depends:
    return other(step)
  return step.results(origins=origins_of([first], NO_LAYOUT), repeated=first.repeated)


def move_axes(name: str, params: Mapping[str, Any], view: View) -> View | None:
  """The view after a primitive that moves axes; None if there is none."""
  if name == 'transpose':
    return view.transpose(params['permutation'])
  if name == 'reshape':
    return view.reshape(params['new_sizes']) if params.get('dimensions') is None else None
  if name == 'broadcast_in_dim':
    return view.broadcast(params['shape'], params['broadcast_dimensions'])
  if name == 'squeeze':
    return view.index(params['dimensions'], 0)
  if name == 'rev':
    return view.reverse(params['dimensions'])
  assert name == 'slice'
  if any(stride != 1 for stride in params['strides'] or ()):
    return None
  return view.slice(params['start_indices'], params['limit_indices'])


def add(step: Step) -> list[Value]:
  """An addition, which may be that of a bias."""
  for product, bias in (step.operands, step.operands[::-1]):
    if product.product and bias.view:
      step.position.events.sums[product.product.use].append((product.product.view, bias.view))
  return other(step)


def split(step: Step) -> list[Value]:
  """`split` and `unstack`: parts that lie one after another along an axis."""
  (array,) = step.operands
  if array.view is None or array.depends:
    return other(step)
  view, axis = array.view, step.params['axis']
  sizes = step.params.get('sizes', [1] * view.shape[axis])
  stops = [*itertools.accumulate(map(int, sizes))]
  parts = [_part(view, axis, stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]
  if step.name == 'unstack':
    parts = [part and part.index((axis,), 0) for part in parts]
  hidden = origins_of([array], NO_LAYOUT)
  return [Value(view=part) if part else Value(origins=hidden) for part in parts]


def _part(view: View, axis: int, start: int, stop: int) -> View | None:
  """The items of a view from a first one along an axis to before a last one."""
  starts, stops = [0] * len(view.shape), list(view.shape)
  starts[axis], stops[axis] = start, stop
  return view.slice(starts, stops)


def slice_at(step: Step) -> list[Value]:
  """`dynamic_slice`: a slice if its start is known, else an item of a stack, or of an embedding."""
  array, *starts = step.operands
  if array.view is None:
    return other(step)
  sizes, view = step.params['slice_sizes'], array.view
  lasts = [length - size for length, size in zip(view.shape, sizes, strict=True)]
  firsts = [min(max(s.number or 0, 0), last) for s, last in zip(starts, lasts, strict=True)]
  stops = [first + size for first, size in zip(firsts, sizes, strict=True)]
  unknown = [dim for dim, last in enumerate(lasts) if last and starts[dim].number is None]
  for dim in unknown:
    stops[dim] = view.shape[dim]
  part = view.slice(firsts, stops) if all(sizes[dim] == 1 for dim in unknown) else None
  part = part and part.index(unknown, None)
  known = [dim for dim in range(len(sizes)) if dim not in unknown]
  items = part and part.broadcast(sizes, known)
  return _items(step, items, any(start.depends for start in starts))


def look_up(step: Step) -> list[Value]:
  """`gather`: items of a stack, or rows of an embedding."""
  array, index = step.operands[:2]
  items = array.view and _gathered(step, array.view, index)
  is_one = items is not None and step.shape(1) == (1,) and index.is_constant
  return _items(step, items, not is_one)


def _items(step: Step, items: View | None, is_lookup: bool) -> list[Value]:
  """Items of a parameter, or rows of an embedding if it is a lookup and they are not matrices.

  If the input selects the items they are activations, too (see `Value`).
  """
  if is_lookup and not _has_matrices(items):
    return _rows(step, items)
  if items is None:
    return _hidden(step)
  return step.results(depends=step.depends, view=items, layer=common_layer(step.operands))


def _gathered(step: Step, view: View, index: Value) -> View | None:
  """The items along one axis that a gather selects; None if it selects anything else."""
  along = selection(step.params, view.shape)
  if along is None:
    return None
  (axis, places), part, at = along, view, None
  if index.number is not None:
    start = min(max(index.number, 0), view.shape[axis] - 1)
    part, at = _part(view, axis, start, start + 1), 0
  return part and part.index((axis,), at).broadcast(step.out_shape, places)


def selection(params: Mapping[str, Any], shape: Sequence[int]) -> tuple[int, list[int]] | None:
  """The axis of an array along which a `gather` selects items; None if it selects anything else.

  Args:
    params: parameters of the `gather`.
    shape: shape of the array.

  Returns:
    The axis, and the positions of the other axes in the result. `weights[experts]` drops the axis,
    and under `vmap` `weights[expert]` keeps it with a size of one.
  """
  numbers, sizes = params['dimension_numbers'], params['slice_sizes']
  dropped, places = numbers.collapsed_slice_dims, [*numbers.offset_dims]
  axes = [axis for axis, size in enumerate(sizes) if size < shape[axis] or axis in dropped]
  if len(axes) != 1 or sizes[axes[0]] != 1 or numbers.operand_batching_dims:
    return None
  if not dropped:
    del places[axes[0]]
  return axes[0], places


def _has_matrices(items: View | None) -> bool:
  """Whether selected items can be kernels: rows of a table of tokens or positions cannot."""
  dims = items.dims if items else ()
  return is_matrix([atom.size for dim in dims for atom in dim if atom.is_axis])


def _rows(step: Step, rows: View | None) -> list[Value]:
  """Rows of an embedding: a linear layer of one-hot vectors if these are to be found.

  Rows may also be biases, which are added to the products of kernels that are selected alike.
  """
  array = step.operands[0]
  view = array.view
  if step.position.embeddings and view and [len(dim) for dim in view.dims] == [1, 1]:
    length, width = view.shape
    ways: dict[Any, tuple[Role, ...]] = {(1, width): ('in', 'out'), (length, 1): ('out', 'in')}
    roles = ways.get(step.params['slice_sizes'])
    if roles:
      _record_use(step, view, roles)
      return step.results(depends=True)
  step.note([array], LOOKED_UP, forbids=True)
  return [dataclasses.replace(value, view=rows if value.depends else None) for value in other(step)]


def multiply(step: Step) -> list[Value]:
  """`dot_general`, `ragged_dot_general` and `conv_general_dilated`.

  The kernel is the operand that is less like an input: a parameter against activations, or one that
  is not repeated for every example against one that is, such as learned queries. An array that the
  input has selected from a stack counts as a parameter against activations, and as activations
  against a parameter.
  """
  first, second = (
    3 - _has_matrices(value.view) if value.depends else value.repeated
    for value in step.operands[:2]
  )
  place = 0 if first < second else 1
  kernel, activations = step.operands[place], step.operands[1 - place]
  if first == second or kernel.is_constant:
    return other(step)
  step.note([activations], AN_INPUT)
  if kernel.view is None:
    step.note([kernel], '', forbids=True)
    return step.results(depends=True)
  roles, dims = _PRODUCTS[step.name](step, place)
  if isinstance(roles, str):
    step.note([kernel], roles, forbids=True)
    return step.results(depends=True)
  _record_use(step, kernel.view, roles)
  result_dims = tuple(
    (Atom(NO_AXIS, size),) if dim is None else kernel.view.dims[dim]
    for dim, size in zip(dims, step.out_shape, strict=True)
  )
  product = Product(step.position.scope, dataclasses.replace(kernel.view, dims=result_dims))
  return step.results(depends=True, product=product, layer=kernel.view.path)


def _record_use(step: Step, view: View, roles: tuple[Role, ...]) -> None:
  """Records a product of a parameter with activations."""
  events, scans = step.position.events, step.position.scans
  events.uses[view.path].append(Use(step.position.scope, view, roles, scans, step.name))
  events.indexed_axes[view.path] |= view.indexed_axes


# The roles of a kernel's dimensions, or the reason why it is not a kernel; and for every dimension
# of the result the kernel's dimension, or None if it is one of the activations.
_Roles = tuple[tuple[Role, ...] | str, list[int | None]]


def _dot(step: Step, place: int) -> _Roles:
  contracted, batched = step.params['dimension_numbers']
  return _product(step, place, contracted[place], batched[place])


def _product(
  step: Step, place: int, inputs: Sequence[int], batch: Sequence[int], groups: Sequence[int] = ()
) -> _Roles:
  """Of a product whose result has the batch first, then the rest of one operand and of the other.

  Args:
    step: the product.
    place: which operand the kernel is, 0 or 1.
    inputs: the dimensions of the kernel that are summed over.
    batch: those that it shares with the activations.
    groups: those along which every row of the activations has one item.
  """
  roles: tuple[Role, ...] = tuple(
    'in' if dim in inputs else 'stack' if dim in (*batch, *groups) else 'out'
    for dim in range(len(step.shape(place)))
  )
  outputs = [dim for dim, role in enumerate(roles) if role == 'out']
  activations = [None] * (len(step.out_shape) - len(batch) - len(outputs))
  rest = [*outputs, *activations] if place == 0 else [*activations, *outputs]
  return roles, [*batch, *rest]


def _ragged(step: Step, place: int) -> _Roles:
  numbers = step.params['ragged_dot_dimension_numbers']
  groups = tuple(numbers.rhs_group_dimensions)
  if place == 0 or not groups:
    return 'cut into ragged groups', []
  contracted, batched = numbers.dot_dimension_numbers
  return _product(step, place, contracted[1], batched[1], groups)


def _conv(step: Step, place: int) -> _Roles:
  if not step.position.convs:
    return CONVOLUTION, []
  if place == 0 or step.params['batch_group_count'] > 1:
    return 'not a plain kernel of its convolution', []
  view = step.operands[place].view
  if step.params['feature_group_count'] > 1 and view is not None:
    step.position.events.grouped.add(view.path)
  numbers = step.params['dimension_numbers']
  output, feature = numbers.rhs_spec[0], numbers.out_spec[1]
  roles: tuple[Role, ...] = tuple('out' if d == output else 'in' for d in range(len(step.shape(1))))
  return roles, [output if dim == feature else None for dim in range(len(step.out_shape))]


_PRODUCTS: Mapping[str, Callable[[Step, int], _Roles]] = {
  'dot_general': _dot,
  'ragged_dot_general': _ragged,
  'conv_general_dilated': _conv,
}
