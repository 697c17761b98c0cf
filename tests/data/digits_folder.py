"""scikit-learn's digits, prepared once for all tests of a process."""

import functools
import shutil
import tempfile

from glora_jax.data import tfds
from glora_jax.data.tasks.digits import Digits


@functools.cache
def prepared():
  """A folder of TFDS with the digits; it is gone when the process ends."""
  folder = tempfile.TemporaryDirectory()
  tfds.prepare(Digits(data_dir=folder.name, file_format='array_record'))
  return folder


def prepared_digits():
  """The path of a folder of TFDS that holds the prepared digits."""
  return prepared().name


def copy_digits(folder):
  """Puts the prepared digits into another folder of TFDS."""
  shutil.copytree(f'{prepared_digits()}/digits', f'{folder}/digits')
