"""The adapter of a layer: the arrays that it stores and trains, all described by one table.

Each of the tensors A, B, C, D, E has one of several forms, and a form is made of one or two arrays.
`ADAPTER` names the tensor and the form that an array belongs to, and its axes. Shapes, initial
values, the names of sharded axes and the numbers that a form reads all follow from it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

COLLECTION = 'glora'  # name of the adapter's collection among a model's variables

Tensor = Literal['A', 'B', 'C', 'D', 'E']

TENSORS: tuple[Tensor, ...] = ('A', 'B', 'C', 'D', 'E')
WEIGHT_TENSORS: tuple[Tensor, ...] = ('A', 'B')  # they change the kernel; the others the bias

# The flat forms of each tensor, in the order of their codes. In A, B and C the LoRAs follow, a code
# for each rank.
FLAT_FORMS: Mapping[Tensor, tuple[str, ...]] = {
  'A': ('none', 'constant', 'vector'),
  'B': ('none', 'constant', 'vector'),
  'C': ('none', 'vector'),
  'D': ('none', 'constant', 'vector'),
  'E': ('none', 'constant', 'vector'),
}
LORA_TENSORS: tuple[Tensor, ...] = ('A', 'B', 'C')

Axis = Literal['in', 'out', 'rank', 'one']
Form = Literal['constant', 'vector', 'lora', 'rows']
Arrays = dict[str, jax.Array]

_ALL = slice(None)
_FIRST = slice(0, 1)


class Part(NamedTuple):
  """A part of an array.

  Attributes:
    name: the array's name.
    index: one slice for each of its axes.
  """

  name: str
  index: tuple[slice, ...]


class Entry(NamedTuple):
  """One array of a layer's adapter.

  Attributes:
    tensor: the tensor of the equation that it belongs to.
    form: the form of that tensor that it stores; a LoRA has two arrays, 'down' and 'up'.
    axes: names of its axes; 'one' is an axis of size one.
    drawn: whether it starts Xavier-uniform. Every form has an array that starts at zero, so that
      every structure starts as the base layer.
    within: the part of another array that stores it if the forms of a tensor share storage (weight
      entanglement); None if it always has its own.
  """

  tensor: Tensor
  form: Form
  axes: tuple[Axis, ...]
  drawn: bool = False
  within: Part | None = None


ADAPTER: Mapping[str, Entry] = {
  'A_down': Entry('A', 'lora', ('in', 'rank'), drawn=True),
  'A_up': Entry('A', 'lora', ('rank', 'out')),
  'A_constant': Entry('A', 'constant', ('one',), within=Part('A_up', (_FIRST, _FIRST))),
  'A_vector': Entry('A', 'vector', ('out',), within=Part('A_up', (_FIRST, _ALL))),
  'B_down': Entry('B', 'lora', ('in', 'rank'), drawn=True),
  'B_up': Entry('B', 'lora', ('rank', 'out')),
  'B_ids': Entry('B', 'rows', ('rank',)),  # numbers of chosen rows, in a call only: never stored
  'B_constant': Entry('B', 'constant', ('one',), within=Part('B_up', (_FIRST, _FIRST))),
  'B_vector': Entry('B', 'vector', ('out',), within=Part('B_up', (_FIRST, _ALL))),
  'C_down': Entry('C', 'lora', ('in', 'rank')),
  'C_up': Entry('C', 'lora', ('rank', 'one'), drawn=True),
  'C_vector': Entry('C', 'vector', ('in',), within=Part('C_down', (_ALL, _FIRST))),
  'D': Entry('D', 'vector', ('out',)),
  'D_constant': Entry('D', 'constant', ('one',), within=Part('D', (_FIRST,))),
  'E': Entry('E', 'vector', ('out',)),
  'E_constant': Entry('E', 'constant', ('one',), within=Part('E', (_FIRST,))),
}

# The arrays with a rank axis, and which axis it is, counted from the end.
RANK_AXES: Mapping[str, int] = {
  name: entry.axes.index('rank') - len(entry.axes)
  for name, entry in ADAPTER.items()
  if 'rank' in entry.axes
}

_DRAWN = tuple(name for name, entry in ADAPTER.items() if entry.drawn)


def adapter_shapes(
  in_features: int,
  out_features: int,
  ranks: Sequence[int],
  bias: bool = True,
  shared: bool = True,
  rows: int = 0,
) -> dict[str, tuple[int, ...]]:
  """Names and shapes of the arrays that a layer stores.

  By default all forms of a tensor share storage (weight entanglement). A's LoRA of rank r is
  `A_down[:, :r] @ A_up[:r]`, its vector `A_up[0]` and its constant `A_up[0, 0]`; likewise B. C's
  LoRA is `C_down[:, :r] @ C_up[:r]` and its vector `C_down[:, 0]`. D's constant is `D[0]`; likewise
  E.

  Args:
    in_features: inputs of the layer.
    out_features: outputs of the layer.
    ranks: LoRA ranks to choose from; the largest is the size of the storage.
    bias: whether the layer has a bias; without one there is no C, D or E.
    shared: False stores constants and vectors separately: `A_constant` [1],
      `A_vector` [out], `C_vector` [in], ...
    rows: number of a table's chosen rows, which store only their change; 0 for any other layer.

  Example:
    >>> shapes = adapter_shapes(in_features=3, out_features=2, ranks=(1,))
    >>> {name: shape for name, shape in shapes.items() if name[0] in 'AC'}
    {'A_down': (3, 1), 'A_up': (1, 2), 'C_down': (3, 1), 'C_up': (1, 1)}
  """
  if rows:
    return {'B_up': (rows, out_features)}
  sizes = {'in': in_features, 'out': out_features, 'rank': max(ranks), 'one': 1}
  return {
    name: tuple(sizes[axis] for axis in entry.axes)
    for name, entry in ADAPTER.items()
    if (bias or entry.tensor in WEIGHT_TENSORS)
    and not (shared and entry.within)
    and entry.form != 'rows'
  }


def init_arrays(
  keys: jax.Array, stack_shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]], dtype: Any
) -> Arrays:
  """The initial adapter of a stack of layers, with which every structure equals the base layer.

  `A_down`, `B_down` and `C_up` are Xavier-uniform, everything else is zero. Random draws compile
  slowly, so arrays of one shape share a program. One program makes all zeros.

  Args:
    keys: a random key for each layer, [layer].
    stack_shape: sizes of the stack's axes.
    shapes: names of the arrays, and their shapes [stack..., ...].
    dtype: data type of all of them.
  """
  zeros = {name: shape for name, shape in shapes.items() if not ADAPTER[name].drawn}
  adapter = dict(zip(zeros, _zeros(tuple(zeros.values()), dtype), strict=True))
  split = _split(keys, len(_DRAWN))
  for number, name in enumerate(_DRAWN):
    if name in shapes:
      adapter[name] = _draw(split, number, shapes[name], len(stack_shape), dtype)
  return {name: adapter[name] for name in shapes}


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _zeros(shapes: Sequence[tuple[int, ...]], dtype: Any) -> list[jax.Array]:
  return [jnp.zeros(shape, dtype) for shape in shapes]


@functools.partial(jax.jit, static_argnums=1, inline=True)
def _split(keys: jax.Array, number: int) -> jax.Array:
  """Splits keys [layer] into keys [layer, number]."""
  return jax.vmap(functools.partial(jax.random.split, num=number))(keys)


@functools.partial(jax.jit, static_argnums=(2, 3, 4), inline=True)
def _draw(
  keys: jax.Array, number: int, shape: tuple[int, ...], stack_ndim: int, dtype: Any
) -> jax.Array:
  """An array [stack..., ...], Xavier-uniform in each layer, from the layer's key `number`."""
  xavier = functools.partial(jax.nn.initializers.glorot_uniform(), dtype=dtype)
  draw = functools.partial(xavier, shape=shape[stack_ndim:])
  return jax.vmap(draw)(keys[:, number]).reshape(shape)


