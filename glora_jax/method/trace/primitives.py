"""What primitives do to a parameter: lay it otherwise, take parts of it, multiply it."""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
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
from glora_jax.method.trace.view import NO_AXIS, Atom, View

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
  """A primitive that no layout can see through."""
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


def unchanged(step: Step) -> list[Value]:
  """A primitive that returns its operands, in another type for instance."""
  return list(step.operands)


def scaled(step: Step) -> list[Value]:
  """Multiplication or division: by a constant, parameters and products are still what they were."""
  constants = [value for value in step.operands if value.is_constant]
  followed = step.operands[: 1 if step.name == 'div' else None]
  found = [view for value in followed if (view := _view(value)) and view.shape == step.out_shape]
  if len(found) != 1 or len(constants) < len(step.operands) - 1:
    return other(step)
  step.position.events.otherwise.update(value.view.path for value in followed if value.view)
  return [value for value in followed if _view(value)]


def _view(value: Value) -> View | None:
  return value.product.view if value.product else value.view


def rearranged(step: Step) -> list[Value]:
  """A primitive that moves the axes of its first operand."""
  first = step.operands[0]
  view = first.view and move_axes(step.name, step.params, first.view)
  if first.view and not view:
    return step.results(origins=origins_of([first], NO_LAYOUT), repeated=first.repeated)
  product = first.product and move_axes(step.name, step.params, first.product.view)
  is_broadcast = step.name == 'broadcast_in_dim'
  return [
    dataclasses.replace(
      first,
      repeated=first.repeated
      or (is_broadcast and math.prod(step.shape(0)) < math.prod(step.out_shape)),
      view=view,
      product=Product(first.product.use, product) if first.product and product else None,
      token=(step.name, str(step.params), first.token),
    )
  ]


def move_axes(name: str, params: Mapping[str, Any], view: View) -> View | None:
  """A view after a primitive that moves axes; None where it cannot be said."""
  if name == 'transpose':
    return view.transposed(params['permutation'])
  if name == 'reshape':
    return view.reshaped(params['new_sizes']) if params.get('dimensions') is None else None
  if name == 'broadcast_in_dim':
    return view.broadcast(params['shape'], params['broadcast_dimensions'])
  if name == 'squeeze':
    return view.index(params['dimensions'], 0)
  assert name == 'slice'
  if any(stride != 1 for stride in params['strides'] or ()):
    return None
  return view.sliced(params['start_indices'], params['limit_indices'])


def added(step: Step) -> list[Value]:
  """An addition, which may be that of a bias."""
  for product, bias in (step.operands, step.operands[::-1]):
    if product.product and bias.view:
      step.position.events.sums[product.product.use].append((product.product.view, bias.view))
  return other(step)


