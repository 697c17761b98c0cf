"""Search spaces, and the layers that a genome has a row for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from glora_jax.checks import listed, plain, shown, validate, whole_number
from glora_jax.method.adapter import (
  FLAT_FORMS,
  LORA_TENSORS,
  TENSORS,
  WEIGHT_TENSORS,
  Tensor,
  num_params,
)

# Genomes are int8, and the codes of ranks follow those of the flat forms.
MOST_RANKS = int(np.iinfo(np.int8).max) + 1 - max(len(FLAT_FORMS[t]) for t in LORA_TENSORS)
_MOST_FEATURES = 2**24
_SCALES = 1e-10, 1e10


@dataclasses.dataclass(frozen=True)
class SearchSpace:
  """The forms that a search or an allocation may choose from.

  Attributes:
    ranks: LoRA ranks, ascending; the largest is the size of the storage.
    A: choices for A, as codes or names ('none', 'constant', 'vector', 'lora:4' or, if there is one
      rank, 'lora'); None for all.
    B: the same for B.
    C: the same for C.
    D: the same for D.
    E: the same for E.
    shared: whether all forms of a tensor share storage, as in the official code.
    scale: factor on LoRAs of B, alpha / rank in other libraries.
    one_shift: whether random structures have C or E in a layer but never both, and C only in a
      layer with fewer inputs than outputs: E reaches every bias that C reaches, and is smaller in
      all other layers.

  Raises:
    ValueError: ranks that do not ascend from 1 or more, or are more than a genome has codes for, a
      form that does not exist, a scale that is not from 1e-10 to 1e10, or one_shift if C or E
      cannot be none.

  Example:
    >>> space = SearchSpace(ranks=(2, 4), A='none', E=('none', 'vector'))
    >>> space.names('C')
    ('none', 'vector', 'lora:2', 'lora:4')
    >>> space.A, space.E
    ((0,), (0, 2))
  """

  ranks: tuple[int, ...] = (4,)
  A: tuple[int, ...] | None = None
  B: tuple[int, ...] | None = None
  C: tuple[int, ...] | None = None
  D: tuple[int, ...] | None = None
  E: tuple[int, ...] | None = None
  shared: bool = True
  one_shift: bool = False
  scale: float = 1.0

  def __post_init__(self):
    object.__setattr__(self, 'ranks', parse_ranks(self.ranks))
    for name in ('shared', 'one_shift'):
      object.__setattr__(self, name, validate(getattr(self, name), bool, name))
    scale = validate(self.scale, float, 'scale', least=_SCALES[0], most=_SCALES[1])
    object.__setattr__(self, 'scale', scale)
    for tensor in TENSORS:
      object.__setattr__(self, tensor, self._codes(tensor, getattr(self, tensor)))
    if self.one_shift and not all(0 in getattr(self, tensor) for tensor in ('C', 'E')):
      raise ValueError(
        f'one_shift=True needs none among the choices of C and of E, got C={self.C}, E={self.E}; '
        'add none to both.'
      )

  @classmethod
  def distinct(cls, ranks: Iterable[int] = range(1, 9)) -> SearchSpace:
    """Returns a space without redundant forms: none that others in the same layer can express.

    A is none, a vector or a LoRA, B none or a LoRA, and either C or E may be a vector. D and the
    constants are not choices: E and the vectors reach whatever they reach.

    Args:
      ranks: LoRA ranks, ascending.

    Example:
      >>> space = SearchSpace.distinct(ranks=(1, 2))
      >>> [space.names('B')[code] for code in space.B]
      ['none', 'lora:1', 'lora:2']
      >>> space.D, space.E, space.one_shift
      ((0,), (0, 2), True)
    """
    ranks = parse_ranks(ranks)
    loras = tuple(range(len(FLAT_FORMS['A']), len(FLAT_FORMS['A']) + len(ranks)))
    return cls(ranks, A=(0, 2, *loras), B=(0, *loras), C=(0, 1), D=(0,), E=(0, 2), one_shift=True)

  def _codes(self, tensor: Tensor, choices: Any) -> tuple[int, ...]:
    """The codes of a user's choices, which are codes or names, ascending."""
    names = self.names(tensor)
    if choices is None:
      return tuple(range(len(names)))
    codes = {self.code(tensor, form) for form in _as_tuple(choices)}
    if not codes or None in codes:
      raise ValueError(
        f'{tensor}={shown(choices)} is not a choice among {", ".join(names)} '
        f'(codes 0 to {len(names) - 1}).'
      )
    return tuple(sorted(code for code in codes if code is not None))

  def code(self, tensor: Tensor, form: str | int) -> int | None:
    """Returns the code of a form, given its name or code; None if the space has no such form.

    'lora' is the LoRA of the one rank; if there are several, there is no such form.
    """
    names = self.names(tensor)
    if form == 'lora' and len(self.ranks) == 1 and tensor in LORA_TENSORS:
      return len(names) - 1
    if isinstance(form, str):
      return names.index(form) if form in names else None
    code = whole_number(form)
    return code if code in range(len(names)) else None

  def names(self, tensor: Tensor) -> tuple[str, ...]:
    """Returns the names of all forms of a tensor, in the order of their codes."""
    loras = tuple(f'lora:{rank}' for rank in self.ranks) if tensor in LORA_TENSORS else ()
    return FLAT_FORMS[tensor] + loras


