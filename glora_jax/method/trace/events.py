"""What a walk over a program knows of arrays, and what it writes down about parameters."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import Any, Literal, NamedTuple

from jax.extend import core

from glora_jax.method.site import Loop
from glora_jax.method.trace.view import Scope, View
from glora_jax.tree import KeyPath

# Why a matrix is not adapted, in the few words that stand in brackets behind its name.
HEAD = 'trained in full'
NOT_SELECTED = 'not selected'
LOOKED_UP = 'embedding lookup'
ITEM_BY_ITEM = 'not a matmul'
CONVOLUTION = 'convolution; use convs=True'
AN_INPUT = 'used as an input of other weights'
UNUSED = 'not used'
NO_MODULE = 'matmul outside the known modules; use glora_jax.adapt_function'

# What a user has chosen, and what is no linear layer to anybody; there are other reasons besides.
CHOSEN = (HEAD, NOT_SELECTED)
ORDINARY = (LOOKED_UP, ITEM_BY_ITEM, CONVOLUTION, AN_INPUT, UNUSED)


class Origin(NamedTuple):
  """A parameter that an array was computed from, and how."""

  path: KeyPath
  reason: str
  stacked: frozenset[int] = frozenset()


class Product(NamedTuple):
  """The result of a product of activations with a parameter.

  Attributes:
    use: the scope of the product.
    view: the result as if it were the parameter: its atoms are where its outputs lie.
  """

  use: Scope
  view: View


@dataclasses.dataclass(frozen=True)
class Value:
  """What is known of an array.

  Attributes:
    depends: whether it depends on the input, or on a product that takes the input's place.
    repeated: whether it depends on a parameter that is repeated for every example, or was made to
      be: it meets kernels in the input's place.
    view: the parameter that it is, in other axes; None if it is none.
    product: the product of activations with a parameter that it is; None if it is none.
    origins: of an array that does not depend on the input, the parameters that it depends on in
      other ways.
    number: its value, where it is one known integer.
    token: equal for arrays that hold the same numbers, as far as that is known.
    layer: path of the kernel of the last product that all its dependence on the input went through;
      None if there is none.
  """

  depends: bool = False
  repeated: bool = False
  view: View | None = None
  product: Product | None = None
  origins: tuple[Origin, ...] = ()
  number: int | None = None
  token: Hashable = None
  layer: KeyPath | None = None

  @property
  def is_constant(self) -> bool:
    """Whether it depends neither on the input nor on parameters."""
    return not self.depends and not self.origins and self.view is None


def origins_of(values: Iterable[Value], reason: str) -> tuple[Origin, ...]:
  """The parameters that values depend on, once each; a view's reason is the given one."""
  found: dict[KeyPath, Origin] = {}
  for value in values:
    own = (Origin(value.view.path, reason, value.view.stacked),) if value.view else ()
    for origin in (*value.origins, *own):
      found.setdefault(origin.path, origin)
  return tuple(found.values())


def joined(first: Value, second: Value, token: Hashable) -> Value:
  """What is known of an array that may be one or the other.

  Args:
    first: one value.
    second: the other.
    token: token of the result, unless both are the same parameter.
  """
  view, origins = first.view, first.origins
  depends = first.depends or second.depends
  if (view, origins) != (second.view, second.origins):
    differ = origins_of((first, second), 'differs between branches or iterations')
    view, origins = None, () if depends else differ
  return Value(
    depends,
    first.repeated or second.repeated,
    view,
    origins=origins,
    token=token,
    layer=common_layer((first, second)),
  )


def common_layer(values: Iterable[Value]) -> KeyPath | None:
  """The layer of all values that depend on the input, where it is the same."""
  layers = {value.layer for value in values if value.depends}
  return layers.pop() if len(layers) == 1 else None


Role = Literal['in', 'out', 'stack']


