"""The user's own images: folders, CSVs, TFDS data sets; split once; every mistake a sentence."""

import csv
import os
import re

import numpy as np
import pytest
from digits_folder import prepared_digits
from label_lists import write_images

from glora_jax.vision.data.catalog import find
from glora_jax.vision.data.pipeline import Images, open_images
from glora_jax.vision.data.task import Source


def fill(folder, counts):
  for name, count in counts.items():
    write_images(folder / name, [f'{n:03d}.png' for n in range(count)])


@pytest.fixture
def photos(tmp_path):
  fill(tmp_path / 'photos', {'cat': 20, 'dog': 10, 'owl': 3})
  return tmp_path / 'photos'


def names(examples):
  return {examples[index].path for index in range(len(examples.labels))}


def open_all(task):
  return {split: task.open(split) for split in ('train', 'val', 'test')}


def test_a_folder_is_split_stratified_and_always_the_same_way(photos, tmp_path):
  task = find(f'folder:{photos}')
  assert task.classes == ('cat', 'dog', 'owl')
  assert 'from owl (3 images) to cat (20)' in task.notes[1]
  parts = open_all(task)
  counts = [np.bincount(part.labels).tolist() for part in parts.values()]
  assert counts == [[16, 8, 1], [2, 1, 1], [2, 1, 1]]
  assert len(set.union(*map(names, parts.values()))) == 33
  assert names(find(f'folder:{photos}').open('val')) == names(parts['val'])
  open_images(Images(task, 8), folder=str(tmp_path))
  with open(tmp_path / 'images.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  of_val = [f'{photos}/{row["image"]}' for row in rows if row['split'] == 'val']
  assert {*of_val} == names(parts['val'])
  assert all(row['image'].startswith(f'{row["label"]}/') for row in rows)


@pytest.mark.parametrize(
  'layout',
  [('train', 'val', 'test'), ('Training', 'Validation', 'TEST'), ('train', 'test'), ('train',)],
)
def test_folders_that_are_split_are_left_as_they_are(tmp_path, layout):
  for split in layout:
    fill(tmp_path / split, {'a': 10, 'b': 10})
  task = find(f'folder:{tmp_path}')
  sizes = [len(part.labels) for part in open_all(task).values()]
  assert sizes == {3: [20, 20, 20], 2: [18, 2, 20], 1: [16, 2, 2]}[len(layout)]
  assert bool(task.notes) == (len(layout) < 3)
  if 'test' in layout:
    assert all('/test/' in name for name in names(task.open('test')))


def test_classes_of_test_folders_are_those_of_train_and_a_class_may_be_called_so(tmp_path):
  fill(tmp_path / 'classes', {'bus/test': 5, 'train': 5})
  assert find(f'folder:{tmp_path}/classes').classes == ('bus', 'train')
  fill(tmp_path / 'split', {'train/a': 5, 'train/b': 5, 'train/c': 5, 'val/c': 1, 'val/b': 1})
  fill(tmp_path / 'split', {'test/b': 1, 'test/a': 1})
  task = find(f'folder:{tmp_path}/split')
  assert [task.open(split).labels.tolist() for split in ('val', 'test')] == [[1, 2], [0, 1]]
  assert task.notes == ('val has no images of a.', 'test has no images of c.')


def test_images_in_deeper_folders_are_found_and_what_is_ignored_is_noted(tmp_path, caplog):
  photos = tmp_path / 'photos'
  fill(tmp_path, {'more': 2})
  fill(photos, {'a/x': 3, 'a/y': 2, 'b ü': 5, 'a/.thumbnails': 3})
  write_images(photos, ['0.png', '1.png', 'a/.hidden.png', '.cache/0.png'])
  for name in ('notes.txt', 'phone.HEIC', 'Makefile'):
    (photos / 'a' / 'x' / name).touch()
  os.rename(photos / 'a' / 'y' / '000.png', photos / 'a' / 'y' / '000.JFIF')
  (photos / 'a' / 'more').symlink_to(tmp_path / 'more')
  task = find(f'folder:{photos}')
  assert task.classes == ('a', 'b ü')
  assert len(task.open('train+val+test').labels) == 10
  assert task.notes[1:] == (
    'Images outside of class folders are ignored: 0.png, 1.png.',
    'Files without the extension of an image are ignored: 1 .heic, 1 .txt, 1 with none.',
  )
  assert re.search(r'Links to folders are not followed: .*/a/more', caplog.text)


@pytest.mark.parametrize(
  'header, splits, sizes',
  [
    ('path,label', None, [14, 2, 2]),
    ('path,label,Split', ('training', 'Val', 'test'), [6, 6, 6]),
    ('path,label,Split', ('train', 'train', 'test'), [10, 2, 6]),
  ],
)
def test_a_csv_is_split_as_it_says(photos, header, splits, sizes):
  lines = [header]
  for name in ('dog', 'cat'):
    for n in range(9):
      split = f',{splits[n // 3]}' if splits else ''
      lines.append(f'photos/{name}/{n:03d}.png,{name}{split}')
  (photos.parent / 'labels.csv').write_text('\n'.join(lines))
  task = find(f'csv:{photos.parent}/labels.csv')
  assert len(task.notes) == (sizes[1] == 2)
  parts = open_all(task)
  assert [len(part.labels) for part in parts.values()] == sizes
  assert len(set.union(*map(names, parts.values()))) == 18
  for part in parts.values():
    for index, label in enumerate(part.labels):
      assert f'/{("cat", "dog")[label]}/' in part[index].path
  if sizes[2] == 6:
    assert {name[-7:] for name in names(parts['test'])} == {'006.png', '007.png', '008.png'}


def owners(folder):
  """Writes photographs by owners of cats, dogs or both; (path, label, owner) of each."""
  rng, rows = np.random.default_rng(0), []
  for number, size in enumerate(rng.integers(1, 9, 60)):
    kinds = rng.choice(('cat', 'dog', 'both'))
    for n in range(size):
      label = rng.choice(('cat', 'dog')) if kinds == 'both' else kinds
      rows.append((f'{label}/o{number}_{n}.png', label, f'o{number}'))
  for label in ('cat', 'dog'):
    write_images(folder, [path for path, its, _ in rows if its == label])
  return rows


@pytest.mark.parametrize(
  'kind, groups', [('folder', 'o[0-9]+'), ('csv', '/(o.*)_'), ('csv', 'Owner')]
)
def test_no_split_cuts_a_group_and_every_split_has_its_share_of_every_class(tmp_path, kind, groups):
  rows = owners(tmp_path)
  lines = [','.join(row) for row in (('path', 'label', 'owner'), *rows)]
  (tmp_path / 'labels.csv').write_text('\n'.join(lines))
  path = tmp_path / 'labels.csv' if kind == 'csv' else tmp_path
  parts = open_all(find(f'{kind}:{path}', Source(groups=groups))).values()
  found = [{name.split('/')[-1].split('_')[0] for name in names(part)} for part in parts]
  assert sum(map(len, found)) == len(set.union(*found)) == 60
  counts = np.array([np.bincount(part.labels) for part in parts])
  np.testing.assert_allclose(counts / counts.sum(0), [[0.8] * 2, [0.1] * 2, [0.1] * 2], atol=0.03)


def test_a_split_that_lacks_a_class_whose_images_are_one_group_is_noted(photos):
  task = find(f'folder:{photos}', Source(groups='owl|cat.*|dog.*'))
  assert {'val has no images of owl.', 'test has no images of owl.'} <= {*task.notes}


@pytest.mark.parametrize(
  'kind, groups, sentence',
  [
    ('folder', 'o([0-9])_0', r'neither a column .* found in cat/o.*\.png'),
    ('folder', 'o(', r'neither a column'),
    ('csv', 'none', r'neither a column'),
    ('csv', 'label', r'train and test share the groups cat, dog'),
    ('tfds', 'label', 'data.groups=.label. is for folders and CSVs'),
  ],
)
def test_groups_that_cannot_stay_whole_are_refused(tmp_path, kind, groups, sentence):
  lines = ['path,label,split']
  for number, (path, label, _) in enumerate(owners(tmp_path)):
    lines.append(f'{path},{label},{("train", "test")[number % 2]}')
  (tmp_path / 'labels.csv').write_text('\n'.join(lines))
  path = {'folder': tmp_path, 'csv': tmp_path / 'labels.csv', 'tfds': 'digits'}[kind]
  with pytest.raises(ValueError, match=sentence):
    find(f'{kind}:{path}', Source(groups=groups))


def test_numbers_as_labels_are_ordered_as_numbers(photos):
  labels = ('10', '9', '2', '02', '\N{SUPERSCRIPT TWO}', '9' * 5000)
  (photos.parent / 'labels.csv').write_text(
    ''.join(f'photos/cat/{n:03d}.png,{labels[n % 6]}\n' for n in range(18))
  )
  task = find(f'csv:{photos.parent}/labels.csv')
  assert task.classes == ('02', '2', '9', '10', '9' * 5000, '\N{SUPERSCRIPT TWO}')


def test_any_tfds_data_set_with_image_and_label_is_a_task():
  task = find('tfds:digits', Source(dir=prepared_digits()))
  assert task.classes == tuple('0123456789')
  sizes = [len(part.labels) for part in open_all(task).values()]
  assert (sum(sizes[:2]), sizes[2]) == (100, 80)
  assert task.open('train').whole is task.open('val').whole  # whose labels are read once
  assert task.notes == ('val: 10% each, split off from train (stratified, seed 0).',)
