"""The quickstart's problem in parts: small images of ten classes, and a model like its backbone."""

from glora_jax.vision.data import pipeline
from glora_jax.vision.data.catalog import find
from glora_jax.vision.models.vit import ViT

IMAGE_SIZE = 28
NUM_CLASSES = 10

# As large as the embedded backbone, for those who time it with random parameters.
EMBEDDED_VIT = ViT(NUM_CLASSES, patch_size=7, width=96, depth=6, num_heads=3)


def digits() -> dict[str, pipeline.Split]:
  """800, 200 and 797 images uint8 [n, 28, 28, 3], by split."""
  task = find('digits')
  return {split: pipeline.load(task.open(split), IMAGE_SIZE) for split in ('train', 'val', 'test')}