class Use(NamedTuple):
  """A parameter meets activations in a product.

  Attributes:
    scope: scope of the product.
    view: the parameter as the product takes it.
    roles: what the view's dimensions are.
    token: the token of the activations.
    scans: the scans around it, outermost first.
    kind: name of the product.
  """

  scope: Scope
  view: View
  roles: tuple[Role, ...]
  token: Hashable
  scans: tuple[Loop, ...]
  kind: str


class Events:
  """How a program uses its parameters, by their paths, in execution order.

  Attributes:
    uses: the products with activations.
    sums: the parameters that are added to a product, by its scope; each as the product's view and
      its own, which have the same dimensions.
    others: the first of other uses, as what follows the parameter's name in a sentence.
    forbids: the first use with which a parameter can be no kernel, whatever else it is used for.
    stacked: the axes of which one item at a time is used.
    otherwise: the parameters that are multiplied by a constant, or go into a function with a
      gradient of its own, with which they still are what they were.
  """

  def __init__(self):
    self.uses: defaultdict[KeyPath, list[Use]] = defaultdict(list)
    self.sums: defaultdict[Scope, list[tuple[View, View]]] = defaultdict(list)
    self.others: dict[KeyPath, str] = {}
    self.forbids: dict[KeyPath, str] = {}
    self.stacked: defaultdict[KeyPath, set[int]] = defaultdict(set)
    self.otherwise: set[KeyPath] = set()


class Position(NamedTuple):
  """Where a walk is.

  Attributes:
    events: what it writes down.
    convs: whether the kernels of convolutions are to be found.
    scope: the equations that it is in.
    scans: the scans among them, outermost first, by their scopes.
    embeddings: whether tables that are looked up are to be found.
  """

  events: Events
  convs: bool
  scope: Scope = ()
  scans: tuple[Loop, ...] = ()
  embeddings: bool = False

  def within(self, number: int) -> Position:
    """The position within an equation, or in one of its parts."""
    return self._replace(scope=(*self.scope, number))


def shape_of(variable: core.Var | core.Literal) -> tuple[int, ...]:
  """Shape of a variable; () where it is no array."""
  return getattr(variable.aval, 'shape', ())


def parts_of_scan(equation: core.JaxprEqn) -> tuple[int, int]:
  """How many operands of a `scan` its body takes whole, and how many it carries on.

  What it goes through comes after these.
  """
  params = equation.params
  if 'ft_in' in params:  # JAX 0.12 and later keep the operands' tree
    consts, carry, _ = params['ft_in'].unpack()
    return len(consts), len(carry)
  return params['num_consts'], params['num_carry']


class Step(NamedTuple):
  """An equation that a walk has come to.

  Attributes:
    equation: the equation.
    operands: what is known of its operands.
    position: the position within it.
  """

  equation: core.JaxprEqn
  operands: list[Value]
  position: Position

  @property
  def name(self) -> str:
    """Name of the primitive."""
    return self.equation.primitive.name

  @property
  def params(self) -> dict[str, Any]:
    """Parameters of the primitive."""
    return self.equation.params

  @property
  def depends(self) -> bool:
    """Whether an operand depends on the input."""
    return any(value.depends for value in self.operands)

  def shape(self, operand: int) -> tuple[int, ...]:
    """Shape of an operand."""
    return shape_of(self.equation.invars[operand])

  @property
  def out_shape(self) -> tuple[int, ...]:
    """Shape of the first result."""
    return shape_of(self.equation.outvars[0])

  def note(self, values: Iterable[Value], reason: str, forbids: bool = False) -> None:
    """Writes down how the parameters that values depend on are used."""
    events = self.position.events
    for path, own_reason, stacked in origins_of(values, reason):
      events.others.setdefault(path, own_reason)
      events.stacked[path] |= stacked
      if forbids:
        events.forbids.setdefault(path, own_reason)

  def results(self, **known: Any) -> list[Value]:
    """What is known of every result, the same for all."""
    return [
      Value(token=(self.position.scope, number), **known)
      for number, _ in enumerate(self.equation.outvars)
    ]
