"""The folded model as one file that runs without this package: StableHLO by `jax.export`."""

from __future__ import annotations

from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from glora_jax.data.normalization import normalize
from glora_jax.files import Path, whole
from glora_jax.models.vit import ViT

PLATFORMS = ('cpu', 'cuda', 'tpu')


def export(
  model: ViT, params: Any, image_size: int | list[int], normalization: str | None
) -> jax.export.Exported:
  """Images to logits, the parameters inside, for any batch size and on CPU, GPU and TPU.

  Args:
    model, params: the plain model.
    image_size: its side, or (height, width).
    normalization: of `augment.NORMALIZATIONS`: the exported function then takes uint8 images as they are stored; None: it takes
      float32 images that were normalized before.

  Returns:
    Its input signature, `in_avals`, is [batch, height, width, 3].
  """
  height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
  params = jax.tree.map(jnp.asarray, params)

  def logits(images):
    return model.apply(
      {'params': params}, images if normalization is None else normalize(images, normalization)
    )

  (batch,) = jax.export.symbolic_shape('batch')
  images = jax.ShapeDtypeStruct(
    (batch, height, width, 3), jnp.float32 if normalization is None else jnp.uint8
  )
  return jax.export.export(jax.jit(logits), platforms=PLATFORMS)(images)


def save_exported(path: Path, exported: jax.export.Exported) -> None:
  """Writes what `export` returned, whole or not at all."""
  with whole(path) as temporary, open(temporary, 'wb') as file:
    file.write(exported.serialize())


def load_exported(path: Path) -> jax.export.Exported:
  """Reads it back; `load_exported(path).call(images)` gives logits. Plain JAX does the same: `jax.export.deserialize(bytes)`.

  Raises:
    ValueError: the file is no exported function.
  """
  with open(path, 'rb') as file:
    content = file.read()
  try:
    return jax.export.deserialize(bytearray(content))
  except Exception as error:  # flatbuffers has its own
    raise ValueError(
      f'{path} is no exported function ({type(error).__name__}); write one with glora_jax.convert.'
    ) from error
