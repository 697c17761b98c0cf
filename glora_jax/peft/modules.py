"""The torch model's modules and heads, by the names of layers and parameters here.

A layer here may be several modules there: queries, keys and values are often one kernel in JAX.
Each gets the columns of the kernel that are its outputs. Or it is one of the experts that are one
parameter there.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from glora_jax.method.adapted import Adapted
from glora_jax.method.groups import Group
from glora_jax.method.quantized import full_precision
from glora_jax.method.site import TABLE, Layout, Site
from glora_jax.torch_names import LEAVES, NameMap, modules_for
from glora_jax.tree import KeyPath, get, grouped, on_host, path_name

FOLD = 'fold the structure (adapted.fold) and save the folded model instead'

PARAMETER, ROWS = 'Parameter', 'chosen rows'  # kinds of `Module`

_KERNELS = ('kernel', 'w')
_LINEAR = Layout((), (0,), (1,))

Pair = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Module:
  """A module of the torch model: a layer here, or some of its outputs.

  Attributes:
    name: its name in the torch model; an expert is 'experts.down_proj[3]', a router 'gate.weight'.
    kind: its class there: 'Linear', 'Conv', 'Embedding', or 'Conv1D', which is transformers' linear
      layer with a weight [in, out]; 'Parameter' for experts and routers; 'chosen rows' of a table;
      or one that no adapter of PEFT is exact for.
    group: the layer's group.
    index: the layer's index in the group's stack.
    outputs: its outputs among those of the layer.
    params: parameters of the base.
  """

  name: str
  kind: str
  group: Group
  index: tuple[int, ...]
  outputs: slice
  params: Any

  @property
  def target(self) -> str:
    """Its name without the index of an expert."""
    return self.name.partition('[')[0]

  @property
  def expert(self) -> tuple[int, int]:
    """Its index among the experts of its parameter, and their number."""
    if self.name == self.target:
      return 0, 1
    return self.index[-1], self.group.stack_shape[-1]

  @property
  def in_features(self) -> int:
    """Inputs; of a convolution, height * width * channels; of a table, its rows."""
    return self.group.in_features

  @property
  def out_features(self) -> int:
    """Outputs."""
    return self.outputs.stop - self.outputs.start

  @property
  def has_bias(self) -> bool:
    """Whether it has a bias."""
    return self.group.has_bias

  @property
  def scale(self) -> float:
    """The factor on its LoRAs of B."""
    return self.group.space.scale

  def kernel(self) -> np.ndarray:
    """The base's weight, float32 [in, out]."""
    site = self.group.site
    kernel = self._param(site.kernel_path).reshape(site.kernel_shape)
    return self._of_outputs(site.layout.matrices(kernel))

  def bias(self) -> np.ndarray:
    """The base's bias, float32 [out]; zeros if there is none."""
    if not self.has_bias:
      return np.zeros(self.out_features, np.float32)
    site = self.group.site
    return self._of_outputs(site.layout.vectors(self._param(site.bias_path)))

  def _param(self, path: KeyPath | None) -> Any:
    """A parameter out of its box, in full precision."""
    return nn.meta.unbox(full_precision(get(self.params, path or ()), {}))

  def _of_outputs(self, stack: Any) -> np.ndarray:
    """The module's part of an array [stack..., ..., out]."""
    return on_host(stack[self.index])[..., self.outputs].astype(np.float32)

  @property
  def window(self) -> tuple[int, ...]:
    """A one for each axis of a convolution's window; () for all other modules."""
    return (1,) * (len(self.torch_inputs) - 1)

  @property
  def torch_inputs(self) -> tuple[int, ...]:
    """Sizes of the inputs in torch's order: (in,), or channels, height and width."""
    sizes = self._inputs
    return (sizes[-1], *sizes[:-1]) if self._is_channels_last else sizes

  def to_torch(self, factors: Pair) -> Pair:
    """Factors [in, rank], [rank, out] as PEFT's pair: A [rank, in], B [out, rank], or kernels."""
    down, up = factors
    a = down.T.reshape(-1, *self._inputs)
    b = up.T.reshape(*up.T.shape, *self.window)
    return np.moveaxis(a, -1, 1) if self._is_channels_last else a, b

  def from_torch(self, pair: Pair) -> Pair:
    """Inverse of `to_torch`."""
    a, b = pair
    a = np.moveaxis(a, 1, -1) if self._is_channels_last else a
    return a.reshape(len(a), -1).T, b.T

  @property
  def _inputs(self) -> tuple[int, ...]:
    """Sizes of the inputs, in the order of the kernel here."""
    if self.kind != 'Conv':
      return (self.in_features,)
    first = self.group.site
    return tuple(first.kernel_shape[dim] for dim in first.layout.inputs)

  @property
  def _is_channels_last(self) -> bool:
    """Whether a convolution's kernel is Flax's [height, width, in, out], not [out, in, ...]."""
    layout = self.group.site.layout
    return self.kind == 'Conv' and layout.outputs > layout.inputs


