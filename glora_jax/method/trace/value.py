"""What is known of an array in a program: if it depends on the input, and on which parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable
from typing import NamedTuple

from glora_jax.method.trace.view import Scope, View
from glora_jax.tree import Path


class Origin(NamedTuple):
  """A parameter that an array was computed from, and how."""

  path: Path
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
  layer: Path | None = None

  @property
  def is_constant(self) -> bool:
    """Whether it depends neither on the input nor on parameters."""
    return not self.depends and not self.origins and self.view is None


def origins_of(values: Iterable[Value], reason: str) -> tuple[Origin, ...]:
  """The parameters that values depend on, once each; a view's reason is the given one."""
  found: dict[Path, Origin] = {}
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
  depends = first.depends or second.depends
  repeated = first.repeated or second.repeated
  layer = common_layer((first, second))
  if first.view == second.view and first.origins == second.origins:
    return Value(depends, repeated, first.view, origins=first.origins, token=token, layer=layer)
  origins = origins_of((first, second), 'differs between branches or iterations')
  return Value(depends, repeated, origins=() if depends else origins, token=token, layer=layer)


def common_layer(values: Iterable[Value]) -> Path | None:
  """The layer of all values that depend on the input, where it is the same."""
  layers = {value.layer for value in values if value.depends}
  return layers.pop() if len(layers) == 1 else None
