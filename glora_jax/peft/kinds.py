"""PEFT's kinds of adapters: the forms that each can hold, its tensors, and their meaning.

All are special cases of the equation (`method/equation.py`), which PEFT calls GLoRA. With s the
scale, alpha / rank in PEFT's files, and a LoRA written as its product:

    LoRA     W' = W + s B                      B
    HiRA     W' = W + W * A                    A
    DoRA     W' = m (W + s B) / |W + s B|      a vector of A, and B
    IA3      W' = W * l, b' = b * l            a vector of A and of D; on inputs, a LoRA of A
    GLoRA    W' = W + W * A + B, b' = b + b * D + E + C W

m, l and |...|, the norm of an output's weights, are vectors of outputs. In the place of a LoRA, a
constant or vector is one of rank 1 whose down is ones. LoRA and DoRA have C, D and E as the bias
that they result in, and the chosen rows of a table as the rows that they result in. IA3 is only
read, and so is PEFT's kind of adapters that have nothing but rows.

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
from glora_jax.method.adapter_file import EXTEND
from glora_jax.method.space import TENSORS, WEIGHT_TENSORS
from glora_jax.peft.modules import PARAMETER, ROWS, Module
from glora_jax.tree import grouped

Arrays = dict[str, np.ndarray]
Fields = dict[str, Any]
Factors = tuple[np.ndarray, np.ndarray]
"""A LoRA: down [in, rank] and up [rank, out]; a tensor that is none has no rank."""

Change = Mapping[str, np.ndarray]
"""What an adapter makes of a module: float32 arrays by the names that a file of ours gives them.

A LoRA of A is `A_down` [in, rank] and `A_up` [rank, out]; alone, `A_up` is a vector [1, out] or a
constant [1, 1]. Likewise B. C is `C_down` [in, 1], whatever its form. D and E are [out], or [1].
"""
Changes = Sequence[tuple[Module, Change]]

KindName = Literal['lora', 'hira', 'dora', 'glora']

TOKENS = 'trainable_tokens_delta'  # a tensor with the rows themselves, in spite of its name

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
      of = f' of a {PARAMETER}' if module.kind == PARAMETER else ''
      for what in sorted({module.kind, *(_NEEDS.get(name, _SHIFT + of) for name in change)}):
        if what not in self.holds:
          wrong.setdefault(what, []).append(module.name)
    if wrong:
      stated = ', '.join(f'{what} ({grouped(names)})' for what, names in wrong.items())
      raise NotHeldError(f'cannot hold {stated}')


def write_lora(changes: Changes, is_dora: bool = False) -> tuple[Arrays, Fields]:
  """The tensors and fields of LoRA or DoRA."""
  pairs, alphas, others, bias, ids = [], {}, {}, 'none', {}
  ranks: dict[str, int] = {}
  for module, change in changes:  # the experts of a parameter have one
    ranks[module.target] = max(ranks.get(module.target, 1), len(change.get('B_up', ())))
  for module, change in changes:
    if module.kind == ROWS:
      rows = ids[module.name] = [*module.group.ids]
      others[f'{module.name}.token_adapter.{TOKENS}'] = module.kernel()[rows] + change['B_up']
      continue
    rank = ranks[module.target]
    down, up = _padded(factors(module, change, 'B', module.scale), rank)
    if is_dora:
      (_, a), key = factors(module, change, 'A'), f'{module.name}.lora_magnitude_vector'
      up, others[key] = _to_dora(module, a.sum(0), down, up)
    if change.keys() - _NEEDS.keys():
      others[f'{module.name}.{_BIAS}'] = module.bias() + shift(module, change)
      bias = 'lora_only'
    pairs.append((module, (down, up)))
    alpha = rank * module.scale
    alphas[module.target] = int(alpha) if alpha == int(alpha) else alpha
  tensors, fields = _write_pairs('lora', pairs)
  fields |= {'trainable_token_indices': ids or None}
  fields |= {'use_dora': is_dora, 'bias': bias, **_by_module('lora_alpha', 'alpha', alphas)}
  return tensors | others, fields


def read_lora(module: Module, tensors: Arrays, config: Fields) -> Change:
  """The change of a module's LoRA or DoRA."""
  down, up = _read_pair('lora', module, tensors)
  rank, alpha = len(up), _of_module(module.target, config, 'alpha_pattern', 'lora_alpha', 8)
  if rank != (stated := _of_module(module.target, config, 'rank_pattern', 'r', rank)):
    each = f' for each of {module.expert[1]} experts' if module.kind == PARAMETER else ''
    raise ValueError(
      f'the config gives it the rank {shown(stated)}, and its tensors have {rank}{each}'
    )
  a = e = np.zeros(module.out_features, np.float32)
  with np.errstate(over='ignore', invalid='ignore', divide='ignore'):
    scale = np.float32(alpha / (rank**0.5 if config.get('use_rslora') else rank))
    up = scale * up
    if config.get('use_dora'):
      magnitude = _take(tensors, 'lora_magnitude_vector', module.out_features)
      factor = magnitude / _norms(module, down, up)
      a, up = factor - 1, factor * up
    if 'lora_B.bias' in tensors:
      e = scale * _take(tensors, 'lora_B.bias', module.out_features)
    if _BIAS in tensors:
      e = e + (_take(tensors, _BIAS, module.out_features) - module.bias())
  return change_of({'A_up': a[None], 'B_down': down, 'B_up': up, 'E': e})


