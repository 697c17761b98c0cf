"""Pixels to the numbers that a backbone was trained on."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Mean and standard deviation per channel of images in [0, 1].
NORMALIZATIONS = {
  'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
  'inception': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
  'clip': ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
  'unit': ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


Normalization = str | tuple[tuple[float, ...], tuple[float, ...]]


def statistics(normalization: Normalization) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """(mean, standard deviation) per channel of a normalization that is named, or given as these two.

  Raises:
    ValueError: neither a known name nor two triples.
  """
  if isinstance(normalization, str) and normalization in NORMALIZATIONS:
    return NORMALIZATIONS[normalization]
  if not isinstance(normalization, str) and jnp.shape(normalization) == (2, 3):
    return tuple(map(tuple, normalization))
  raise ValueError(
    f"normalization='{normalization}' is unknown; it is one of {', '.join(NORMALIZATIONS)}, or mean and deviation, three "
    'numbers each.'
  )


def normalize(images: jax.Array, normalization: Normalization) -> jax.Array:
  """uint8 [..., 3] to float32: 'imagenet' and 'clip' by mean and deviation, 'inception' to [-1, 1], 'unit' to [0, 1]; or see `statistics`."""
  mean, deviation = (jnp.asarray(values, jnp.float32) for values in statistics(normalization))
  return (images.astype(jnp.float32) / 255 - mean) / deviation
