"""scikit-learn's digits as a TFDS data set, prepared once for all tests of a process."""

import functools
import io
import shutil
import tempfile

import numpy as np
import sklearn.datasets
import tensorflow_datasets as tfds
from PIL import Image

from glora_jax.vision.data.tfds import prepare


class Digits(tfds.core.GeneratorBasedBuilder):
  """1,000 digits `train` and 797 `test`."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = {
      'image': tfds.features.Image(shape=(8, 8, 1), encoding_format='png'),
      'label': tfds.features.ClassLabel(num_classes=10),
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    order = np.random.default_rng(0).permutation(1797)
    return {
      'train': self._generate_examples(order[:1000]),
      'test': self._generate_examples(order[1000:]),
    }

  def _generate_examples(self, indices):
    scans, labels = sklearn.datasets.load_digits(return_X_y=True)
    for index in indices:
      pixels = (scans[index].reshape(8, 8) * 255 / 16).round().astype(np.uint8)
      encoded = io.BytesIO()
      Image.fromarray(pixels).save(encoded, 'png')
      yield int(index), {'image': io.BytesIO(encoded.getvalue()), 'label': int(labels[index])}


@functools.cache
def prepared():
  """A folder of TFDS with the digits; it is gone when the process ends."""
  folder = tempfile.TemporaryDirectory()
  prepare(Digits(data_dir=folder.name, file_format='array_record'))
  return folder


def prepared_digits():
  """The path of a folder of TFDS that holds the prepared digits."""
  return prepared().name


def copy_digits(folder):
  """Puts the prepared digits into another folder of TFDS."""
  shutil.copytree(f'{prepared_digits()}/digits', f'{folder}/digits')
