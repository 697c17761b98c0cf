"""Every image opened once before a run: broken ones are all named, readable ones remembered."""

import os
import shutil

import numpy as np
import pytest
from label_lists import write_images

from glora_jax.data import image_check
from glora_jax.data.examples import Files, OpenedSplit
from glora_jax.data.image_check import with_readable_images
from glora_jax.data.pipeline import UnreadableImages
from glora_jax.data.task import Task

SIZES = {'train': 5, 'val': 3, 'test': 4}


@pytest.fixture
def task(tmp_path):
  """Twelve images of two classes in three splits."""
  splits = {}
  for split, number in SIZES.items():
    names = [f'{split}/{n}.png' for n in range(number)]
    write_images(tmp_path, names)
    paths = [str(tmp_path / name) for name in names]
    splits[split] = OpenedSplit(Files(paths, [n % 2 for n in range(number)]))
  return Task('pets', ('cat', 'dog'), splits, origin='a test')


@pytest.fixture
def opened(monkeypatch):
  """The images that are opened, by the last two parts of their paths."""
  paths = []
  image = Files.image

  def note(self, index, *, draft):
    paths.append('/'.join(self.paths[index].split('/')[-2:]))
    return image(self, index, draft=draft)

  monkeypatch.setattr(Files, 'image', note)
  return paths


def test_every_image_of_every_split_is_opened_once_and_remembered(task, tmp_path, opened):
  record = str(tmp_path / 'images.npz')
  with_readable_images(task, record, write=False)  # as another process
  assert not os.path.exists(record)
  opened.clear()
  found = with_readable_images(task, record)
  assert sorted(opened) == sorted(
    f'{split}/{n}.png' for split in SIZES for n in range(SIZES[split])
  )
  assert {split: len(found.open(split).labels) for split in SIZES} == SIZES
  with_readable_images(task, record)
  assert len(opened) == 12
  os.utime(tmp_path / 'val' / '1.png', ns=(1, 1))
  with_readable_images(task, record)
  assert opened[12:] == ['val/1.png']


def break_images(tmp_path):
  """One that is cut off, a pipe, and a link to nowhere."""
  (tmp_path / 'test' / '2.png').write_bytes((tmp_path / 'test' / '2.png').read_bytes()[:45])
  (tmp_path / 'train' / '1.png').unlink()
  os.mkfifo(tmp_path / 'train' / '1.png')
  (tmp_path / 'train' / '4.png').unlink()
  (tmp_path / 'train' / '4.png').symlink_to('none.png')


def test_broken_images_are_all_named_or_left_out_on_request(task, tmp_path, opened, caplog):
  break_images(tmp_path)
  record = str(tmp_path / 'images.npz')
  with pytest.raises(UnreadableImages, match=r'^3 of 12 images') as raised:
    with_readable_images(task, record)
  for reason in ('no regular file', 'No such file or directory', 'test/2.png', 'skip_broken=True'):
    assert reason in str(raised.value)
  assert not os.path.exists(record)
  found = with_readable_images(task, record, skip_broken=True)
  assert [len(found.open(split).labels) for split in SIZES] == [3, 3, 3]
  train = found.open('train')
  assert [os.path.basename(train.name(n)) for n in range(3)] == ['0.png', '2.png', '3.png']
  np.testing.assert_array_equal(train.labels, [0, 0, 1])
  assert '2 of 5 images cannot be decoded and are left out' in caplog.text
  before = len(opened)
  with_readable_images(task, record, skip_broken=True)
  assert sorted(opened[before:]) == ['test/2.png', 'train/1.png', 'train/4.png']


def test_a_run_that_has_begun_leaves_out_what_it_left_out_and_nothing_else(task, tmp_path):
  break_images(tmp_path)
  record, broken = str(tmp_path / 'images.npz'), tmp_path / 'train' / '1.png'
  first = with_readable_images(task, record, skip_broken=True)
  assert first.notes == ('3 of 12 images cannot be decoded and are left out.',)
  broken.unlink()
  shutil.copy(tmp_path / 'train' / '0.png', broken)
  again = with_readable_images(task, record, skip_broken=True, has_begun=True)
  for split in SIZES:
    assert names_of(again, split) == names_of(first, split)
  assert '1.png' in names_of(with_readable_images(task, record, skip_broken=True), 'train')


def test_a_run_that_has_begun_with_an_image_that_is_gone_says_so(task, tmp_path):
  record = str(tmp_path / 'images.npz')
  with_readable_images(task, record, skip_broken=True)
  (tmp_path / 'train' / '0.png').write_bytes(b'x')
  with pytest.raises(ValueError, match=r'begun with images that .* now: .*Put them back'):
    with_readable_images(task, record, skip_broken=True, has_begun=True)


def names_of(task, split):
  examples = task.open(split)
  return [os.path.basename(examples.name(index)) for index in range(len(examples.labels))]


def test_what_is_left_must_measure(task, tmp_path):
  (tmp_path / 'val' / '1.png').write_bytes(b'x')
  record = tmp_path / 'images.npz'
  with pytest.raises(ValueError, match='pets: all images of val are of the class cat'):
    with_readable_images(task, str(record), skip_broken=True)
  assert not record.exists()
  for n in (1, 3):
    (tmp_path / 'train' / f'{n}.png').write_bytes(b'x')
  with pytest.raises(ValueError, match='pets: no image of dog in train can be decoded'):
    with_readable_images(task, skip_broken=True)
  for n in range(3):
    (tmp_path / 'val' / f'{n}.png').write_bytes(b'x')
  with pytest.raises(UnreadableImages, match='3 of 3 images'):
    with_readable_images(task, skip_broken=True)


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 no npz'])
def test_a_damaged_record_is_made_again(task, tmp_path, opened, content):
  record = tmp_path / 'images.npz'
  record.write_bytes(content)
  with_readable_images(task, str(record))
  np.savez(record, readable=np.zeros(3))  # of another kind
  with_readable_images(task, str(record))
  with_readable_images(task, str(record))
  assert len(opened) == 24


def test_many_images_are_remembered_even_where_one_is_broken(task, tmp_path, opened, monkeypatch):
  monkeypatch.setattr(image_check, 'FEWEST_WITH_PROGRESS', 12)
  (tmp_path / 'val' / '1.png').write_bytes(b'x')
  for _ in range(2):
    with pytest.raises(UnreadableImages):
      with_readable_images(task, str(tmp_path / 'images.npz'))
  assert opened[12:] == ['val/1.png']
