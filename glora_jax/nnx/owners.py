"""The modules that own adapted parameters: their classes, made on the fly, which merge on reading.

What owns an adapted parameter becomes an instance of a subclass of its class, in which the
parameter is a property: reading it gives the merged value, and the base stays in `vars(owner)`.
Equal classes are the same object, or compiled functions would be traced again.
"""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
from flax import nnx

from glora_jax.method import program
from glora_jax.method.adapter import of_tensors
from glora_jax.method.genomes import goes_by_output
from glora_jax.method.quantized import dequantize, is_quantized
from glora_jax.method.rules import Deferred, merge_biases, merge_kernels
from glora_jax.method.sharding import gather_over
from glora_jax.method.site import Site
from glora_jax.method.space import WEIGHT_TENSORS
from glora_jax.nnx.adapter import Adapter, left
from glora_jax.nnx.base import warn_if_base_changed
from glora_jax.nnx.places import Location, locations, modules, put, variable_at, with_variables
from glora_jax.nnx.variables import Head, by_making, merged_variable, without_role
from glora_jax.tree import KeyPath

log = logging.getLogger(__name__)

Model = TypeVar('Model', bound=nnx.Module)
PREFIX = 'glora_'  # of the attributes that lie beside an owner's parameters
UNADAPTED = 'glora_unadapted'  # attribute of the whole model, an `Unadapted`
# NNX's own layers that run by their program: the array's attribute, the method's name, and whose.
_BY_PROGRAM = (
  ('kernel', '__call__', (nnx.Linear.__call__, nnx.LinearGeneral.__call__)),
  ('embedding', '__call__', (nnx.Embed.__call__,)),
  ('embedding', 'attend', (nnx.Embed.attend,)),
)


class Unadapted(NamedTuple):
  """The matrices of an attached model that have no adapter; see `glora_jax.Adapted`."""

  uncovered: tuple[tuple[KeyPath, str], ...] = ()
  head_sites: tuple[Site, ...] = ()


class AdaptedParam(NamedTuple):
  """An adapted parameter of an owner.

  Attributes:
    location: where it is.
    kernel: where the kernel of its layer is, which may be this parameter.
    adapter: name of the attribute that holds its supports; '' where it is quantized, not adapted.
    member: number of the layer among those that share the supports.
  """

  location: Location
  kernel: Location
  adapter: str
  member: int

  @property
  def is_kernel(self) -> bool:
    """Whether it is the kernel itself, and no bias."""
    return self.location == self.kernel


def is_owner(module: Any) -> bool:
  """Whether a module's class was made here."""
  return hasattr(type(module), '_glora_params')


def params_of(owner: nnx.Pytree) -> tuple[AdaptedParam, ...]:
  """Its adapted parameters."""
  return type(owner)._glora_params  # pyrefly: ignore


def plain_class(owner: nnx.Pytree) -> type:
  """The class that it had."""
  return type(owner)._glora_base  # pyrefly: ignore


def make_owner(module: nnx.Pytree, params: Sequence[AdaptedParam]) -> None:
  """Makes a module with supports beside its parameters an owner of them.

  Args:
    module: a module of any class.
    params: its adapted parameters; none for a bridge to linen that has heads alone.
  """
  _set_class(module, _owner_class(type(module), tuple(sorted(params))))


def fold(model: Model) -> Model:
  """The plain model of the original class, with the supports of its genome folded in.

  Args:
    model: an attached model, or a module of one; it is not changed.

  Returns:
    A model of the class that was attached, same code, same size. Heads have their original type,
    and all other state is kept: batch statistics, random streams, caches, mode. The log warns if
    the base has changed since `attach`.

  Raises:
    ValueError: the model is not attached.

  Example:
    >>> import glora_jax, jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> linear, x = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), jnp.ones((1, 4))
    >>> model = glora_jax.nnx.attach(linear, x)
    >>> model.glora_kernel.E[...] = jnp.ones(3)
    >>> folded = glora_jax.nnx.fold(model)
    >>> type(folded) is nnx.Linear, bool(jnp.allclose(folded(x), linear(x) + 1))
    (True, True)
  """
  folded = plain(model, with_adapter=True)
  warn_if_base_changed(model)
  return folded


