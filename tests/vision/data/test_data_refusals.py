"""What cannot be a task, a list, an image or a setting is refused, and its value is named."""

import os

import numpy as np
import pytest
from comparing import assert_refused
from label_lists import encoded, write_images
from PIL import Image

from glora_jax.vision.data import image, normalization, pipeline
from glora_jax.vision.data.catalog import find
from glora_jax.vision.data.label_files import read_csv, read_list
from glora_jax.vision.data.task import Files, Source, Task

NOAH = {'source': 'noah', 'root': '/no'}
LISTS = {'source': 'lists', 'root': '/no'}


@pytest.mark.parametrize(
  'task, source, named',
  [
    ('digit', {}, "digit'"),
    ('vtab/cifar10', {}, "cifar10'"),
    ('fewshot/food101/four/0', {}, "food101/four/0'"),
    ('fewshot/food101/0/0', {}, '0 shots leave nothing'),
    ('folder:/no/one', {}, '/no/one'),
    ('tfds:clevr', {}, 'TFDS clevr has the features image, file_name'),
    ('fewshot/fgvc_aircraft/4/0', {}, 'fgvc_aircraft'),
    ('generalization/0', {'version': '5.1.0'}, '5.1.0'),
    ('tfds:mnist', {'version': '../x'}, 'mnist:../x'),
    ('vtab/cifar100', NOAH, '/no/cifar'),
    ('fewshot/food101/4/0', LISTS, '/no/food-101'),
    ('generalization/0', {'source': 'lists'}, 'data.root'),
    # Other images than those in the folder would be trained on.
    ('fewshot/food101/4/0', {'root': '/data'}, "data.root='/data'"),
    ('vtab/cifar100', {**NOAH, 'version': '3.0.2'}, "data.version='3.0.2'"),
  ],
)
def test_a_name_that_is_no_task_and_a_source_that_it_has_not(task, source, named):
  kinds = ValueError, FileNotFoundError
  assert_refused(named, lambda: find(task, Source(**source)), kind=kinds)


CODES = ('utf-16', 'latin-1')


def fill(folder, classes, number=3):
  write_images(folder, [f'{name}/{n}.png' for name in classes for n in range(number)])


@pytest.mark.parametrize(
  'classes, named',
  [
    (['train/a', 'train/b', 'val/a', 'extra/a'], 'extra'),
    (['train/a', 'train/b', 'val/a', 'valid/b'], 'val, valid'),
    (['train/a', 'train/b', 'val/a', 'test/a', 'test/b'], 'val are of the'),
    (
      [*(f'train/{x}' for x in 'abcd'), 'val/a', 'val/b', 'test/c', 'test/d'],
      'val and test have no class in common',
    ),
    (['a'], '1 subfolders'),
    (['a', 'b\n'], r'b\n'),
  ],
)
def test_folders_that_cannot_be_a_task(tmp_path, classes, named):
  fill(tmp_path, classes)
  assert_refused(named, find, f'folder:{tmp_path}')


@pytest.mark.parametrize('splits', [('train', 'val', 'test'), ('Training', 'TEST')])
def test_a_folder_of_data_sets_is_refused_since_its_test_images_would_be_trained_on(
  tmp_path, splits
):
  fill(tmp_path, [f'blobs/{split}/{name}' for split in splits for name in 'ab'])
  fill(tmp_path, ['cats', 'stripes/train/a', 'stripes/test/a'])
  task = f'folder:{tmp_path}'
  assert_refused(['(blobs, stripes)', f'for example --config.task={task}/blobs'], find, task)
  assert find(f'{task}/blobs').classes == ('a', 'b')


def test_a_link_to_the_parent_and_class_folders_with_too_few_images_or_none(tmp_path):
  fill(tmp_path, ['cat', 'dog'])
  task = f'folder:{tmp_path}'
  (tmp_path / 'again').symlink_to('..')
  assert_refused('again is a link', find, task)
  (tmp_path / 'again').unlink()
  fill(tmp_path, ['rare'], 1)
  assert_refused('rare (1)', find, task)
  (tmp_path / 'empty').mkdir()
  assert_refused('empty', find, task)