def split_up(step: Step) -> list[Value]:
  """`split` and `unstack`: parts that lie one after another along an axis."""
  (whole,) = step.operands
  if whole.view is None:
    return other(step)
  view, axis = whole.view, step.params['axis']
  sizes = step.params.get('sizes', [1] * view.shape[axis])
  stops = [*itertools.accumulate(map(int, sizes))]
  parts = [_part(view, axis, stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]
  if step.name == 'unstack':
    parts = [part and part.index((axis,), 0) for part in parts]
  hidden = origins_of([whole], NO_LAYOUT)
  return [Value(view=part) if part else Value(origins=hidden) for part in parts]


def _part(view: View, axis: int, start: int, stop: int) -> View | None:
  """The items of a view from a first one along an axis to before a last one."""
  starts, stops = [0] * len(view.shape), list(view.shape)
  starts[axis], stops[axis] = start, stop
  return view.sliced(starts, stops)


def sliced_at(step: Step) -> list[Value]:
  """`dynamic_slice`: at known places a slice, else an item of a stack, or of an embedding."""
  whole, *starts = step.operands
  if whole.view is None:
    return other(step)
  if any(start.depends for start in starts):
    return looked_up(step)
  sizes, view = step.params['slice_sizes'], whole.view
  rooms = [whole - size for whole, size in zip(view.shape, sizes, strict=True)]
  first = [min(max(s.number or 0, 0), room) for s, room in zip(starts, rooms, strict=True)]
  stops = [start + size for start, size in zip(first, sizes, strict=True)]
  unknown = [place for place, room in enumerate(rooms) if room and starts[place].number is None]
  for place in unknown:
    stops[place] = view.shape[place]
  part = view.sliced(first, stops) if all(sizes[place] == 1 for place in unknown) else None
  part = part and part.index(unknown, None)
  if part is None:
    return step.results(origins=origins_of([whole], NO_LAYOUT))
  kept = [place for place in range(len(sizes)) if place not in unknown]
  return [Value(view=part.broadcast(sizes, kept))]


def looked_up(step: Step) -> list[Value]:
  """`gather`: an item of a stack where the index is one number, else rows of an embedding."""
  (whole, index), is_item = step.operands[:2], step.name == 'gather'
  if whole.view and is_item and index.is_constant and (part := _item(step, whole.view, index)):
    return [Value(view=part)]
  if step.position.embeddings and whole.view and list(map(len, whole.view.dims)) == [1, 1]:
    length, width = whole.view.shape
    ways: dict[Any, tuple[Role, ...]] = {(1, width): ('in', 'out'), (length, 1): ('out', 'in')}
    if roles := ways.get(step.params['slice_sizes']):
      _used(step, whole.view, roles, index.token)
      return step.results(depends=True)
  step.note([whole], LOOKED_UP, forbids=True)
  return other(step)


def _item(step: Step, view: View, index: Value) -> View | None:
  """The one item along an axis that a gather takes; None if it takes anything else."""
  numbers, shape = step.params['dimension_numbers'], view.shape
  axes = numbers.collapsed_slice_dims
  if step.shape(1) != (1,) or len(axes) != 1 or axes != numbers.start_index_map:
    return None
  (axis,) = axes
  if step.params['slice_sizes'] != (*shape[:axis], 1, *shape[axis + 1 :]):
    return None
  if index.number is None:
    return view.index(axes, None)
  start = min(max(index.number, 0), shape[axis] - 1)
  part = _part(view, axis, start, start + 1)
  return part and part.index(axes, 0)


def multiplied(step: Step) -> list[Value]:
  """`dot_general`, `ragged_dot_general` and `conv_general_dilated`."""
  first, second = (2 if value.depends else value.repeated for value in step.operands[:2])
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
  _used(step, kernel.view, roles, activations.token)
  sizes = zip(dims, step.out_shape, strict=True)
  own = kernel.view.dims
  view = View(  # the result as a view of the kernel
    kernel.view.path,
    tuple((Atom(NO_AXIS, size),) if dim is None else own[dim] for dim, size in sizes),
    kernel.view.taken,
  )
  product = Product(step.position.scope, view)
  return step.results(depends=True, product=product, layer=kernel.view.path)


def _used(step: Step, view: View, roles: tuple[Role, ...], token: Hashable) -> None:
  """Writes down that a kernel meets activations with a token."""
  events, scans = step.position.events, step.position.scans
  events.uses[view.path].append(Use(step.position.scope, view, roles, token, scans, step.name))
  events.stacked[view.path] |= view.stacked


# What the dimensions of a kernel are, or why it is none; and for every dimension of the result the
# kernel's that it is, None for the activations'.
_Roles = tuple[tuple[Role, ...] | str, list[int | None]]


def _dot(step: Step, place: int) -> _Roles:
  """Batch axes come first, then those of the first operand that are left, and the second's."""
  contracted, batched = step.params['dimension_numbers']
  return _product(step, place, contracted[place], batched[place])


def _product(
  step: Step, place: int, inputs: Sequence[int], batch: Sequence[int], groups: Sequence[int] = ()
) -> _Roles:
  roles: tuple[Role, ...] = tuple(
    'in' if dim in inputs else 'stack' if dim in (*batch, *groups) else 'out'
    for dim in range(len(step.shape(place)))
  )
  own = [dim for dim, role in enumerate(roles) if role == 'out']
  others = [None] * (len(step.out_shape) - len(batch) - len(own))
  return roles, [*batch, *(own + others if place == 0 else others + own)]


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
  numbers = step.params['dimension_numbers']
  own, feature = numbers.rhs_spec[0], numbers.out_spec[1]
  roles: tuple[Role, ...] = tuple('out' if d == own else 'in' for d in range(len(step.shape(1))))
  return roles, [own if dim == feature else None for dim in range(len(step.out_shape))]


_PRODUCTS: Mapping[str, Callable[[Step, int], _Roles]] = {
  'dot_general': _dot,
  'ragged_dot_general': _ragged,
  'conv_general_dilated': _conv,
}
