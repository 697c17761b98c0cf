"""A parameter that remembers, on its way through a trace, where it came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from glora_jax.tree import Path


class Lift(NamedTuple):
  """An axis that a lifted transform took off a parameter.

  Attributes:
    dim: the axis, as a dimension of the whole parameter.
    index: the axis, as a dimension of what was left of the parameter by then.
    size: size of the axis.
    event: when it happened, on the clock of the discovery's `Watch`. Axes that are taken off at the
      same time belong to one and the same lifted transform.
  """

  dim: int
  index: int
  size: int
  event: int


@dataclasses.dataclass(eq=False)
class Watch:
  """What the probes of one discovery share.

  Compared by identity, so that no trace of another discovery is ever reused.

  Attributes:
    event: number of module calls begun or ended so far.
    shared: paths of the modules whose parameters were also read past `self.param`.
  """

  event: int = 0
  shared: set[Path] = dataclasses.field(default_factory=set)


# What a model may do to a parameter that it reads out of its variables.
_OPERATORS = (
  *('getitem', 'iter', 'len', 'neg', 'abs', 'add', 'radd', 'sub', 'rsub', 'mul', 'rmul'),
  *('truediv', 'rtruediv', 'floordiv', 'rfloordiv', 'mod', 'rmod', 'pow', 'rpow'),
  *('matmul', 'rmatmul', 'lt', 'le', 'gt', 'ge'),
)


def _forwarded(name: str) -> Callable[..., Any]:
  """A method that does to a probe's array what its own method of that name does."""

  def method(self: Probe, *args: Any) -> Any:
    return getattr(self.read(), name)(*args)

  return method


def _with_operators(probe: type[Probe]) -> type[Probe]:
  """The class with the operators of an array."""
  for operator in _OPERATORS:
    name = f'__{operator}__'
    setattr(probe, name, _forwarded(name))
  return probe


@_with_operators
@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Probe(nn.meta.AxisMetadata[Any]):
  """A metadata box around a parameter, to which Flax announces each axis that it takes off.

  A model may also read a parameter out of its variables, past `self.param`, to tie it to something.
  For that a probe behaves like its array, and tells the watch that it was read so: a kernel that
  others read cannot be merged in its module alone.

  Attributes:
    value: the parameter, or the box that the model put around it.
    watch: what all probes of a discovery share.
    path: path of the parameter.
    whole: shape of the whole parameter.
    dims: dimensions of the whole parameter that are still there.
    lifts: the axes that were taken off, outermost first.
  """

  value: Any
  watch: Watch
  path: Path
  whole: tuple[int, ...]
  dims: tuple[int, ...]
  lifts: tuple[Lift, ...] = ()

  @classmethod
  def around(cls, value: Any, watch: Watch, path: Path) -> Probe:
    """A probe around a whole parameter."""
    shape = jax.tree.leaves(value)[0].shape
    return cls(value, watch, path, shape, tuple(range(len(shape))))

  @property
  def is_cut(self) -> bool:
    """Whether the model itself has taken a part of the parameter, or has laid it otherwise."""
    left = tuple(self.whole[dim] for dim in self.dims)
    return jax.tree.leaves(self.value)[0].shape != left

  def tree_flatten(self):
    """For JAX: the parameter, and everything else as static data."""
    return (self.value,), (self.watch, self.path, self.whole, self.dims, self.lifts)

  @classmethod
  def tree_unflatten(cls, static, children):
    """Inverse of `tree_flatten`."""
    return cls(*children, *static)

  def unbox(self) -> Any:
    """For Flax: the bare parameter."""
    return nn.meta.unbox(self.value)

  def replace_boxed(self, val: Any) -> Probe:
    """For Flax: the same boxes around another value."""
    boxed = isinstance(self.value, nn.meta.AxisMetadata)
    return dataclasses.replace(self, value=self.value.replace_boxed(val) if boxed else val)

  def remove_axis(self, index: int, params: Mapping[Any, Any]) -> Probe:
    """For Flax: a lifted transform takes an axis off."""
    index %= len(self.dims)
    dim = self.dims[index]
    boxed = isinstance(self.value, nn.meta.AxisMetadata)
    return dataclasses.replace(
      self,
      value=self.value.remove_axis(index, params) if boxed else self.value,
      dims=self.dims[:index] + self.dims[index + 1 :],
      lifts=(*self.lifts, Lift(dim, index, self.whole[dim], self.watch.event)),
    )

  def add_axis(self, index: int, params: Mapping[Any, Any]) -> Probe:
    """For Flax: a parameter leaves a lifted transform. The discovery lets none out."""
    return self

  def read(self) -> Any:
    """The bare parameter, for a model that reads it past `self.param`."""
    self.watch.shared.add(self.path[:-1])
    return self.unbox()

  def __jax_array__(self) -> Any:
    return self.read()

  def __getattr__(self, name: str) -> Any:
    if name.startswith('__'):
      raise AttributeError(name)
    return getattr(self.read(), name)
