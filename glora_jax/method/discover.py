"""Looking at an unmodified Flax model once: which linear layers run, in which order, and where their stack axes are.

The model is traced under `jax.eval_shape`, so nothing is computed. Every parameter travels through that trace inside a
`_Probe`, a metadata box that remembers its own path. Flax's lifted transforms (`nn.scan`, `nn.vmap`) announce to such a box
each axis that they take off, so stack axes are recorded from the lifting itself and never guessed from shapes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import numpy as np

from glora_jax.method.layout import LINEAR_MODULES, Layout, linear_layout
from glora_jax.tree import Path


@dataclasses.dataclass(frozen=True)
class Site:
  """One linear module of the model, which may hold a whole stack of layers.

  Attributes:
    path: of its parameters in the params tree.
    kernel_shape, bias_shape, dtype: of the whole parameters; `bias_shape` is None without bias.
    layout: in the whole parameters; its stack is first what lifted transforms added, outermost first, then the module's own.
    local: in the parameters that the module itself sees, below all lifted transforms.
    lifts: where each lifted axis is, outermost first, counted in what is left of the kernel at its level.
    local_ndim: dimensions of the kernel that the module itself sees.
    kind: name of the module's class.
    input_id: equal for sites that get the very same array.
    shared: whether the model also reads the parameters by other ways than the module's call; they are then always merged up front.
    rows: the genome rows of its layers, in the order of the flattened stack.
  """

  path: Path
  kernel_shape: tuple[int, ...]
  bias_shape: tuple[int, ...] | None
  dtype: np.dtype
  layout: Layout
  local: Layout
  lifts: tuple[int, ...]
  local_ndim: int
  kind: str = 'Dense'
  input_id: int = 0
  shared: bool = False
  rows: tuple[int, ...] = ()

  @property
  def name(self) -> str:
    return '/'.join(self.path) or self.kind  # a model that is one linear module has no path

  @property
  def stack_shape(self) -> tuple[int, ...]:
    return tuple(self.kernel_shape[d] for d in self.layout.stack)

  @property
  def in_features(self) -> int:
    return math.prod(self.kernel_shape[d] for d in self.layout.inputs)

  @property
  def out_features(self) -> int:
    return math.prod(self.kernel_shape[d] for d in self.layout.outputs)


class _Recorder:
  """What a discovery has seen. Compared by identity, so that no trace of another discovery is ever reused."""

  def __init__(self):
    self.sites: dict[
      Path, tuple[Site, tuple]
    ] = {}  # by path, in order of the first call; with the lifts it sits under
    self.shared: set[Path] = set()  # modules whose parameters were also read past `self.param`
    self.refused: dict[str, str] = {}  # why a linear module cannot be adapted, by path
    self.inputs: list[Any] = []  # the distinct inputs of all sites, to know which share one
    self.events = 0  # module calls begun or ended; axes taken off between two of them belong to one lifted transform

  def __call__(self, next_function, args, kwargs, context):
    self.events += 1
    if context.method_name == '__call__':
      self._record(context.module, args, kwargs)
    result = next_function(*args, **kwargs)
    self.events += 1
    return result

  def _record(self, module, args, kwargs):
    # A kernel outside a probe is not the model's own parameter: one of a function under the user's own vmap, say.
    if not isinstance(module, LINEAR_MODULES) or not module.has_variable('params', 'kernel'):
      return
    probe = module.get_variable('params', 'kernel')
    if not isinstance(probe, _Probe) or probe.path[:-1] in self.sites:
      return
    try:
      local = linear_layout(module, *args, **kwargs)
    except ValueError as error:
      self.refused['/'.join(probe.path[:-1])] = str(error)
      return
    inputs = args[0] if args else kwargs['inputs']
    seen = next((n for n, other in enumerate(self.inputs) if other is inputs), len(self.inputs))
    if seen == len(self.inputs):
      self.inputs.append(inputs)
    bias = module.get_variable('params', 'bias') if module.has_variable('params', 'bias') else None
    lifted = tuple(dim for dim, _, _, _ in probe.lifts)
    bias_lifted = tuple(dim for dim, _, _, _ in bias.lifts) if bias is not None else ()
    whole = lambda dims, probe: tuple(probe.dims[d] for d in dims)
    site = Site(
      path=probe.path[:-1],
      kernel_shape=probe.shape,
      bias_shape=bias.shape if bias is not None else None,
      dtype=np.dtype(jax.tree.leaves(probe.value)[0].dtype),
      layout=Layout(
        lifted + whole(local.stack, probe),
        whole(local.inputs, probe),
        whole(local.outputs, probe),
        bias_lifted + (whole(local.bias_stack, bias) if bias is not None else ()),
      ),
      local=local,
      lifts=tuple(index for _, index, _, _ in probe.lifts),
      local_ndim=len(probe.dims),
      kind=type(module).__name__,
      input_id=seen,
    )
    self.sites[site.path] = site, probe.lifts


@jax.tree_util.register_pytree_node_class
class _Probe(nn.meta.AxisMetadata):
  """A box around a parameter that knows where it came from and which of its axes were taken off on the way."""

  def __init__(self, value, recorder, path, shape, dims=None, lifts=()):
    self.value, self.recorder, self.path, self.shape = value, recorder, path, shape
    self.dims = (
      tuple(range(len(shape))) if dims is None else dims
    )  # the original dimensions still there
    self.lifts = lifts  # (original dimension, index at its level, size, event) of those taken off

  def tree_flatten(self):
    return (self.value,), (self.recorder, self.path, self.shape, self.dims, self.lifts)

  @classmethod
  def tree_unflatten(cls, static, children):
    return cls(*children, *static)

  def unbox(self):
    return nn.meta.unbox(self.value)

  def replace_boxed(self, val):
    inner = self.value.replace_boxed(val) if isinstance(self.value, nn.meta.AxisMetadata) else val
    return _Probe(inner, self.recorder, self.path, self.shape, self.dims, self.lifts)

  def remove_axis(self, index, params):
    index %= len(self.dims)
    value = (
      self.value.remove_axis(index, params)
      if isinstance(self.value, nn.meta.AxisMetadata)
      else self.value
    )
    lift = (self.dims[index], index, self.shape[self.dims[index]], self.recorder.events)
    return _Probe(
      value,
      self.recorder,
      self.path,
      self.shape,
      self.dims[:index] + self.dims[index + 1 :],
      (*self.lifts, lift),
    )

  def add_axis(self, index, params):
    return self  # only parameters that leave a lifted transform get here, and the discovery lets none out

  # A model may also read a parameter out of its variables, past `self.param`, to tie it to something. For that a probe behaves
  # like its array, and remembers that it was read so: a kernel that others read cannot be merged in its module alone.

  def _read(self):
    self.recorder.shared.add(self.path[:-1])
    return self.unbox()

  def __jax_array__(self):
    return self._read()

  def __getattr__(self, name):
    if name.startswith('__'):
      raise AttributeError(name)
    return getattr(self._read(), name)


def _forward(name):
  return lambda self, *args: getattr(self._read(), name)(*args)


for _name in (
  'getitem',
  'len',
  'neg',
  'add',
  'radd',
  'sub',
  'rsub',
  'mul',
  'rmul',
  'truediv',
  'rtruediv',
  'pow',
  'matmul',
  'rmatmul',
):
  setattr(_Probe, f'__{_name}__', _forward(f'__{_name}__'))


def discover(
  model: nn.Module, inputs: tuple, kwargs: Mapping[str, Any]
) -> tuple[Any, tuple[Site, ...], dict[str, str]]:
  """Shapes of a model's variables, and its linear layers in execution order (the same layer called twice counts once).

  Args:
    model: an unmodified Flax model.
    inputs, kwargs: of its call; arrays may be `jax.ShapeDtypeStruct`, everything else is taken as it is.

  Returns:
    (variables as ShapeDtypeStructs in the model's own boxes, sites with their rows, and why others cannot be adapted, by path).
  """
  leaves, structure = jax.tree.flatten((inputs, dict(kwargs)))
  arrays = [leaf for leaf in leaves if hasattr(leaf, 'shape') and hasattr(leaf, 'dtype')]

  def call(function, arrays):
    arrays = iter(arrays)
    args, keywords = structure.unflatten(
      [
        next(arrays) if hasattr(leaf, 'shape') and hasattr(leaf, 'dtype') else leaf
        for leaf in leaves
      ]
    )
    return function(*args, **keywords)

  rngs = {'params': jax.random.key(0)}  # Flax answers every other stream from this one
  recorder = _Recorder()

  def trace(variables, arrays):
    with nn.intercept_methods(recorder):
      return call(
        lambda *a, **k: model.apply(variables, *a, rngs=rngs, mutable=nn.DenyList('params'), **k),
        arrays,
      )

  try:
    variables = jax.eval_shape(
      lambda arrays: call(lambda *a, **k: model.init(rngs, *a, **k), arrays), arrays
    )
    params = jax.tree_util.tree_map_with_path(
      lambda path, value: _Probe(
        value, recorder, tuple(p.key for p in path), jax.tree.leaves(value)[0].shape
      ),
      flax.core.unfreeze(variables.get('params', {})),
      is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata),
    )
    jax.eval_shape(trace, {**variables, 'params': params}, arrays)
  except Exception as error:
    shapes = ', '.join(f'{array.dtype}{list(array.shape)}' for array in arrays)
    raise ValueError(
      f'{type(model).__name__} does not run on the sample inputs ({shapes}): {error}'
    ) from error
  recorder.inputs.clear()  # tracers do not outlive their trace
  sites = _with_rows(list(recorder.sites.values()))
  sites = tuple(dataclasses.replace(site, shared=site.path in recorder.shared) for site in sites)
  return variables, sites, recorder.refused


def _with_rows(found: list[tuple[Site, tuple]]) -> tuple[Site, ...]:
  """Numbers the layers in execution order: slice 0 of a lifted transform with all layers in it, then slice 1, ..."""
  rows: dict[Path, list[int]] = {site.path: [] for site, _ in found}
  counter = itertools.count()

  def walk(group, level):
    # Consecutive sites that lost an axis at the same event are under one and the same lifted transform.
    for event, members in itertools.groupby(
      group, lambda entry: entry[1][level][3] if len(entry[1]) > level else None
    ):
      members = list(members)
      if event is None:
        for site, _ in members:
          own = math.prod(site.kernel_shape[d] for d in site.layout.stack[level:])
          rows[site.path].extend(next(counter) for _ in range(own))
      else:
        for _ in range(members[0][1][level][2]):
          walk(members, level + 1)

  walk(found, 0)
  return tuple(dataclasses.replace(site, rows=tuple(rows[site.path])) for site, _ in found)
