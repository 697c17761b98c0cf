"""The adapter of a layer in a live model: its arrays and forms, and the positions of their axes.

A kernel may be a stack of layers that `nnx.scan` or `nnx.vmap` maps over. These remove one axis of
every variable of a module, at the same position for all. So an adapter's variables have their stack
axes where the kernel has its own:

    kernel   [in, layer, out]          in a mapped module   [in, out]
    B_down   [in, layer, rank]                              [in, rank]
    genome   [5, layer, 1]                                  [5, 1]

`stack_like_kernel` moves the axes there, and `stack_first` back: the equation's functions expect
[layer..., ...]. `mapped_axes` finds out which axes the transforms around a module have mapped.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from glora_jax.method.adapter import ADAPTER
from glora_jax.method.genomes import Codes, distinct_codes
from glora_jax.method.groups import Group, cut_to
from glora_jax.method.site import Layout, Site, align_stack
from glora_jax.method.space import TENSORS
from glora_jax.nnx.variables import AdapterParam

# Metadata that an adapter's variables have in common with the kernel.
_SHARED = ('eager_sharding', 'mesh', 'out_sharding', 'sharding_rules')


@dataclasses.dataclass(frozen=True, repr=False)
class Static:
  """The static part of an adapter.

  NNX hashes it at every call of a compiled function. The hash of the rows alone is quick.

  Attributes:
    group: the layers.
    in_use: the forms that may occur.
    mesh: devices that the kernels are sharded over; None if they are replicated.
    is_fixed: whether the model has one structure alone.
  """

  group: Group
  in_use: Codes
  mesh: jax.sharding.Mesh | None = None
  is_fixed: bool = False

  def __hash__(self) -> int:
    return hash(self.group.rows)

  def __repr__(self) -> str:
    return f'Static({self.group.name})'

  @functools.cached_property
  def only_forms(self) -> np.ndarray | None:
    """The forms [5] if there is no choice, known when tracing; else None."""
    is_one = max(map(len, self.in_use)) == 1
    return np.array(self.in_use, np.int8)[:, 0] if is_one else None


class Adapter(nnx.Pytree):
  """The adapter of one layer, next to its kernel.

  Each of its arrays is an attribute of its name (`B_down`), which holds an `AdapterParam`. It has
  no methods: `nnx.tabulate` would run them as if they were those of a layer.

  Args:
    static: its static part.
    arrays: arrays by name, [stack..., ...]; only arrays that some form reads are stored.
    forms: int8 [stack..., 5].
    kernel: variable of the kernel, whose metadata and devices the arrays share.
    genome_type: type of the variable of the forms.

  Attributes:
    genome: the forms, with the static part in their metadata.
  """

  def __init__(
    self,
    static: Static,
    arrays: Mapping[str, jax.Array],
    forms: Any,
    kernel: nnx.Variable,
    genome_type: type[nnx.Variable],
  ):
    variable = functools.partial(_variable_beside, static.group.site, kernel)
    self.genome = variable(genome_type, jnp.asarray(forms, jnp.int8), (None,), static=static)
    for name, value in cut_to(static.group.stored_for(static.in_use), arrays).items():
      setattr(self, name, variable(AdapterParam, value, ADAPTER[name].axes))

  @property
  def static(self) -> Static:
    """Its static part."""
    return self.genome.static

  @property
  def group(self) -> Group:
    """The layers."""
    return self.static.group

  @property
  def variables(self) -> dict[str, nnx.Variable]:
    """The variables of the arrays, by name."""
    return {name: value for name, value in vars(self).items() if name in ADAPTER}

  @property
  def arrays(self) -> dict[str, jax.Array]:
    """The arrays outside of transforms, [stack..., ...]."""
    site = self.group.site
    return _arrays(self, site.layout, site.stack_shape)

  @property
  def forms(self) -> jax.Array:
    """The forms outside of transforms, [stack..., 5]."""
    site = self.group.site
    return stack_first(self.genome.get_value(), site.layout, site.stack_shape, 1)


def fix_forms(adapter: Adapter, genome: np.ndarray) -> None:
  """Cuts an adapter to the arrays and ranks that a genome, int [rows, 5], reads."""
  in_use = distinct_codes(genome[list(adapter.group.rows)])
  stored = cut_to(adapter.group.stored_for(in_use), adapter.arrays)
  for name, variable in adapter.variables.items():
    if name in stored:
      set_array(adapter, variable, stored[name])
    else:
      delattr(adapter, name)
  static = dataclasses.replace(adapter.static, in_use=in_use, is_fixed=True)
  adapter.genome.set_metadata('static', static)


class Local(NamedTuple):
  """The arrays of a layer, within the transforms around its module.

  Attributes:
    layout: which axes of its kernel are which.
    arrays: the adapter's arrays for it, [stack..., ...].
    forms: int [stack..., 5].
  """

  layout: Layout
  arrays: dict[str, jax.Array]
  forms: jax.Array


def local_arrays(adapter: Adapter, kernel: jax.Array) -> Local:
  """An adapter within the transforms around its module, where the kernel is `kernel`."""
  group, static = adapter.group, adapter.static
  genome = adapter.genome.get_value()
  mapped = mapped_axes(group.site, kernel.shape, genome.shape)
  layout = group.site.layout.without_stack(mapped)
  stack, *_ = layout.sizes(kernel.shape)
  forms = stack_first(genome, layout, stack, 1)
  if static.only_forms is not None:
    forms = jnp.broadcast_to(static.only_forms, forms.shape)
  return Local(layout, group.scaled(_arrays(adapter, layout, stack)), forms)


def _arrays(adapter: Adapter, layout: Layout, stack: tuple[int, ...]) -> dict[str, jax.Array]:
  """An adapter's arrays, [stack..., ...], of the stack axes that are not mapped."""
  return {
    name: stack_first(variable.get_value(), layout, stack, len(ADAPTER[name].axes))
    for name, variable in adapter.variables.items()
  }