def plain(model: Model, *, with_adapter: bool) -> Model:
  """The plain model, with its supports folded in or as it was attached; all other state as it is.

  Raises:
    ValueError: the model is not attached.
  """
  if not any(is_owner(module) for _, module in modules(model)):
    raise ValueError(
      f'This {type(model).__name__} is not attached; pass what glora_jax.nnx.attach returned.'
    )
  model = nnx.clone(model)
  found = [module for _, module in modules(model)]
  # By the ids of the old ones, which are kept, or their ids would be given to others.
  new: dict[int, tuple[nnx.Variable, nnx.Variable]] = {}
  for owner in filter(is_owner, found if with_adapter else ()):
    for param in params_of(owner):
      base = variable_at(owner, param.location)
      if id(base) not in new:
        new[id(base)] = base, base.replace(merged(owner, param))
  for module in found:
    _put_plain(module, new)
  for owner in filter(is_owner, found):
    added = _added(owner)
    _set_class(owner, plain_class(owner))
    for name in added:
      delattr(owner, name)
  return model


def _put_plain(module: nnx.Pytree, new: dict[int, tuple[nnx.Variable, nnx.Variable]]) -> None:
  """Puts plain variables into a module's places, heads as the parameters that they were."""
  for location, variable in list(locations(module)):
    if isinstance(variable, Head) and id(variable) not in new:
      new[id(variable)] = variable, without_role(variable)
    if id(variable) in new:
      put(module, {location: new[id(variable)][1]})
  if UNADAPTED in vars(module):
    delattr(module, UNADAPTED)


def _added(owner: nnx.Pytree) -> set[str]:
  """Names of the attributes that attaching has added; the model's own may begin as they do."""
  params = params_of(owner)
  own = {param.location for param in params}
  bases = {param.kernel.attribute for param in params if param.kernel not in own}
  added = bases | {param.adapter for param in params} | {UNADAPTED}
  return added & vars(owner).keys()


def merged(owner: nnx.Pytree, param: AdaptedParam) -> jax.Array:
  """An adapted parameter with its supports merged in."""
  kernel = variable_at(owner, param.kernel).get_value()
  if not param.adapter:
    return dequantize(kernel)
  adapter: Adapter = vars(owner)[param.adapter]
  local, arrays, forms = left(adapter, param.member, kernel)
  ranks = adapter.group.space.ranks
  if not param.is_kernel:
    bias = variable_at(owner, param.location).get_value()
    return merge_biases(kernel, bias, arrays, forms, local, ranks)
  used, kernel = of_tensors(arrays, WEIGHT_TENSORS), dequantize(kernel)
  return merge_kernels(kernel, used, forms, local, ranks) if used else kernel


def _used(owner: nnx.Pytree, param: AdaptedParam) -> jax.Array:
  """The same as a layer is to use it, whole on every device."""
  value, adapter = merged(owner, param), vars(owner).get(param.adapter)
  mesh = adapter.static.mesh if adapter and param.is_kernel else None
  return value if mesh is None else gather_over(mesh)(value)


def _set_class(module: nnx.Pytree, kind: type) -> None:
  object.__setattr__(module, '__class__', kind)


@functools.cache
def _owner_class(base: type, params: tuple[AdaptedParam, ...]) -> type:
  """The subclass of a class in which some parameters are merged where they are read."""
  by_attribute: dict[str, list[AdaptedParam]] = {}
  for param in params:
    by_attribute.setdefault(param.location.attribute, []).append(param)
  members: dict[str, Any] = {
    name: _merged_property(name, together) for name, together in by_attribute.items()
  }
  members |= {'_glora_params': params, '_glora_base': base}
  members |= {'__doc__': base.__doc__, '__module__': base.__module__}
  members['__reduce_ex__'] = by_making(_owner_class, base, params)
  for attribute, name, methods in _BY_PROGRAM:
    if attribute in by_attribute and getattr(base, name, None) in methods:
      members[name] = functools.partialmethod(_by_program, attribute, name)
  if issubclass(base, nnx.bridge.ToNNX):
    members['__call__'] = _call_bridge
  kind = _subclass(base, members)
  kind.__name__, kind.__qualname__ = base.__name__, base.__qualname__
  return kind


