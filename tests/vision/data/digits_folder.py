"""A TFDS data set, prepared once for all tests of a process."""

import functools
import io
import shutil
import tempfile

import tensorflow_datasets as tfds
from label_lists import encoded
from PIL import Image

from glora_jax.vision.data.tfds import prepare


class Digits(tfds.core.GeneratorBasedBuilder):
  """100 grey images of ten classes `train` and 80 `test`, each of its number's value."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = {
      'image': tfds.features.Image(shape=(8, 8, 1), encoding_format='png'),
      'label': tfds.features.ClassLabel(num_classes=10),
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {
      'train': self._generate_examples(range(100)),
      'test': self._generate_examples(range(100, 180)),
    }

  def _generate_examples(self, indices):
    for index in indices:
      png = encoded(Image.new('L', (8, 8), index))
      yield index, {'image': io.BytesIO(png), 'label': index % 10}


@functools.cache
def prepared():
  """A folder of TFDS; it is gone when the process ends."""
  folder = tempfile.TemporaryDirectory()
  prepare(Digits(data_dir=folder.name, file_format='array_record'))
  return folder


def prepared_digits():
  """The path of a folder of TFDS that holds the prepared data set."""
  return prepared().name


def copy_digits(folder):
  """Puts the prepared data set into another folder of TFDS."""
  shutil.copytree(f'{prepared_digits()}/digits', f'{folder}/digits')
