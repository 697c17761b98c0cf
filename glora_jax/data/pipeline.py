"""From a task's stored examples to arrays: decode once, resize once, keep as uint8."""

from __future__ import annotations

import concurrent.futures
import logging
import os
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from glora_jax.data.task import Task


class Split(NamedTuple):
  """images uint8 [n, size, size, 3], labels int32 [n]."""

  images: np.ndarray
  labels: np.ndarray


def load(task: Task, split: str, image_size: int, data_dir: str | None = None) -> Split:
  """One split of a task, whole in memory, in its stored order.

  The data set is prepared first where it is not there yet. It is read through `tfds.data_source`, without TensorFlow.

  Args:
    task: the record.
    split: 'train', 'val', 'test' or 'train+val'.
    image_size: side of the square that images are resized to, bicubic as PIL does it.
    data_dir: of TFDS; None for its default.

  Raises:
    ValueError: a label or an image is not what the task's record promises.
  """
  expression = '+'.join(getattr(task, part) for part in split.split('+'))
  builder = task.make_builder(data_dir)
  logging.getLogger('absl').setLevel(logging.ERROR)  # advice on OpenCV and the like
  if not builder.data_path.exists():
    tfds.disable_progress_bar()
    builder.download_and_prepare()
  source = builder.as_data_source(split=expression)

  def read(index):
    example = source[index]
    return to_square(example[task.image], image_size), int(example[task.label])

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    images, labels = zip(*pool.map(read, range(len(source))), strict=True)
  labels = np.array(labels, np.int32)
  if labels.min() < 0 or labels.max() >= task.num_classes:
    raise ValueError(f'{task.name} {split} has labels {labels.min()} to {labels.max()}, but {task.num_classes} classes.')
  return Split(np.stack(images), labels)


def to_square(image: np.ndarray, size: int) -> np.ndarray:
  """uint8 [height, width, 1 or 3] to RGB [size, size, 3], resized bicubic without keeping the aspect ratio."""
  picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
  return np.asarray(picture.convert('RGB').resize((size, size), Image.Resampling.BICUBIC))
