"""A group: one kernel, which may be a stack of layers, with the adapter's arrays for it.

In a scanned block, a kernel is one group, with a row of the genome for each iteration of the scan:

    stack    genome    layer
    [0]      row 0     [in, out]
    [1]      row 1     ...

The arrays have the stack's axes first, like `B_down` [stack..., in, rank] and `B_up`
[stack..., rank, out].

A LoRA of rank r stores those of lower ranks in its first columns. So the arrays of a fixed
structure are cut to the largest rank that it reads in each group, and those that it does not read
may be missing. All functions accept arrays of any rank, and mask the forms that a genome does not
use.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.method.adapter import (
  ADAPTER,
  COLLECTION,
  RANK_AXES,
  adapter_shapes,
  init_arrays,
  used_parts,
)
from glora_jax.method.genomes import Codes, distinct_codes, goes_by_output
from glora_jax.method.site import Site
from glora_jax.method.space import TENSORS, WEIGHT_TENSORS, Layer, SearchSpace, Spec
from glora_jax.tree import KeyPath, by_name, differences, flatten, path_name

_LONGEST_LIST = 500  # characters of the differences that an error message lists


class Part(NamedTuple):
  """A linear module with its adapter.

  Attributes:
    site: the module.
    of_kernel: the arrays of A and B, [stack..., ...].
    of_bias: those of C, D and E.
    forms: int [stack..., 5].
    goes_by_output: whether tracing knows that no layer has a LoRA for A, because the structure is
      fixed or the layers have chosen rows. False for any other free structure.
  """

  site: Site
  of_kernel: dict[str, Any]
  of_bias: dict[str, Any]
  forms: Any
  goes_by_output: bool


@dataclasses.dataclass(frozen=True)
class Group:
  """One kernel with its adapter.

  Attributes:
    site: the linear module.
    rows: genome rows of its layers, in the order of the flattened stack.
    space: the forms to choose from.
    ids: the chosen rows of a table; see `Layer`.
  """

  site: Site
  rows: tuple[int, ...]
  space: SearchSpace
  ids: tuple[int, ...] = ()

  @property
  def path(self) -> KeyPath:
    """Path of its arrays in the `glora` collection."""
    return self.site.path

  @property
  def name(self) -> str:
    """The name of its layers, without the place in the stack."""
    return self.site.name

  @property
  def stack_shape(self) -> tuple[int, ...]:
    """Sizes of the stack's axes; () for a single layer."""
    return self.site.stack_shape

  @property
  def in_features(self) -> int:
    """Inputs of each layer."""
    return self.site.in_features

  @property
  def out_features(self) -> int:
    """Outputs of each layer."""
    return self.site.out_features

  @property
  def has_bias(self) -> bool:
    """Whether the layers have a bias."""
    return self.site.has_bias

  def init(self, key: jax.Array, kernel: Any, genome: np.ndarray | None = None) -> dict[str, Any]:
    """Initial arrays; those of a layer depend on the key and its row alone.

    Args:
      key: random key.
      kernel: its kernel, in its Flax box (`nn.Partitioned`) if it has one.
      genome: int [rows, 5] to make only the arrays of this structure; None for all.

    Returns:
      Arrays with the stack's axes first, in boxes like the kernel's.
    """
    keys, shapes = keys_of_rows(key, np.array(self.rows)), self.adapter_shapes()
    ranks = dict.fromkeys(shapes, 0) if genome is None else self.read_by(genome)
    shapes = {name: shapes[name] for name in ranks}
    adapter = cut_to(ranks, init_arrays(keys, self.stack_shape, shapes, self.adapter_dtype))
    return _boxed(adapter, kernel, self.site)

  @property
  def adapter_dtype(self) -> np.dtype:
    """Data type of its arrays: float32, or wider if the kernel is and JAX allows it."""
    return jax.dtypes.canonicalize_dtype(jnp.promote_types(self.site.dtype, jnp.float32))

  def adapter_shapes(self) -> dict[str, tuple[int, ...]]:
    """Names and shapes of its arrays, [stack..., ...]."""
    sides, space = (self.in_features, self.out_features), self.space
    shapes = adapter_shapes(*sides, space.ranks, self.has_bias, space.shared, len(self.ids))
    return {name: self.stack_shape + shape for name, shape in shapes.items()}

  def used_parts(self, forms: Sequence[int]) -> dict[str, tuple[slice, ...]]:
    """The part of each array of a layer that the codes of A, B, C, D and E read."""
    space = self.space
    return used_parts(forms, space.ranks, self.has_bias, space.shared, len(self.ids))

  def read_by(self, genomes: np.ndarray) -> dict[str, int]:
    """Names of the arrays that genomes [..., rows, 5] read, and the largest rank (0: no rank)."""
    layers = genomes[..., np.array(self.rows), :].reshape(-1, len(TENSORS))
    return self.stored_for(distinct_codes(layers))

  def stored_for(self, in_use: Codes) -> dict[str, int]:
    """Names of the arrays that any code in use reads, and the largest rank (0: no rank axis)."""
    ranks: dict[str, int] = {}
    for column, codes in enumerate(in_use):
      for code in codes:
        forms = [0] * len(TENSORS)
        forms[column] = code
        for name, part in self.used_parts(forms).items():
          rank = part[RANK_AXES[name]].stop if name in RANK_AXES else 0
          ranks[name] = max(ranks.get(name, 0), rank)
    return ranks

  def arrays(self, collection: Any) -> dict[str, Any]:
    """Its arrays in the `glora` collection, out of their boxes; {} if none are stored."""
    for name in self.path:
      collection = collection.get(name, {})
    return dict(nn.meta.unbox(collection))

  def forms(self, genome: Any) -> Any:
    """The group's rows of a genome, [stack..., 5]."""
    return genome[np.array(self.rows)].reshape((*self.stack_shape, 5))

  def slices(self) -> Iterator[tuple[tuple[int, ...], int]]:
    """The index in the stack and the row of every layer."""
    return zip(np.ndindex(self.stack_shape), self.rows, strict=True)

  def part(self, collection: Any, genome: Any, fixed: np.ndarray | None = None) -> Part:
    """Its part of the adapter, without tensors that a fixed structure lacks.

    Args:
      collection: the `glora` collection.
      genome: int [layer, 5]; may be traced.
      fixed: the genome if it is known when tracing.
    """
    used, by_output = set(TENSORS), bool(self.ids)
    if fixed is not None and not self.ids:
      in_use = distinct_codes(fixed[np.array(self.rows)])
      used = {tensor for tensor, codes in zip(TENSORS, in_use, strict=True) if codes != (0,)}
      by_output = goes_by_output(in_use)
    arrays = self.scaled(self.arrays(collection)).items()
    of_kernel, of_bias = (
      {name: array for name, array in arrays if ADAPTER[name].tensor in tensors}
      for tensors in (used & {*WEIGHT_TENSORS}, used - {*WEIGHT_TENSORS})
    )
    return Part(self.site, of_kernel, of_bias, self.forms(genome), by_output)

  def scaled(self, adapter: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays with B's LoRA scaled, and with the ids of chosen rows."""
    arrays = dict(adapter)
    if self.space.scale != 1 and 'B_down' in arrays:  # B's constant and vector share only B_up
      arrays['B_down'] = arrays['B_down'] * self.space.scale
    if self.ids and 'B_up' in arrays:  # the slots of a pool have separate ids
      arrays.setdefault('B_ids', jnp.broadcast_to(np.array(self.ids), arrays['B_up'].shape[:-1]))
    return arrays


@functools.partial(jax.jit, inline=True)
def keys_of_rows(key: jax.Array, rows: Any) -> jax.Array:
  """A random key for each row of a genome, which depends on the key and the row alone."""
  return jax.vmap(functools.partial(jax.random.fold_in, key))(rows)


def _boxed(adapter: Mapping[str, jax.Array], kernel: Any, site: Site) -> dict[str, Any]:
  """Arrays in boxes like the kernel's, if it has one.

  Axes that they have in common with the kernel get its names, the others None.
  """
  if not isinstance(kernel, nn.Partitioned):
    return dict(adapter)
  boxed = {}
  for name, value in adapter.items():
    names, layer = site.axis_names(kernel.names, ADAPTER[name].axes)
    stack = tuple(names[dim] for dim in site.layout.stack)
    boxed[name] = kernel.replace(value=value, names=stack + layer)
  return boxed


def number_rows(groups: Sequence[Group]) -> tuple[Group, ...]:
  """The groups with their rows renumbered from 0, in execution order."""
  order = sorted(row for group in groups for row in group.rows)
  numbers = {row: number for number, row in enumerate(order)}
  return tuple(
    dataclasses.replace(group, rows=tuple(numbers[row] for row in group.rows)) for group in groups
  )


def spec_of(groups: Sequence[Group]) -> Spec:
  """The layer of every row."""
  layers = {}
  for group in groups:
    for index, row in group.slices():
      place = f'[{",".join(map(str, index))}]' if index else ''
      layers[row] = Layer(
        group.name + place,
        group.in_features,
        group.out_features,
        group.has_bias,
        group.space,
        group.ids,
      )
  return Spec(tuple(layers[row] for row in range(len(layers))))


def parts_read(
  groups: Sequence[Group], spec: Spec, genome: np.ndarray, adapter: Any
) -> Iterator[tuple[str, str, Any, tuple[int | slice, ...]]]:
  """For every layer and array that a structure reads: their names, the array, the part of it.

  Args:
    groups: the adapted layers.
    spec: their layers, by row.
    genome: the structure, int [rows, 5].
    adapter: the `glora` collection.
  """
  for group in groups:
    arrays = group.arrays(adapter)
    for index, row in group.slices():
      for name, part in group.used_parts(genome[row].tolist()).items():
        yield spec.layers[row].name, name, arrays[name], (*index, *part)


def cut(groups: Sequence[Group], adapter: Any, genome: np.ndarray) -> dict[str, Any]:
  """The adapter with the ranks that a genome reads, as nested dictionaries.

  Args:
    groups: the adapted layers.
    adapter: the `glora` collection; arrays that need no cut are not copied.
    genome: concrete, int [rows, 5].

  Raises:
    ValueError: the adapter is of other layers, or of a structure with lower ranks.
  """
  check_storage(groups, adapter, genome)
  flat = flatten(adapter)
  for group in groups:
    read = group.read_by(genome)
    for name in RANK_AXES:
      path = (*group.path, name)
      if path in flat:
        rank = read.get(name, 1)  # an array that is not read keeps one
        first = functools.partial(_first_ranks, name, rank=rank)
        flat[path] = jax.tree.map(first, flat[path])  # in its box, if it is in one
  return flax.traverse_util.unflatten_dict(flat)


def cut_to(ranks: Mapping[str, int], adapter: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """The named arrays, cut to the given ranks; 0 for an array without a rank axis."""
  return {name: _first_ranks(name, adapter[name], rank) for name, rank in ranks.items()}


def _first_ranks(name: str, value: Any, rank: int) -> Any:
  """The first ranks of an array; all of it if `rank` is 0."""
  axis = RANK_AXES.get(name, -1)
  if not rank or value.shape[axis] == rank:
    return value
  return value[(..., slice(rank), *[slice(None)] * (-1 - axis))]


def check_storage(groups: Sequence[Group], adapter: Any, genomes: Any = None) -> None:
  """Checks that an adapter fits the layers, and has all arrays that genomes read.

  Args:
    groups: the adapted layers.
    adapter: the `glora` collection.
    genomes: int [..., rows, 5]; if traced or None, all arrays must be there, in any rank.

  Raises:
    ValueError: see `check_adapter`.
  """
  is_known = genomes is not None and not isinstance(genomes, jax.core.Tracer)
  needed = [group.read_by(np.asarray(genomes)) for group in groups] if is_known else None
  check_adapter(groups, adapter, needed)


def check_adapter(
  groups: Sequence[Group], adapter: Any, needed: Sequence[Mapping[str, int]] | None
) -> None:
  """Checks that an adapter fits the layers, and has the ranks that are needed.

  Args:
    groups: the adapted layers.
    adapter: the `glora` collection; LoRAs may be stored in a lower rank than the space's largest.
    needed: for each group the arrays that must be there, and their minimum ranks; None for all, in
      any rank.

  Raises:
    ValueError: the adapter is of other layers or of another space, or of a structure with fewer
      forms or lower ranks; the message names the difference, or the layer.
  """
  stored = by_name(flatten(adapter))
  expected, too_low = {}, []
  for number, group in enumerate(groups):
    shapes = group.adapter_shapes()
    ranks = dict.fromkeys(shapes, 0) if needed is None else needed[number]
    for name, shape in shapes.items():
      path = path_name((*group.path, name))
      if name not in ranks and path not in stored:
        continue
      stored_shape = np.shape(stored.get(path, 0))
      if name in RANK_AXES and len(stored_shape) == len(shape):
        axis, rank = RANK_AXES[name] % len(shape), ranks.get(name, 0)
        stored_rank = stored_shape[axis]
        shape = (*shape[:axis], min(stored_rank, shape[axis]), *shape[axis + 1 :])
        if stored_rank < rank:
          too_low.append((rank, ADAPTER[name].tensor, group.name, stored_rank))
      expected[path] = jax.ShapeDtypeStruct(shape, np.float32)
  if problems := '; '.join(differences(stored, expected)):
    listed = problems if len(problems) <= _LONGEST_LIST else f'{problems[:_LONGEST_LIST]}...'
    raise ValueError(
      f"The adapter in variables['{COLLECTION}'] does not match these layers and their search "
      f'space. {listed}. Pass variables from init of this adapted model.'
    )
  for rank, tensor, layer, stored_rank in too_low:
    raise ValueError(
      f'The structure has a LoRA of rank {rank} for {tensor} in {layer}, but these variables store '
      f'rank {stored_rank}: they were cut to a smaller structure. Pass the variables from before '
      'the split.'
    )
