"""Structures as users write them: a preset, choices by layer, a genome, or an adapter.

A preset is called BASE[:RANK][@TARGET]: `lora`, `hira:2`, `lora:2@qkv`. Whether a layer is in
attention or in an MLP, and in which block, is read from the names that code bases use:
`blocks/qkv[2]`, `encoderblock_3/MlpBlock_0/Dense_1`, `layers/3/self_attn/q_proj`,
`encoder/layer/3/attention/output/dense`.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeGuard

import numpy as np

from glora_jax.checks import listed, printable, shown
from glora_jax.files import read_tensors
from glora_jax.method.genomes import canonicalize, check_one_genome, codes_of, genome_from_json
from glora_jax.method.selection import matches
from glora_jax.method.space import (
  TENSORS,
  SearchSpace,
  Spaces,
  Spec,
  Tensor,
  check_spec,
)

# A preset's name, a path, choices by layer or the content of a file, a genome.
Structure = str | os.PathLike | Mapping[str, Any] | Sequence | np.ndarray
_OF_BIASES = ('bitfit', 'prompt')  # presets that change nothing but biases
TARGETS = ('qkv', 'attn', 'mlp', 'last_half')
Role = Literal['qkv', 'proj', 'mlp']
# Names of modules that hold layers; the innermost decides.
_ATTENTION = re.compile('attn|attention', re.IGNORECASE)
_MLP = re.compile('mlp|ffn|feed_?forward|^ff(_|$)|dense_?relu_?dense', re.IGNORECASE)
_MLP_OF_BERT = re.compile('^(intermediate|output)$')
_NEITHER = re.compile('embed|head', re.IGNORECASE)
# Names of layers.
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
_PARAMETER = re.compile('w|weight|kernel')  # a layer that is named by its parameter
_INDEX = re.compile(r'\[([\d,]+)\]$')
_NUMBERED = re.compile(r'(|.*_|.*(?:block|layer|stage)s?)(\d+)', re.IGNORECASE)


# The methods that GLoRA contains, and the largest structure of all: the forms that are not none,
# the same in all layers of the target. 'lora' has the rank in the preset's name, or the largest.
PRESETS: Mapping[str, Mapping[Tensor, str]] = {
  'linear': {},
  'bitfit': {'E': 'vector'},
  'lora': {'B': 'lora'},
  'dora': {'A': 'vector', 'B': 'lora'},
  'ssf': {'A': 'vector', 'D': 'vector', 'E': 'vector'},
  'prompt': {'C': 'vector'},
  'full': {'A': 'lora', 'B': 'lora', 'C': 'lora', 'D': 'vector', 'E': 'vector'},
  'hira': {'A': 'lora'},
  'scale_shift': {'A': 'vector', 'E': 'vector'},
  'scale_shift_lora': {'A': 'vector', 'B': 'lora', 'E': 'vector'},
}
RANKED = ('lora', 'dora', 'hira', 'scale_shift_lora')
DEFAULT_STRUCTURE = 'lora:8'


class PresetName(NamedTuple):
  """A preset's name in its parts.

  Attributes:
    base: the method, a key of `PRESETS`.
    rank: rank of its LoRA, or None for the largest.
    target: one of `TARGETS`, or a regular expression on the layers' names; None for every layer.
  """

  base: str
  rank: int | None = None
  target: str | None = None


def parse_preset_name(name: str) -> PresetName:
  """The parts of a preset's name.

  Raises:
    ValueError: the name is invalid for every model.

  Example:
    >>> parse_preset_name('lora:2@attn')
    PresetName(base='lora', rank=2, target='attn')
  """
  is_name = isinstance(name, str) and name == printable(name)
  method, at, target = name.partition('@') if is_name else ('', '', '')
  base, colon, rank = method.partition(':')
  if base not in PRESETS:
    raise ValueError(
      f'The preset {shown(name)} is unknown; the presets are {", ".join(PRESETS)}, optionally with '
      f"a rank and a target, as in 'lora:2@qkv'."
    )
  if colon and base not in RANKED:
    raise ValueError(
      f"The preset '{name}' has a rank, but {base} has no LoRA; presets with a LoRA are "
      f'{", ".join(RANKED)}.'
    )
  if colon and not re.fullmatch('[1-9][0-9]*', rank):
    raise ValueError(
      f"The preset '{name}' has the rank '{rank}'; it must be an integer of at least 1, as in "
      f"'{base}:2'."
    )
  try:
    re.compile(target)
  except re.error as error:
    raise ValueError(
      f"The target '{target}' of the preset '{name}' is not a regular expression ({error}); use "
      f'one of {", ".join(TARGETS)}, or a regular expression on names of layers.'
    ) from error
  if at and not target:
    raise ValueError(
      f"The preset '{name}' has no target after its @; use one of {', '.join(TARGETS)}, or a "
      'regular expression on names of layers.'
    )
  return PresetName(base, int(rank) if colon else None, target or None)


def begins_as_preset(text: str) -> bool:
  """Whether a text is meant as a preset's name, even if its rank or target is invalid."""
  return re.split('[:@]', text)[0] in PRESETS


