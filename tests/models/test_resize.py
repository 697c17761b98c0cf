"""Resizing of position embeddings; `tests/peers/test_peers.py` has timm's and PyTorch's."""

import numpy as np
import pytest

from glora_jax.models.resize import INTERPOLATIONS, resize_pos_embed


@pytest.mark.parametrize('interpolation', INTERPOLATIONS)
def test_the_same_grid_changes_nothing_and_rows_are_no_columns(interpolation):
  old = np.random.default_rng(0).normal(size=(1, 13, 2)).astype(np.float32)
  np.testing.assert_array_equal(resize_pos_embed(old, (3, 4), (3, 4), interpolation), old)
  ramp = np.arange(3, dtype=np.float32).repeat(4)[None, :, None]  # grows from row to row
  wide = resize_pos_embed(ramp, (3, 4), (3, 8), interpolation).reshape(3, 8)
  np.testing.assert_allclose(wide, np.arange(3)[:, None] * np.ones((1, 8)), atol=1e-5)
