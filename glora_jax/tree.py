"""Nested dictionaries by path."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import numpy as np

Path = tuple[str, ...]


def flatten(tree: Any) -> dict[Path, Any]:
  """The leaves of a nested dictionary by path; metadata boxes count as leaves."""
  return flax.traverse_util.flatten_dict(flax.core.unfreeze(tree))


def get(tree: Any, path: Path) -> Any:
  """The value of a nested dictionary at a path."""
  for name in path:
    tree = tree[name]
  return tree


def replace(tree: Any, path: Path, value: Any) -> Any:
  """A nested dictionary with the value at a path replaced or added.

  Boxes and frozen dictionaries stay what they were.
  """
  if not path:
    return tree.replace_boxed(value) if isinstance(tree, nn.meta.AxisMetadata) else value
  name, *rest = path
  changed = {name: replace(tree.get(name, {}), tuple(rest), value)}
  return tree.copy(changed) if isinstance(tree, flax.core.FrozenDict) else {**tree, **changed}


def partition(tree: Any, belongs: Callable[[Path], bool]) -> tuple[dict, dict]:
  """Two nested dictionaries: the leaves whose paths belong to the first, and the others."""
  first, second = {}, {}
  for path, value in flatten(tree).items():
    (first if belongs(path) else second)[path] = value
  return flax.traverse_util.unflatten_dict(first), flax.traverse_util.unflatten_dict(second)


def union(first: Any, second: Any) -> dict[str, Any]:
  """A nested dictionary with the leaves of two; the second's where they share a path."""
  return flax.traverse_util.unflatten_dict({**flatten(first), **flatten(second)})


def cut_to(values: Any, template: Any) -> Any:
  """Arrays cut to their beginnings that have the shapes of a template's, a tree like theirs."""
  return jax.tree.map(_beginning, values, template)


def _beginning(value: Any, template: Any) -> Any:
  if np.shape(value) == np.shape(template):
    return value
  return value[tuple(map(slice, np.shape(template)))]


def path_name(path: Path) -> str:
  """The '/'-joined path; parts may be integers, the items of a bridged NNX model's lists."""
  return '/'.join(map(str, path))


def differences(given: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
  """What is missing, unexpected and misshaped among named arrays.

  Args:
    given: the arrays, by name.
    expected: what they should be, anything with shapes, by name.

  Returns:
    A phrase for each kind of difference that occurs; none if all is well.
  """
  misshaped = [
    f'{name} is {np.shape(given[name])} and should be {expected[name].shape}'
    for name in sorted(expected.keys() & given.keys())
    if np.shape(given[name]) != expected[name].shape
  ]
  kinds = {
    'missing': sorted(expected.keys() - given.keys()),
    'unexpected': sorted(given.keys() - expected.keys()),
    'misshaped': misshaped,
  }
  return [f'{kind}: {", ".join(names)}' for kind, names in kinds.items() if names]


def fingerprint(params: Any) -> str:
  """SHA-256 over names, shapes, types and contents of all tensors of a nested dictionary."""
  digest = hashlib.sha256()
  for name, boxed in sorted(flax.traverse_util.flatten_dict(params, sep='/').items()):
    value = np.asarray(nn.meta.unbox(boxed), order='C')
    digest.update(f'{name}:{value.shape}:{value.dtype};'.encode())
    digest.update(value.tobytes())
  return digest.hexdigest()
