"""The images that need no download: Fashion-MNIST's idx files (pretraining) and scikit-learn's digits (the quickstart)."""

from __future__ import annotations

import io

import numpy as np
import sklearn.datasets
import tensorflow_datasets as tfds
from PIL import Image

from glora_jax.data.task import Source, Task
from glora_jax.data.tfds import prepare, read


class Digits(tfds.core.GeneratorBasedBuilder):
  """scikit-learn's digits (Alpaydin and Kaynak 1998, UCI): 1,797 scans of 8 x 8, 16 grey levels, as a TFDS data set.

  They come ordered by writer; a fixed permutation deals 1,000 of them to `train` and 797 to `test`.
  """

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(8, 8, 1), encoding_format='png'),
          'label': tfds.features.ClassLabel(num_classes=10),
        }
      ),
      supervised_keys=('image', 'label'),
    )

  def _split_generators(self, dl_manager):
    order = np.random.default_rng(0).permutation(1797)
    return {
      'train': self._generate_examples(order[:1000]),
      'test': self._generate_examples(order[1000:]),
    }

  def _generate_examples(self, indices):
    digits = sklearn.datasets.load_digits()
    for index in indices:
      encoded = io.BytesIO()
      Image.fromarray((digits.images[index] * 255 / 16).round().astype(np.uint8)).save(
        encoded, 'png'
      )
      encoded.seek(0)
      yield int(index), {'image': encoded, 'label': int(digits.target[index])}


def digits(source: Source = Source()) -> Task:
  """scikit-learn's digits as a task: 800 train, 200 val, 797 test; prepared as a TFDS data set at the first use."""
  builder = Digits(data_dir=source.dir, file_format='array_record')

  def opened(split):
    def examples():
      prepare(builder)
      return read(
        builder, split, lambda example: example['image'], lambda example: int(example['label'])
      )

    return examples

  splits = {'train': opened('train[:800]'), 'val': opened('train[800:]'), 'test': opened('test')}
  return Task('digits', tuple('0123456789'), splits, "scikit-learn's digits, dealt by glora_jax")
