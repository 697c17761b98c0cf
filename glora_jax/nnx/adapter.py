"""One set of supports in a live model: the arrays, the genome's rows, and where their axes are.

`nnx.scan` and `nnx.vmap` take an axis off every variable of a module at the same place. So the
stack axes of what lies beside a kernel are where the kernel has them, and the shape of what is left
of a kernel tells which of them are taken off.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from glora_jax.method.adapter import ADAPTER
from glora_jax.method.genomes import Codes, occurring
from glora_jax.method.groups import Group, cut_to
from glora_jax.method.site import Layout, Site, align_stack
from glora_jax.nnx.variables import AdapterParam

# Metadata of a kernel that what lies beside it has, too.
_SHARED = ('eager_sharding', 'mesh', 'out_sharding', 'sharding_rules')


@dataclasses.dataclass(frozen=True, repr=False)
class Static:
  """What an adapter must know to merge, and is no array.

  It is static, so NNX hashes it at every call of a compiled function: by its rows alone, which is
  quick.

  Attributes:
    group: the layers.
    in_use: the forms that may occur.
    mesh: devices that the kernels are sharded over; None where each holds them whole.
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
    """The forms [5] where there is no choice, known when tracing; None where there is one."""
    is_one = max(map(len, self.in_use)) == 1
    return np.array(self.in_use, np.int8)[:, 0] if is_one else None


class Adapter(nnx.Pytree):
  """The supports of one or several layers, beside the kernel of the first.

  It has no methods: `nnx.tabulate` would run them as if they were those of a layer.

  Args:
    static: what is static of it.
    supports: arrays by name, [stack..., ...], of which it stores what some form reads.
    forms: int8 [stack..., 5].
    kernel: variable of the first layer's kernel, whose metadata and devices they share.
    genome_type: type of the variable of the forms.

  Attributes:
    genome: the forms, with the static in their metadata.
  """

  def __init__(
    self,
    static: Static,
    arrays: Mapping[str, jax.Array],
    forms: Any,
    kernel: nnx.Variable,
    genome_type: type[nnx.Variable],
  ):
    beside = functools.partial(_beside, static.group.members[0], kernel)
    self.genome = beside(genome_type, jnp.asarray(forms, jnp.int8), (None,), static=static)
    for name, value in cut_to(static.group.stored_for(static.in_use), arrays).items():
      setattr(self, name, beside(AdapterParam, value, ADAPTER[name].axes))

  @property
  def static(self) -> Static:
    """What is static of it."""
    return self.genome.static

  @property
  def group(self) -> Group:
    """The layers."""
    return self.static.group

  @property
  def variables(self) -> dict[str, nnx.Variable]:
    """The variables of the supports, by name."""
    return {name: value for name, value in vars(self).items() if name in ADAPTER}

  @property
  def arrays(self) -> dict[str, jax.Array]:
    """The whole supports, [stack..., ...]."""
    site = self.group.members[0]
    return _adapter(self, site.layout, site.stack_shape)

  @property
  def forms(self) -> jax.Array:
    """The whole forms, [stack..., 5]."""
    site = self.group.members[0]
    return stack_first(self.genome.get_value(), site.layout, site.stack_shape, 1)


def fix_forms(adapter: Adapter, genome: np.ndarray) -> None:
  """Leaves of an adapter's supports what its genome int [rows, 5] reads."""
  in_use = occurring(genome[list(adapter.group.rows)])
  stored = cut_to(adapter.group.stored_for(in_use), adapter.arrays)
  for name, variable in adapter.variables.items():
    if name in stored:
      set_beside(adapter, variable, stored[name])
    else:
      delattr(adapter, name)
  static = dataclasses.replace(adapter.static, in_use=in_use, is_fixed=True)
  adapter.genome.set_metadata('static', static)


def left(
  adapter: Adapter, member: int, kernel: jax.Array
) -> tuple[Layout, dict[str, jax.Array], jax.Array]:
  """What a member merges into what is left of its kernel.

  Returns:
    The layout of what is left, and with its stack axes first its supports and its forms.
  """
  group, static = adapter.group, adapter.static
  taken = taken_axes(group.members[member], kernel.shape)
  local, home = (group.members[number].layout.without_stack(taken) for number in (member, 0))
  stack, *_ = local.sizes(kernel.shape)
  forms = stack_first(adapter.genome.get_value(), home, stack, 1)
  if static.only_forms is not None:
    forms = jnp.broadcast_to(static.only_forms, forms.shape)
  _, arrays = list(group.by_member(_adapter(adapter, home, stack)))[member]
  return local, arrays, forms


def _adapter(adapter: Adapter, layout: Layout, stack: tuple[int, ...]) -> dict[str, jax.Array]:
  """What is left of the supports, with its stack axes first."""
  return {
    name: stack_first(variable.get_value(), layout, stack, len(ADAPTER[name].axes))
    for name, variable in adapter.variables.items()
  }