def preset(spec: Spec, name: str) -> np.ndarray:
  """Returns the genome of a method that GLoRA contains, in all layers or in some.

  Args:
    spec: the layers.
    name: `BASE[:RANK][@TARGET]`. The bases are 'linear', 'bitfit', 'lora', 'dora' (A as a vector
      and B as LoRA: it has the weights that DoRA can reach, not its training), 'ssf', 'prompt',
      'full', 'hira' (only A, as LoRA), 'scale_shift' (A and E as vectors) and 'scale_shift_lora'
      (these, and B as LoRA). lora, dora, hira and scale_shift_lora accept a rank; the default is
      the largest. The targets are 'qkv', 'attn' (qkv and proj), 'mlp', 'last_half' (of the blocks),
      or a regular expression that is searched in the layers' names.

  Returns:
    Canonical genome, int8 [layer, 5]. Its forms may be missing from the space's choices.

  Raises:
    ValueError: the name is unknown, the space lacks its rank, no layer matches its target, or the
      method needs a bias and no layer has one.

  Example:
    >>> from glora_jax import Layer, SearchSpace, Spec, preset
    >>> space = SearchSpace(ranks=(1, 2))
    >>> spec = Spec((Layer('attn/qkv', 8, 24, space=space), Layer('mlp/fc1', 8, 32, space=space)))
    >>> preset(spec, 'ssf').tolist()
    [[2, 0, 0, 2, 2], [2, 0, 0, 2, 2]]
    >>> preset(spec, 'lora:2@attn').tolist()
    [[0, 4, 0, 0, 0], [0, 0, 0, 0, 0]]
  """
  check_spec(spec)
  parsed = parse_preset_name(name)
  rows = np.flatnonzero(mask_of_target(spec, parsed.target)).tolist()
  if parsed.base in _OF_BIASES and not any(spec.layers[row].bias for row in rows):
    raise ValueError(
      f"The preset '{name}' trains biases, but no adapted layer has one; use another preset, "
      "'lora:8' for instance."
    )
  forms, rank = dict(PRESETS[parsed.base]), parsed.rank
  if rank is not None:
    forms = {t: f'lora:{rank}' if form == 'lora' else form for t, form in forms.items()}
  genome = np.zeros((len(spec), len(TENSORS)), np.int8)
  for row in rows:
    genome[row] = codes_of(spec.layers[row], forms)
  return canonicalize(spec, genome)


def presets(spec: Spec) -> dict[str, np.ndarray]:
  """Returns every preset that fits a spec, in all layers, with the largest rank.

  Args:
    spec: the layers.

  Returns:
    A dictionary from names of presets to canonical genomes, int8 [layer, 5].

  Example:
    >>> from glora_jax import Layer, Spec, count_params, presets
    >>> spec = Spec((Layer('fc1', 8, 32),))
    >>> counts = {name: count_params(spec, genome) for name, genome in presets(spec).items()}
    >>> counts['bitfit'], counts['lora'], counts['scale_shift_lora']
    (32, 160, 224)
  """
  check_spec(spec)
  biased = any(layer.bias for layer in spec)
  return {name: preset(spec, name) for name in PRESETS if biased or name not in _OF_BIASES}


