"""Files that splits share are found by their bytes, whatever they are called."""

import os
import shutil

import pytest
from label_lists import write_images

from glora_jax.data import copies
from glora_jax.data.examples import Files


def files(folder, *names):
  return Files([str(folder / name) for name in names], [0] * len(names))


@pytest.fixture
def splits(tmp_path):
  """Four images to learn from and two to test on, all different."""
  names = {'train': [f'train/{n}.bmp' for n in range(4)], 'test': ['test/a.bmp', 'test/b.bmp']}
  write_images(tmp_path, [*names['train'], *names['test']])
  return {split: files(tmp_path, *paths) for split, paths in names.items()}


def test_a_copy_a_link_and_the_file_itself_are_named_with_what_they_are(splits, tmp_path, caplog):
  copies.warn_of_copies('pets', splits)
  assert not caplog.text
  first, second, third = (tmp_path / f'train/{n}.bmp' for n in range(3))
  shutil.copy(second, tmp_path / 'test/a.bmp')
  os.remove(tmp_path / 'test/b.bmp')
  os.symlink(third, tmp_path / 'test/b.bmp')
  splits['test'].paths.append(str(first))
  splits['test'].given_labels.append(0)
  os.remove(tmp_path / 'train/3.bmp')  # is passed over
  copies.warn_of_copies('pets', splits)
  [record] = caplog.records
  assert record.getMessage().startswith('pets: 3 images of test are in train, too, byte for byte;')
  pairs = 'test/a.bmp is train/1.bmp, test/b.bmp is train/2.bmp, train/0.bmp is train/0.bmp.'
  assert record.getMessage().endswith(f' In {tmp_path} {pairs}')
