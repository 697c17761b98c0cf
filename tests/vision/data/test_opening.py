"""Every image read once before a run: broken ones are all named, and left out for good."""

import os
import shutil

import numpy as np
import pytest
from comparing import assert_refused
from label_lists import write_images
from PIL import Image

from glora_jax import mesh
from glora_jax.vision.data.pipeline import Images, UnreadableImages, differences, open_images
from glora_jax.vision.data.task import Files, Task

SIZES = {'train': 5, 'val': 3, 'test': 4}


@pytest.fixture
def task(tmp_path):
  """Twelve images of two classes in three splits."""
  splits = {}
  for split, number in SIZES.items():
    write_images(tmp_path / split, [f'{n}.png' for n in range(number)])
    paths = [f'{tmp_path}/{split}/{n}.png' for n in range(number)]
    splits[split] = Files(paths, [n % 2 for n in range(number)], str(tmp_path))
  return Task('pets', ('cat', 'dog'), splits, origin='a test')


@pytest.fixture(params=[('val',), ('train+val', 'test')], ids=['streamed', 'resident'])
def opened(request, task, tmp_path):
  """The task as a run opens it, with a record; all its splits fit in memory, or val alone does."""

  def call(**options):
    folder = str(tmp_path)
    return open_images(Images(task, 8), request.param, folder=folder, **options).task

  return call


def names_of(task, split):
  examples = task.open(split)
  return [os.path.basename(examples[index].path) for index in range(len(examples.labels))]


@pytest.fixture
def broken(task, tmp_path):
  """The images, of which one is cut off, one a pipe, and one a link to nowhere."""
  cut, pipe, link = (tmp_path / name for name in ('test/2.png', 'train/1.png', 'train/4.png'))
  cut.write_bytes(cut.read_bytes()[:45])
  pipe.unlink()
  os.mkfifo(pipe)
  link.unlink()
  link.symlink_to('none.png')


def test_streamed_images_are_opened_again_only_if_they_have_changed(
  task, tmp_path, read, monkeypatch
):
  def assert_read(*numbers):
    """So many images are read by as many starts."""
    for number in numbers:
      read.clear()
      open_images(Images(task, 8), folder=str(tmp_path))
      assert len(read) == number

  record = tmp_path / 'images.csv'
  with monkeypatch.context() as another_process:
    another_process.setattr(mesh, 'primary', lambda: False)
    assert_read(12)
  assert not record.exists()
  assert_read(12, 0)
  content = record.read_bytes()
  for spoilt in (content[:-20], b'path,label\na.png,cat\n'):  # cut off, or somebody else's
    record.write_bytes(spoilt)
    assert_read(12, 0)
    assert record.read_bytes() == content
  os.utime(tmp_path / 'val' / '1.png', ns=(1, 1))
  assert_read(0, 0)
  assert record.read_bytes() != content
  write_images(tmp_path / 'val', ['1.png'])
  assert_read(1, 0)


def test_names_that_are_no_text_are_recognized(tmp_path, read):
  names = [f'{n}{name}.png' for n in range(2) for name in (',"', '\n', '\r', '\udcff', 'ü')]
  write_images(tmp_path, names)
  files = Files([str(tmp_path / name) for name in names], [0, 1] * 5, str(tmp_path))
  task = Task('odd', ('cat', 'dog'), dict.fromkeys(SIZES, files), origin='a test')
  for _ in range(2):
    open_images(Images(task, 8), folder=str(tmp_path), is_tested=True)
    assert len(read) == 30


def test_broken_images_are_all_named_or_left_out_on_request(broken, opened, tmp_path, caplog):
  with pytest.raises(UnreadableImages, match=r'^3 of 12 images') as raised:
    opened()
  for reason in ('not a regular', 'No such file or directory', 'test/2.png', 'skip_broken=True'):
    assert reason in str(raised.value)
  assert not (tmp_path / 'images.csv').exists()
  found = opened(skip_broken=True)
  assert [len(found.open(split).labels) for split in SIZES] == [3, 3, 3]
  assert names_of(found, 'train') == ['0.png', '2.png', '3.png']
  np.testing.assert_array_equal(found.open('train').labels, [0, 0, 1])
  assert 'Left out: 3 of 12 images cannot be decoded: ' in caplog.text
  assert opened(skip_broken=True).notes == found.notes


