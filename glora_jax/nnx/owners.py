"""Modules whose parameters are adapted: reading one gives the kernel with its adapter merged in.

An attached model must stay an instance of its class and run the code that its author wrote, and
that code reads `self.kernel`. In Python only a class can intercept the reading of an attribute. So
a module that owns adapted parameters, an *owner*, gets a subclass of its own class, made by
`_owner_class`, in which each of these parameters is a property:

    vars(owner)['kernel']         the base's variable
    vars(owner)['glora_kernel']   its `Adapter`
    owner.kernel                  a new variable with the merged value

Three things follow. Equal classes must be the same object, since a class is part of the type that
compiled functions are cached by: `_owner_class` is cached by the class and its `AdaptedParam`s.
Pickle cannot find the class by its name, so its instances know how to make it (`reduce_with`). And
all that looks into `vars(owner)`, as `nnx.split` does, sees the base and the adapter side by side.
"""

from __future__ import annotations

import functools
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
from glora_jax.nnx.adapter import Adapter, local_arrays
from glora_jax.nnx.base import warn_if_base_changed
from glora_jax.nnx.places import Location, locations, modules, put, variable_at, with_variables
from glora_jax.nnx.variables import Head, as_param, read_only, reduce_with
from glora_jax.tree import KeyPath

Model = TypeVar('Model', bound=nnx.Module)
PREFIX = 'glora_'  # of attributes that hold adapters
UNADAPTED = 'glora_unadapted'  # attribute of the whole model, an `Unadapted`
# Methods of NNX's layers that `_by_program` runs: the array's attribute, the method, its originals.
_BY_PROGRAM = (
  ('kernel', '__call__', (nnx.Linear.__call__, nnx.LinearGeneral.__call__)),
  ('embedding', '__call__', (nnx.Embed.__call__,)),
  ('embedding', 'attend', (nnx.Embed.attend,)),
)


class Unadapted(NamedTuple):
  """The matrices of an attached model that have no adapter; see `glora_jax.Adapted`."""

  uncovered: tuple[tuple[KeyPath, str], ...] = ()
  other_sites: tuple[Site, ...] = ()


class AdaptedParam(NamedTuple):
  """An adapted parameter of an owner.

  Attributes:
    location: its location.
    kernel: the location of its layer's kernel, which may be this parameter.
    adapter: name of the attribute that holds its adapter; '' if it is quantized and not adapted.
  """

  location: Location
  kernel: Location
  adapter: str

  @property
  def is_kernel(self) -> bool:
    """Whether it is the kernel itself, not a bias."""
    return self.location == self.kernel


def is_owner(module: Any) -> bool:
  """Whether a module is an owner."""
  return hasattr(type(module), '_glora_params')


def params_of(owner: nnx.Pytree) -> tuple[AdaptedParam, ...]:
  """An owner's adapted parameters."""
  return type(owner)._glora_params  # pyrefly: ignore


def original_class(owner: nnx.Pytree) -> type:
  """The class that an owner had before."""
  return type(owner)._glora_base  # pyrefly: ignore


def make_owner(module: nnx.Pytree, params: Sequence[AdaptedParam]) -> None:
  """Changes the class of a module that has adapters next to its parameters to an owner's.

  Args:
    module: a module of any class.
    params: its adapted parameters; none for a bridge to Linen that has heads alone.
  """
  _set_class(module, _owner_class(type(module), tuple(sorted(params))))


def fold(model: Model) -> Model:
  """Folds the adapter, and returns a model of the original class.

  Args:
    model: an attached model, or a module of one; it is not changed.

  Returns:
    A model as before `attach`, with the same code and size. Heads have their original type, and all
    other state is unchanged: batch statistics, random streams, caches, mode. The log warns if the
    base has changed since `attach`.

  Raises:
    ValueError: the model is not attached.

  Example:
    >>> import glora_jax, jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> linear, x = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), jnp.ones((1, 4))
    >>> model = glora_jax.nnx.attach(linear, x, structure='bitfit')
    >>> model.glora_kernel.E[...] = jnp.ones(3)
    >>> folded = glora_jax.nnx.fold(model)
    >>> type(folded) is nnx.Linear, bool(jnp.allclose(folded(x), linear(x) + 1))
    (True, True)
  """
  folded = detach(model, with_adapter=True)
  warn_if_base_changed(model)
  return folded