def set_array(adapter: Adapter, variable: nnx.Variable, value: Any) -> None:
  """Sets one of an adapter's variables to as much of an array [stack..., ...] as it stores."""
  value = stack_like_kernel(value, adapter.group.site)
  set_value(variable, value[tuple(map(slice, variable.shape))])


def set_value(variable: nnx.Variable, value: Any) -> None:
  """Sets a variable's value, in its data type and, unless it is traced, on its devices."""
  old = variable.get_value()
  new = jnp.asarray(value, old.dtype)
  sharding = getattr(old, 'sharding', None)
  is_traced = any(isinstance(array, jax.core.Tracer) for array in (old, new))
  if isinstance(sharding, NamedSharding) and not is_traced:
    new = jax.device_put(new, sharding)
  variable.set_value(new)


def _variable_beside(
  site: Site,
  kernel: nnx.Variable,
  kind: type[nnx.Variable],
  value: Any,
  axes: Any,
  **metadata: Any,
) -> nnx.Variable:
  """A variable next to a kernel, on its devices, with its axes' names.

  Args:
    site: the kernel's path and the roles of its axes.
    kernel: the kernel's variable.
    kind: type of the new variable.
    value: array [stack..., ...].
    axes: names of the array's axes after those of the stack: 'in', 'out', or anything else.
    **metadata: more of the new variable's metadata.
  """
  array, of_kernel = stack_like_kernel(value, site), kernel.get_metadata()
  metadata |= dict.fromkeys(nnx.Variable.required_metadata, False)  # an array, and no reference
  metadata |= {key: of_kernel[key] for key in _SHARED if key in of_kernel}
  names = metadata.get('out_sharding')
  if isinstance(names, NamedSharding):
    names = names.spec
  if isinstance(names, (tuple, PartitionSpec)):
    metadata['out_sharding'] = axis_names(names, site, axes)
  sharding = getattr(kernel.get_raw_value(), 'sharding', None)
  if isinstance(sharding, NamedSharding) and not isinstance(array, jax.core.Tracer):
    spec = PartitionSpec(*axis_names(sharding.spec, site, axes))
    array = jax.device_put(array, NamedSharding(sharding.mesh, spec))
  return kind.from_metadata(array, metadata)


def stack_like_kernel(value: jax.Array, site: Site) -> jax.Array:
  """An array [stack..., rest...] with its stack axes where a site's kernel has them.

  If these are not the kernel's first axes, the array gets as many dimensions as the kernel has, so
  that `nnx.vmap` may count an axis from either end. Beside a kernel [in, layer, out] of shape
  [8, 12, 3], `B_down` [12, 8, 2] becomes [8, 12, 2], and a genome [12, 5] becomes [5, 12, 1].
  """
  stack = site.layout.stack
  return align_stack(value, stack, value.ndim if _is_first(stack) else len(site.kernel_shape))


