"""Files that splits share are found by their bytes, whatever they are called."""

import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_lists import write_images

from glora_jax.data import copies
from glora_jax.data.examples import Files


def files(folder, *names):
  return Files([str(folder / name) for name in names], [0] * len(names))


def find_copies(examples, originals):
  return copies._find_copies(copies._by_size(examples), copies._by_size(originals))


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
  copies.warn_of_copies('pets', splits)
  [record] = caplog.records
  assert record.getMessage().startswith('pets: 3 images of test are in train, too, byte for byte;')
  pairs = 'test/a.bmp is train/1.bmp, test/b.bmp is train/2.bmp, train/0.bmp is train/0.bmp.'
  assert record.getMessage().endswith(f' In {tmp_path} {pairs}')


def test_what_is_no_file_or_cannot_be_read_is_passed_over(splits, tmp_path, monkeypatch):
  shutil.copy(tmp_path / 'train/0.bmp', tmp_path / 'test/a.bmp')
  os.remove(tmp_path / 'test/b.bmp')
  assert len(find_copies(splits['test'], splits['train'])) == 1
  monkeypatch.setattr(copies, 'open_regular', os.listdir)  # raises OSError
  assert not find_copies(splits['test'], splits['train'])
  monkeypatch.setattr(Files, 'file', lambda self, index: None)
  assert not find_copies(splits['test'], splits['train'])


@given(st.lists(st.binary(max_size=2), max_size=6), st.lists(st.binary(max_size=2), max_size=6))
def test_copies_are_those_whose_bytes_are_there(tmp_path_factory, own, others):
  folder = tmp_path_factory.mktemp('bytes')
  for number, content in enumerate([*own, *others]):
    (folder / str(number)).write_bytes(content)
  names = list(map(str, range(len(own) + len(others))))
  found = find_copies(files(folder, *names[: len(own)]), files(folder, *names[len(own) :]))
  expected = {
    str(folder / name): str(folder / names[len(own) + others.index(content)])
    for name, content in zip(names, own, strict=False)
    if content in others
  }
  assert dict(found) == expected
