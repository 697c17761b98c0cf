"""What a walk over a program writes down about its parameters, and where it is when it does."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable
from typing import Any, Literal, NamedTuple

from jax.extend import core

from glora_jax.method.trace.value import Product, Value, origins_of
from glora_jax.method.trace.view import Scope, View
from glora_jax.tree import Path

Role = Literal['in', 'out', 'stack']


class Scan(NamedTuple):
  """A scan around something."""

  scope: Scope
  length: int


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
  scans: tuple[Scan, ...]
  kind: str


class Sum(NamedTuple):
  """A parameter is added to a product; the dimensions of its view are those of the product."""

  product: Product
  bias: View


class Note(NamedTuple):
  """A parameter is used in another way.

  Attributes:
    path: path of the parameter.
    reason: the way, as what follows the parameter's name in a sentence.
    stacked: the axes of which one item at a time is used.
    forbids: whether a parameter that is used so can be no kernel, whatever else it is used for.
  """

  path: Path
  reason: str
  stacked: frozenset[int]
  forbids: bool


class Scaled(NamedTuple):
  """A parameter is multiplied by a constant, with which it still is what it was."""

  path: Path


Event = Use | Sum | Note | Scaled


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a walk is.

  Attributes:
    convs: whether the kernels of convolutions are to be found.
    scope: the equations that it is in.
    scans: the scans among them, outermost first.
  """

  convs: bool
  scope: Scope = ()
  scans: tuple[Scan, ...] = ()

  def within(self, number: int) -> Place:
    """The place within an equation, or in one of its parts."""
    return dataclasses.replace(self, scope=(*self.scope, number))


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
    place: the place within it.
    events: the list that events are written into.
  """

  equation: core.JaxprEqn
  operands: list[Value]
  place: Place
  events: list[Event]

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
    for path, own_reason, stacked in origins_of(values, reason):
      self.events.append(Note(path, own_reason, stacked, forbids))

  def results(self, **known: Any) -> list[Value]:
    """What is known of every result, the same for all."""
    return [
      Value(token=(self.place.scope, number), **known)
      for number, _ in enumerate(self.equation.outvars)
    ]
