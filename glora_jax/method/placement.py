"""Where a layer is: in attention or in an MLP, and in which block, read off the layers' names.

Names are those that code bases give: `blocks/qkv[2]`, `encoderblock_3/MlpBlock_0/Dense_1`,
`layers/3/self_attn/q_proj`, `encoder/layer/3/attention/output/dense`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np

from glora_jax.method.space import Spec

PLACES = ('qkv', 'attn', 'mlp', 'last_half')
Role = Literal['qkv', 'proj', 'mlp']

# What a module is called that holds layers; the innermost decides.
_ATTENTION = re.compile('attn|attention', re.IGNORECASE)
_MLP = re.compile('mlp|ffn|feed_?forward|^ff(_|$)|dense_?relu_?dense', re.IGNORECASE)
_MLP_OF_BERT = re.compile('^(intermediate|output)$')
_NEITHER = re.compile('embed|head', re.IGNORECASE)
# What a layer is called.
_PROJECTION = '(_?(proj|projection|einsum|dense|lin|linear))?'
_QKV = re.compile(
  f'(q|k|v|kv|qkv|query|key|value|query_key_value|c_attn|w[qkv]|to_([qkv]|kv|qkv)){_PROJECTION}',
  re.IGNORECASE,
)
_OUT = re.compile(f'(o|out|to_out|wo|c_proj|proj|proj_out|attn_vec){_PROJECTION}', re.IGNORECASE)
_IN_MLP = re.compile(
  r'fc_?\d*|fc_(in|out)|c_fc|w_?[123]|wi(_\d)?|intermediate|gating_einsum|lin(ear)?_?[12]'
  f'|(gate|up|down|gate_up){_PROJECTION}',
  re.IGNORECASE,
)
_PARAMETER = re.compile('w|weight|kernel')  # a layer that is called by its parameter
_INDEX = re.compile(r'\[([\d,]+)\]$')
_NUMBERED = re.compile(r'(|.*_|.*(?:block|layer|stage)s?)(\d+)', re.IGNORECASE)


def placed_rows(spec: Spec, place: str | None) -> np.ndarray:
  """The layers that are in a place.

  Args:
    spec: the layers.
    place: one of `PLACES`, or a regular expression that is searched in the layers' names; None for
      all layers.

  Returns:
    bool [rows].

  Raises:
    ValueError: no layer is in the place; one sentence.

  Example:
    >>> from glora_jax import Layer, Spec
    >>> spec = Spec(tuple(Layer(f'blocks/{name}[0]', 8, 8) for name in ('qkv', 'proj', 'fc1')))
    >>> placed_rows(spec, 'attn').tolist()
    [True, True, False]
  """
  names = [layer.name for layer in spec]
  if place is None:
    return np.ones(len(spec), bool)
  if place == 'last_half':
    rows = _in_last_half(names)
  elif place in PLACES:
    wanted = {'attn': ('qkv', 'proj')}.get(place, (place,))
    rows = [role(name) in wanted for name in names]
  else:
    rows = [re.search(place, name) is not None for name in names]
  if not any(rows):
    raise ValueError(
      f"No adapted layer is in the place '{place}' of a preset; the layers are "
      f'{", ".join(names)}, and a place may be a regular expression on these names.'
    )
  return np.array(rows, bool)


def role(name: str) -> Role | None:
  """What a layer is in a transformer, by its name; None where the name does not say.

  Example:
    >>> role('layers/3/self_attn/q_proj'), role('encoderblock_3/MlpBlock_0/Dense_1')
    ('qkv', 'mlp')
  """
  *parents, own = _INDEX.sub('', name).split('+')[0].split('/')  # of a tie the first
  if parents and _PARAMETER.fullmatch(own):
    own = parents.pop()
  for parent in reversed(parents):
    if _ATTENTION.search(parent):
      return 'qkv' if _QKV.fullmatch(own) else 'proj'
    if _MLP.search(parent):
      return 'mlp'
  if any(_NEITHER.search(part) for part in (*parents, own)):
    return None
  if any(_MLP_OF_BERT.search(parent) for parent in parents) or _IN_MLP.fullmatch(own):
    return 'mlp'
  if _QKV.fullmatch(own):
    return 'qkv'
  return 'proj' if _OUT.fullmatch(own) else None


def _in_last_half(names: Sequence[str]) -> list[bool]:
  blocks = block_numbers(names)
  number = 1 + max((block for block in blocks if block is not None), default=-1)
  return [block is not None and 2 * block >= number for block in blocks]


def block_numbers(names: Sequence[str]) -> list[int | None]:
  """The number of every layer's block, counted from 0; None for a layer in no numbered block.

  Blocks are told apart by the numbers of the modules around a layer and by its index in a stack, as
  far as they vary; where there are none, by the numbers of the layers themselves.

  Args:
    names: the layers' names.

  Example:
    >>> block_numbers(['embed', 'h_7/attn/query', 'h_7/MlpBlock_0/Dense_0', 'h_9/attn/query'])
    [None, 0, 0, 1]
  """
  found = _varying_numbers([_around(name) for name in names])
  if not any(found):
    found = _varying_numbers([name.split('/') for name in names])
  order = {numbers: block for block, numbers in enumerate(sorted(set(found) - {()}))}
  return [order.get(numbers) for numbers in found]


def _around(name: str) -> list[str]:
  """The modules around a layer, outermost first, and its index in a stack as more of them."""
  index = _INDEX.search(name)
  parents = name.split('/')[:-1]
  return parents if index is None else [*parents, *index[1].split(',')]


def _varying_numbers(paths: Sequence[Sequence[str]]) -> list[tuple[int, ...]]:
  """For every path its numbers, without those that are the same wherever they stand."""
  occurring = defaultdict(set)
  for path in paths:
    for place, number in _numbers(path):
      occurring[place].add(number)
  return [
    tuple(number for place, number in _numbers(path) if len(occurring[place]) > 1) for path in paths
  ]


def _numbers(path: Sequence[str]) -> list[tuple[tuple[str, ...], int]]:
  """The numbers in a path, each with what stands before it: the same for siblings."""
  found: list[tuple[tuple[str, ...], int]] = []
  for depth, part in enumerate(path):
    match = _NUMBERED.fullmatch(part)
    if match:
      found.append(((*path[:depth], match[1]), int(match[2])))
  return found
