"""A look at the data: `python -m glora_jax.data.show --config configs/own.py:photos/ [--output batch.png]`.

Draws a batch of training images with their labels, above as they are stored and below as training sees them: resized, augmented, and
with the normalization undone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.data import augment, normalization, pipeline
from glora_jax.data.catalog import find
from glora_jax.data.examples import Part
from glora_jax.reports.drawing import panels, save
from glora_jax.runs.config import data_source

IMAGES = 8


def contact_sheet(path: str, rows: list[tuple[str, np.ndarray]], labels: list[str]) -> None:
  """Writes a PNG: rows of images, uint8 [n, height, width, 3], each with its title, and a label over every column."""
  count = len(labels)
  figure, axes = panels(
    len(rows), count, figsize=(1.5 * count, 1.7 * len(rows) + 0.3), squeeze=False
  )
  for line, (title, images) in zip(axes, rows, strict=True):
    for axis, image in zip(line, images, strict=True):
      axis.imshow(image, interpolation='nearest')
      axis.set_xticks([])
      axis.set_yticks([])
    line[0].set_ylabel(title, fontsize=9)
  for axis, label in zip(axes[0], labels, strict=True):
    axis.set_title(label if len(label) <= 18 else label[:17] + '…', fontsize=8)
  save(figure, path, bbox_inches='tight')


def draw(config, path: str) -> None:
  """Draws the contact sheet of a config's training images.

  Args:
    config: of a run; the first images of a permutation by its seed are taken.
    path: of the PNG.
  """
  task = find(config.task, data_source(config))
  examples = task.open('train')
  chosen = np.random.default_rng(config.seed).permutation(len(examples.labels))[:IMAGES]
  size = config.model.image_size or 224
  images, labels = pipeline.load(
    Part(examples, chosen), size, rule=config.data.resize, skip_broken=config.data.skip_broken
  )
  augmentation = augment.Augmentation(**config.augment)
  rows = [('resized', images)]
  mean, deviation = (np.array(values) for values in normalization.NORMALIZATIONS['imagenet'])
  for number in range(2):
    seen = augmentation.apply(
      jax.random.fold_in(jax.random.key(config.seed), number), jnp.asarray(images), size, 'imagenet'
    )
    rows.append(
      (
        f'augmented {number + 1}',
        np.clip((np.asarray(seen) * deviation + mean) * 255, 0, 255).astype(np.uint8),
      )
    )
  contact_sheet(path, rows, [task.classes[label] for label in labels])


if __name__ == '__main__':
  from glora_jax.runs.command_line import OUTPUT, run_with_config

  run_with_config(lambda config: draw(config, OUTPUT.value))