def read_rows(module: Module, tensors: Arrays, config: Fields) -> Change:
  """The change of the chosen rows of a table."""
  ids, here = config.get('token_indices') or config['trainable_token_indices'], module.group.ids
  if isinstance(ids, Mapping):
    ids = next((ids[end] for end in ids if module.name.endswith(end)), [])
  if sorted(ids) != [*here]:
    raise ValueError(
      f'it has rows {shown(ids)}, and this model trains {shown(here or "all")}; adapt it with '
      f'embeddings={shown(ids)}, and {EXTEND}'
    )
  rows = _take(tensors, TOKENS, len(ids), module.out_features)
  return {'B_up': rows[np.argsort(ids)] - module.kernel()[[*here]]}


def _to_dora(
  module: Module, a: np.ndarray, down: np.ndarray, up: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """DoRA's `up` and magnitude: (1 + a) W + s B is 1 + a times W + s B / (1 + a)."""
  factor = 1 + a
  if not factor.all():
    raise NotHeldError(f'cannot hold an A of -1 ({module.name})')
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
  rank = _largest_rank(changes)
  pairs = [(module, _padded(factors(module, change, 'A'), rank)) for module, change in changes]
  return _write_pairs('hira', pairs)


def read_hira(module: Module, tensors: Arrays, config: Fields) -> Change:
  """The change of a module's HiRA."""
  down, up = _read_pair('hira', module, tensors)
  return change_of({'A_down': down, 'A_up': up})


def write_glora(changes: Changes) -> tuple[Arrays, Fields]:
  """The tensors and fields of PEFT's GLoRA, which has the same forms and rank in all modules."""
  tensors, rank = {}, _largest_rank(changes)
  for module, change in changes:
    own, out = {}, np.zeros(module.out_features, np.float32)
    for tensor, scale in (('A', 1), ('B', module.scale)):
      down, up = _padded(factors(module, change, tensor, scale), rank)
      own |= {f'{tensor}.Xd': scale * up.T, f'{tensor}.Xu': down.T}
    stored = 'X' if module.has_bias else 'zeros'
    own[f'C.{stored}'] = change.get('C_down', np.zeros((module.in_features, 1), np.float32))
    own |= {f'{tensor}.{stored}': out + change.get(tensor, 0) for tensor in 'DE'}
    tensors |= {f'{module.name}.glora_{name}': numbers for name, numbers in own.items()}
  forms = {'config_A_B': 'lora', 'config_C': 'vector', 'config_D_E': 'vector'}
  return tensors, {'r': rank, **forms}


def read_glora(module: Module, tensors: Arrays, config: Fields) -> Change:
  """The change of a module's GLoRA, in which C, D and E have one row."""
  fan_in, fan_out, change = module.in_features, module.out_features, {}
  sizes = {'A': (fan_in, fan_out), 'B': (fan_in, fan_out)}
  sizes |= {'C': (1, fan_in), 'D': (1, fan_out), 'E': (1, fan_out)}
  for tensor, (rows, columns) in sizes.items():
    name = f'glora_{tensor}'
    tensors.pop(f'{name}.zeros', None)
    if f'{name}.Xd' in tensors:
      rank = len(tensors.get(f'{name}.Xu', ()))
      change[f'{tensor}_down'] = _take(tensors, f'{name}.Xu', rank, rows).T
      change[f'{tensor}_up'] = _take(tensors, f'{name}.Xd', columns, rank).T
    elif f'{name}.X' in tensors:
      size = 1 if tensors[f'{name}.X'].size == 1 else columns
      change[f'{tensor}_up'] = _take(tensors, f'{name}.X', size)[None]
  if 'C_up' in change:
    down = change.get('C_down', np.ones((1, 1), np.float32))
    change['C_down'] = (down @ change.pop('C_up')).T
  change |= {tensor: change.pop(f'{tensor}_up')[0] for tensor in 'DE' if f'{tensor}_up' in change}
  return change_of(change)


def read_ia3(module: Module, tensors: Arrays, config: Fields) -> Change:
  """The change of a module's IA3: factors on outputs, or on the inputs of a feed-forward module."""
  ends = config.get('feedforward_modules') or ()
  if not isinstance(ends, str):
    ends = '|'.join(f'.*{re.escape(end)}' for end in ends)
  if re.fullmatch(ends, module.name):
    factor = _take(tensors, 'ia3_l', module.torch_inputs[0]) - 1
    a = np.broadcast_to(factor.reshape(1, -1, *module.window), (1, *module.torch_inputs))
    down, up = module.from_torch((a, np.ones((module.out_features, 1), np.float32)))
    return change_of({'A_down': down, 'A_up': up})
  factor = _take(tensors, 'ia3_l', module.out_features) - 1
  return change_of({'A_up': factor[None], 'D': factor * module.has_bias})


# Changes.


def change_of(arrays: Change) -> Change:
  """A change without its zeros; a LoRA of rank 1 whose `down` is ones is a vector.

  A rank that is zero in both factors has no gradient either: it is only there to fill up a rank
  that PEFT has for all modules. One that is zero in `up` alone, as at the start, is kept.
  """
  change = {name: numbers for name, numbers in arrays.items() if numbers.any()}
  for tensor in WEIGHT_TENSORS:
    down, up = (arrays.get(f'{tensor}_{side}') for side in ('down', 'up'))
    if down is None or up is None:
      continue
    used = down.any(0) | up.any(1)
    change |= {f'{tensor}_up': up[used], f'{tensor}_down': down[:, used]}
    if used.sum() <= 1 and (down[:, used] == 1).all():
      del change[f'{tensor}_down']
    if not used.any():
      del change[f'{tensor}_up']
  return change


def forms_of(change: Change) -> dict[str, str]:
  """The names of the forms in a change, by tensor."""
  forms: dict[str, str] = dict.fromkeys(TENSORS, 'none')
  for name, numbers in change.items():
    forms[name[0]] = 'constant' if numbers.size == 1 and name != 'C_down' else 'vector'
  loras = {tensor for tensor in WEIGHT_TENSORS if f'{tensor}_down' in change}
  return forms | {tensor: f'lora:{len(change[f"{tensor}_up"])}' for tensor in loras}


def factors(module: Module, change: Change, tensor: str, scale: float = 1.0) -> Factors:
  """A or B in any form as the factors of a LoRA, which the scale will multiply."""
  down, up = change.get(f'{tensor}_down'), change.get(f'{tensor}_up', np.zeros((0, 1)))
  if down is None:
    down, up = np.ones((module.in_features, len(up)), np.float32), up / scale
  return down, np.broadcast_to(up.astype(np.float32), (len(up), module.out_features))


def shift(module: Module, change: Change) -> np.ndarray:
  """The change of a module's bias: b * D + E + C W, [out]."""
  added = module.bias() * change.get('D', 0) + change.get('E', 0)
  return added + (change['C_down'].T @ module.kernel())[0] if 'C_down' in change else added


# Tensors and fields that several kinds have.


def _largest_rank(changes: Changes) -> int:
  """The largest rank of A and B, or 1."""
  return max([1, *(len(change.get(t, ())) for _, change in changes for t in ('A_up', 'B_up'))])


def _padded(pair: Factors, rank: int) -> Factors:
  """Factors of a rank or more, filled up with zeros."""
  down, up = pair
  missing = max(0, rank - len(up))
  return np.pad(down, ((0, 0), (0, missing))), np.pad(up, ((0, missing), (0, 0)))


def _write_pairs(prefix: str, pairs: Sequence[tuple[Module, Factors]]) -> tuple[Arrays, Fields]:
  """The pairs of LoRA or HiRA, and the fields that both have."""
  tensors, ranks = {}, {}
  for module, pair in pairs:
    for name, value in zip(_pair_names(prefix, module), module.to_torch(pair), strict=True):
      tensors[f'{module.name}.{name}'] = value
    ranks[module.target] = len(pair[1])
  is_conv1d = any(module.kind == 'Conv1D' for module, _ in pairs)
  return tensors, {'fan_in_fan_out': is_conv1d, **_by_module('r', 'rank', ranks)}


def _read_pair(prefix: str, module: Module, tensors: Arrays) -> Factors:
  """The factors of a module's LoRA or HiRA."""
  first, second = _pair_names(prefix, module)
  expert, experts = module.expert
  rank = len(tensors.get(first, ())) // experts
  down = _take(tensors, first, experts * rank, *module.torch_inputs)
  up = _take(tensors, second, module.out_features, rank * experts)
  return module.from_torch((np.split(down, experts)[expert], up[:, expert::experts]))


def _pair_names(prefix: str, module: Module) -> tuple[str, str]:
  if module.kind == 'Embedding':
    return f'{prefix}_embedding_A', f'{prefix}_embedding_B'
  end = '.weight' if prefix == 'lora' else ''
  return f'{prefix}_A{end}', f'{prefix}_B{end}'


def _take(tensors: Arrays, name: str, *shape: int) -> np.ndarray:
  """Removes a tensor, and returns it in float32 and in a shape that may lack axes of size one."""
  found = tensors.pop(name, None)
  if found is None:
    raise ValueError(f'it has no {name}, and {shape} is needed')
  if [n for n in found.shape if n > 1] != [n for n in shape if n > 1]:
    raise ValueError(f'it has {found.shape} as {name}, and {shape} is needed; {EXTEND}')
  return found.astype(np.float32, copy=False).reshape(shape)


def _by_module(field: str, pattern: str, values: Mapping[str, float]) -> Fields:
  """The largest value of all modules, and if they differ, PEFT's pattern with that of each.

  PEFT uses the first key of a pattern that a module's name ends with, so longer ones come first.
  """
  if not values:
    return {}
  largest, patterns = max(values.values()), {}
  if min(values.values()) < largest:
    patterns = {module: values[module] for module in sorted(values, key=len, reverse=True)}
  return {field: largest, f'{pattern}_pattern': patterns}


def _of_module(module: str, config: Fields, pattern: str, field: str, default: Any) -> float:
  """The value of the first pattern that a module's name ends with, or else the usual one."""
  for key, value in (config.get(pattern) or {}).items():
    if re.fullmatch(rf'(.*\.)?({key})', module):
      return float(value)
  return float(config.get(field, default))


_LORA = (*_MODULES, ROWS, 'B', _SHIFT)
KINDS: Mapping[str, Kind] = {  # the narrowest first
  'lora': Kind('LoRA', 'LORA', read_lora, write_lora, (*_LORA, PARAMETER)),
  'hira': Kind('HiRA', 'HIRA', read_hira, write_hira, (*_MODULES, 'A', 'LoRAs of A')),
  'dora': Kind(
    'DoRA', 'LORA', read_lora, functools.partial(write_lora, is_dora=True), (*_LORA, 'A')
  ),
  'glora': Kind('GLoRA', 'GLORA', read_glora, write_glora, ('Linear', *_NEEDS.values(), _SHIFT)),
  'rows': Kind('trainable tokens', 'TRAINABLE_TOKENS', read_rows, holds=_LORA),
  'ia3': Kind('IA3', 'IA3', read_ia3, holds=_MODULES),
}
