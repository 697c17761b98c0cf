"""The quickstart's problem in parts: small images of ten classes, and the embedded backbone.

Or another backbone in its place.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from glora_jax.data import normalization, pipeline
from glora_jax.data.catalog import find
from glora_jax.method.adapt import adapt
from glora_jax.method.adapted import Adapted
from glora_jax.method.space import SearchSpace
from glora_jax.models import weights
from glora_jax.models.vit import ViT
from glora_jax.search.evolution import Evolution

IMAGE_SIZE = 28
NUM_CLASSES = 10
BUDGET = 40_000
SEARCH = Evolution(population=30, generations=6, parents=10, mutations=15, crossovers=15)

# As large as the embedded backbone, for those who time it with random parameters.
EMBEDDED_VIT = ViT(NUM_CLASSES, patch_size=7, width=96, depth=6, num_heads=3)


def digits() -> dict[str, pipeline.Split]:
  """800, 200 and 797 images uint8 [n, 28, 28, 3], by split."""
  task = find('digits')
  return {split: pipeline.load(task.open(split), IMAGE_SIZE) for split in ('train', 'val', 'test')}


def on_device(split: pipeline.Split) -> pipeline.Split:
  """Images and labels as arrays of JAX."""
  return pipeline.Split(*map(jnp.asarray, split))


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
  """A backbone, adapted, with a new head.

  Attributes:
    adapted: what `glora_jax.adapt` returned.
    params: of the model before any training.
    normalization: name of that of its inputs.
  """

  adapted: Adapted
  params: Any
  normalization: str

  @classmethod
  def load(
    cls,
    loaded: Any = None,
    num_classes: int = NUM_CLASSES,
    size: int = IMAGE_SIZE,
    space: SearchSpace = SearchSpace(),
    **fields: Any,
  ) -> 'Backbone':
    """Gives a pretrained model a new head, and adapts it.

    Args:
      loaded: what `weights.load` returned; None for the library's own file.
      num_classes: of the head.
      size: side of its images, in pixels.
      space: forms on offer.
      **fields: of the ViT, in place of what it trains with by default.
    """
    loaded = loaded or weights.load(weights.EMBEDDED_FILE)
    model, params, metadata = weights.refit(*loaded, num_classes=num_classes, image_size=size)
    model = model.clone(**{'remat': 'dots_saveable', 'drop_path': 0.1, **fields})
    adapted = adapt(model, jnp.zeros((1, size, size, 3)), space=space)
    return cls(adapted, params, metadata['normalization'])

  def preprocess(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Images uint8 to inputs of the model, in training as for scores."""
    del key
    return normalization.normalize(images, self.normalization)
