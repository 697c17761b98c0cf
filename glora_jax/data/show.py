"""A look at the data of a config.

  python -m glora_jax.data.show --config configs/own.py:photos/ [--output batch.png] [--overwrite]

Draws a batch of training images with their labels, at the size that the model takes: above only
resized, and below as training sees them, augmented, with the normalization undone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from glora_jax.data import pipeline
from glora_jax.data.catalog import expand, find
from glora_jax.data.examples import Part
from glora_jax.data.normalization import statistics
from glora_jax.data.task import Task
from glora_jax.limits import shown
from glora_jax.partial import require_free
from glora_jax.reports.drawing import panels, save
from glora_jax.runs.backbone import image_size_here
from glora_jax.runs.config import check_config_of_task

NUMBER_OF_IMAGES = 8
NUMBER_OF_DRAWS = 2  # rows of augmented images
DEFAULT_SIZE = 224  # of most published weights, which are not downloaded for this
_NORMALIZATION = 'imagenet'
_LONGEST_LABEL = 18


class SheetRow(NamedTuple):
  """A row of a contact sheet.

  Attributes:
    title: what stands beside the row.
    images: uint8 [n, height, width, 3].
  """

  title: str
  images: np.ndarray


def contact_sheet(path: str, rows: Sequence[SheetRow], labels: Sequence[str]) -> None:
  """Writes a picture of rows of images.

  Args:
    path: path of the PNG.
    rows: the rows, all of the same number of images.
    labels: what stands over each column.
  """
  columns = len(labels)
  size = (1.5 * columns, 1.7 * len(rows) + 0.3)
  figure, axes = panels(len(rows), columns, figsize=size, frame=True, squeeze=False)
  for row_axes, row in zip(axes, rows, strict=True):
    for axis, image in zip(row_axes, row.images, strict=True):
      axis.imshow(image, interpolation='nearest')
      axis.set_xticks([])
      axis.set_yticks([])
    row_axes[0].set_ylabel(row.title, fontsize=9)
  for axis, label in zip(axes[0], labels, strict=True):
    short = label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + '…'
    axis.set_title(short, fontsize=8, parse_math=False)
  save(figure, path, bbox_inches='tight')


def draw(config: ml_collections.ConfigDict, path: str, *, overwrite: bool = False) -> None:
  """Draws the contact sheet of a config's training images.

  Args:
    config: config of a run; the first images of a permutation by its seed are taken.
    path: path of the PNG.
    overwrite: whether it may replace a file; an image of the task or its CSV is never replaced.

  Raises:
    ValueError: a field cannot be, or the job has no task or several.
    OSError: the images cannot be read, or the picture not be written.
  """
  settings = check_config_of_task(config)
  names = expand(settings.task)
  if names != [settings.task]:
    raise ValueError(
      f'task={shown(settings.task)} stands for {len(names)} tasks, and the images of one are '
      f'drawn; give --config.task={names[0]} for instance.'
    )
  task = find(settings.task, settings.data)
  require_free(path, overwrite, _inputs(task) if overwrite else ())
  examples = task.open('train')
  order = np.random.default_rng(settings.seed % 2**64).permutation(len(examples.labels))
  size = image_size_here(settings.model) or DEFAULT_SIZE
  images, labels = pipeline.load(
    Part(examples, order[:NUMBER_OF_IMAGES]),
    size,
    rule=settings.data.resize,
    skip_broken=settings.data.skip_broken,
  )
  rows = [SheetRow('resized', images)]
  for number in range(NUMBER_OF_DRAWS):
    key = jax.random.fold_in(jax.random.key(settings.seed), number)
    augmented = settings.augment.apply(key, jnp.asarray(images), size, _NORMALIZATION)
    rows.append(SheetRow(f'augmented {number + 1}', _to_pixels(augmented)))
  contact_sheet(path, rows, [task.classes[label] for label in labels])


def _inputs(task: Task) -> Iterator[str]:
  """The paths of a task's CSV or folder, and of all images that are files."""
  yield task.name.partition(':')[2]
  for split in task.splits:
    examples = task.open(split)
    yield from filter(None, map(examples.file, range(len(examples.labels))))


def _to_pixels(images: jax.Array) -> np.ndarray:
  """Undoes the normalization: float32 [n, height, width, 3] to uint8."""
  mean, deviation = map(np.array, statistics(_NORMALIZATION))
  pixels = np.round((np.asarray(images) * deviation + mean) * 255)
  return np.clip(pixels, 0, 255).astype(np.uint8)


if __name__ == '__main__':
  from glora_jax.runs.command_line import OUTPUT, OVERWRITE, run_with_config

  run_with_config(lambda config: draw(config, OUTPUT.value, overwrite=OVERWRITE.value))