Spaces = SearchSpace | Mapping[str, SearchSpace]  # one for all layers, or by regular expression


def is_scale(scale: float) -> bool:
  """Whether numbers in float32 stay finite with a scale, and with the ratio of two."""
  return _SCALES[0] <= scale <= _SCALES[1]


def parse_ranks(ranks: Any) -> tuple[int, ...]:
  """LoRA ranks, one or several, as a tuple.

  Raises:
    TypeError: they are not integers.
    ValueError: they do not ascend from 1 or more, or are more than a genome has codes for.
  """
  ranks = validate(_as_tuple(ranks), tuple[int, ...], 'ranks', least=1)
  if not ranks or list(ranks) != sorted(set(ranks)):
    raise ValueError(
      f'ranks={shown(ranks)} must be positive integers in ascending order, (4,) or (2, 4, 8) for '
      'instance.'
    )
  if len(ranks) > MOST_RANKS:
    raise ValueError(
      f'ranks={shown(ranks)} has {len(ranks)} ranks, but a genome has codes for at most '
      f'{MOST_RANKS}; use fewer.'
    )
  return ranks


def _as_tuple(value: Any) -> tuple[Any, ...]:
  """The items of a sequence or array, or a single value, as a tuple."""
  value = plain(value)
  is_several = isinstance(value, Iterable) and not isinstance(value, str)
  return tuple(value) if is_several else (value,)


@dataclasses.dataclass(frozen=True)
class Layer:
  """A linear layer, or one slice of a stack of them; a genome has a row for it.

  Attributes:
    name: path of the module, with the index in its stack if it has one ('blocks/fc1[2]').
    in_features: inputs of the layer.
    out_features: outputs of the layer.
    bias: whether the layer has a bias, without which it has no C, D and E.
    space: its choices.
    ids: the chosen rows of a table (`embeddings=[3, 5]`), ascending. Such a layer has one form, a
      change of these rows, and no choice: every code stands for it. () for any other layer.

  Raises:
    TypeError: a value has another type.
    ValueError: a number of features is below 1 or above 2**24, or an id is not one of an input.

  Example:
    >>> layer = Layer('fc1', in_features=8, out_features=32, space=SearchSpace(ranks=(2, 4)))
    >>> layer.costs('B')
    (0, 1, 32, 80, 160)
    >>> Layer('embed', in_features=1000, out_features=32, bias=False, ids=(3, 5)).costs('B')[0]
    64
  """

  name: str
  in_features: int
  out_features: int
  bias: bool = True
  space: SearchSpace = SearchSpace()
  ids: tuple[int, ...] = ()

  def __post_init__(self):
    validate(self.name, str, 'name')
    for name in ('in_features', 'out_features'):
      label = f'{listed([self.name])}: {name}'
      side = validate(getattr(self, name), int, label, least=1, most=_MOST_FEATURES)
      object.__setattr__(self, name, side)
    object.__setattr__(self, 'bias', validate(self.bias, bool, 'bias'))
    validate(self.space, SearchSpace, 'space')
    limits = {'least': 0, 'below': self.in_features}
    ids = validate(self.ids, tuple[int, ...], f'{listed([self.name])}: ids', **limits)
    object.__setattr__(self, 'ids', ids)

  def names(self, tensor: Tensor) -> tuple[str, ...]:
    """Returns the names of all forms of a tensor, in the order of their codes."""
    names = self.space.names(tensor)
    if not self.ids:
      return names
    return (f'rows:{len(self.ids)}' if tensor == 'B' else 'none',) * len(names)

  def choices(self, tensor: Tensor) -> tuple[int, ...]:
    """Codes to choose from; only 'none' for C, D and E without bias, and for C if E is smaller."""
    e_is_smaller = self.space.one_shift and self.in_features >= self.out_features
    if not self._has(tensor) or (tensor == 'C' and e_is_smaller):
      return (0,)
    return getattr(self.space, tensor)

  def costs(self, tensor: Tensor) -> tuple[int, ...]:
    """Trained parameters of every form of a tensor, in the order of the codes."""
    if not self._has(tensor):
      rows = len(self.ids) if tensor == 'B' else 0
      return (rows * self.out_features,) * len(self.space.names(tensor))
    cost = functools.partial(num_params, tensor, self.in_features, self.out_features)
    ranks = self.space.ranks if tensor in LORA_TENSORS else ()
    return (*map(cost, FLAT_FORMS[tensor]), *(cost('lora', rank) for rank in ranks))

  def _canonical(self, tensor: Tensor) -> tuple[int, ...]:
    """For every code the cheapest one that is the same function, whatever the adapter holds."""
    codes = tuple(range(len(self.space.names(tensor))))
    if not self._has(tensor):
      return (0,) * len(codes)
    # One output: a vector is one number, and in shared storage the very same one.
    if self.out_features == 1 and self.space.shared and tensor != 'C':
      return tuple(1 if code == 2 else code for code in codes)
    return codes

  def _has(self, tensor: Tensor) -> bool:
    """Whether a tensor can have several forms."""
    return not self.ids and (self.bias or tensor in WEIGHT_TENSORS)