def set_beside(adapter: Adapter, variable: nnx.Variable, value: Any) -> None:
  """Gives one of an adapter's variables as much of a whole array [stack..., ...] as it stores."""
  value = put_beside(value, adapter.group.members[0])
  set_like(variable, value[tuple(map(slice, variable.shape))])


def set_like(variable: nnx.Variable, value: Any) -> None:
  """Sets a variable's value, in its data type and, unless it is traced, on its devices."""
  old = variable.get_value()
  new = jnp.asarray(value, old.dtype)
  sharding = getattr(old, 'sharding', None)
  is_traced = any(isinstance(array, jax.core.Tracer) for array in (old, new))
  if isinstance(sharding, NamedSharding) and not is_traced:
    new = jax.device_put(new, sharding)
  variable.set_value(new)


def _beside(
  site: Site,
  kernel: nnx.Variable,
  kind: type[nnx.Variable],
  value: Any,
  axes: Any,
  **metadata: Any,
) -> nnx.Variable:
  """A variable beside a kernel, on its devices, with its axes' names.

  Args:
    site: where the kernel is, and which of its axes are which.
    kernel: its variable.
    kind: type of the new variable.
    value: array [stack..., ...].
    axes: what its axes after those of the stack are: 'in', 'out', or anything else.
    **metadata: more of the new variable's metadata.
  """
  array, given = put_beside(value, site), kernel.get_metadata()
  metadata |= dict.fromkeys(nnx.Variable.required_metadata, False)  # an array, and no reference
  metadata |= {key: given[key] for key in _SHARED if key in given}
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


def put_beside(value: jax.Array, site: Site) -> jax.Array:
  """An array [stack..., rest...] with its stack axes where a site's kernel has them.

  They are first where the kernel's are its first ones. Otherwise it gets as many dimensions as the
  kernel has, so that an axis counts the same from either end.
  """
  stack = site.layout.stack
  return align_stack(
    value, stack, value.ndim if _is_in_place(sorted(stack)) else len(site.kernel_shape)
  )


def axis_names(names: Any, site: Site, axes: Any) -> tuple:
  """Names of the axes of an array that `put_beside` has laid down.

  Args:
    names: names of the kernel's axes.
    site: where the kernel is.
    axes: what the array's axes after those of the stack are: 'in', 'out', or anything else.
  """
  names, own = site.axis_names(names, axes)
  stack, result = site.layout.stack, list(own)
  if not _is_in_place(sorted(stack)):
    result += [None] * (len(names) - len(stack) - len(own))
  for dim in sorted(stack):
    result.insert(dim, names[dim])
  return tuple(result)


def _is_in_place(stack: Sequence[int]) -> bool:
  """Whether stack axes are the first ones, in their order."""
  return list(stack) == list(range(len(stack)))


def taken_axes(site: Site, left: Sequence[int]) -> tuple[int, ...]:
  """Which stack axes transforms have taken off a kernel, by their places in the stack.

  Where sizes leave a choice, arrays have the same axes left whatever is chosen.

  Args:
    site: where the kernel is, with its whole shape.
    left: shape of what is left of it.
  """
  whole, stack = site.kernel_shape, site.layout.stack
  for dims in itertools.combinations(sorted(stack), len(whole) - len(left)):
    if [size for dim, size in enumerate(whole) if dim not in dims] == list(left):
      return tuple(map(stack.index, dims))
  raise ValueError(
    f'A kernel was attached with shape {whole} and now has shape {tuple(left)}; only its stack '
    f'axes {stack} can be mapped or scanned over.'
  )


def stack_first(value: jax.Array, layout: Layout, stack: Sequence[int], ndim: int) -> jax.Array:
  """Inverse of `put_beside`, below transforms.

  Args:
    value: what is left of an array that lies beside a kernel.
    layout: layout of what is left of the kernel.
    stack: sizes of its stack axes.
    ndim: number of the array's axes besides those.

  Returns:
    [stack..., rest...].

  Raises:
    ValueError: the transforms took other axes off the array than off the kernel.
  """
  left = [size for dim, size in enumerate(value.shape) if dim in layout.stack]
  rest = [size for dim, size in enumerate(value.shape) if dim not in layout.stack]
  if sorted(left) != sorted(stack) or len(rest) < ndim or math.prod(rest[ndim:]) != 1:
    raise ValueError(
      f'nnx.scan or nnx.vmap splits an array of shape {value.shape} along other axes than its '
      'kernel; give glora_jax.nnx.Genome and nnx.Param the same axis, nnx.StateAxes({(nnx.Param, '
      'glora_jax.nnx.Genome): 0, ...: None}) for instance.'
    )
  if not _is_in_place(layout.stack):
    value = jnp.moveaxis(value, layout.stack, range(len(layout.stack)))
  return value.reshape((*stack, *rest[:ndim]))
