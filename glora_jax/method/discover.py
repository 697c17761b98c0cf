"""A linen model's linear layers: which there are, in which order they run, where their stacks are.

The model, unmodified, is traced once under `jax.eval_shape`, so nothing is computed. Every
parameter travels through that trace inside a `Probe`, a metadata box that remembers its own path.
Flax's lifted transforms (`nn.scan`, `nn.vmap`) announce to such a box each axis that they take off,
so stack axes are recorded from the lifting itself and never guessed from shapes.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import numpy as np

from glora_jax.method.quantized import check_unquantized
from glora_jax.method.sample import Sample
from glora_jax.method.site import LINEAR_MODULES, Layout, Site, linear_layout
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


def _with_operators(probe: type[Probe]) -> type[Probe]:
  """The class with the operators of an array."""

  def forward(name: str) -> None:
    setattr(probe, name, lambda self, *args: getattr(self.read(), name)(*args))

  for operator in _OPERATORS:
    forward(f'__{operator}__')
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

  def whole_dims(self, dims: Sequence[int]) -> tuple[int, ...]:
    """Dimensions of what is left of the parameter as those of the whole parameter."""
    return tuple(self.dims[dim] for dim in dims)

  def whole_stack(self, dims: Sequence[int]) -> tuple[int, ...]:
    """The axes that were taken off, and then such dimensions."""
    return (*(lift.dim for lift in self.lifts), *self.whole_dims(dims))

  @property
  def is_cut(self) -> bool:
    """Whether the model itself has taken a part of the parameter, or has laid it otherwise."""
    return jax.tree.leaves(self.value)[0].shape != tuple(self.whole[dim] for dim in self.dims)

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


class Discovery(NamedTuple):
  """What is known of a model after one look.

  Attributes:
    variables: the model's variables as `jax.ShapeDtypeStruct`, in the model's own boxes.
    sites: its linear modules in the order of their first calls, with their rows.
    refused: why other linear modules cannot be adapted, by path.
  """

  variables: Any
  sites: tuple[Site, ...]
  refused: Mapping[str, str]


# A linear module as the trace came upon it, and the axes that were taken off its kernel.
_Found = tuple[Site, tuple[Lift, ...]]


class _Recorder:
  """An interceptor of all module calls that writes down the linear ones.

  Attributes:
    watch: what the probes of the discovery share.
    found: the linear modules by path, in the order of their first calls.
    refused: why others cannot be adapted, by path.
  """

  def __init__(self, watch: Watch):
    self.watch = watch
    self.found: dict[Path, _Found] = {}
    self.refused: dict[str, str] = {}
    self._inputs: list[Any] = []  # distinct input arrays, to know which sites share one

  def __call__(self, next_function, args, kwargs, context):
    self.watch.event += 1
    if context.method_name == '__call__' and isinstance(context.module, LINEAR_MODULES):
      self._record(context.module, args, kwargs)
    result = next_function(*args, **kwargs)
    self.watch.event += 1
    return result

  def forget_inputs(self) -> None:
    """Lets go of arrays of the trace, which nothing may hold when it is over."""
    self._inputs.clear()

  def _record(self, module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
    # A kernel outside a probe is not the model's own parameter: one of a function under the user's
    # own vmap, say. One that is cut is a part of a parameter: a layer of a stack that the model
    # goes through by itself, say. Both are left to the trace.
    kernel = _parameter(module, 'kernel')
    if not isinstance(kernel, Probe) or kernel.path[:-1] in self.found or kernel.is_cut:
      return
    path = kernel.path[:-1]
    try:
      local = linear_layout(module, *args, **kwargs)
    except ValueError as error:
      self.refused['/'.join(path)] = str(error)
      return
    bias = _parameter(module, 'bias')
    # With the very same input array a site has the number of those before.
    array = args[0] if args else kwargs.get('inputs', next(iter(kwargs.values()), None))
    if not any(known is array for known in self._inputs):
      self._inputs.append(array)
    site = Site(
      kernel_path=kernel.path,
      bias_path=None if bias is None else bias.path,
      kernel_shape=kernel.whole,
      bias_shape=None if bias is None else bias.whole,
      dtype=np.dtype(jax.tree.leaves(kernel.value)[0].dtype),
      layout=Layout(
        stack=kernel.whole_stack(local.stack),
        inputs=kernel.whole_dims(local.inputs),
        outputs=kernel.whole_dims(local.outputs),
        bias_stack=() if bias is None else bias.whole_stack(local.bias_stack),
      ),
      local=local,
      lifts=tuple(lift.index for lift in kernel.lifts),
      local_ndim=len(kernel.dims),
      kind=type(module).__name__,
      is_convolution=isinstance(module, nn.Conv),
      input_id=[known is array for known in self._inputs].index(True),
    )
    self.found[path] = site, kernel.lifts


def _parameter(module: nn.Module, name: str) -> Any:
  return module.get_variable('params', name) if module.has_variable('params', name) else None


def discover(model: nn.Module, inputs: tuple, kwargs: Mapping[str, Any]) -> Discovery:
  """Shapes of a model's variables, and its linear layers in execution order.

  The same layer called twice counts once.

  Args:
    model: an unmodified Flax model.
    inputs: positional arguments of its call. Arrays may be `jax.ShapeDtypeStruct`; everything else
      is taken as it is.
    kwargs: keyword arguments of its call, likewise.

  Returns:
    The variables' shapes, the linear modules, and why others cannot be adapted. No modules of a
    model that runs on arrays alone, and not on parameters in boxes.

  Raises:
    Exception: what the model raises on these inputs, with a note that says which they are.
  """
  sample = Sample(inputs, kwargs)
  rngs = {'params': jax.random.key(0)}  # Flax answers every other stream from this one
  watch = Watch()
  recorder = _Recorder(watch)

  def initialize(arrays):
    args, keywords = sample.arguments(arrays)
    return model.init(rngs, *args, **keywords)

  def apply(variables, arrays):
    args, keywords = sample.arguments(arrays)
    mutable = nn.DenyList('params')
    with nn.intercept_methods(recorder):
      results = model.apply(variables, *args, rngs=rngs, mutable=mutable, **keywords)
    recorder.forget_inputs()
    return results

  with _explained(model, sample):
    variables = jax.eval_shape(initialize, sample.arrays)
  check_unquantized(type(model).__name__, variables.get('params', {}))
  params = jax.tree_util.tree_map_with_path(
    lambda path, value: Probe.around(value, watch, tuple(part.key for part in path)),
    flax.core.unfreeze(variables.get('params', {})),
    is_leaf=lambda value: isinstance(value, nn.meta.AxisMetadata),
  )
  try:
    jax.eval_shape(apply, {**variables, 'params': params}, sample.arrays)
  except Exception:
    with _explained(model, sample):
      jax.eval_shape(apply, variables, sample.arrays)
    # It looks into its own variables (`nn.WeightNorm`), and not at arrays there.
    return Discovery(variables, (), {})
  found = list(recorder.found.values())
  rows = collections.defaultdict(list)
  for row, path in enumerate(_layers_in_execution_order(found)):
    rows[path].append(row)
  sites = tuple(
    dataclasses.replace(site, rows=tuple(rows[site.path]), shared=site.path in watch.shared)
    for site, _ in found
  )
  return Discovery(variables, sites, recorder.refused)


@contextlib.contextmanager
def _explained(model: nn.Module, sample: Sample) -> Iterator[None]:
  """Adds to an error which model does not run on which arrays."""
  try:
    yield
  except Exception as error:
    error.add_note(f'{type(model).__name__} does not run on the sample inputs ({sample}).')
    raise


def _layers_in_execution_order(found: Sequence[_Found], level: int = 0) -> Iterator[Path]:
  """The path of each layer's module, once a layer.

  Of a lifted transform first slice 0 with all layers in it, then slice 1, ...: in the order of the
  stack, also where a scan is reversed, since genomes have had that order from the first.

  Args:
    found: modules that are under the same lifted transforms down to the level.
    level: number of lifted transforms that are gone into.
  """

  def event_of(module: _Found) -> int | None:
    """When the kernel lost its axis at the level; None if it has lost no more than those before."""
    return module[1][level].event if len(module[1]) > level else None

  # Consecutive modules that lost an axis at the same event are under the same lifted transform.
  for event, together in itertools.groupby(found, event_of):
    members = list(together)
    if event is None:
      for site, _ in members:
        yield from itertools.repeat(site.path, math.prod(site.stack_shape[level:]))
    else:
      for _ in range(members[0][1][level].size):
        yield from _layers_in_execution_order(members, level + 1)
