"""Pytrees by path: nested dictionaries, and all others."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

KeyPath = tuple[str, ...]
"""The place of a leaf in a pytree, as `flatten` gives it."""


def flatten(tree: Any) -> dict[KeyPath, Any]:
  """The leaves of a pytree by path, in the tree's own order.

  A path is `jax.tree_util.keystr(keys, simple=True, separator='/')`, split at '/'. Linen's metadata
  boxes are leaves, an NNX variable is its array, and None is not a leaf.

  Args:
    tree: nested dictionaries, or any other pytree: lists, dataclasses, an NNX state.

  Raises:
    ValueError: two leaves have the same path.
  """
  if _is_nested(tree):
    return flax.traverse_util.flatten_dict(flax.core.unfreeze(tree))
  found = {}
  for keys, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_box):
    path = path_of(keys)
    if path in found:
      raise ValueError(
        f'Two parameters have the path {path_name(path)}; give them different names.'
      )
    found[path] = _bare(leaf)
  return {path: leaf for path, leaf in found.items() if jax.tree.leaves(leaf)}


def path_of(keys: jax.tree_util.KeyPath) -> KeyPath:
  """JAX's key path as a path of strings."""
  return tuple(jax.tree_util.keystr(keys, simple=True, separator='/').split('/')) if keys else ()


def plain_path(parts: Iterable[Any]) -> KeyPath:
  """A path as `flatten` returns it, from parts that may be numbers or have '/' in them."""
  return tuple(name for part in parts for name in str(part).split('/'))


def map_with_path(function: Callable[[KeyPath, Any], Any], tree: Any) -> Any:
  """A pytree with a function applied to the path and value of every leaf.

  Args:
    function: gets a path and a leaf, as of `flatten`. Its value is put into the leaf's box or
      variable.
    tree: any pytree.
  """

  def apply(keys, leaf):
    return _put_into(leaf, function(path_of(keys), _bare(leaf)))

  return jax.tree_util.tree_map_with_path(apply, tree, is_leaf=_is_box)


def _is_nested(tree: Any) -> bool:
  """Whether a tree is nested dictionaries of leaves, whose keys are strings without '/'."""
  return _has_plain_keys(tree) and all(
    isinstance(value, nn.meta.AxisMetadata)
    or jax.tree_util.all_leaves([value])
    or (value and _is_nested(value))
    for value in tree.values()
  )


def _has_plain_keys(tree: Any) -> bool:
  is_dictionary = type(tree) in (dict, flax.core.FrozenDict)
  return is_dictionary and all(isinstance(key, str) and '/' not in key for key in tree)


def _is_box(value: Any) -> bool:
  return isinstance(value, nn.meta.AxisMetadata) or _is_variable(value)


def _is_variable(value: Any) -> bool:
  """Whether a value is an NNX variable of one array."""
  nnx = sys.modules.get('flax.nnx')  # imported if there are variables; it takes long
  is_variable = nnx is not None and isinstance(value, nnx.Variable)
  return is_variable and len(jax.tree.leaves(value, is_leaf=_is_none)) == 1


def _is_none(value: Any) -> bool:
  return value is None


def _bare(leaf: Any) -> Any:
  return jax.tree.leaves(leaf, is_leaf=_is_none)[0] if _is_variable(leaf) else leaf


def _put_into(leaf: Any, value: Any) -> Any:
  """A value put into the box or variable of a leaf, unless it is in one itself."""
  if _is_box(value):
    return value
  if isinstance(leaf, nn.meta.AxisMetadata):
    return leaf.replace_boxed(value)
  return jax.tree.map(lambda _: value, leaf, is_leaf=_is_none) if _is_variable(leaf) else value


def get(tree: Any, path: KeyPath) -> Any:
  """The value of a pytree at a path; in nested dictionaries it may be a dictionary."""
  for depth, name in enumerate(path):
    if not (isinstance(tree, dict | flax.core.FrozenDict) and name in tree):
      return flatten(tree)[path[depth:]]
    tree = tree[name]
  return _bare(tree)


def replace(tree: Any, path: KeyPath, value: Any) -> Any:
  """A pytree with the value at a path replaced; for many use `update`, which is linear."""
  return update(tree, {path: value})


def update(tree: Any, changes: Mapping[KeyPath, Any]) -> Any:
  """A pytree with values replaced by path or, in a dictionary, added.

  Boxes, frozen dictionaries and all other nodes keep their types. Each node is copied once, however
  many values change in it.

  Raises:
    KeyError: a node that is not a dictionary has no leaf at a path.
  """
  if () in changes:
    return _put_into(tree, changes[()])
  if not _has_plain_keys(tree):
    if missing := changes.keys() - flatten(tree).keys():
      raise KeyError(', '.join(sorted(map(path_name, missing))))
    return map_with_path(lambda path, value: changes.get(path, value), tree)
  inside: dict[str, dict[KeyPath, Any]] = {}
  for (name, *rest), value in changes.items():
    inside.setdefault(name, {})[tuple(rest)] = value
  changed = {name: update(tree.get(name, {}), part) for name, part in inside.items()}
  return tree.copy(changed) if isinstance(tree, flax.core.FrozenDict) else {**tree, **changed}