def custom_genome(spec: Spec, choices: Mapping[str, str | Mapping[str, str | int]]) -> np.ndarray:
  """The genome of choices by layer.

  Args:
    spec: the layers.
    choices: by regular expression (searched in a layer's name), the name of a preset, or the
      forms by tensor as names or codes ('lora' is the largest rank). The first pattern that is
      found in a name decides; a layer without a match gets no adapter. A preset is made for all
      layers that its pattern decides, and its target selects among these.

  Returns:
    Canonical genome, int8 [layer, 5].

  Raises:
    ValueError: a pattern matches no layer or is no regular expression, or a tensor, form or
      preset does not exist.

  Example:
    >>> from glora_jax import Layer, Spec
    >>> spec = Spec((Layer('attn/qkv', 8, 24), Layer('mlp/fc1', 8, 32)))
    >>> custom_genome(spec, {'qkv': {'B': 'lora', 'E': 'constant'}, 'mlp': 'bitfit'}).tolist()
    [[0, 3, 0, 0, 1], [0, 0, 0, 0, 2]]
  """
  names = [layer.name for layer in spec]
  deciding = [next((p for p in choices if matches(p, name)), None) for name in names]
  if unused := [pattern for pattern in choices if pattern not in deciding]:
    raise ValueError(
      f'structure: {listed(map(str, unused))} matches no layer; the layers are: {", ".join(names)}.'
    )
  genome = np.zeros((len(spec), len(TENSORS)), np.int8)
  for pattern, choice in choices.items():
    rows = [row for row, decides in enumerate(deciding) if decides == pattern]
    layers = [spec.layers[row] for row in rows]
    if isinstance(choice, Mapping):
      genome[rows] = [codes_of(layer, choice) for layer in layers]
      continue
    try:
      genome[rows] = preset(Spec(tuple(layers)), choice)
    except ValueError as error:
      raise ValueError(f'structure: among the layers of {shown(pattern)}: {error}') from error
  return canonicalize(spec, genome)


def mask_of_target(spec: Spec, target: str | None) -> np.ndarray:
  """Returns a mask of the layers of a target.

  Args:
    spec: the layers.
    target: one of `TARGETS`, or a regular expression that is searched in the layers' names; None
      for all layers.

  Returns:
    bool [layer].

  Raises:
    ValueError: no layer matches the target.

  Example:
    >>> from glora_jax import Layer, Spec
    >>> spec = Spec(tuple(Layer(f'blocks/{name}[0]', 8, 8) for name in ('qkv', 'proj', 'fc1')))
    >>> mask_of_target(spec, 'attn').tolist()
    [True, True, False]
  """
  names = [layer.name for layer in spec]
  if target is None:
    return np.ones(len(spec), bool)
  if target == 'last_half':
    blocks = block_numbers(names)
    number = 1 + max((block for block in blocks if block is not None), default=-1)
    rows = [block is not None and 2 * block >= number for block in blocks]
  elif target in TARGETS:
    wanted = {'attn': ('qkv', 'proj')}.get(target, (target,))
    rows = [role(name) in wanted for name in names]
  else:
    rows = [re.search(target, name) is not None for name in names]
  if not any(rows):
    raise ValueError(
      f"No adapted layer matches the target '{target}' of a preset; the layers are "
      f'{", ".join(names)}, and a target may be a regular expression on these names.'
    )
  return np.array(rows, bool)


def role(name: str) -> Role | None:
  """The role of a layer in a transformer, read from its name; None if the name does not show it.

  Example:
    >>> role('layers/3/self_attn/q_proj'), role('encoderblock_3/MlpBlock_0/Dense_1')
    ('qkv', 'mlp')
  """
  *parents, layer = _INDEX.sub('', name).split('/')
  if parents and _PARAMETER.fullmatch(layer):
    layer = parents.pop()
  for parent in reversed(parents):
    if _ATTENTION.search(parent):
      return 'qkv' if _QKV.fullmatch(layer) else 'proj'
    if _MLP.search(parent):
      return 'mlp'
  if any(_NEITHER.search(part) for part in (*parents, layer)):
    return None
  if any(_MLP_OF_BERT.search(parent) for parent in parents) or _IN_MLP.fullmatch(layer):
    return 'mlp'
  if _QKV.fullmatch(layer):
    return 'qkv'
  return 'proj' if _OUT.fullmatch(layer) else None


def block_numbers(names: Sequence[str]) -> list[int | None]:
  """The number of every layer's block, counted from 0; None for a layer in no numbered block.

  Blocks differ in the numbers of the modules around a layer or in its index in a stack. If no such
  number varies, they differ in the numbers of the layers themselves.

  Args:
    names: the layers' names.

  Example:
    >>> block_numbers(['embed', 'h_7/attn/query', 'h_7/MlpBlock_0/Dense_0', 'h_9/attn/query'])
    [None, 0, 0, 1]
  """
  around = []  # the modules, outermost first, and the index in a stack as more of them
  for name in names:
    index = _INDEX.search(name)
    around.append([*name.split('/')[:-1], *(index[1].split(',') if index else ())])
  found = _varying_numbers(around)
  if not any(found):
    found = _varying_numbers([name.split('/') for name in names])
  order = {numbers: block for block, numbers in enumerate(sorted(set(found) - {()}))}
  return [order.get(numbers) for numbers in found]