CSVS = [
  ('path,label\n0.png\n', "line 2: '0.png'"),
  ('path,label,split\n0.png,x,train\n1.png,y,dev\n', 'line 3: dev'),
  ('0.png,x\n./0.png,y\n', 'line 2: ./0.png is already in line 1 as 0.png'),
  ('path,label,split,Split\n0.png,x,train,test\n', 'line 1'),
  (f'path,label\n{"x" * 200_000},x\n', 'line 2'),
  ('0.png,x\nnone.png,y\n', 'none.png'),
]
LISTS_OF_LABELS = [
  ('0.png 0\n1.png\n', 'line 2'),
  ('0.png 0\n1.png 8\n', 'line 2: the label 8'),
  ('1.png \N{SUPERSCRIPT TWO}', '\N{SUPERSCRIPT TWO}'),
]


def read_lines(path):
  return read_list(str(path), (str(path.parent),), 8)


@pytest.mark.parametrize(
  'read, text, named',
  [
    *((lambda path: find(f'csv:{path}'), *row) for row in CSVS),
    *((read_lines, *row) for row in LISTS_OF_LABELS),
  ],
)
def test_labels_that_are_none(tmp_path, read, text, named):
  write_images(tmp_path, ['0.png', '1.png'])
  (tmp_path / 'labels').write_text(text)
  assert_refused(named, read, tmp_path / 'labels', kind=(ValueError, FileNotFoundError))


@pytest.mark.parametrize('read', [read_csv, read_lines])
@pytest.mark.parametrize('content', [None, b'\n\n', *('ü 1\n'.encode(x) for x in CODES)])
def test_label_files_that_are_missing_empty_or_no_utf_8(tmp_path, read, content):
  path = tmp_path / 'labels'
  if content:
    path.write_bytes(content)
  assert_refused(str(path), read, path, kind=ValueError if content else FileNotFoundError)


def row(*values, kind=np.float32):
  """An image of one row."""
  return Image.fromarray(np.array([values], kind))


GREY = row(*[0] * 9, kind=np.uint8)


@pytest.mark.parametrize(
  'content, named',
  [
    (encoded(row(0, 200, kind=np.int32), 'tiff'), 'mode I'),
    (encoded(row(0, 1.02), 'tiff'), 'to 1.02'),
    (encoded(row(np.nan), 'tiff'), 'not finite'),
    (encoded(GREY, 'jpeg')[:200], 'not a readable image'),
    (encoded(GREY, 'ICO'), 'neither BMP'),
    (b'P6 20000 20000 255\n', '20000 x 20000 pixels'),
  ],
)
def test_an_image_that_is_none(content, named, monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None)  # as programs do that read large images
  assert_refused(named, image.decode, content, kind=OSError)


@pytest.mark.parametrize(
  'make, named',
  [
    (os.mkfifo, 'not a regular file'),
    (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 2**40), '1,099,511,627,776'),
  ],
)
def test_what_is_no_file_or_longer_than_memory_is_not_read(tmp_path, make, named):
  make(tmp_path / 'x.png')
  assert_refused(named, image.decode, tmp_path / 'x.png', kind=OSError)


@pytest.mark.parametrize(
  'call, named',
  [
    (lambda: Files(['x.png'] * 2, [0, 9]), '0 to 9'),
    (lambda: Files([], []), 'pets has no images in test'),
  ],
)
def test_a_split_or_a_normalization_that_cannot_be(call, named):
  task = Task('pets', ('cat', 'dog', 'owl'), {'test': call()}, '')
  assert_refused(named, task.open, 'test')
  assert_refused('=[0.5, 0.5]', normalization.normalize, np.ones((2, 8, 8, 3)), [0.5, 0.5])


@pytest.mark.parametrize('place', ['file', 'file/cache'])
def test_a_cache_that_cannot_be_written(tmp_path, place):
  (tmp_path / 'file').touch()
  cache = os.path.join(tmp_path, place)
  images = pipeline.Images(None, 8)  # which is not looked at before
  assert_refused(f'data.cache={cache!r}', pipeline.open_images, images, cache=cache, kind=OSError)
