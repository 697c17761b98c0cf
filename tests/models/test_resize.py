"""Resizing of position and patch embeddings: what any interpolation must do, and what theirs do."""

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from glora_jax.models.resize import INTERPOLATIONS, resize_patch_embed, resize_pos_embed

# JAX compiles 'bicubic_antialias' for each pair of shapes: a few say what many would.
sides = st.sampled_from((1, 2, 5, 8))


@hypothesis.given(sides, sides, sides, sides, st.booleans(), st.sampled_from(INTERPOLATIONS))
@hypothesis.settings(max_examples=40, deadline=None)
def test_constants_stay_and_the_class_token_is_left_alone(
  h, w, new_h, new_w, class_token, interpolation
):
  old = np.full((1, h * w + class_token, 3), 2.5, np.float32)
  old[:, : int(class_token)] = 7
  new = resize_pos_embed(old, (h, w), (new_h, new_w), interpolation)
  assert new.shape == (1, new_h * new_w + class_token, 3)
  assert new.dtype == np.float32
  np.testing.assert_array_equal(new[:, : int(class_token)], old[:, : int(class_token)])
  np.testing.assert_allclose(new[:, int(class_token) :], 2.5, rtol=1e-5)


@pytest.mark.parametrize('interpolation', INTERPOLATIONS)
def test_the_same_grid_changes_nothing_and_rows_are_no_columns(interpolation):
  old = np.random.default_rng(0).normal(size=(1, 13, 2)).astype(np.float32)
  np.testing.assert_array_equal(resize_pos_embed(old, (3, 4), (3, 4), interpolation), old)
  ramp = np.arange(3, dtype=np.float32).repeat(4)[None, :, None]  # grows from row to row
  wide = resize_pos_embed(ramp, (3, 4), (3, 8), interpolation).reshape(3, 8)
  np.testing.assert_allclose(wide, np.arange(3)[:, None] * np.ones((1, 8)), atol=1e-5)


@pytest.mark.parametrize('old, new', [(2, 2), (2, 7), (3, 4), (4, 8)])
def test_an_enlarged_patch_is_embedded_as_the_patch_was(old, new):
  rng = np.random.default_rng(0)
  channels = old * old  # as many as the resizing inside, so that both are compiled once
  kernel = rng.normal(size=(old, old, channels, 4)).astype(np.float32)
  patch = rng.normal(size=(old, old, channels)).astype(np.float32)
  larger = jax.image.resize(
    patch, (new, new, channels), 'cubic', antialias=True, precision=jax.lax.Precision.HIGHEST
  )
  np.testing.assert_allclose(
    np.einsum('hwc,hwcd->d', larger, resize_patch_embed(kernel, new)),
    np.einsum('hwc,hwcd->d', patch, kernel),
    atol=1e-3,
  )
