"""Nested dictionaries, and all other pytrees, by path."""

import dataclasses
import hashlib
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_trees_equal
from flax import nnx
from numpy.testing import assert_array_equal

from glora_jax import tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
  w: Any
  b: Any


BOXED = nn.Partitioned(jnp.ones((2, 3)), names=('in', 'out'))
# Each with a leaf of ones at a path, and one more leaf.
TREES = {
  'frozen': (flax.core.freeze({'a': {'w': np.ones(2)}, 'b': np.zeros(3)}), 'a/w'),
  'boxed': ([BOXED, {'w': BOXED}, np.zeros(3), None], '1/w'),
  'dataclass': ([Layer(np.zeros(3), None), Layer(np.ones(2), None)], '1/w'),
  'slashes': ({'mlp/~/linear': {'w': np.ones(2)}, 'b': np.zeros(3)}, 'mlp/~/linear/w'),
  'empty': ({'a': {'w': np.ones(2)}, 'b': {}, 'c': np.zeros(3)}, 'a/w'),
  'state': (
    nnx.State({'a': {'w': nnx.Param(jnp.ones(2))}, 'b': nnx.Param(jnp.zeros(3))}),
    'a/w',
  ),
  'array': (np.ones(2), ''),
}


@pytest.mark.parametrize('whole, name', TREES.values(), ids=TREES)
def test_a_leaf_is_read_replaced_and_parted_by_its_path(whole, name):
  path = tuple(name.split('/')) if name else ()
  leaf = nn.meta.unbox(tree.get(whole, path))
  assert_array_equal(leaf, 1)
  for changed in (tree.replace(whole, path, 2 * leaf), tree.update(whole, {path: 2 * leaf})):
    assert jax.tree.structure(changed) == jax.tree.structure(whole)
    for other, value in tree.flatten(changed).items():
      expected = nn.meta.unbox(tree.flatten(whole)[other])
      assert_array_equal(nn.meta.unbox(value), expected * (1 + (other == path)))
  first, second = tree.partition(whole, path.__eq__)
  assert list(tree.flatten(first)) == [path]
  assert set(tree.flatten(second)) == set(tree.flatten(whole)) - {path}
  plain = whole.unfreeze() if isinstance(whole, flax.core.FrozenDict) else whole
  assert_trees_equal(tree.union(first, second), plain)
  replaced = tree.union(first, tree.replace(first, path, 2 * leaf))  # the second decides
  assert_array_equal(nn.meta.unbox(tree.get(replaced, path)), 2)


@pytest.mark.parametrize('freeze', [dict, flax.core.freeze])
def test_many_changes_at_once_are_those_of_one_after_another(freeze):
  rng = np.random.default_rng(0)
  whole = freeze({f'l{n}': {'w': BOXED, 'items': [np.zeros(1), {'b': 0.0}]} for n in range(9)})
  paths = [('l3', 'w'), ('l3', 'items', '0'), ('l5', 'items', '1', 'b'), ('l5', 'new', 'c'), ('d',)]
  for number in range(len(paths) + 1):
    changes = {paths[n]: np.full((2, 3), n) for n in rng.permutation(len(paths))[:number]}
    expected = whole
    for path, value in changes.items():
      expected = tree.replace(expected, path, value)
    changed = tree.update(whole, changes)
    assert type(changed) is type(whole)
    assert_trees_equal(changed, expected)


def test_a_path_that_is_not_there_or_that_two_leaves_have_is_refused():
  with pytest.raises(KeyError, match='0/x'):
    tree.update([Layer(1.0, 2.0)], {('0', 'x'): 3.0})
  with pytest.raises(ValueError, match='a/b; give'):
    tree.flatten({'a/b': 1.0, 'a': {'b': 2.0}})


def test_equal_bytes_are_hashed_once_for_all_fingerprints(monkeypatch):
  hashed, sha256 = [], hashlib.sha256

  class Counting:
    def __init__(self, digest=None):
      self.digest = digest or sha256()

    def update(self, content):
      hashed.append(content)
      self.digest.update(content)

    def copy(self):
      return Counting(self.digest.copy())

    def hexdigest(self):
      return self.digest.hexdigest()

  half, single = jnp.arange(3, dtype=jnp.bfloat16), jnp.arange(3) / 7
  kinds = (None, 'bfloat16', 'float16')
  expected = [tree.fingerprints({'a': half, 'b': single}, kind) for kind in kinds]
  monkeypatch.setattr(hashlib, 'sha256', Counting)
  assert len(set(tree.fingerprints({'a': half}, *kinds))) == 1
  assert len(hashed) == 2  # the array's description and its bytes
  assert [[each] for each in tree.fingerprints({'a': half, 'b': single}, *kinds)] == expected
  assert len(hashed) == 2 + 2 + 3 * 2


def test_fingerprints_see_every_change_and_go_by_paths_and_numbers():
  numbers = np.arange(6.0)
  params = {'a': {'0': numbers}, 'c': np.zeros(2), 'eps': 1e-5}
  same = {'eps': 1e-5, 'c': np.zeros(2), 'a': [numbers, None], 'act': jnp.tanh}
  others = [
    *({'0': value} for value in (numbers[::-1], numbers.reshape(2, 3), np.float32(numbers))),
    {'x': numbers},
  ]
  changed = [{**params, 'a': other} for other in others] + [{**params, 'eps': 1e-6}]
  assert tree.fingerprint(same) == tree.fingerprint(params)
  assert len({tree.fingerprint(each) for each in (params, *changed)}) == 6
