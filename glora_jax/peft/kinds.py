"""PEFT's kinds of adapters: what each can hold, its tensors, and what they mean.

All are special cases of the equation (`method/equation.py`), which PEFT calls GLoRA. With s the
scale, alpha / rank in PEFT's files, and a LoRA written as its product:

    LoRA     W' = W + s B                      B
    HiRA     W' = W + W * A                    A
    DoRA     W' = m (W + s B) / |W + s B|      a vector of A, and B
    IA3      W' = W * l, b' = b * l            a vector of A and of D; on inputs, a LoRA of A
    GLoRA    W' = W + W * A + B, b' = b + b * D + E + C W

m, l and |...|, the norm of an output's weights, are vectors of outputs. In the place of a LoRA, a
constant or vector is one of rank 1 whose down is ones. LoRA and DoRA have C, D and E as the bias
that they result in. IA3 is only read.

Each kind is a pair of functions: one gets the changes of all modules and returns the tensors and
fields of the adapter, the other gets the tensors of one module and returns its change.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from glora_jax.checks import shown
from glora_jax.files import first_line
from glora_jax.method.space import TENSORS
from glora_jax.peft.modules import Module
from glora_jax.tree import grouped

Arrays = dict[str, np.ndarray]
Fields = dict[str, Any]
Factors = tuple[np.ndarray, np.ndarray]
"""A LoRA: down [in, rank] and up [rank, out]; a tensor that is none has no rank."""

Change = Mapping[str, np.ndarray]
"""What an adapter makes of a module: float32 arrays by the names that a file of ours gives them.

A LoRA of A is `A_down` [in, rank] and `A_up` [rank, out]; alone, `A_up` is a vector [1, out] or a
constant [1, 1]. Likewise B. C is `C_down` [in, rank] and `C_up` [rank, 1], or a vector [in, 1]
alone. D and E are [out], or [1].
"""
Changes = Sequence[tuple[Module, Change]]

KindName = Literal['lora', 'hira', 'dora', 'glora']

_BIAS = 'base_layer.bias'
_MODULES = ('Linear', 'Conv1D', 'Conv', 'Embedding')
_SHIFT = 'C, D or E'
_NEEDS = {'A_down': 'LoRAs of A', 'A_up': 'A', 'B_down': 'B', 'B_up': 'B'}  # the others: _SHIFT


class NotHeldError(ValueError):
  """A kind cannot hold a structure, or its numbers."""


class Kind(NamedTuple):
  """A kind of PEFT.

  Attributes:
    title: its name in sentences.
    peft_type: PEFT's name for it, which LoRA and DoRA share.
    read: a module's change, from its tensors, which it removes, and the config.
    write: tensors and fields of the config, from the changes of all modules; None if it is only
      read.
    holds: the modules that it is for, and the tensors that it can hold.
  """

  title: str
  peft_type: str
  read: Callable[[Module, Arrays, Fields], Change]
  write: Callable[[Changes], tuple[Arrays, Fields]] | None = None
  holds: tuple[str, ...] = ()

  def check(self, changes: Changes) -> None:
    """Raises NotHeldError for modules or tensors that it cannot hold."""
    wrong: dict[str, list[str]] = {}
    for module, change in changes:
      for what in sorted({module.kind, *(_NEEDS.get(name, _SHIFT) for name in change)}):
        if what not in self.holds:
          wrong.setdefault(what, []).append(module.name)
    if wrong:
      stated = ', '.join(f'{what} ({grouped(names)})' for what, names in wrong.items())
      raise NotHeldError(f'has no place for {stated}')


def write_lora(changes: Changes, is_dora: bool = False) -> tuple[Arrays, Fields]:
  """The tensors and fields of LoRA or DoRA."""
  pairs, alphas, others, bias = [], {}, {}, 'none'
  for module, change in changes:
    down, up = factors(module, change, 'B', module.scale)
    if is_dora:
      (_, a), key = factors(module, change, 'A'), f'{module.name}.lora_magnitude_vector'
      up, others[key] = _to_dora(module, a.sum(0), down, up)
    if change.keys() - _NEEDS.keys():
      others[f'{module.name}.{_BIAS}'] = module.bias() + shift(module, change)
      bias = 'lora_only'
    pairs.append((module, (down, up)))
    alpha = max(1, len(up)) * module.scale
    alphas[module.name] = int(alpha) if alpha == int(alpha) else alpha
  tensors, fields = _write_pairs('lora', pairs)
  fields |= {'use_dora': is_dora, 'bias': bias, **_by_module('lora_alpha', 'alpha', alphas)}
  return tensors | others, fields


def read_lora(module: Module, tensors: Arrays, config: Fields) -> Change:
  """The change of a module's LoRA or DoRA."""
  down, up = _read_pair('lora', module, tensors)
  rank, alpha = len(up), _of_module(module.name, config, 'alpha_pattern', 'lora_alpha', 8)
  if rank != (stated := _of_module(module.name, config, 'rank_pattern', 'r', rank)):
    raise ValueError(f'the config gives it the rank {shown(stated)}, and its tensors have {rank}')
  a, e = _none(module), np.zeros(module.out_features, np.float32)
  with np.errstate(over='ignore', invalid='ignore', divide='ignore'):
    scale = np.float32(alpha / (rank**0.5 if config.get('use_rslora') else rank))
    up = scale * up
    if config.get('use_dora'):
      magnitude = _take(tensors, 'lora_magnitude_vector', module.out_features)
      factor = magnitude / _norms(module, down, up)
      a, up = _row(module, factor - 1), factor * up
    if 'lora_B.bias' in tensors:
      e = scale * _take(tensors, 'lora_B.bias', module.out_features)
    if _BIAS in tensors:
      e = e + (_take(tensors, _BIAS, module.out_features) - module.bias())
  return change_of({'A': a, 'B': (down, up)}, {'E': e})


