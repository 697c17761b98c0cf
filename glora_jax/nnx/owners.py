"""The modules that own adapted parameters: their classes, made on the fly, which merge on reading.

What owns an adapted parameter becomes an instance of a subclass of its class, in which the
parameter is a property: reading it gives the merged value, and the base stays in `vars(owner)`.
Equal classes are the same object, or compiled functions would be traced again.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
from flax import nnx

from glora_jax.nnx.adapter import (
  Adapter,
  gathered,
  local_layout,
  merged_bias,
  merged_kernel,
  thin_output,
)
from glora_jax.nnx.places import Location, locations, put, variable_at, with_variables
from glora_jax.nnx.variables import Head, merged_variable, without_role
from glora_jax.tree import path_name

PREFIX = 'glora_'  # of the attributes that lie beside an owner's parameters
UNCOVERED = 'glora_uncovered'  # attribute of the whole model: the matrices that are not adapted
_LINEAR_CALLS = (nnx.Linear.__call__, nnx.LinearGeneral.__call__)


class Part(NamedTuple):
  """An adapted parameter of an owner.

  Attributes:
    location: where it is.
    role: what of a linear layer it is.
    kernel: where the layer's kernel is.
    adapter: name of the attribute that holds its supports.
    member: number of the layer among those that share the supports.
  """

  location: Location
  role: Literal['kernel', 'bias']
  kernel: Location
  adapter: str
  member: int


def is_owner(module: Any) -> bool:
  """Whether a module's class was made here."""
  return hasattr(type(module), '_glora_parts')


def check_plain(model: nnx.Module) -> None:
  """Raises ValueError if a part of a model is attached, or changes whenever it is read."""
  for path, node in nnx.iter_graph(model):
    if is_owner(node):
      raise ValueError(
        f'This {type(model).__name__} is attached already; attach to what it was made from, or to '
        'what glora_jax.nnx.fold makes of it.'
      )
    if isinstance(node, (nnx.Param, nnx.BatchStat)) and (
      type(node).get_value is not nnx.Variable.get_value or node.has_metadata('on_get_value')
    ):
      raise ValueError(
        f'{path_name(tuple(map(str, path)))} has a get_value or an on_get_value hook of its own, '
        'and is read and put back here; do what these do where the model uses it.'
      )


def parts_of(owner: nnx.Pytree) -> tuple[Part, ...]:
  """Its adapted parameters."""
  return type(owner)._glora_parts  # pyrefly: ignore


def plain_class(owner: nnx.Pytree) -> type:
  """The class that it had."""
  return type(owner)._glora_base  # pyrefly: ignore


def make_owner(module: nnx.Pytree, parts: Sequence[Part]) -> None:
  """Makes a module with supports beside its parameters an owner of them.

  Args:
    module: a module of any class.
    parts: its adapted parameters; none for a bridge to linen that has heads alone.
  """
  _set_class(module, _owner_class(type(module), tuple(sorted(parts))))


def make_plain(owner: nnx.Pytree) -> None:
  """Makes an owner an instance of its old class, without what lay beside its parameters."""
  added = _added(owner)
  _set_class(owner, plain_class(owner))
  for name in added:
    delattr(owner, name)


def _added(owner: nnx.Pytree) -> set[str]:
  """Names of the attributes that attaching has added; the model's own may begin as they do."""
  parts = parts_of(owner)
  own = {part.location for part in parts}
  bases = {part.kernel.attribute for part in parts if part.kernel not in own}
  added = bases | {part.adapter for part in parts} | {UNCOVERED}
  return added & vars(owner).keys()


def merged(owner: nnx.Pytree, part: Part) -> jax.Array:
  """An adapted parameter with its supports merged in."""
  adapter: Adapter = vars(owner)[part.adapter]
  kernel = variable_at(owner, part.kernel).get_value()
  if part.role == 'kernel':
    return merged_kernel(adapter, part.member, kernel)
  bias = variable_at(owner, part.location).get_value()
  return merged_bias(adapter, part.member, kernel, bias)


def _used(owner: nnx.Pytree, part: Part) -> jax.Array:
  """The same as a layer is to use it, whole on every device."""
  value = merged(owner, part)
  return gathered(vars(owner)[part.adapter], value) if part.role == 'kernel' else value


def _set_class(module: nnx.Pytree, kind: type) -> None:
  object.__setattr__(module, '__class__', kind)


@functools.cache
def _owner_class(base: type, parts: tuple[Part, ...]) -> type:
  """The subclass of a class in which some parameters are merged where they are read."""
  by_attribute: dict[str, list[Part]] = {}
  for part in parts:
    by_attribute.setdefault(part.location.attribute, []).append(part)
  members: dict[str, Any] = {
    name: property(
      functools.partial(_read, name, tuple(together)),
      functools.partial(_write, name),
      functools.partial(_forget, name),
    )
    for name, together in by_attribute.items()
  }
  members |= {'_glora_parts': parts, '_glora_base': base}
  members |= {'__doc__': base.__doc__, '__module__': base.__module__}
  members['__reduce_ex__'] = _reduce
  if base.__call__ in _LINEAR_CALLS:
    members['__call__'] = _call_linear
  elif issubclass(base, nnx.bridge.ToNNX):
    members['__call__'] = _call_bridge
  kind = _subclass(base, members)
  kind.__name__, kind.__qualname__ = base.__name__, base.__qualname__
  return kind


