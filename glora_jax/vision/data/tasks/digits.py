"""scikit-learn's digits, which need no download: the task of the quickstart."""

from __future__ import annotations

import functools
import hashlib

import numpy as np
from PIL import Image

from glora_jax.vision.data.task import Example, Part, Task

_NUMBER_OF_TRAIN = 1000
_HIGHEST_LEVEL = 16


@functools.cache
def _load() -> tuple[np.ndarray, np.ndarray]:
  """All scans, uint8 [1797, 8, 8], and their labels, int32 [1797], ordered by writer."""
  import sklearn.datasets  # slower than all other imports of a command

  scans, labels = sklearn.datasets.load_digits(return_X_y=True)
  pixels = (scans.reshape(-1, 8, 8) * 255 / _HIGHEST_LEVEL).round().astype(np.uint8)
  return pixels, labels.astype(np.int32)


class Scans:
  """All digits, as `Examples`."""

  @property
  def labels(self) -> np.ndarray:
    """The class of every scan, int32 [n]."""
    return _load()[1]

  def __getitem__(self, index: int) -> Example:
    """The scan at a position."""
    return Example(f'example {index} of digits', functools.partial(_image, index))


def _image(index: int, *, draft: bool = False) -> Image.Image:
  del draft
  return Image.fromarray(_load()[0][index]).convert('RGB')


def digits() -> Task:
  """scikit-learn's digits (Alpaydin and Kaynak 1998, UCI): 800 images train, 200 val, 797 test.

  1,797 scans of 8 x 8 pixels and 16 gray levels. They are ordered by writer; a fixed permutation
  splits them.
  """
  order = np.random.default_rng(0).permutation(1797).tolist()
  # Within the two parts they are in the shuffled order of TFDS, from which they were read once.
  train = sorted(order[:_NUMBER_OF_TRAIN], key=lambda number: _digest('train', number))
  test = sorted(order[_NUMBER_OF_TRAIN:], key=lambda number: _digest('test', number))
  parts = {'train': train[:800], 'val': train[800:], 'test': test}
  splits = {split: Part(Scans(), np.asarray(part)) for split, part in parts.items()}
  return Task('digits', tuple('0123456789'), splits, "scikit-learn's digits, split by glora_jax")


def _digest(salt: str, number: int) -> bytes:
  return hashlib.md5(f'{salt}{number}'.encode(), usedforsecurity=False).digest()
