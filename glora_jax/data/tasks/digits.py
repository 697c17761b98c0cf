"""scikit-learn's digits, which need no download: the task of the quickstart."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from glora_jax.data.task import Source, Task
from glora_jax.data.tfds import TfdsSplit, reading

_NUMBER = 1797
_NUMBER_OF_TRAIN = 1000
_HIGHEST_LEVEL = 16


class Digits(tfds.core.GeneratorBasedBuilder):
  """scikit-learn's digits (Alpaydin and Kaynak 1998, UCI) as a TFDS data set.

  1,797 scans of 8 x 8 pixels and 16 grey levels. They come ordered by writer; a fixed permutation
  deals 1,000 of them to `train` and 797 to `test`.
  """

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict(
      {
        'image': tfds.features.Image(shape=(8, 8, 1), encoding_format='png'),
        'label': tfds.features.ClassLabel(num_classes=10),
      }
    )
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=features,
      supervised_keys=('image', 'label'),
    )

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    order = np.random.default_rng(0).permutation(_NUMBER)
    return {
      'train': self._generate_examples(order[:_NUMBER_OF_TRAIN]),
      'test': self._generate_examples(order[_NUMBER_OF_TRAIN:]),
    }

  def _generate_examples(self, indices: Iterable[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    import sklearn.datasets  # which takes longer than all else that a command imports

    scans, labels = sklearn.datasets.load_digits(return_X_y=True)
    for index in indices:
      pixels = (scans[index].reshape(8, 8) * 255 / _HIGHEST_LEVEL).round().astype(np.uint8)
      encoded = io.BytesIO()
      Image.fromarray(pixels).save(encoded, 'png')
      encoded.seek(0)
      yield int(index), {'image': encoded, 'label': int(labels[index])}


def digits(source: Source = Source()) -> Task:
  """scikit-learn's digits as a task: 800 images train, 200 val, 797 test.

  They are prepared as a TFDS data set when a split is opened for the first time.

  Args:
    source: `dir` says where they are prepared.
  """
  with reading('the prepared digits'):
    builder = Digits(data_dir=source.dir, file_format='array_record')
  splits = {
    'train': TfdsSplit(builder, 'train[:800]'),
    'val': TfdsSplit(builder, 'train[800:]'),
    'test': TfdsSplit(builder, 'test'),
  }
  return Task('digits', tuple('0123456789'), splits, "scikit-learn's digits, dealt by glora_jax")