def _varying_numbers(paths: Sequence[Sequence[str]]) -> list[tuple[int, ...]]:
  """For every path its numbers, without those that are the same in all paths."""
  values = defaultdict(set)
  for path in paths:
    for place, number in _numbers(path):
      values[place].add(number)
  return [
    tuple(number for place, number in _numbers(path) if len(values[place]) > 1) for path in paths
  ]


def _numbers(path: Sequence[str]) -> list[tuple[tuple[str, ...], int]]:
  """The numbers in a path, each with the path up to it, which siblings share."""
  found: list[tuple[tuple[str, ...], int]] = []
  for depth, part in enumerate(path):
    match = _NUMBERED.fullmatch(part)
    if match:
      found.append(((*path[:depth], match[1]), int(match[2])))
  return found


def read_structure(structure: Structure | None) -> Any:
  """The structure of an adapter whose path is given; any other structure unchanged.

  A string is a path if it has a suffix or a separator, unless it begins like a preset and there is
  no such file.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is damaged, or of another kind.
  """
  if isinstance(structure, str):
    is_path = os.path.basename(structure) != structure or os.path.splitext(structure)[1]
    if not is_path or (begins_as_preset(structure) and not os.path.exists(structure)):
      return structure
  elif not isinstance(structure, os.PathLike):
    return structure
  path = os.path.expanduser(os.fspath(structure))
  if not os.path.isfile(path):
    wrong = 'is not a file' if os.path.exists(path) else 'does not exist'
    raise FileNotFoundError(
      f"structure='{printable(path)}' {wrong}; pass an adapter, or the name of a preset."
    )
  if path.lower().endswith('.json'):
    raise ValueError(
      f"structure='{printable(path)}' is not an adapter; pass what json.load reads from it."
    )
  return read_tensors(path, 'adapter')[1]


def read_choice(structure: Structure | None, space: Spaces | None) -> tuple[Any, Spaces]:
  """The structure, or None, and the search space that two arguments of `adapt` stand for."""
  if structure is None and space is None:
    structure = DEFAULT_STRUCTURE
  structure = read_structure(structure)
  return structure, smallest_space(structure) if space is None else space


def genome_of(spec: Spec, structure: Structure) -> np.ndarray:
  """The canonical genome of a structure, int8 [layer, 5].

  Args:
    spec: the layers.
    structure: a preset's name (see `preset`), choices by layer (`custom_genome`), a genome int
      [layer, 5], a result of `genome_to_json`, or the path of an adapter.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it does not fit the layers.
  """
  structure = read_structure(structure)
  if isinstance(structure, str):
    return preset(spec, structure)
  if isinstance(structure, Mapping):
    genome = (genome_from_json if _is_of_file(structure) else custom_genome)(spec, structure)
    return canonicalize(spec, genome)
  check_one_genome(spec, structure, 'fix')
  return canonicalize(spec, structure)


def _is_of_file(structure: Any) -> TypeGuard[Mapping[str, Any]]:
  """Whether a structure is the content of a file: choices may have a pattern 'genome', too."""
  is_mapping = isinstance(structure, Mapping)
  return is_mapping and not isinstance(structure.get('genome', ''), str | Mapping)


def smallest_space(structure: Any) -> SearchSpace:
  """The smallest search space that has a structure: the ranks that it names, and a file's scale.

  Args:
    structure: what `read_structure` returned. Without a rank, the space has rank 4.
  """
  of_file = structure if _is_of_file(structure) else {}
  ranks = sorted(set(_ranks(of_file.get('layers') if of_file else structure)))
  scales = of_file.get('scale')
  scale = scales[0] if isinstance(scales, list) and scales else 1.0
  return SearchSpace(ranks=tuple(ranks) or (4,), scale=scale)


def _ranks(structure: Any) -> Iterator[int]:
  """The ranks in a structure's names, in any order; the form 'lora:4' is parsed like a preset."""
  if isinstance(structure, str):
    rank = parse_preset_name(structure).rank if begins_as_preset(structure) else None
    yield from () if rank is None else (rank,)
  elif isinstance(structure, Mapping):
    for value in structure.values():
      yield from _ranks(value)
  elif isinstance(structure, list | tuple):
    for value in structure:
      yield from _ranks(value)