def partition(tree: Any, belongs: Callable[[KeyPath], bool]) -> tuple[Any, Any]:
  """Two trees: the leaves whose paths belong to the first, and the others.

  Nested dictionaries become two nested dictionaries, each with its own leaves. Another pytree
  becomes two of its structure, each with None instead of the other's leaves.
  """
  if not _is_nested(tree):
    return (
      map_with_path(lambda path, leaf: leaf if belongs(path) else None, tree),
      map_with_path(lambda path, leaf: None if belongs(path) else leaf, tree),
    )
  first, second = {}, {}
  for path, value in flatten(tree).items():
    (first if belongs(path) else second)[path] = value
  return flax.traverse_util.unflatten_dict(first), flax.traverse_util.unflatten_dict(second)


def union(first: Any, second: Any) -> Any:
  """The inverse of `partition`; a leaf that both trees have is the second's."""
  leaves = {**flatten(first), **flatten(second)}
  with_gaps = [tree for tree in (second, first) if not _is_nested(tree)]
  if not with_gaps:
    return flax.traverse_util.unflatten_dict(leaves)
  return jax.tree_util.tree_map_with_path(
    lambda keys, leaf: _put_into(leaf, leaves.get(path_of(keys))),
    with_gaps[0],
    is_leaf=lambda value: _is_none(value) or _is_box(value),
  )


def join(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
  """Two dictionaries of collections as one, with the `union` of those that are in both."""
  both = {name: union(first[name], second[name]) for name in first.keys() & second.keys()}
  return {**first, **second, **both}


def path_name(path: KeyPath) -> str:
  """The '/'-joined path; parts may be integers, as in the lists of a bridged NNX model."""
  return '/'.join(map(str, path))


def by_name(flat: Mapping[KeyPath, Any]) -> dict[str, Any]:
  """What `flatten` returns by '/'-joined paths, out of its boxes."""
  return {path_name(path): nn.meta.unbox(value) for path, value in flat.items()}


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
  """Names of missing, unexpected and misshaped arrays.

  Args:
    found: arrays by name.
    expected: anything with the shapes that they should have, by name.

  Returns:
    A phrase for each kind of difference that occurs.
  """
  misshaped = [
    f'{name} is {np.shape(found[name])} and should be {expected[name].shape}'
    for name in sorted(expected.keys() & found.keys())
    if np.shape(found[name]) != expected[name].shape
  ]
  kinds = {
    'missing': sorted(expected.keys() - found.keys()),
    'unexpected': sorted(found.keys() - expected.keys()),
    'misshaped': misshaped,
  }
  return [f'{kind}: {grouped(names)}' for kind, names in kinds.items() if names]


def grouped(names: Iterable[str]) -> str:
  """Names in one line, in which those that differ only in a block's number are one.

  Example:
    >>> grouped(['blocks.0.norm1.bias', 'blocks.1.norm1.bias', 'cls_token'])
    'blocks.{0-1}.norm1.bias, cls_token'
  """
  numbers: dict[str, list[int]] = {}
  for name in names:
    number = re.search(r'(?<=[._/])\d+(?=[./])', name)
    pattern = f'{name[: number.start()]}{{}}{name[number.end() :]}' if number else name
    numbers.setdefault(pattern, []).extend([int(number.group())] if number else [])
  return ', '.join(_numbered(pattern, sorted(numbers[pattern])) for pattern in sorted(numbers))


def _numbered(pattern: str, numbers: Sequence[int]) -> str:
  if not numbers:
    return pattern
  first, last = numbers[0], numbers[-1]
  is_range = len(numbers) > 1 and numbers == list(range(first, last + 1))
  text = f'{{{first}-{last}}}' if is_range else ','.join(map(str, numbers))
  return pattern.replace('{}', text, 1)


def fingerprint(params: Any) -> str:
  """SHA-256 of the names, shapes, types and contents of all tensors of a pytree.

  Python's numbers and strings are tensors of one item; functions and other objects are ignored.

  Args:
    params: any pytree; see `on_host` for arrays that are spread over processes.
  """
  return fingerprints(params, None)[0]


def fingerprints(params: Any, *rounded: str | None) -> list[str]:
  """Fingerprints of a pytree, all in one pass with one tensor on the host at a time.

  Args:
    params: any pytree.
    *rounded: for each fingerprint the 16-bit type that longer floating-point numbers are rounded
      to; None for none.
  """
  digests = [hashlib.sha256()] * len(rounded)  # one for all, until a rounded tensor differs
  for name, leaf in sorted(by_name(flatten(params)).items()):
    value = on_host(leaf)
    if value.dtype.hasobject:  # its bytes are an address
      continue
    is_long = jnp.issubdtype(value.dtype, jnp.floating) and value.itemsize > 2
    if is_long:
      digests = [digest.copy() for digest in digests]
    for digest, dtype in dict(zip(digests, rounded, strict=True)).items():
      with np.errstate(over='ignore'):
        array = value.astype(dtype) if dtype and is_long else value
      digest.update(f'{name}:{array.shape}:{array.dtype};'.encode())
      digest.update(array.tobytes())
  return [digest.hexdigest() for digest in digests]


def on_host(leaf: Any) -> np.ndarray:
  """A leaf as a NumPy array. If it is spread over processes, all must call this.

  `np.asarray(leaf)` would cache its result in the JAX array, so a base would stay on the host as
  well as on the devices. The arrays of its shards are new objects, which take their caches along.
  """
  if not isinstance(leaf, jax.Array):
    return np.asarray(leaf, order='C')
  if leaf.is_fully_replicated:
    return np.asarray(leaf.addressable_data(0))
  if not leaf.is_fully_addressable:
    return multihost_utils.process_allgather(leaf, tiled=True)
  array = np.empty(leaf.shape, leaf.dtype)
  for shard in leaf.addressable_shards:
    array[shard.index] = shard.data
  return array
