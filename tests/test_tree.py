"""Nested dictionaries, and all other pytrees, by path."""

import dataclasses
from typing import Any

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

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
  'tuple': ((np.zeros(3), (), (np.ones(2), None)), '2/0'),
  'dataclass': ([Layer(np.zeros(3), None), Layer(np.ones(2), None)], '1/w'),
  'slashes': ({'mlp/~/linear': {'w': np.ones(2)}, 'b': np.zeros(3)}, 'mlp/~/linear/w'),
  'numbers': ({0: {'w': np.ones(2)}, 1: np.zeros(3)}, '0/w'),
  'empty': ({'a': {'w': np.ones(2)}, 'b': {}, 'c': np.zeros(3)}, 'a/w'),
  'state': (
    nnx.State({'a': {'w': nnx.Param(jnp.ones(2))}, 'b': nnx.Param(jnp.zeros(3))}),
    'a/w',
  ),
  'array': (np.ones(2), ''),
}


@pytest.fixture(params=TREES)
def case(request):
  whole, name = TREES[request.param]
  return whole, tuple(name.split('/')) if name else ()


def test_a_leaf_is_read_by_its_path(case):
  whole, path = case
  np.testing.assert_array_equal(nn.meta.unbox(tree.flatten(whole)[path]), 1)
  np.testing.assert_array_equal(nn.meta.unbox(tree.get(whole, path)), 1)


@pytest.mark.parametrize('change', ['replace', 'update'])
def test_a_replaced_leaf_is_all_that_changes(case, change):
  whole, path = case
  value = 2 * nn.meta.unbox(tree.get(whole, path))
  changed = (
    tree.replace(whole, path, value) if change == 'replace' else tree.update(whole, {path: value})
  )
  assert jax.tree.structure(changed) == jax.tree.structure(whole)
  for other, leaf in tree.flatten(changed).items():
    expected = nn.meta.unbox(tree.flatten(whole)[other])
    np.testing.assert_array_equal(nn.meta.unbox(leaf), expected * (1 + (other == path)))


def test_the_halves_of_a_partition_make_the_whole(case):
  whole, path = case
  first, second = tree.partition(whole, path.__eq__)
  assert list(tree.flatten(first)) == [path]
  assert set(tree.flatten(second)) == set(tree.flatten(whole)) - {path}
  if isinstance(whole, flax.core.FrozenDict):
    whole = whole.unfreeze()
  chex.assert_trees_all_equal(tree.union(first, second), whole)


def test_the_second_of_a_union_decides():
  whole, path = TREES['dataclass'][0], ('1', 'w')
  first, second = tree.partition(whole, path.__eq__)
  changed = tree.union(second, tree.replace(first, path, np.full(2, 5.0)))
  np.testing.assert_array_equal(tree.get(changed, path), 5)


def test_other_trees_refuse_a_path_that_is_not_there():
  with pytest.raises(KeyError, match='0/x'):
    tree.update([Layer(1.0, 2.0)], {('0', 'x'): 3.0})


def test_two_leaves_may_not_have_one_path():
  with pytest.raises(ValueError, match='a/b; give'):
    tree.flatten({'a/b': 1.0, 'a': {'b': 2.0}})


def test_fingerprints_see_every_change_and_go_by_paths_and_numbers():
  params = {'a': {'0': np.arange(6.0)}, 'c': np.zeros(2), 'eps': 1e-5}
  same = [
    {'eps': 1e-5, 'c': np.zeros(2), 'a': [np.arange(6.0), None]},
    {**params, 'act': lambda x: x},
  ]
  changed = [
    {**params, 'a': {'0': np.arange(6.0)[::-1]}},
    {**params, 'a': {'0': np.arange(6.0).reshape(2, 3)}},
    {**params, 'a': {'x': np.arange(6.0)}},
    {**params, 'a': {'0': np.arange(6.0).astype(np.float32)}},
    {**params, 'eps': 1e-6},
  ]
  assert {tree.fingerprint(params) for params in same} == {tree.fingerprint(params)}
  assert len({tree.fingerprint(params) for params in (params, *changed)}) == 6
