"""The table of supports: initial values."""

import jax
import numpy as np

from glora_jax.method.adapter import ADAPTER, adapter_shapes, init_arrays


def test_one_factor_of_every_lora_is_drawn_and_all_else_is_zero():
  shapes = adapter_shapes(5, 7, (4,), shared=False)
  adapter = init_arrays(jax.random.key(0)[None], (), shapes, np.float32)
  drawn = {name for name, value in adapter.items() if np.any(value)}
  assert drawn == {'A_down', 'B_down', 'C_up'} == {n for n, s in ADAPTER.items() if s.drawn}
  limit = np.sqrt(6 / (5 + 4))  # Glorot's, of 5 inputs and rank 4
  assert 0.5 * limit < np.abs(adapter['A_down']).max() < limit