class Layer(NamedTuple):
  """An adapted layer, and the torch modules that it consists of.

  Attributes:
    group: the group that it belongs to.
    row: its row of the genome.
    modules: its modules; none if torch has no module for it.
  """

  group: Group
  row: int
  modules: tuple[Module, ...]


def find_layers(
  adapted: Adapted, names: NameMap | None, rows: Collection[int], params: Any
) -> list[Layer]:
  """The layers of some of the genome's rows, with their torch modules.

  If an expert is among them, so are all of its parameter.
  """
  layers, rows = [], {*rows}
  for group in adapted.places.groups:
    if rows.isdisjoint(group.rows):
      continue
    for index, row in group.slices():
      modules = _modules(adapted.model, group, index, names, params)
      if row in rows or PARAMETER in [module.kind for module in modules]:
        layers.append(Layer(group, row, modules))
  counts = collections.Counter(module.name for layer in layers for module in layer.modules)
  if repeated := [name for name, count in counts.items() if count > 1]:
    raise ValueError(
      f'names: {grouped(repeated)} stands for several layers; give each its own name.'
    )
  return layers


def _modules(
  model: Any, group: Group, index: tuple[int, ...], names: NameMap | None, params: Any
) -> tuple[Module, ...]:
  """The torch modules of a layer."""
  site = group.site
  found = _own_name(model, site, index) if names is None else modules_for(names, site.name, index)
  width, rest = divmod(site.out_features, max(1, len(found)))
  if rest:
    raise ValueError(
      f'names: the {site.out_features} outputs of {site.name} cannot be divided among '
      f'{", ".join(found)}.'
    )
  modules = []
  for number, name in enumerate(found):
    kind = PARAMETER if name.endswith((']', '.weight')) else _kind(site, names is None)
    kind = ROWS if group.ids else kind
    outputs = slice(number * width, (number + 1) * width)
    modules.append(Module(name, kind, group, index, outputs, params))
  return tuple(modules)


def _kind(site: Site, is_torch: bool) -> str:
  """The class of a kernel's torch module."""
  if site.kind == TABLE:
    return 'tied Embedding' if site.is_tied else 'Embedding'
  if site.is_convolution:
    return 'grouped Conv' if site.is_grouped else 'Conv'
  return 'Conv1D' if is_torch and site.layout.inputs == (0,) else 'Linear'


def _own_name(model: Any, site: Site, index: tuple[int, ...]) -> list[str]:
  """Modules of a kernel in a model with torch's paths; [] if PEFT has no adapter for it."""
  name, ndim = '.'.join(site.kernel_path), len(site.kernel_shape)
  if site.layout.stack == (0,) and ndim == 3:
    return [f'{name}[{index[0]}]']
  module = name.removesuffix('.weight')
  if module == name or index or not (site.is_convolution or ndim == 2):
    return []
  if site.layout.inputs == (1,) and hasattr(model, 'skeleton'):
    classes = type(model.skeleton.get_submodule(module)).__mro__
    if 'Linear' not in [kind.__name__ for kind in classes]:  # a router of transformers
      return [name]
  return [module]


def find_heads(adapted: Adapted, names: NameMap | None) -> dict[str, KeyPath]:
  """The paths of the heads, by the torch tensors' names.

  PEFT saves modules, so a parameter of a module counts as one of its heads if another one is.
  """
  heads, places = {}, adapted.places
  modules = {path[:-1] for path in places.head_paths}
  for path in sorted(path for path in places.param_shapes if path[:-1] in modules):
    *module, leaf = path
    found = ['.'.join(module)]
    if names is not None:
      leaf = _head_leaf(adapted, path)
      found = modules_for(names, path_name(tuple(module)))
    name = f'{found[0]}.{leaf}'
    if len(found) > 1 or name in heads:
      raise ValueError(
        f'names: the head {path_name(tuple(module))} must be one torch module, and no other head '
        f'{found[0]}.'
      )
    heads[name] = path
  return heads


def _head_leaf(adapted: Adapted, path: KeyPath) -> str:
  """Torch's name for the parameter of a head in its module."""
  shape, leaf = adapted.places.param_shapes[path].shape, path[-1]
  sites = [site for site in adapted.places.other_sites if site.kernel_path == path]
  is_linear = all(site.layout == _LINEAR for site in sites)
  if leaf not in LEAVES or len(shape) != 1 + (leaf in _KERNELS) or not is_linear:
    raise ValueError(
      f'PEFT heads are linear layers and norms, but {path_name(path)} {shape}, which is trained '
      f'in full, belongs to neither; {FOLD}.'
    )
  return LEAVES[leaf]
