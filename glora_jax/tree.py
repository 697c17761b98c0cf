"""Nested dictionaries by path."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import numpy as np

Path = tuple[str, ...]


def flatten(tree: Any) -> dict[Path, Any]:
  """The leaves of a nested dictionary by path; metadata boxes count as leaves."""
  return flax.traverse_util.flatten_dict(flax.core.unfreeze(tree))


def differences(given: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
  """What is missing, unexpected and misshaped among named arrays, a phrase for each kind that occurs."""
  kinds = {
    'missing': sorted(expected.keys() - given.keys()),
    'unexpected': sorted(given.keys() - expected.keys()),
    'misshaped': [
      f'{name} is {np.shape(given[name])} and should be {expected[name].shape}'
      for name in sorted(expected.keys() & given.keys())
      if np.shape(given[name]) != expected[name].shape
    ],
  }
  return [f'{kind}: {", ".join(names)}' for kind, names in kinds.items() if names]


def get(tree: Any, path: Path) -> Any:
  """The entry of a nested dictionary at a path."""
  for name in path:
    tree = tree[name]
  return tree


def replace(tree: Any, path: Path, value: Any) -> Any:
  """A nested dictionary with one entry replaced or added; boxes and frozen dictionaries stay what they were."""
  if not path:
    return tree.replace_boxed(value) if isinstance(tree, nn.meta.AxisMetadata) else value
  name, *rest = path
  new = {name: replace(tree.get(name, {}), tuple(rest), value)}
  return tree.copy(new) if isinstance(tree, flax.core.FrozenDict) else {**tree, **new}


def path_name(path: Path) -> str:
  """'/'-joined; parts may be integers, the items of a bridged NNX model's lists."""
  return '/'.join(map(str, path))


def fingerprint(params: Any) -> str:
  """SHA-256 over names, shapes, types and contents of all tensors."""
  digest = hashlib.sha256()
  for name, value in sorted(flax.traverse_util.flatten_dict(params, sep='/').items()):
    value = np.asarray(nn.meta.unbox(value), order='C')
    digest.update(f'{name}:{value.shape}:{value.dtype};'.encode())
    digest.update(value.tobytes())
  return digest.hexdigest()
