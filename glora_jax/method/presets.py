"""Genomes by name: the methods that GLoRA contains, and choices by layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from glora_jax.method.genomes import canonicalize
from glora_jax.method.space import LORA_TENSORS, TENSORS, Layer, Spec

Choice = Literal['none', 'vector', 'largest']


class Alleles(NamedTuple):
  """A form for each tensor, alike in all layers; 'largest' is the one with most parameters."""

  A: Choice = 'none'
  B: Choice = 'none'
  C: Choice = 'none'
  D: Choice = 'none'
  E: Choice = 'none'


# The methods that GLoRA contains, and the largest subnet of all.
PRESETS: Mapping[str, Alleles] = {
  'linear': Alleles(),
  'bitfit': Alleles(E='vector'),
  'lora': Alleles(B='largest'),
  'ssf': Alleles(A='vector', D='vector', E='vector'),
  'prompt': Alleles(C='vector'),
  'full': Alleles(A='largest', B='largest', C='largest', D='largest', E='largest'),
}
PRESET_NAMES = tuple(PRESETS)
_OF_BIASES = ('bitfit', 'prompt')  # nothing is left of them where no layer has a bias


def preset(spec: Spec, name: str) -> np.ndarray:
  """The genome of a method that GLoRA contains.

  Args:
    spec: the layers.
    name: 'linear', 'bitfit', 'lora', 'ssf', 'prompt' or 'full'.

  Returns:
    Canonical genome, int8 [rows, 5].

  Raises:
    ValueError: the name is unknown, or the method needs a bias where no layer has one.

  Example:
    >>> from glora_jax import Layer, Spec, preset
    >>> spec = Spec((Layer('fc1', 8, 32), Layer('fc2', 32, 8)))
    >>> preset(spec, 'ssf').tolist()
    [[2, 0, 0, 2, 2], [2, 0, 0, 2, 2]]
  """
  if name not in PRESETS:
    raise ValueError(f"The preset '{name}' is unknown; the presets are {', '.join(PRESETS)}.")
  if name in _OF_BIASES and not any(layer.bias for layer in spec):
    raise ValueError(f"The preset '{name}' trains biases, and no adapted layer has one.")
  genome = np.zeros((len(spec), len(TENSORS)), np.int8)
  for row, layer in enumerate(spec):
    genome[row] = _codes(layer, PRESETS[name])
  return canonicalize(spec, genome)


def _codes(layer: Layer, alleles: Alleles) -> list[int]:
  """Codes of A, B, C, D, E in a layer."""
  codes = []
  for tensor, form in zip(TENSORS, alleles, strict=True):
    names = layer.space.names(tensor)
    codes.append(len(names) - 1 if form == 'largest' else names.index(form))
  return codes


def presets(spec: Spec) -> dict[str, np.ndarray]:
  """All presets that exist for a spec.

  Args:
    spec: the layers.

  Returns:
    Canonical genomes, int8 [rows, 5], by the preset's name.

  Example:
    >>> from glora_jax import Layer, Spec, count_params, presets
    >>> spec = Spec((Layer('fc1', 8, 32),))
    >>> {name: count_params(spec, genome) for name, genome in presets(spec).items()}
    {'linear': 0, 'bitfit': 32, 'lora': 160, 'ssf': 96, 'prompt': 8, 'full': 420}
  """
  biased = any(layer.bias for layer in spec)
  return {name: preset(spec, name) for name in PRESETS if biased or name not in _OF_BIASES}


def custom_genome(spec: Spec, choices: Mapping[str, str | Mapping[str, str | int]]) -> np.ndarray:
  """A genome from a short dictionary by path pattern.

  Args:
    spec: the layers.
    choices: by regular expression (searched in a layer's name), the name of a preset, or the
      alleles by tensor as names or codes ('lora' is the largest rank). The first pattern that is
      found in a name decides; a layer that none is found in gets none.

  Returns:
    Canonical genome, int8 [rows, 5].

  Raises:
    ValueError: a pattern matches no layer, or a tensor, allele or preset does not exist.

  Example:
    >>> from glora_jax import Layer, Spec, custom_genome
    >>> spec = Spec((Layer('attn/qkv', 8, 24), Layer('mlp/fc1', 8, 32)))
    >>> custom_genome(spec, {'qkv': {'B': 'lora', 'E': 'constant'}, 'mlp': 'bitfit'}).tolist()
    [[0, 3, 0, 0, 1], [0, 0, 0, 0, 2]]
  """
  genome = np.zeros((len(spec), len(TENSORS)), np.int8)
  unused = dict.fromkeys(choices)
  for row, layer in enumerate(spec):
    pattern = next((pattern for pattern in choices if re.search(pattern, layer.name)), None)
    if pattern is None:
      continue
    unused.pop(pattern, None)
    choice = choices[pattern]
    if isinstance(choice, str):
      genome[row] = preset(Spec((layer,)), choice)[0]
    else:
      genome[row] = _chosen_codes(layer, choice)
  if unused:
    raise ValueError(
      f'custom genome: {", ".join(unused)} matches no layer; '
      f'there are: {", ".join(layer.name for layer in spec)}.'
    )
  return canonicalize(spec, genome)


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
      raise ValueError(
        f'custom genome: {layer.name} has no {tensor}={allele!r}; the tensors are A to E, '
        f'the alleles of {tensor}: {", ".join(names) or "none, no such tensor"}.'
      )
    codes[tensor] = code
  return list(codes.values())