def test_a_run_that_has_begun_leaves_out_what_it_left_out(broken, opened, tmp_path):
  first = opened(skip_broken=True)
  assert first.notes[0] == '3 of 12 images cannot be decoded and are left out.'
  for _ in range(2):  # the second time its record is damaged
    again = opened(skip_broken=True, is_tested=True)
    assert again.notes == first.notes
    assert [names_of(again, x) for x in SIZES] == [names_of(first, x) for x in SIZES]
    (tmp_path / 'images.csv').write_bytes(b'')
  opened(skip_broken=True)
  (tmp_path / 'train' / '1.png').unlink()
  shutil.copy(tmp_path / 'train' / '0.png', tmp_path / 'train' / '1.png')
  assert_refused('1 changed; train/1.png', opened, skip_broken=True, is_tested=True)
  assert '1.png' in names_of(opened(skip_broken=True), 'train')


@pytest.mark.parametrize(
  'changed, said',
  [
    ('bit', '1 changed; train/0.png'),
    ('added', '1 added; test/new.png'),
    ('removed', '1 missing; val/2.png'),
    ('label', 'other labels, splits or order'),
  ],
)
def test_a_run_goes_on_with_the_images_that_it_began_with_alone(
  opened, task, tmp_path, changed, said
):
  opened(skip_broken=True)
  assert not differences(task, str(tmp_path))
  first, test, val = tmp_path / 'train/0.png', task.splits['test'], task.splits['val']
  match changed:
    case 'bit':
      status, content = first.stat(), bytearray(first.read_bytes())
      content[-20] ^= 1
      first.write_bytes(content)
      os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))  # as an archive does
    case 'added':
      write_images(tmp_path / 'test', ['new.png'])
      test.paths.append(f'{tmp_path}/test/new.png')
      test.given_labels.append(0)
    case 'removed':
      val.paths.pop()
      val.given_labels.pop()
    case 'label':
      val.given_labels[0] = 1
  assert_refused(said, opened, skip_broken=True, is_tested=True)
  assert said in differences(task, str(tmp_path))
  opened(skip_broken=True)  # nothing was computed yet
  assert not differences(task, str(tmp_path))


def test_what_is_left_must_measure(opened, tmp_path):
  (tmp_path / 'val' / '1.png').write_bytes(b'x')
  assert_refused('pets: all images of val are of the class cat', opened, skip_broken=True)
  assert not (tmp_path / 'images.csv').exists()
  for n in (1, 3):
    (tmp_path / 'train' / f'{n}.png').write_bytes(b'x')
  assert_refused('pets: no image of dog in train can be decoded', opened, skip_broken=True)
  for n in range(3):
    (tmp_path / 'val' / f'{n}.png').write_bytes(b'x')
  assert_refused('3 of 3 images', opened, skip_broken=True, kind=UnreadableImages)


def test_copies_links_and_the_file_itself_are_named_with_what_they_are(tmp_path, caplog):
  write_images(tmp_path, [f'{n}.bmp' for n in range(5)])
  paths = [str(tmp_path / f'{n}.bmp') for n in range(5)]

  def open_all(*tested):
    splits = {
      'train': Files(paths[:3], [0, 1, 1], str(tmp_path)),
      'test': Files([*tested], [0, 1, 0][: len(tested)], str(tmp_path)),
    }
    images = Images(Task('pets', ('cat', 'dog'), splits, ''), 8)
    return open_images(images, skip_broken=True, folder=str(tmp_path)).task.notes

  assert not open_all(*paths[3:])
  assert not caplog.text
  shutil.copy(paths[1], paths[3])
  os.remove(paths[4])
  os.symlink(paths[2], paths[4])
  *_, note = open_all(*paths[3:], paths[0])
  assert caplog.records[-1].getMessage() == f'pets: {note}'
  assert '3 images of test are byte-for-byte copies of images of train' in note
  for copy, original in ((3, 1), (4, 2), (0, 0)):
    assert f'{copy}.bmp is {original}.bmp' in note
  caplog.clear()
  assert open_all(*paths[3:], paths[0])[-1] == note  # a later start has it on its page
  assert not caplog.text


def test_the_cache_is_used_keyed_and_survives_damage(task, tmp_path, read, caplog):
  cache = tmp_path / 'cache'

  def open_task(times, size=8, share=None):
    """The training images, of which so many are read."""
    read.clear()
    images = open_images(Images(task, size, share=share), ('train',), cache=str(cache))
    assert len([path for path in read if path.startswith('train')]) == times
    return images.resident['train'].images

  first = open_task(5)
  np.testing.assert_array_equal(open_task(0), first)
  open_task(5, size=10)
  open_task(5, share=0.5)
  for damage in (
    lambda path: path.write_bytes(path.read_bytes()[:100]),  # a disk that was full
    lambda path: np.savez(path, array=np.zeros((2, 8, 8, 3), np.uint8)),
  ):
    caplog.clear()
    for path in cache.iterdir():
      damage(path)
    np.testing.assert_array_equal(open_task(5), first)
    assert 'is damaged; reading its images again' in caplog.text
  Image.new('L', (4, 4), 9).save(tmp_path / 'train' / '0.png')
  open_task(5)