def detach(model: Model, *, with_adapter: bool) -> Model:
  """A model of the original class, with the adapter folded in or as before; other state unchanged.

  Raises:
    ValueError: the model is not attached.
  """
  if not any(is_owner(module) for _, module in modules(model)):
    raise ValueError(
      f'This {type(model).__name__} is not attached; pass the model from glora_jax.nnx.attach.'
    )
  model = nnx.clone(model)
  found = [module for _, module in modules(model)]
  # By the old ones' ids. The old ones are in it as well: Python gives a dead one's id to others.
  new: dict[int, tuple[nnx.Variable, nnx.Variable]] = {}
  for owner in filter(is_owner, found if with_adapter else ()):
    for param in params_of(owner):
      base = variable_at(owner, param.location)
      if id(base) not in new:
        new[id(base)] = base, base.replace(merge(owner, param))
  for module in found:
    _restore(module, new)
  for owner in filter(is_owner, found):
    added = _added_names(owner)
    _set_class(owner, original_class(owner))
    for name in added:
      delattr(owner, name)
  return model


def _restore(module: nnx.Pytree, new: dict[int, tuple[nnx.Variable, nnx.Variable]]) -> None:
  """Replaces a module's variables with new ones, and gives heads their original type."""
  for location, variable in list(locations(module)):
    if isinstance(variable, Head) and id(variable) not in new:
      new[id(variable)] = variable, as_param(variable)
    if id(variable) in new:
      put(module, {location: new[id(variable)][1]})
  if UNADAPTED in vars(module):
    delattr(module, UNADAPTED)


def _added_names(owner: nnx.Pytree) -> set[str]:
  """Names of the attributes that `attach` added; the model's own may also begin with `PREFIX`."""
  params = params_of(owner)
  adapted = {param.location for param in params}
  bases = {param.kernel.attribute for param in params if param.kernel not in adapted}
  added = bases | {param.adapter for param in params} | {UNADAPTED}
  return added & vars(owner).keys()


def merge(owner: nnx.Pytree, param: AdaptedParam) -> jax.Array:
  """The value of an adapted parameter: the base's with its adapter merged in."""
  kernel = variable_at(owner, param.kernel).get_value()
  if not param.adapter:
    return dequantize(kernel)
  adapter: Adapter = vars(owner)[param.adapter]
  layout, arrays, forms = local_arrays(adapter, kernel)
  ranks = adapter.group.space.ranks
  if not param.is_kernel:
    bias = variable_at(owner, param.location).get_value()
    return merge_biases(kernel, bias, arrays, forms, layout, ranks)
  weights, kernel = of_tensors(arrays, WEIGHT_TENSORS), dequantize(kernel)
  return merge_kernels(kernel, weights, forms, layout, ranks) if weights else kernel


def _merge_for_use(owner: nnx.Pytree, param: AdaptedParam) -> jax.Array:
  """The same for the layer itself; a sharded kernel is gathered on every device."""
  value, adapter = merge(owner, param), vars(owner).get(param.adapter)
  mesh = adapter.static.mesh if adapter and param.is_kernel else None
  return value if mesh is None else gather_over(mesh)(value)


def _set_class(module: nnx.Pytree, kind: type) -> None:
  object.__setattr__(module, '__class__', kind)


@functools.cache
def _owner_class(base: type, params: tuple[AdaptedParam, ...]) -> type:
  """The subclass of a class in which some parameters are properties that merge.

  Of an `nnx.Linear` with an adapted kernel, `linear.kernel` is then a new variable with W' in it,
  and `vars(linear)['kernel']` the base's, with `vars(linear)['glora_kernel']` beside it.
  """
  by_attribute: dict[str, list[AdaptedParam]] = {}
  for param in params:
    by_attribute.setdefault(param.location.attribute, []).append(param)
  members: dict[str, Any] = {
    name: _property(name, together) for name, together in by_attribute.items()
  }
  members |= {'_glora_params': params, '_glora_base': base}
  members |= {'__doc__': base.__doc__, '__module__': base.__module__}
  members['__reduce_ex__'] = reduce_with(_owner_class, base, params)
  for attribute, name, methods in _BY_PROGRAM:
    if attribute in by_attribute and getattr(base, name, None) in methods:
      members[name] = functools.partialmethod(_by_program, attribute, name)
  if issubclass(base, nnx.bridge.ToNNX):
    members['__call__'] = _call_bridge
  kind = _subclass(base, members)
  kind.__name__, kind.__qualname__ = base.__name__, base.__qualname__
  return kind


