"""Products of activations with parameters: which axes of a parameter are in, out and stack."""

from __future__ import annotations

from collections.abc import Sequence

from glora_jax.method import reasons
from glora_jax.method.trace.events import Role, Step, Use
from glora_jax.method.trace.primitives import other
from glora_jax.method.trace.value import Product, Value
from glora_jax.method.trace.view import NO_AXIS, Atom, View


def multiplied(step: Step) -> list[Value]:
  """`dot_general`, `ragged_dot_general` and `conv_general_dilated`."""
  first, second = (2 if value.depends else value.repeated for value in step.operands[:2])
  place = 0 if first < second else 1
  kernel, activations = step.operands[place], step.operands[1 - place]
  if first == second or kernel.is_constant:
    return other(step)
  step.note([activations], reasons.AN_INPUT)
  if kernel.view is None:
    step.note([kernel], '', forbids=True)
    return step.results(depends=True)
  roles = _ROLES[step.name](step, place)
  if isinstance(roles, str):
    step.note([kernel], roles, forbids=True)
    return step.results(depends=True)
  scope, scans = step.place.scope, step.place.scans
  use = Use(scope, kernel.view, roles, activations.token, scans, step.name)
  step.events.append(use)
  dims = _RESULTS[step.name](step, place)
  view = _result_view(kernel.view, dims, step.out_shape)
  return step.results(depends=True, product=Product(scope, view), layer=kernel.view.path)


def _result_view(kernel: View, dims: Sequence[int | None], shape: Sequence[int]) -> View:
  """The result of a product as a view of its kernel.

  Args:
    kernel: the kernel.
    dims: for every dimension of the result the kernel's that it is; None for the activations'.
    shape: shape of the result.
  """
  sizes = zip(dims, shape, strict=True)
  return View(
    kernel.path,
    tuple((Atom(NO_AXIS, size),) if dim is None else kernel.dims[dim] for dim, size in sizes),
    kernel.taken,
  )


def _dot_roles(step: Step, place: int) -> tuple[Role, ...]:
  contracted, batched = step.params['dimension_numbers']
  return _roles(len(step.shape(place)), contracted[place], batched[place])


def _roles(number: int, inputs: Sequence[int], stack: Sequence[int]) -> tuple[Role, ...]:
  return tuple(
    'in' if dim in inputs else 'stack' if dim in stack else 'out' for dim in range(number)
  )


def _dot_result(step: Step, place: int) -> list[int | None]:
  """Batch axes come first, then those of the first operand that are left, and the second's."""
  roles = _dot_roles(step, place)
  batched = list(step.params['dimension_numbers'][1][place])
  own = [dim for dim, role in enumerate(roles) if role == 'out']
  others = [None] * (len(step.out_shape) - len(batched) - len(own))
  return [*batched, *own, *others] if place == 0 else [*batched, *others, *own]


def _ragged_roles(step: Step, place: int) -> tuple[Role, ...] | str:
  numbers = step.params['ragged_dot_dimension_numbers']
  groups = tuple(numbers.rhs_group_dimensions)
  if place == 0 or not groups:
    return 'cut into ragged groups'
  contracted, batched = numbers.dot_dimension_numbers
  return _roles(len(step.shape(1)), contracted[1], (*batched[1], *groups))


def _ragged_result(step: Step, place: int) -> list[int | None]:
  roles = _ragged_roles(step, place)
  numbers = step.params['ragged_dot_dimension_numbers']
  batched = list(numbers.dot_dimension_numbers[1][1])
  own = [dim for dim, role in enumerate(roles) if role == 'out']
  return [*batched, *[None] * (len(step.out_shape) - len(batched) - len(own)), *own]


def _conv_roles(step: Step, place: int) -> tuple[Role, ...] | str:
  if not step.place.convs:
    return reasons.CONVOLUTION
  if place == 0 or step.params['batch_group_count'] > 1:
    return 'not a plain kernel of its convolution'
  out = step.params['dimension_numbers'].rhs_spec[0]
  return tuple('out' if dim == out else 'in' for dim in range(len(step.shape(1))))


def _conv_result(step: Step, place: int) -> list[int | None]:
  numbers = step.params['dimension_numbers']
  feature = numbers.out_spec[1]
  own = numbers.rhs_spec[0]
  return [own if dim == feature else None for dim in range(len(step.out_shape))]


_ROLES = {
  'dot_general': _dot_roles,
  'ragged_dot_general': _ragged_roles,
  'conv_general_dilated': _conv_roles,
}
_RESULTS = {
  'dot_general': _dot_result,
  'ragged_dot_general': _ragged_result,
  'conv_general_dilated': _conv_result,
}