def _subclass(base: type, members: Mapping[str, Any]) -> type:
  """A subclass of a module's class, of which that is told where it can be."""
  name = PREFIX + base.__name__  # a base may keep a register of its subclasses by name
  make = functools.partial(
    types.new_class,
    name,
    kwds={'pytree': base._pytree__is_pytree},
    exec_body=lambda namespace: namespace.update(members),
  )
  try:
    return make((base,))
  except Exception as error:
    # It demands arguments that only its author knows, or forbids subclasses.
    log.info('%s.__init_subclass__ is not called: %s', base.__name__, error)
    return make((_Untold, base))


class _Untold(nnx.Pytree):
  """First base of a class of which NNX alone is told, and no `__init_subclass__` of a user's."""

  def __init_subclass__(cls, **options: Any) -> None:
    told = vars(nnx.Pytree)['__init_subclass__'].__func__
    told(cls, **options)


def _merged_property(name: str, params: Sequence[AdaptedParam]) -> property:
  """An attribute with merged values for the parameters in it."""

  def read(owner: nnx.Pytree) -> Any:
    if name not in vars(owner):
      raise AttributeError(f"'{type(owner).__name__}' object has no attribute '{name}'")
    new = {
      param.location.inside: merged_variable(
        variable_at(owner, param.location), _used(owner, param)
      )
      for param in params
    }
    return with_variables(vars(owner)[name], new)

  def write(owner: nnx.Pytree, value: Any) -> None:
    vars(owner)[name] = value

  def forget(owner: nnx.Pytree) -> None:
    del vars(owner)[name]

  return property(read, write, forget)


def _by_program(owner: nnx.Pytree, attribute: str, name: str, *args: Any, **kwargs: Any) -> Any:
  """A method of one of NNX's own layers, run by its program: a rule uses the array in it.

  Merged before, the array would have a gradient of its whole size; taken out of a quantized one, it
  would be kept for the backward pass.
  """
  own = {param.location.attribute: param for param in params_of(owner)}
  param, kind = own.pop(attribute), plain_class(owner)
  variable, adapter = variable_at(owner, param.location), vars(owner).get(param.adapter)
  by_outputs = adapter is not None and goes_by_output(adapter.static.in_use)
  is_stateful = isinstance(vars(owner).get('dot_general'), nnx.Module)
  if is_stateful or not (by_outputs or is_quantized(variable.get_value())):
    return getattr(kind, name)(owner, *args, **kwargs)

  def call(array: jax.Array, inputs: tuple) -> Any:
    layer = object.__new__(kind)
    others = {other: getattr(owner, other) for other in own}
    vars(layer).update(vars(owner), **others, **{attribute: merged_variable(variable, array)})
    return getattr(layer, name)(*inputs[0], **inputs[1])

  def defer(base: Any) -> Deferred:
    if adapter is None:
      return Deferred.unadapted(base, base.dtype)
    layout, arrays, forms = left(adapter, param.member, base)
    arrays = base, of_tensors(arrays, WEIGHT_TENSORS), forms
    return Deferred.from_kernel(*arrays, layout, adapter.group.space.ranks, by_outputs)

  mesh = None if adapter is None else adapter.static.mesh
  return program.call(call, variable.get_value(), (args, kwargs), mesh, defer=defer)


def _call_bridge(owner: nnx.bridge.ToNNX, *args: Any, **kwargs: Any) -> Any:
  """The call of a linen model, which reads its parameters off `vars`: merged ones for as long."""
  attributes, kind = vars(owner), type(owner)
  values = {param.location: _used(owner, param) for param in params_of(owner)}
  own = {
    location: variable
    for location, variable in locations(owner)
    if location in values or isinstance(variable, Head)
  }
  plain = {
    location: variable.replace(values[location]) if location in values else without_role(variable)
    for location, variable in own.items()
  }
  arrays = {name: attributes.pop(name) for name in _added(owner)}
  try:
    put(owner, plain)
    _set_class(owner, plain_class(owner))
    return owner(*args, **kwargs)
  finally:
    _set_class(owner, kind)
    put(owner, own)  # what the call has updated besides, batch statistics for instance, stays
    attributes.update(arrays)