def _subclass(base: type, members: Mapping[str, Any]) -> type:
  """A subclass of a module's class, of which that is told where it can be."""
  name = PREFIX + base.__name__  # a base may keep a register of its subclasses by name
  options = {'pytree': base._pytree__is_pytree}
  try:
    return types.new_class(name, (base,), options, lambda namespace: namespace.update(members))
  except Exception:  # it demands arguments that only its author knows, or forbids subclasses
    bases = _Untold, base
    return types.new_class(name, bases, options, lambda namespace: namespace.update(members))


class _Untold(nnx.Pytree):
  """First base of a class of which NNX alone is told, and no `__init_subclass__` of a user's."""

  def __init_subclass__(cls, **options: Any) -> None:
    told = vars(nnx.Pytree)['__init_subclass__'].__func__
    told(cls, **options)


def _reduce(owner: nnx.Pytree, protocol: int) -> tuple:
  """How pickle takes an owner apart: its class is made again, and not looked up by its name."""
  _, _, *state = object.__reduce_ex__(owner, max(protocol, 2))
  return (_new_owner, (plain_class(owner), parts_of(owner)), *state)


def _new_owner(base: type, parts: tuple[Part, ...]) -> Any:
  return object.__new__(_owner_class(base, parts))


def _read(name: str, parts: Sequence[Part], owner: nnx.Pytree) -> Any:
  """An attribute with merged values for the parameters in it."""
  if name not in vars(owner):
    raise AttributeError(f"'{type(owner).__name__}' object has no attribute '{name}'")
  new = {
    part.location.inside: merged_variable(variable_at(owner, part.location), _used(owner, part))
    for part in parts
  }
  return with_variables(vars(owner)[name], new)


def _write(name: str, owner: nnx.Pytree, value: Any) -> None:
  vars(owner)[name] = value


def _forget(name: str, owner: nnx.Pytree) -> None:
  del vars(owner)[name]


def _call_linear(owner: nnx.Pytree, *args: Any, **kwargs: Any) -> Any:
  """The call of NNX's own linear layer, without a merged kernel where A is not a LoRA.

  A training step with a merged kernel computes the gradient of the whole kernel; x W + (x B_down)
  B_up needs none.
  """
  parts = {part.role: part for part in parts_of(owner)}
  part = parts['kernel']
  adapter, kernel = vars(owner)[part.adapter], variable_at(owner, part.location)
  layout = local_layout(adapter, part.member, kernel.get_value())
  in_order = list(layout.outputs) == sorted(layout.outputs)
  if not adapter.static.occurring.is_thin or layout.stack or not in_order:
    return plain_class(owner).__call__(owner, *args, **kwargs)
  layer = object.__new__(plain_class(owner))  # a copy for this call, with the base's kernel
  vars(layer).update(vars(owner))
  if 'bias' in parts:
    vars(layer)['bias'] = owner.bias  # pyrefly: ignore
  product = layer.dot_general
  if getattr(layer, 'dot_general_cls', None) is not None:
    product = layer.dot_general_cls()
    vars(layer)['dot_general_cls'] = None
  product = product or jax.lax.dot_general
  vars(layer)['dot_general'] = functools.partial(_thin_dot_general, product, adapter, part.member)
  return layer(*args, **kwargs)


def _thin_dot_general(
  product: Callable[..., jax.Array],
  adapter: Adapter,
  member: int,
  inputs: jax.Array,
  kernel: jax.Array,
  dimension_numbers: Any,
  **kwargs: Any,
) -> jax.Array:
  """A `dot_general` of inputs and a kernel with the supports' part added."""
  output = product(inputs, gathered(adapter, kernel), dimension_numbers, **kwargs)
  (contracted, of_kernel), _ = dimension_numbers
  by_dim = dict(zip(of_kernel, contracted, strict=True))
  order = [by_dim[dim] for dim in local_layout(adapter, member, kernel).inputs]
  free = [dim for dim in range(inputs.ndim) if dim not in order]
  sizes = [inputs.shape[dim] for dim in free]
  rows, columns = inputs.transpose(*free, *order).reshape(*sizes, -1), output.reshape(*sizes, -1)
  precision = kwargs.get('precision')
  return thin_output(adapter, member, kernel, rows, columns, precision).reshape(output.shape)


def _call_bridge(owner: nnx.bridge.ToNNX, *args: Any, **kwargs: Any) -> Any:
  """The call of a linen model, which reads its parameters off `vars`: merged ones for as long."""
  attributes, kind = vars(owner), type(owner)
  added = _added(owner)
  supports = {name: value for name, value in attributes.items() if name in added}
  values = {part.location: _used(owner, part) for part in parts_of(owner)}
  own = {
    location: variable
    for location, variable in locations(owner)
    if location in values or isinstance(variable, Head)
  }
  plain = {
    location: variable.replace(values[location]) if location in values else without_role(variable)
    for location, variable in own.items()
  }
  try:
    for name in supports:
      del attributes[name]
    put(owner, plain)
    _set_class(owner, plain_class(owner))
    return owner(*args, **kwargs)
  finally:
    _set_class(owner, kind)
    put(owner, own)  # what the call has updated besides, batch statistics for instance, stays
    attributes.update(supports)
