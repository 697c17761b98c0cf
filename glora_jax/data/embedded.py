"""The images that need no download: Fashion-MNIST's idx files (pretraining) and scikit-learn's digits (the quickstart)."""

from __future__ import annotations

import gzip
import io
import math
import os
import struct

import numpy as np
import sklearn.datasets
import tensorflow_datasets as tfds
from PIL import Image

from glora_jax.data import builders
from glora_jax.data.task import Source, Task

FASHION_MNIST_CLASSES = (
    'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot')


def read_idx(path: str | os.PathLike) -> np.ndarray:
  """Reads one gzipped idx file of the MNIST family into a uint8 array.

  Raises:
    ValueError: it is damaged or of another type.
  """
  try:
    with gzip.open(path) as file:
      content = file.read()
    zeros, kind, ndim = struct.unpack_from('>HBB', content)
    shape = struct.unpack_from(f'>{ndim}I', content, 4)
    if zeros or kind != 8 or len(content) != 4 + 4 * ndim + math.prod(shape):
      raise ValueError('its header and size do not agree')
  except (OSError, EOFError, struct.error, ValueError) as error:
    raise ValueError(f'{path} is not a readable gzipped idx file of bytes ({error}); fetch it again.') from error
  return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def fashion_mnist(folder: str | os.PathLike) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747): {'train': (images, labels), 'test': ...}.

  Args:
    folder: with the four original files, as in the Debian package `dataset-fashion-mnist`.

  Returns:
    Images uint8 [n, 28, 28, 3] (the grey value three times) and labels int32 [n], 60,000 and 10,000 of them.
  """
  if not os.path.isdir(folder):
    raise FileNotFoundError(
        f"There is no folder {folder} with Fashion-MNIST's idx files; install the Debian package dataset-fashion-mnist, "
        'or give another folder with --config.data=FOLDER.')
  splits = {}
  for split, prefix in (('train', 'train'), ('test', 't10k')):
    images = read_idx(os.path.join(folder, f'{prefix}-images-idx3-ubyte.gz'))
    labels = read_idx(os.path.join(folder, f'{prefix}-labels-idx1-ubyte.gz'))
    splits[split] = (np.repeat(images[..., None], 3, axis=-1), labels.astype(np.int32))
  return splits


class Digits(tfds.core.GeneratorBasedBuilder):
  """scikit-learn's digits (Alpaydin and Kaynak 1998, UCI): 1,797 scans of 8 x 8, 16 grey levels, as a TFDS data set.

  They come ordered by writer; a fixed permutation deals 1,000 of them to `train` and 797 to `test`.
  """

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self,
        description=self.__doc__,
        features=tfds.features.FeaturesDict({
            'image': tfds.features.Image(shape=(8, 8, 1), encoding_format='png'),
            'label': tfds.features.ClassLabel(num_classes=10),
        }),
        supervised_keys=('image', 'label'))

  def _split_generators(self, dl_manager):
    order = np.random.default_rng(0).permutation(1797)
    return {'train': self._generate_examples(order[:1000]), 'test': self._generate_examples(order[1000:])}

  def _generate_examples(self, indices):
    digits = sklearn.datasets.load_digits()
    for index in indices:
      encoded = io.BytesIO()
      Image.fromarray((digits.images[index] * 255 / 16).round().astype(np.uint8)).save(encoded, 'png')
      encoded.seek(0)
      yield int(index), {'image': encoded, 'label': int(digits.target[index])}


def digits(source: Source = Source()) -> Task:
  """scikit-learn's digits as a task: 800 train, 200 val, 797 test; prepared as a TFDS data set at the first use."""
  builder = Digits(data_dir=source.dir, file_format='array_record')

  def opened(split):
    def examples():
      builders.prepare(builder)
      return builders.read(builder, split, lambda example: example['image'], lambda example: int(example['label']))

    return examples

  splits = {'train': opened('train[:800]'), 'val': opened('train[800:]'), 'test': opened('test')}
  return Task('digits', tuple('0123456789'), splits, "scikit-learn's digits, dealt by glora_jax")
