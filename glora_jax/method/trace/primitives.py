"""What primitives do to a parameter that are no product and take no part of it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping

from glora_jax.method import reasons
from glora_jax.method.trace.events import Scaled, Step, Sum
from glora_jax.method.trace.value import Product, Value, common_layer, origins_of
from glora_jax.method.trace.view import View

Handler = Callable[[Step], list[Value]]

_ITEM_BY_ITEM = frozenset(
  (
    *('add', 'add_any', 'sub', 'mul', 'div', 'max', 'min', 'pow', 'select_n'),
    *('exp', 'log', 'neg', 'sqrt', 'rsqrt', 'tanh', 'logistic'),
  )
)
_OPAQUE = {
  'pallas_call': 'used in a Pallas kernel',
  'shard_map': 'used in a shard_map',
  'ffi_call': 'used in a foreign function',
  'pure_callback': 'used in a callback',
  'io_callback': 'used in a callback',
  'custom_partitioning': 'used in a function with custom partitioning',
}
NO_LAYOUT = 'axes rearranged in an unsupported way'


def other(step: Step) -> list[Value]:
  """A primitive that no layout can see through."""
  if step.name in _OPAQUE:
    step.note(step.operands, _OPAQUE[step.name], forbids=True)
  if step.depends:
    reason = reasons.ITEM_BY_ITEM if step.name in _ITEM_BY_ITEM else f'used in {step.name}'
    step.note(step.operands, reason)
    return step.results(depends=True, layer=common_layer(step.operands))
  origins = origins_of(step.operands, _combined(step))
  if not origins:
    return step.results(number=_number(step))
  return step.results(origins=origins, repeated=any(value.repeated for value in step.operands))


def _combined(step: Step) -> str:
  if sum(not value.is_constant for value in step.operands) > 1:
    return f'combined with other parameters first: {step.name}'
  return f'changed first: {step.name}'


_OF_NUMBERS: Mapping[str, Callable[..., int]] = {
  'add': operator.add,
  'sub': operator.sub,
  'mul': operator.mul,
  'lt': operator.lt,
  'max': max,
  'min': min,
  'select_n': lambda which, *cases: cases[which],
}


def _number(step: Step) -> int | None:
  """The one result, where it is an integer that follows from known ones."""
  numbers = [value.number for value in step.operands]
  if None in numbers or step.name not in _OF_NUMBERS:
    return None
  return int(_OF_NUMBERS[step.name](*numbers))


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
  step.events.extend(Scaled(value.view.path) for value in followed if value.view)
  return [value for value in followed if _view(value)]


def _view(value: Value) -> View | None:
  return value.product.view if value.product else value.view


def rearranged(step: Step) -> list[Value]:
  """A primitive that moves the axes of its first operand."""
  moved, *others = step.operands
  if any(not value.is_constant for value in others):
    return other(step)
  token = (step.name, str(step.params), moved.token)
  known = Value(
    depends=moved.depends,
    repeated=moved.repeated or _repeats(step),
    view=moved.view and _moved(step, moved.view),
    product=moved.product and _moved_product(step, moved.product),
    origins=moved.origins,
    number=moved.number,
    token=token,
    layer=moved.layer,
  )
  if moved.view and not known.view:
    return step.results(origins=origins_of([moved], NO_LAYOUT), repeated=moved.repeated)
  return [known]


def _repeats(step: Step) -> bool:
  return step.name == 'broadcast_in_dim' and math.prod(step.shape(0)) < math.prod(step.out_shape)


def _moved_product(step: Step, product: Product) -> Product | None:
  view = _moved(step, product.view)
  return None if view is None else Product(product.use, view)


def _moved(step: Step, view: View) -> View | None:
  params = step.params
  if step.name == 'transpose':
    return view.transposed(params['permutation'])
  if step.name == 'reshape':
    return view.reshaped(params['new_sizes']) if params.get('dimensions') is None else None
  if step.name == 'broadcast_in_dim':
    return view.broadcast(params['shape'], params['broadcast_dimensions'])
  if step.name == 'squeeze':
    return view.squeezed(params['dimensions'])
  assert step.name == 'slice'
  if any(stride != 1 for stride in params['strides'] or ()):
    return None
  return view.sliced(params['start_indices'], params['limit_indices'])


def added(step: Step) -> list[Value]:
  """An addition, which may be that of a bias."""
  for product, bias in (step.operands, step.operands[::-1]):
    if product.product and bias.view:
      step.events.append(Sum(product.product, bias.view))
  return other(step)