def of_tensors(
  adapter: Mapping[str, jax.Array], tensors: Collection[Tensor]
) -> dict[str, jax.Array]:
  """The arrays of some tensors."""
  return {name: value for name, value in adapter.items() if ADAPTER[name].tensor in tensors}


def used_parts(
  forms: Sequence[int],
  ranks: Sequence[int],
  bias: bool = True,
  shared: bool = True,
  rows: int = 0,
) -> dict[str, tuple[slice, ...]]:
  """The part of each array that the forms of a layer read.

  Args:
    forms: forms of A, B, C, D, E, five concrete codes.
    ranks: LoRA ranks that the codes stand for.
    bias: whether the layer has a bias.
    shared: whether the forms of a tensor share storage.
    rows: number of a table's chosen rows, which are read whatever the forms; else 0.

  Returns:
    Slices for the axes of each array, by its name. These parts are all that is trained.
  """
  if rows:
    return {'B_up': (slice(0, rows), _ALL)}
  parts = {}
  for tensor, code in zip(TENSORS, forms, strict=True):
    if not bias and tensor not in WEIGHT_TENSORS:
      continue
    flat = FLAT_FORMS[tensor]
    form = flat[code] if code < len(flat) else 'lora'
    rank = ranks[code - len(flat)] if form == 'lora' else None
    for name in names_of(tensor, form):
      entry = ADAPTER[name]
      if shared and entry.within:
        parts[entry.within.name] = entry.within.index
      else:
        parts[name] = tuple(slice(0, rank) if axis == 'rank' else _ALL for axis in entry.axes)
  return parts


def num_params(
  tensor: Tensor, in_features: int, out_features: int, form: str, rank: int = 1
) -> int:
  """The number of trained parameters of a tensor's form in a layer; a LoRA needs its rank."""
  sizes = {'in': in_features, 'out': out_features, 'rank': rank, 'one': 1}
  shapes = ([sizes[axis] for axis in ADAPTER[name].axes] for name in names_of(tensor, form))
  return sum(map(math.prod, shapes))


def names_of(tensor: Tensor, form: str) -> tuple[str, ...]:
  """The arrays that a form of a tensor is made of; () for 'none'."""
  return tuple(
    name for name, entry in ADAPTER.items() if (entry.tensor, entry.form) == (tensor, form)
  )
