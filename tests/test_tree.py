"""Nested dictionaries by path."""

import numpy as np

from glora_jax import tree


def test_fingerprints_see_every_change():
  params = {'a': {'b': np.arange(6.0)}, 'c': np.zeros(2)}
  changed = [
    {'a': {'b': np.arange(6.0)[::-1]}, 'c': np.zeros(2)},
    {'a': {'b': np.arange(6.0).reshape(2, 3)}, 'c': np.zeros(2)},
    {'a': {'x': np.arange(6.0)}, 'c': np.zeros(2)},
    {'a': {'b': np.arange(6.0).astype(np.float32)}, 'c': np.zeros(2)},
  ]
  prints = {tree.fingerprint(params) for params in (params, *changed)}
  assert len(prints) == 5
  assert tree.fingerprint({'c': np.zeros(2), 'a': {'b': np.arange(6.0)}}) in prints
