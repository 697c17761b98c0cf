"""Images that stay on a device, laid there so that a batch is taken without a copy of all of them.

A TPU has its numbers in rows of 128. Of images [n, height, width, 3] it would put n last, since 3
would fill 3 of the 128; each program that takes some images would first make a copy of all, with n
first. Held image by image, and each of them channel by channel, they need no copy. Where a line of
an image fills less than half of a row, that would take more room than a copy, and is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout

from glora_jax import mesh as meshes

_IMAGE_BY_IMAGE = Layout((0, 3, 1, 2))  # n, channel, height, width
_MOST_CHANNELS = 4  # more may fill a row
_HALF_A_ROW = 64


def hold(mesh: jax.sharding.Mesh | None, tree: Any) -> Any:
  """A tree whose arrays stay on the devices, whole on each; a shape stays one.

  Without a mesh, arrays that are free to go to any of several devices stay as they are.

  Args:
    mesh: the devices; None for one.
    tree: arrays or shapes; images are [n, height, width, channel].

  Example:
    >>> import numpy as np
    >>> held = hold(None, np.zeros((2, 8, 8, 3), np.uint8))
    >>> held.format.layout.major_to_minor  # (0, 3, 1, 2) on a TPU
    (0, 1, 2, 3)
  """
  placed = jax.tree.map(_as_array, tree) if mesh is None else meshes.replicate(mesh, tree)
  return jax.tree.map(laid, placed)


def _as_array(leaf: Any) -> Any:
  return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf)


def laid(array: Any) -> Any:
  """An array, or a shape with a place, image by image where it has images on TPUs."""
  if not (is_on_tpus(array.sharding) and _are_images(array.shape)):
    return array
  wanted = Format(_IMAGE_BY_IMAGE, array.sharding)
  if isinstance(array, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=wanted)
  is_free = not array.committed and jax.device_count() > 1
  if is_free or array.format.layout.major_to_minor == _IMAGE_BY_IMAGE.major_to_minor:
    return array
  return jax.jit(_same, out_shardings=wanted)(array)


def _are_images(shape: Sequence[int]) -> bool:
  """Whether arrays of a shape are images whose lines fill at least half of a row."""
  return len(shape) == 4 and shape[3] <= _MOST_CHANNELS and shape[2] > _HALF_A_ROW


def _same(array: jax.Array) -> jax.Array:
  return array


def is_on_tpus(sharding: jax.sharding.Sharding | None) -> bool:
  """Whether the devices of a sharding are TPUs."""
  return sharding is not None and all(device.platform == 'tpu' for device in sharding.device_set)
