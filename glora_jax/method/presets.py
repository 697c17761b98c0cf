"""Genomes by name: the methods that GLoRA contains, and choices by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from glora_jax.limits import listed, shown
from glora_jax.method.genomes import canonicalize
from glora_jax.method.placement import placed_rows
from glora_jax.method.preset_names import (
  PRESET_NAMES,
  PRESETS,
  parse_preset_name,
)
from glora_jax.method.selection import matches
from glora_jax.method.space import (
  LORA_TENSORS,
  TENSORS,
  Layer,
  Spec,
  Tensor,
  check_spec,
)

_OF_BIASES = ('bitfit', 'prompt')  # nothing is left of them where no layer has a bias


def preset(spec: Spec, name: str) -> np.ndarray:
  """The genome of a method that GLoRA contains, in all layers or in some.

  Args:
    spec: the layers.
    name: `BASE[:RANK][@PLACE]`. The bases are 'linear', 'bitfit', 'lora', 'ssf', 'prompt', 'full',
      'hira' (A alone as LoRA), 'scale_shift' (A and E as vectors) and 'scale_shift_lora' (these,
      and B as LoRA). lora, hira and scale_shift_lora may have a rank, else theirs is the largest.
      The places are 'qkv', 'attn' (qkv and proj), 'mlp', 'last_half' (of the blocks), or a regular
      expression that is searched in the layers' names.

  Returns:
    Canonical genome, int8 [rows, 5]. It has its alleles whatever the space offers to a search.

  Raises:
    ValueError: the name is unknown, the space does not have its rank, no layer is in its place, or
      the method needs a bias where no layer has one.

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
  rows = np.flatnonzero(placed_rows(spec, parsed.place)).tolist()
  if parsed.base in _OF_BIASES and not any(spec.layers[row].bias for row in rows):
    raise ValueError(f"The preset '{name}' trains biases, and no adapted layer has one.")
  alleles, rank = PRESETS[parsed.base], parsed.rank
  genome = np.zeros((len(spec), len(TENSORS)), np.int8)
  for row in rows:
    layer = spec.layers[row]
    if rank is not None and rank not in layer.space.ranks:
      raise ValueError(
        f"The preset '{name}' needs rank {rank}, and the space of {layer.name} has the ranks "
        f'{", ".join(map(str, layer.space.ranks))}; take one of them, or give it that rank.'
      )
    genome[row] = [
      _code(layer, tensor, form, rank) for tensor, form in zip(TENSORS, alleles, strict=True)
    ]
  return canonicalize(spec, genome)


def _code(layer: Layer, tensor: Tensor, form: str, rank: int | None) -> int:
  names = layer.space.names(tensor)
  if form == 'largest' or (form == 'rank' and rank is None):
    return len(names) - 1
  if form == 'rank':
    return names.index(f'lora:{rank}')
  return names.index(form)


def presets(spec: Spec) -> dict[str, np.ndarray]:
  """All bases of presets that exist for a spec, in all layers, with the largest rank.

  Args:
    spec: the layers.

  Returns:
    Canonical genomes, int8 [rows, 5], by the preset's name.

  Example:
    >>> from glora_jax import Layer, Spec, count_params, presets
    >>> spec = Spec((Layer('fc1', 8, 32),))
    >>> counts = {name: count_params(spec, genome) for name, genome in presets(spec).items()}
    >>> counts['bitfit'], counts['lora'], counts['scale_shift_lora']
    (32, 160, 224)
  """
  check_spec(spec)
  biased = any(layer.bias for layer in spec)
  return {name: preset(spec, name) for name in PRESET_NAMES if biased or name not in _OF_BIASES}


def custom_genome(spec: Spec, choices: Mapping[str, str | Mapping[str, str | int]]) -> np.ndarray:
  """A genome from a short dictionary by path pattern.

  Args:
    spec: the layers.
    choices: by regular expression (searched in a layer's name), the name of a preset, or the
      alleles by tensor as names or codes ('lora' is the largest rank). The first pattern that is
      found in a name decides; a layer that none is found in gets none. A preset is that of all
      layers that its pattern decides, and its place is among them.

  Returns:
    Canonical genome, int8 [rows, 5].

  Raises:
    ValueError: a pattern matches no layer or is no regular expression, or a tensor, allele or
      preset does not exist.

  Example:
    >>> from glora_jax import Layer, Spec, custom_genome
    >>> spec = Spec((Layer('attn/qkv', 8, 24), Layer('mlp/fc1', 8, 32)))
    >>> custom_genome(spec, {'qkv': {'B': 'lora', 'E': 'constant'}, 'mlp': 'bitfit'}).tolist()
    [[0, 3, 0, 0, 1], [0, 0, 0, 0, 2]]
  """
  check_spec(spec)
  if not isinstance(choices, Mapping):
    raise ValueError(
      f"choices={shown(choices)} must be a dictionary by regular expression, {{'qkv': 'lora'}} for "
      'instance.'
    )
  names = [layer.name for layer in spec]
  deciding = [next((p for p in choices if matches(p, name)), None) for name in names]
  if unused := [pattern for pattern in choices if pattern not in deciding]:
    raise ValueError(
      f'custom genome: {listed(map(str, unused))} matches no layer; there are: {", ".join(names)}.'
    )
  genome = np.zeros((len(spec), len(TENSORS)), np.int8)
  for pattern, choice in choices.items():
    rows = [row for row, decides in enumerate(deciding) if decides == pattern]
    genome[rows] = _chosen_rows(Spec(tuple(spec.layers[row] for row in rows)), pattern, choice)
  return canonicalize(spec, genome)


def _chosen_rows(spec: Spec, pattern: str, choice: Any) -> Any:
  """Codes of A, B, C, D, E in the layers that a pattern decides, from what it chooses for them."""
  if isinstance(choice, str):
    return _preset_of_pattern(spec, pattern, choice)
  if isinstance(choice, Mapping):
    return [_chosen_codes(layer, choice) for layer in spec]
  raise ValueError(
    f'custom genome: {listed([str(pattern)])}={shown(choice)} must be the name of a preset, or a '
    'dictionary of alleles by tensor.'
  )


def _preset_of_pattern(spec: Spec, pattern: str, name: str) -> np.ndarray:
  """A preset, whose sentence about these layers says that they are those of a pattern."""
  try:
    return preset(spec, name)
  except ValueError as error:
    raise ValueError(f'custom genome: among the layers of {shown(pattern)}: {error}') from error


def _chosen_codes(layer: Layer, choice: Mapping[str, str | int]) -> list[int]:
  """Codes of A, B, C, D, E in a layer, from alleles by tensor; the others are none.

  Raises:
    ValueError: a tensor or an allele does not exist.
  """
  codes: dict[str, int] = dict.fromkeys(TENSORS, 0)
  for tensor, allele in choice.items():
    names = layer.space.names(tensor) if tensor in TENSORS else ()
    if allele == 'lora' and tensor in LORA_TENSORS:
      allele = names[-1]
    code = layer.space.code(tensor, allele) if tensor in TENSORS else None
    if code is None:
      named = tensor if tensor in TENSORS else shown(tensor)
      raise ValueError(
        f'custom genome: {layer.name} has no {named}={shown(allele)}; the tensors are A to E, '
        f'the alleles of {named}: {", ".join(names) or "none, no such tensor"}.'
      )
    codes[tensor] = code
  return list(codes.values())
