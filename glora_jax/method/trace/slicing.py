"""Primitives that take parts of a parameter: items of a stack, or rows of an embedding."""

from __future__ import annotations

import itertools

from glora_jax.method import reasons
from glora_jax.method.trace.events import Step
from glora_jax.method.trace.primitives import NO_LAYOUT, other
from glora_jax.method.trace.value import Value, origins_of
from glora_jax.method.trace.view import View


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
    parts = [part and part.squeezed((axis,)) for part in parts]
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
  unknown = []
  first = []
  for place, (start, size) in enumerate(zip(starts, sizes, strict=True)):
    room = view.shape[place] - size
    if start.number is None and room:
      unknown.append(place)
    first.append(min(max(start.number or 0, 0), room))
  stops = [start + size for start, size in zip(first, sizes, strict=True)]
  for place in unknown:
    first[place], stops[place] = 0, view.shape[place]
    if sizes[place] != 1:
      return step.results(origins=origins_of([whole], NO_LAYOUT))
  part = view.sliced(first, stops)
  for place in reversed(unknown):
    part = part and part.indexed(place, None)
  if part is None:
    return step.results(origins=origins_of([whole], NO_LAYOUT))
  kept = [place for place in range(len(sizes)) if place not in unknown]
  return [Value(view=part.broadcast(sizes, kept))]


def looked_up(step: Step) -> list[Value]:
  """`gather`: an item of a stack where the index is one number, else rows of an embedding."""
  whole, index = step.operands[:2]
  if whole.view is not None and index.is_constant and (part := _item(step, whole.view, index)):
    return [Value(view=part)]
  step.note([whole], reasons.LOOKED_UP, forbids=True)
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
    return view.indexed(axis, None)
  start = min(max(index.number, 0), shape[axis] - 1)
  part = _part(view, axis, start, start + 1)
  return part and part.squeezed(axes)