def _to_dora(
  module: Module, a: np.ndarray, down: np.ndarray, up: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """DoRA's `up` and magnitude: (1 + a) W + s B is 1 + a times W + s B / (1 + a)."""
  factor = 1 + a
  if not factor.all():
    raise NotHeldError(f'has no place for an A of -1 ({module.name})')
  up = up / factor
  norms = _norms(module, down, module.scale * up)
  if not norms.all():
    raise NotHeldError(f'divides by the norm of each output, and one is 0 ({module.name})')
  return up, (factor * norms).reshape(*module.window[:1], -1, *module.window)


def _norms(module: Module, down: np.ndarray, up: np.ndarray) -> np.ndarray:
  """Norms of the weights of each output, the LoRA's product added, [out]."""
  return np.linalg.norm(module.kernel() + down @ up, axis=0)


def write_hira(changes: Changes) -> tuple[Arrays, Fields]:
  """The tensors and fields of HiRA: of one rank, since PEFT 0.21 ignores its `rank_pattern`."""
  pairs = [(module, factors(module, change, 'A')) for module, change in changes]
  rank = max(len(up) for _, (_, up) in pairs)
  return _write_pairs('hira', [(module, _padded(pair, rank)) for module, pair in pairs])


def read_hira(module: Module, tensors: Arrays, config: Fields) -> Change:
  """The change of a module's HiRA."""
  return change_of({'A': _read_pair('hira', module, tensors)})


def write_glora(changes: Changes) -> tuple[Arrays, Fields]:
  """The tensors and fields of PEFT's GLoRA, which has the same forms and rank in all modules."""
  pairs = [(factors(m, c, 'A'), factors(m, c, 'B', m.scale)) for m, c in changes]
  rank = max(1, *(len(up) for both in pairs for _, up in both))
  stored = {name[0] for _, change in changes for name in change}
  has_c, has_d = 'C' in stored, not stored.isdisjoint('DE')
  tensors = {}
  for (module, change), (a, (down, up)) in zip(changes, pairs, strict=True):
    own: Arrays = {}
    for name, pair in (('A', a), ('B', (down, module.scale * up))):
      down, up = _padded(pair, rank)
      own |= {f'{name}.Xd': up.T, f'{name}.Xu': down.T}
    of_bias = {'C': (_c(module, change)[:, None], has_c)}
    of_bias |= {name: (_row(module, change.get(name, 0))[1][0], has_d) for name in 'DE'}
    for name, (numbers, is_stored) in of_bias.items():
      own[f'{name}.{"X" if is_stored and module.site.has_bias else "zeros"}'] = numbers
    tensors |= {f'{module.name}.glora_{name}': numbers for name, numbers in own.items()}
  fields = {'r': rank, 'config_A_B': 'lora', 'config_C': 'vector' if has_c else 'none'}
  return tensors, {**fields, 'config_D_E': 'vector' if has_d else 'none'}


def read_glora(module: Module, tensors: Arrays, config: Fields) -> Change:
  """The change of a module's GLoRA."""
  fan_in, fan_out = module.in_features, module.out_features
  sizes = {'C': fan_in, 'D': fan_out, 'E': fan_out}
  pairs = {name: _read_glora(tensors, name, 1, size) for name, size in sizes.items()}
  c, d, e = (down @ up for down, up in pairs.values())
  a, b = (_read_glora(tensors, name, fan_in, fan_out) for name in 'AB')
  return change_of({'A': a, 'B': b}, {'C_down': c.T, 'D': d[0], 'E': e[0]})


def _read_glora(tensors: Arrays, name: str, fan_in: int, fan_out: int) -> Factors:
  """One of GLoRA's tensors in any form as factors; C, D and E have one row."""
  name = f'glora_{name}'
  tensors.pop(f'{name}.zeros', None)
  if f'{name}.Xd' in tensors:
    rank = len(tensors.get(f'{name}.Xu', ()))
    up = _take(tensors, f'{name}.Xd', fan_out, rank).T
    return _take(tensors, f'{name}.Xu', rank, fan_in).T, up
  if f'{name}.X' not in tensors:
    return np.zeros((fan_in, 1), np.float32), np.zeros((1, 1), np.float32)
  size = 1 if tensors[f'{name}.X'].size == 1 else fan_out
  return np.ones((fan_in, 1), np.float32), _take(tensors, f'{name}.X', size)[None]


def read_ia3(module: Module, tensors: Arrays, config: Fields) -> Change:
  """The change of a module's IA3: factors on outputs, or on the inputs of a feed-forward module."""
  ends = config.get('feedforward_modules') or ()
  if not isinstance(ends, str):
    ends = '|'.join(f'.*{re.escape(end)}' for end in ends)
  if re.fullmatch(ends, module.name):
    channels, *window = module.torch_inputs
    factor = _take(tensors, 'ia3_l', channels).reshape(1, -1, *module.window) - 1
    factor = np.broadcast_to(factor, (1, channels, *window))
    return change_of({'A': module.from_torch((factor, np.ones((module.out_features, 1))))})
  factor = _take(tensors, 'ia3_l', module.out_features) - 1
  return change_of({'A': _row(module, factor)}, {'D': factor} if module.site.has_bias else {})


# Changes.


def change_of(pairs: Mapping[Any, Factors], of_bias: Mapping[str, np.ndarray] = {}) -> Change:
  """A change of factors by tensor and arrays of the bias; what is zero is left out."""
  change = {name: numbers for name, numbers in of_bias.items() if numbers.any()}
  for tensor, (down, up) in pairs.items():
    used = down.any(0) | up.any(1)
    down, up = down[:, used], up[used]
    if len(up):
      change[f'{tensor}_up'] = up
    if len(up) > 1 or not (down == 1).all():
      change[f'{tensor}_down'] = down
  return change


def forms_of(change: Change) -> dict[str, str]:
  """The names of the forms in a change, by tensor."""
  forms: dict[str, str] = dict.fromkeys(TENSORS, 'none')
  for name, numbers in change.items():  # `up` before `down`
    is_constant = numbers.size == 1 and name != 'C_down'
    forms[name[0]] = 'constant' if is_constant else 'vector'
    if name in ('A_down', 'B_down'):
      forms[name[0]] = f'lora:{numbers.shape[1]}'
  return forms


def factors(module: Module, change: Change, tensor: str, scale: float = 1.0) -> Factors:
  """A or B in any form as the factors of a LoRA, which the scale will multiply."""
  if f'{tensor}_up' not in change:
    return _none(module)
  if f'{tensor}_down' in change:
    return change[f'{tensor}_down'], change[f'{tensor}_up']
  return _row(module, change[f'{tensor}_up'] / scale)


def shift(module: Module, change: Change) -> np.ndarray:
  """What is added to a module's bias: b * D + E + C W, [out]."""
  c, d, e = _c(module, change), change.get('D', 0), change.get('E', 0)
  added = module.bias() * d + e
  return added + c @ module.kernel() if c.any() else added


def _c(module: Module, change: Change) -> np.ndarray:
  """C, [in]."""
  c = change.get('C_down', np.zeros((module.in_features, 1), np.float32))
  return (c @ change['C_up'] if 'C_up' in change else c)[:, 0]


def _none(module: Module) -> Factors:
  return np.zeros((module.in_features, 0)), np.zeros((0, module.out_features))


def _row(module: Module, numbers: Any) -> Factors:
  """A constant or vector as factors."""
  row = np.zeros((1, module.out_features), np.float32) + numbers
  return np.ones((module.in_features, 1), np.float32), row


# Tensors and fields that several kinds have.


def _padded(pair: Factors, rank: int) -> Factors:
  """Factors of a rank or more, filled up with zeros, float32."""
  down, up = pair
  missing = max(0, rank - len(up))
  down, up = np.pad(down, ((0, 0), (0, missing))), np.pad(up, ((0, missing), (0, 0)))
  return down.astype(np.float32), up.astype(np.float32)


def _write_pairs(prefix: str, pairs: Sequence[tuple[Module, Factors]]) -> tuple[Arrays, Fields]:
  """The pairs of LoRA or HiRA, of rank 1 or more, and the fields that both have."""
  tensors, ranks = {}, {}
  for module, pair in pairs:
    names, pair = _pair_names(prefix, module), _padded(pair, 1)
    for name, value in zip(names, module.to_torch(pair), strict=True):
      tensors[f'{module.name}.{name}'] = value
    ranks[module.name] = len(pair[1])
  is_conv1d = any(module.kind == 'Conv1D' for module, _ in pairs)
  return tensors, {'fan_in_fan_out': is_conv1d, **_by_module('r', 'rank', ranks)}


def _read_pair(prefix: str, module: Module, tensors: Arrays) -> Factors:
  """The factors of a module's LoRA or HiRA."""
  first, second = _pair_names(prefix, module)
  rank = len(tensors.get(first, ()))
  down = _take(tensors, first, rank, *module.torch_inputs)
  return module.from_torch((down, _take(tensors, second, module.out_features, rank)))


def _pair_names(prefix: str, module: Module) -> tuple[str, str]:
  if module.kind == 'Embedding':
    return f'{prefix}_embedding_A', f'{prefix}_embedding_B'
  end = '.weight' if prefix == 'lora' else ''
  return f'{prefix}_A{end}', f'{prefix}_B{end}'


def _take(tensors: Arrays, name: str, *shape: int) -> np.ndarray:
  """Removes a tensor, and returns it in float32 and in a shape that may lack axes of size one."""
  found = tensors.pop(name, None)
  if found is None or [n for n in found.shape if n > 1] != [n for n in shape if n > 1]:
    has = 'no' if found is None else f'{found.shape} as'
    raise ValueError(f'it has {has} {name}, and {shape} is needed')
  return found.astype(np.float32).reshape(shape)


def _by_module(field: str, pattern: str, values: Mapping[str, float]) -> Fields:
  """The largest value of all modules, and if they differ, PEFT's pattern with that of each.

  PEFT uses the first key of a pattern that a module's name ends with, so longer ones come first.
  """
  largest, patterns = max(values.values()), {}
  if min(values.values()) < largest:
    patterns = {module: values[module] for module in sorted(values, key=len, reverse=True)}
  return {field: largest, f'{pattern}_pattern': patterns}


def _of_module(module: str, config: Fields, pattern: str, field: str, default: Any) -> float:
  """The value of the first pattern that a module's name ends with, or else the usual one."""
  try:
    for key, value in (config.get(pattern) or {}).items():
      if re.fullmatch(rf'(.*\.)?({key})', module):
        return float(value)
    return float(config.get(field, default))
  except (re.error, TypeError, ValueError, AttributeError, OverflowError) as error:
    raise ValueError(f'{field} or {pattern} cannot be read ({first_line(error)})') from error


_LORA = (*_MODULES, 'B', _SHIFT)
KINDS: Mapping[str, Kind] = {  # the narrowest first
  'lora': Kind('LoRA', 'LORA', read_lora, write_lora, _LORA),
  'hira': Kind('HiRA', 'HIRA', read_hira, write_hira, (*_MODULES, 'A', 'LoRAs of A')),
  'dora': Kind(
    'DoRA', 'LORA', read_lora, functools.partial(write_lora, is_dora=True), (*_LORA, 'A')
  ),
  'glora': Kind('GLoRA', 'GLORA', read_glora, write_glora, ('Linear', *_NEEDS.values(), _SHIFT)),
  'ia3': Kind('IA3', 'IA3', read_ia3, holds=_MODULES),
}
