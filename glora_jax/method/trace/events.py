"""A walk's knowledge of arrays (`Value`), and its records of parameters (`Events`)."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from jax.extend import core

from glora_jax.method.site import Loop
from glora_jax.method.trace.view import Scope, View
from glora_jax.tree import KeyPath

# Why a matrix is not adapted, as written in brackets after its name.
HEAD = 'trained in full'
NOT_SELECTED = 'not selected'
TO_WORDS = 'output layer to words; use select or heads'
LOOKED_UP = 'embedding lookup'
ITEM_BY_ITEM = 'not a matmul'
CONVOLUTION = 'convolution; use convs=True'
AN_INPUT = 'used as an input of other weights'
UNUSED = 'not used'
NO_MODULE = 'matmul outside the known modules; use glora_jax.adapt_function'

# Two kinds of reasons cause no warning in the log: what is left out by choice, and matrices that
# are not linear layers.
CHOSEN = (HEAD, NOT_SELECTED, TO_WORDS)
ORDINARY = (LOOKED_UP, ITEM_BY_ITEM, CONVOLUTION, AN_INPUT, UNUSED)


class Origin(NamedTuple):
  """A parameter that an array was computed from, and why the array is not a view of it.

  Attributes:
    path: path of the parameter.
    reason: why, in a few words.
    indexed_axes: the axes of the parameter from which single items were selected before.
  """

  path: KeyPath
  reason: str
  indexed_axes: frozenset[int] = frozenset()


class Product(NamedTuple):
  """The result of a product of activations with a kernel.

  Attributes:
    use: the scope of the product.
    view: positions of the kernel's stack and outputs in the result. An atom from the activations is
      not an axis (`Atom.is_axis`).
  """

  use: Scope
  view: View


@dataclasses.dataclass(frozen=True)
class Value:
  """The knowledge of an array.

  An array is activations (`depends`), a parameter with its axes moved (`view`), something computed
  from parameters alone (`origins`), or a constant. Matrices that the input selects from a stack are
  both activations and a view: kernels if activations are multiplied by them (a mixture of experts),
  and otherwise like any activations (prompts that are looked up).

  Attributes:
    depends: whether it depends on the input, or on a product that stands for the input.
    repeated: whether it is computed from parameters that are repeated for every example, learned
      queries for instance. In a product with another parameter it stands for the input.
    view: the parameter that the array is, and the positions of its axes; None if it is not a
      parameter.
    product: the product of activations with a parameter that it is; None if it is none.
    origins: the parameters that it was computed from, unless their use has been recorded.
    number: its value, if it is one known integer.
    layer: path of the last kernel on every way from the input to the array; None if there is none.
  """

  depends: bool = False
  repeated: bool = False
  view: View | None = None
  product: Product | None = None
  origins: tuple[Origin, ...] = ()
  number: int | None = None
  layer: KeyPath | None = None

  @property
  def is_constant(self) -> bool:
    """Whether it depends neither on the input nor on parameters."""
    return not self.depends and not self.origins and self.view is None


def origins_of(values: Iterable[Value], reason: str) -> tuple[Origin, ...]:
  """The parameters that values were computed from, once each; the reason is that of views."""
  origins: dict[KeyPath, Origin] = {}
  for value in values:
    for origin in value.origins:
      origins.setdefault(origin.path, origin)
    if value.view:
      path, axes = value.view.path, value.view.indexed_axes
      selected = Origin(path, f'selected by index; {reason}')
      origins.setdefault(path, selected if value.depends else Origin(path, reason, axes))
  return tuple(origins.values())


def join(first: Value, second: Value) -> Value:
  """The value of an array that may be one or the other."""
  view, origins = first.view, first.origins
  depends = first.depends or second.depends
  if (view, origins) != (second.view, second.origins):
    view = None
    origins = origins_of((first, second), 'differs between branches or iterations')
  return Value(
    depends,
    first.repeated or second.repeated,
    view,
    origins=origins,
    layer=common_layer((first, second)),
  )


def common_layer(values: Iterable[Value]) -> KeyPath | None:
  """The layer of all values that depend on the input, if it is the same."""
  layers = {value.layer for value in values if value.depends}
  return layers.pop() if len(layers) == 1 else None


Role = Literal['in', 'out', 'stack']


class Use(NamedTuple):
  """A product of activations with a parameter.

  Attributes:
    scope: scope of the product.
    view: positions of the parameter's axes in the operand.
    roles: roles of the operand's dimensions: summed over ('in'), shared with the activations or
      grouped ('stack'), or neither ('out').
    scans: the scans around it, outermost first.
    kind: name of the product.
  """

  scope: Scope
  view: View
  roles: tuple[Role, ...]
  scans: tuple[Loop, ...]
  kind: str


class Events:
  """How a program uses its parameters, by their paths, in execution order.

  Attributes:
    uses: the products with activations.
    sums: the parameters that are added to a product, by its scope: pairs of the product's view and
      the parameter's, which have equal dimensions.
    others: the first use in anything else, as a reason that follows the parameter's name.
    forbids: the first use after which a parameter cannot be a kernel, whatever else it is used for.
    indexed_axes: the axes from which single items are selected.
    grouped: the kernels of convolutions of groups of channels.
  """

  def __init__(self):
    self.uses: defaultdict[KeyPath, list[Use]] = defaultdict(list)
    self.sums: defaultdict[Scope, list[tuple[View, View]]] = defaultdict(list)
    self.others: dict[KeyPath, str] = {}
    self.forbids: dict[KeyPath, str] = {}
    self.indexed_axes: defaultdict[KeyPath, set[int]] = defaultdict(set)
    self.grouped: set[KeyPath] = set()


class Position(NamedTuple):
  """Where a walk is.

  Attributes:
    events: the recorded events.
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
  """Shape of a variable; () if it is not an array."""
  return getattr(variable.aval, 'shape', ())


def parts_of_scan(equation: core.JaxprEqn) -> tuple[int, int]:
  """How many operands of a `scan` are loop-invariant, and how many it carries.

  The stacks that it goes through come after these.
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
    operands: the values of its operands.
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
    """Records how the parameters are used that values were computed from."""
    events = self.position.events
    for path, how, indexed_axes in origins_of(values, reason):
      events.others.setdefault(path, how)
      events.indexed_axes[path] |= indexed_axes
      if forbids:
        events.forbids.setdefault(path, how)

  def results(self, **known: Any) -> list[Value]:
    """The value of every result, the same for all."""
    return [Value(**known)] * len(self.equation.outvars)
