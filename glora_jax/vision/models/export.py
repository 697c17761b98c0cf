"""A plain model as one file that runs without this package: StableHLO by `jax.export`."""

from __future__ import annotations

from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from glora_jax.files import Path, atomic, open_regular
from glora_jax.vision.data.normalization import Normalization, normalize
from glora_jax.vision.models.metadata import ImageSize, sides
from glora_jax.vision.models.vit import ViT

PLATFORMS = ('cpu', 'cuda', 'tpu')


def export(
  model: ViT, params: Any, image_size: ImageSize, normalization: Normalization | None
) -> jax.export.Exported:
  """Exports images to logits, the parameters inside, for any batch size, on CPU, GPU and TPU.

  Args:
    model: a plain model.
    params: its parameters, nested.
    image_size: size of the images, (height, width) where they are not square.
    normalization: normalization of the images: the exported function then takes uint8 images as
      they are stored. None: it takes float32 images that were normalized before.

  Returns:
    A function of images [batch, height, width, 3], which `in_avals` tells.

  Example:
    >>> model = ViT(num_classes=2, patch_size=4, width=8, depth=1, num_heads=1)
    >>> params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))['params']
    >>> exported = export(model, params, 4, 'imagenet')
    >>> exported.in_avals[0].str_short(), exported.out_avals[0].str_short()
    ('uint8[batch,4,4,3]', 'float32[batch,2]')
  """
  height, width = sides(image_size)
  params = jax.tree.map(jnp.asarray, params)

  def logits(images: jax.Array) -> Any:
    if normalization is not None:
      images = normalize(images, normalization)
    return model.apply({'params': params}, images)

  (batch,) = jax.export.symbolic_shape('batch')
  dtype = jnp.float32 if normalization is None else jnp.uint8
  images = jax.ShapeDtypeStruct((batch, height, width, 3), dtype)
  return jax.export.export(jax.jit(logits), platforms=PLATFORMS)(images)


def save_exported(path: Path, exported: jax.export.Exported) -> None:
  """Writes what `export` returned, whole or not at all."""
  with atomic(path) as temporary, open(temporary, 'wb') as file:
    file.write(exported.serialize())


def load_exported(path: Path) -> jax.export.Exported:
  """Reads an exported function; `load_exported(path).call(images)` gives logits.

  Plain JAX does the same, without this package: `jax.export.deserialize(bytearray(content))`.

  Raises:
    ValueError: the file is no exported function.
  """
  with open_regular(path) as file:
    content = file.read()
  try:
    return jax.export.deserialize(bytearray(content))
  except Exception as error:  # flatbuffers has its own
    raise ValueError(
      f'{path} is not an exported function ({type(error).__name__}); write one with '
      'glora_jax.convert.'
    ) from error