def _subclass(base: type, members: Mapping[str, Any]) -> type:
  """A subclass of a module's class, made without the class's own `__init_subclass__`.

  A user's may keep a register of subclasses, or need an argument that only he knows. NNX's must be
  called, as it registers the pytree. `_OfNnxAlone` comes first and calls that one alone
  (`test_a_base_need_not_be_told_of_what_is_attached`). A metaclass may also keep a register, so the
  subclass gets its base's name only later.
  """
  return types.new_class(
    PREFIX + base.__name__,
    (_OfNnxAlone, base),
    {'pytree': base._pytree__is_pytree},
    lambda namespace: namespace.update(members),
  )


class _OfNnxAlone(nnx.Pytree):
  def __init_subclass__(cls, **options: Any) -> None:
    init_subclass = vars(nnx.Pytree)['__init_subclass__'].__func__
    init_subclass(cls, **options)


def _property(name: str, params: Sequence[AdaptedParam]) -> property:
  """An attribute that has merged values for the adapted parameters in it when it is read."""

  def read(owner: nnx.Pytree) -> Any:
    if name not in vars(owner):
      raise AttributeError(f"'{type(owner).__name__}' object has no attribute '{name}'")
    new = {
      param.location.inside: read_only(
        variable_at(owner, param.location), _merge_for_use(owner, param)
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
  """Calls a method of one of NNX's own layers, and gives each use of the array to the rules.

  It does so if no layer can have a LoRA for A, since a merged kernel would have a gradient of its
  whole size, only to be reduced to that of the adapter. It also does so for a quantized array: a
  dequantized one would be kept for the backward pass. Otherwise, and if the layer's `dot_general`
  is a module, the method runs as usual and reads the merged array.

  `program.call` traces the method and applies the rules (`glora_jax.method.rules`): `x @ kernel`
  becomes `x @ kernel + (x @ down) @ up`. The layer is called as an instance of its original class,
  with an array that is a tracer, and everything else read as usual.
  """
  others = {param.location.attribute: param for param in params_of(owner)}
  param, kind = others.pop(attribute), original_class(owner)
  variable, adapter = variable_at(owner, param.location), vars(owner).get(param.adapter)
  by_outputs = adapter is not None and goes_by_output(adapter.static.in_use)
  is_stateful = isinstance(vars(owner).get('dot_general'), nnx.Module)
  if is_stateful or not (by_outputs or is_quantized(variable.get_value())):
    return getattr(kind, name)(owner, *args, **kwargs)

  def call(array: jax.Array, inputs: tuple) -> Any:
    layer = object.__new__(kind)
    values = {other: getattr(owner, other) for other in others}
    vars(layer).update(vars(owner), **values, **{attribute: read_only(variable, array)})
    return getattr(layer, name)(*inputs[0], **inputs[1])

  def defer(base: Any) -> Deferred:
    if adapter is None:
      return Deferred.unadapted(base, base.dtype)
    layout, arrays, forms = local_arrays(adapter, base)
    arrays = base, of_tensors(arrays, WEIGHT_TENSORS), forms
    return Deferred.from_kernel(*arrays, layout, adapter.group.space.ranks, by_outputs)

  mesh = None if adapter is None else adapter.static.mesh
  return program.call(call, variable.get_value(), (args, kwargs), mesh, defer=defer)


def _call_bridge(owner: nnx.bridge.ToNNX, *args: Any, **kwargs: Any) -> Any:
  """Calls a Linen model within NNX, which reads its parameters from `vars` and not by attribute.

  So for the time of the call the owner has its original class, merged variables and no adapters.
  Whatever the call updates besides, batch statistics for instance, stays.
  """
  attributes, kind = vars(owner), type(owner)
  values = {param.location: _merge_for_use(owner, param) for param in params_of(owner)}
  before = {
    location: variable
    for location, variable in locations(owner)
    if location in values or isinstance(variable, Head)
  }
  during = {
    location: variable.replace(values[location]) if location in values else as_param(variable)
    for location, variable in before.items()
  }
  arrays = {name: attributes.pop(name) for name in _added_names(owner)}
  try:
    put(owner, during)
    _set_class(owner, original_class(owner))
    return owner(*args, **kwargs)
  finally:
    _set_class(owner, kind)
    put(owner, before)
    attributes.update(arrays)