@dataclasses.dataclass(frozen=True)
class Spec:
  """The adapted layers, in execution order: one for each row of a genome. Static and hashable.

  The slices of a stack are in the order of the stack, even if a scan is reversed.

  Attributes:
    layers: the adapted layers.

  Example:
    >>> spec = Spec((Layer('fc1', 8, 32), Layer('fc2', 32, 8)))
    >>> len(spec), [layer.name for layer in spec]
    (2, ['fc1', 'fc2'])
    >>> spec.cost_table[0, 1].tolist()  # what each form of B costs in fc1
    [0, 1, 32, 160]
  """

  layers: tuple[Layer, ...]

  def __post_init__(self):
    object.__setattr__(self, 'layers', validate(self.layers, tuple[Layer, ...], 'layers'))

  def __len__(self) -> int:
    return len(self.layers)

  def __iter__(self) -> Iterator[Layer]:
    return iter(self.layers)

  @functools.cached_property
  def cost_table(self) -> np.ndarray:
    """Trained parameters of every form, int64 [layer, 5, code]."""
    return self._table(Layer.costs, np.int64)

  @functools.cached_property
  def _canonical_table(self) -> np.ndarray:
    """The canonical code of every code, int8 [layer, 5, code]."""
    return self._table(Layer._canonical, np.int8)

  @functools.cached_property
  def _choices_table(self) -> np.ndarray:
    """Codes to choose from, int8 [layer, 5, most choices]."""
    return self._table(Layer.choices, np.int8)

  @functools.cached_property
  def num_codes(self) -> np.ndarray:
    """Number of forms that exist, int64 [layer, 5]."""
    return self._count(Layer.names)

  @functools.cached_property
  def _num_choices(self) -> np.ndarray:
    """Number of choices, int64 [layer, 5]."""
    return self._count(Layer.choices)

  @functools.cached_property
  def _one_shift(self) -> np.ndarray:
    """Layers that may not have both C and E, bool [layer]."""
    return np.array([layer.space.one_shift for layer in self.layers], bool)

  def _table(self, values: Callable[[Layer, Tensor], tuple[int, ...]], dtype: Any) -> np.ndarray:
    """A tuple for every tensor of every layer, [layer, 5, longest]; the last value fills it up."""
    rows = [[values(layer, tensor) for tensor in TENSORS] for layer in self.layers]
    longest = max((len(gene) for row in rows for gene in row), default=1)
    filled = [[gene + gene[-1:] * (longest - len(gene)) for gene in row] for row in rows]
    return np.array(filled, dtype).reshape(len(rows), len(TENSORS), longest)

  def _count(self, values: Callable[[Layer, Tensor], Iterable[Any]]) -> np.ndarray:
    """The length of a tuple for every tensor of every layer, int64 [layer, 5]."""
    rows = [[len(tuple(values(layer, tensor))) for tensor in TENSORS] for layer in self.layers]
    return np.array(rows, np.int64).reshape(len(self), len(TENSORS))


def check_spec(spec: Any) -> None:
  """Raises TypeError unless a value is a spec, and not the adapted model that has one."""
  if not isinstance(spec, Spec):
    raise TypeError(
      f'expected a Spec, got {type(spec).__name__}; pass adapted.spec, or for an attached NNX '
      'model glora_jax.nnx.as_adapted(model)[0].spec.'
    )
