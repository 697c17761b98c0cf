"""ViTs of the published sizes."""

from typing import Any

from glora_jax.vision.models.vit import ViT

# Width, depth, heads of the published sizes (Steiner et al. 2022, arXiv 2106.10270, table 2).
SIZES: dict[str, dict[str, Any]] = {
  'Ti': {'width': 192, 'depth': 12, 'num_heads': 3},
  'S': {'width': 384, 'depth': 12, 'num_heads': 6},
  'B': {'width': 768, 'depth': 12, 'num_heads': 12},
  'L': {'width': 1024, 'depth': 24, 'num_heads': 16},
  'H': {'width': 1280, 'depth': 32, 'num_heads': 16},
}


def vit(size: str, num_classes: int, **fields: Any) -> ViT:
  """The ViT of a published size; `fields` override those of the size."""
  return ViT(num_classes, **{**SIZES[size], **fields})