def axis_names(names: Any, site: Site, axes: Any) -> tuple:
  """Names of the axes of an array after `stack_like_kernel`.

  Args:
    names: names of the kernel's axes.
    site: the kernel's path and axes.
    axes: names of the array's axes after those of the stack: 'in', 'out', or anything else.
  """
  names, rest = site.axis_names(names, axes)
  stack, result = site.layout.stack, list(rest)
  if not _is_first(stack):
    result += [None] * (len(names) - len(stack) - len(rest))
  for dim in sorted(stack):
    result.insert(dim, names[dim])
  return tuple(result)


def _is_first(stack: Sequence[int]) -> bool:
  """Whether stack axes are the first ones of their kernel, in any order."""
  return sorted(stack) == list(range(len(stack)))


def mapped_axes(site: Site, kernel: Sequence[int], genome: Sequence[int]) -> tuple[int, ...]:
  """Which stack axes transforms have mapped over, by their positions in the stack.

  NNX does not say which, so the shapes that are left have to. A kernel's alone can fit two choices:
  [3, 3, 3, 3] with stack axes 0 and 2 becomes [3, 3, 3] without either. The genome next to it,
  [3, 5, 3, 1], becomes [5, 3, 1] or [3, 5, 1], and decides
  (`test_a_stack_can_be_mapped_over_either_of_two_axes_of_the_same_size`). The choice makes no
  difference among axes that all come first, as those of [3, 3, in, out].

  Args:
    site: the kernel's path, and its shape outside of transforms.
    kernel: the kernel's shape within them.
    genome: the genome's shape within them.
  """
  stack, whole = site.layout.stack, site.kernel_shape
  choices = [
    dims
    for dims in itertools.combinations(sorted(stack), len(whole) - len(kernel))
    if _without(whole, dims) == tuple(kernel)
  ]
  if not choices:
    raise ValueError(
      f'A kernel was attached with shape {whole} and now has shape {tuple(kernel)}; only its stack '
      f'axes {stack} can be mapped or scanned over.'
    )
  # The genome's shape outside: of the axes that are not the stack's the first is 5, the others 1.
  rest = iter((len(TENSORS), *(1,) * len(whole)))
  forms = [size if dim in stack else next(rest) for dim, size in enumerate(whole)]
  fitting = [dims for dims in choices if _without(forms, dims) == tuple(genome)] or choices[:1]
  first, *others = [tuple(map(stack.index, dims)) for dims in fitting]
  if any(site.layout.without_stack(other) != site.layout.without_stack(first) for other in others):
    raise ValueError(
      f'A kernel of shape {whole} is mapped or scanned over, and no shape tells over which of its '
      f'stack axes {stack}; map over all of them, or give them different sizes.'
    )
  return first


def _without(shape: Sequence[int], dims: Collection[int]) -> tuple[int, ...]:
  return tuple(size for dim, size in enumerate(shape) if dim not in dims)


def stack_first(value: jax.Array, layout: Layout, stack: Sequence[int], ndim: int) -> jax.Array:
  """Inverse of `stack_like_kernel`, within transforms.

  Within a scan over the 12 layers of the example there, `B_down` is [8, 2] already, and the genome
  [5, 1] becomes [5].

  Args:
    value: an array of an adapter, within the transforms around its module.
    layout: the kernel's layout there.
    stack: sizes of its stack axes there.
    ndim: number of the array's axes besides those.

  Returns:
    [stack..., rest...].

  Raises:
    ValueError: the transforms map other axes of the array than of the kernel.
  """
  sizes = [size for dim, size in enumerate(value.shape) if dim in layout.stack]
  rest = _without(value.shape, layout.stack)
  if sorted(sizes) != sorted(stack) or len(rest) < ndim or math.prod(rest[ndim:]) != 1:
    raise ValueError(
      f'nnx.scan or nnx.vmap splits an array of shape {value.shape} along other axes than its '
      'kernel; give glora_jax.nnx.Genome and nnx.Param the same axis, nnx.StateAxes({(nnx.Param, '
      'glora_jax.nnx.Genome): 0, ...: None}) for instance.'
    )
  value = jnp.moveaxis(value, layout.stack, range(len(layout.stack)))
  return value.reshape((*stack, *rest[:ndim]))
