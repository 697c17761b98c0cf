"""Genomes by name: the methods that GLoRA contains, and choices by layer."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from glora_jax.method.genomes import canonicalize
from glora_jax.method.space import TENSORS, Spec

# A method that GLoRA contains, as codes A B C D E; -1 is the highest code, the largest rank.
_PRESETS = {
  'linear': (0, 0, 0, 0, 0),
  'bitfit': (0, 0, 0, 0, 2),
  'lora': (0, -1, 0, 0, 0),
  'ssf': (2, 0, 0, 2, 2),
  'prompt': (0, 0, 1, 0, 0),
  'full': (-1, -1, -1, 2, 2),
}
PRESET_NAMES = tuple(_PRESETS)
_OF_BIASES = ('bitfit', 'prompt')  # nothing is left of them where no layer has a bias


def preset(spec: Spec, name: str) -> np.ndarray:
  """The genome of a method that GLoRA contains: 'linear', 'bitfit', 'lora', 'ssf', 'prompt' or 'full'.

  Raises:
    ValueError: unknown name, or a method that needs a bias where no layer has one.
  """
  if name not in _PRESETS:
    raise ValueError(f"The preset '{name}' is unknown; the presets are {', '.join(_PRESETS)}.")
  if name in _OF_BIASES and not any(layer.bias for layer in spec):
    raise ValueError(f"The preset '{name}' trains biases, and no adapted layer has one.")
  codes = np.array(_PRESETS[name])
  return canonicalize(spec, np.where(codes < 0, spec.num_codes - 1, codes).astype(np.int8))


def presets(spec: Spec) -> dict[str, np.ndarray]:
  """All presets that exist for a spec, by name."""
  biased = any(layer.bias for layer in spec)
  return {name: preset(spec, name) for name in _PRESETS if biased or name not in _OF_BIASES}


def custom_genome(spec: Spec, choices: Mapping[str, str | Mapping[str, str | int]]) -> np.ndarray:
  """A genome from a short dictionary by path pattern.

  Args:
    spec: of the genome.
    choices: regular expression (searched in a layer's name) -> the name of a preset, or the alleles by tensor as names or codes
      ('lora' is the largest rank). The first pattern that is found in a name decides; a layer that none is found in gets none.

  Returns:
    Canonical genome, int8 [rows, 5].

  Raises:
    ValueError: a pattern matches no layer, or a tensor, allele or preset does not exist.

  Example:
    >>> custom_genome(spec, {'qkv': {'B': 'lora'}, 'mlp': 'bitfit'})   # doctest: +SKIP
  """
  genome, used = np.zeros((len(spec), 5), np.int8), set()
  for row, layer in enumerate(spec):
    pattern = next((pattern for pattern in choices if re.search(pattern, layer.name)), None)
    if pattern is None:
      continue
    used.add(pattern)
    choice = choices[pattern]
    if isinstance(choice, str):
      genome[row] = preset(Spec((layer,)), choice)[0]
      continue
    for tensor, allele in choice.items():
      names = layer.space.names(tensor) if tensor in TENSORS else ()
      codes = {name: code for code, name in enumerate(names)} | (
        {'lora': len(names) - 1} if tensor in 'ABC' else {}
      )
      if codes.get(allele, allele) not in range(len(names)):
        raise ValueError(
          f'custom genome: {layer.name} has no {tensor}={allele!r}; the tensors are A to E, the alleles of {tensor}: '
          f'{", ".join(names) or "none, no such tensor"}.'
        )
      genome[row, TENSORS.index(tensor)] = codes.get(allele, allele)
  if unused := [pattern for pattern in choices if pattern not in used]:
    raise ValueError(
      f'custom genome: {", ".join(unused)} matches no layer; there are: {", ".join(layer.name for layer in spec)}.'
    )
  return canonicalize(spec, genome)
