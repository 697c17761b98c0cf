"""The table of supports: shapes, initial values, and which numbers a form reads."""

import itertools

import jax
import numpy as np
import pytest

from glora_jax.method.adapter import ADAPTER, adapter_shapes, init_arrays, used_parts
from glora_jax.method.space import Layer, SearchSpace


@pytest.mark.parametrize('ranks', [(4,), (2, 3)])
@pytest.mark.parametrize('shared', [True, False])
@pytest.mark.parametrize('bias', [True, False])
def test_used_parts_hold_as_many_numbers_as_are_counted(ranks, shared, bias):
  layer = Layer('layer', 5, 7, bias, SearchSpace(ranks, shared=shared))
  shapes = adapter_shapes(5, 7, ranks, bias, shared)
  for forms in itertools.product(*(range(len(layer.space.names(t))) for t in 'ABCDE')):
    parts = used_parts(forms, ranks, bias, shared)
    used = sum(np.zeros(shapes[name])[part].size for name, part in parts.items())
    assert used == sum(layer.costs(t)[code] for t, code in zip('ABCDE', forms, strict=True))


def test_one_factor_of_every_lora_is_drawn_and_all_else_is_zero():
  shapes = adapter_shapes(5, 7, (4,), shared=False)
  adapter = init_arrays(jax.random.key(0)[None], (), shapes, np.float32)
  drawn = {name for name, value in adapter.items() if np.any(value)}
  assert drawn == {'A_down', 'B_down', 'C_up'} == {n for n, s in ADAPTER.items() if s.drawn}
  limit = np.sqrt(6 / (5 + 4))  # Glorot's, of 5 inputs and rank 4
  assert 0.5 * limit < np.abs(adapter['A_down']).max() < limit
