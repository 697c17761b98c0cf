"""Normalization of pixels, as a backbone was trained."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp

from glora_jax.checks import shown, validate

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation by channel

NORMALIZATIONS: dict[str, Statistics] = {
  'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
  'inception': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
  'clip': ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
  'unit': ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}

Normalization = str | Statistics


def statistics(normalization: Normalization) -> Statistics:
  """Mean and standard deviation of images in [0, 1], a number for each channel.

  Args:
    normalization: name in `NORMALIZATIONS`, or mean and deviation.

  Raises:
    ValueError: neither a known name nor two valid triples of numbers.

  Example:
    >>> statistics('inception')[0]
    (0.5, 0.5, 0.5)
  """
  if isinstance(normalization, str) and normalization in NORMALIZATIONS:
    return NORMALIZATIONS[normalization]
  with contextlib.suppress(TypeError, ValueError):  # of other types, or not two
    mean, deviation = validate(normalization, tuple[tuple[float, ...], ...], 'normalization')
    if len(mean) == len(deviation) == 3 and min(deviation) > 0:
      return mean, deviation
  raise ValueError(
    f'normalization={shown(normalization)} is unknown; use one of {", ".join(NORMALIZATIONS)}, or '
    'mean and deviation: three finite numbers each, the deviations above 0.'
  )


def normalize(images: jax.Array, normalization: Normalization) -> jax.Array:
  """Normalizes pixels as a backbone expects them.

  Args:
    images: uint8 [..., 3].
    normalization: 'imagenet' and 'clip' subtract the mean and divide by the deviation of these
      data sets, 'inception' scales to [-1, 1], 'unit' to [0, 1]; or mean and deviation, three
      numbers each.

  Returns:
    float32 [..., 3].

  Raises:
    ValueError: the normalization is unknown.

  Example:
    >>> normalize(jnp.array([0, 255, 255], jnp.uint8), 'inception')
    Array([-1.,  1.,  1.], dtype=float32)
  """
  mean, deviation = (jnp.asarray(values, jnp.float32) for values in statistics(normalization))
  return (images.astype(jnp.float32) / 255 - mean) / deviation
