"""The tasks by name: VTAB-1k, few-shot, domain generalization, and the embedded digits."""

import csv
import fnmatch
import hashlib
import os
import types

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from comparing import assert_refused
from label_lists import write_images
from numpy.testing import assert_array_equal
from tensorflow_datasets.core import ReadInstruction

from glora_jax.vision.data import pipeline, tfds
from glora_jax.vision.data.catalog import find
from glora_jax.vision.data.task import Files, Source
from glora_jax.vision.data.tasks import fewshot, vtab

SPLITS = ('train', 'val', 'test')
# Copied from google-research/task_adaptation, task_adaptation/data/*.py; sizes as its authors
# publish them.
with open(os.path.join(os.path.dirname(__file__), 'vtab_1k.csv'), newline='') as _file:
  PUBLISHED = {row['task']: row for row in csv.DictReader(_file)}


def test_the_table_of_vtab_is_the_published_one():
  assert list(vtab.NAMES) == list(PUBLISHED)
  for ours, row in zip(vtab.TASKS, PUBLISHED.values(), strict=True):
    data_set, _, version = ours.builder.partition(':')
    assert fnmatch.fnmatch(version, row['version'])  # ours may be narrower
    found = (ours.group, data_set, str(ours.classes), ours.val, ours.test)
    assert found == tuple(row[name] for name in ('group', 'data set', 'classes', 'val', 'test'))
    assert (ours.label == 'label') == (row['label'] == 'label')


# Sizes of the stored splits, as TFDS's catalogue gives them.
SIZES = {
  'cifar100': {'train': 50000, 'test': 10000},
  'caltech101': {'train': 3059, 'test': 6084},
  'dtd': {'train': 1880, 'validation': 1880, 'test': 1880},
  'oxford_flowers102': {'train': 1020, 'validation': 1020, 'test': 6149},
  'oxford_iiit_pet': {'train': 3680, 'test': 3669},
  'svhn_cropped': {'train': 73257, 'test': 26032},
  'sun397': {'train': 76128, 'validation': 10875, 'test': 21750},
  'patch_camelyon': {'train': 262144, 'validation': 32768, 'test': 32768},
  'eurosat': {'train': 27000},
  'resisc45': {'train': 31500},
  'diabetic_retinopathy_detection': {'train': 35126, 'validation': 10906, 'test': 42670},
  'clevr': {'train': 70000, 'validation': 15000, 'test': 15000},
  'dmlab': {'train': 65550, 'validation': 22628, 'test': 22735},
  'kitti': {'train': 6347, 'validation': 423, 'test': 711},
  'dsprites': {'train': 737280},
  'smallnorb': {'train': 24300, 'test': 24300},
}


@pytest.mark.parametrize('vtab_task', vtab.TASKS, ids=lambda vtab_task: vtab_task.name)
def test_every_task_is_read_from_disjoint_splits_of_the_published_sizes(monkeypatch, vtab_task):
  monkeypatch.setattr(tfds, 'read', lambda *arguments: arguments)
  task, label_of = find(f'vtab/{vtab_task.name}'), vtab.LABELS[vtab_task.label]
  assert task.num_classes == vtab_task.classes
  scale = 255 if 'dsprites' in vtab_task.name else 1  # from stored values to pixels
  seen = []
  for split, published in zip(SPLITS, (vtab.TRAIN, vtab_task.val, vtab_task.test), strict=True):
    builder, *read = task.splits[split]()
    assert read == [published, label_of, scale]
    infos = {
      name: types.SimpleNamespace(num_examples=size) for name, size in SIZES[builder.name].items()
    }
    [part] = ReadInstruction.from_spec(published).to_absolute(infos)
    stored = part.splitname
    seen += [(stored, n) for n in range(part.from_ or 0, part.to or SIZES[builder.name][stored])]
  features = {'image', getattr(label_of, 'feature', 'image')}
  assert features <= builder.info.features.keys()
  number = int(PUBLISHED[vtab_task.name]['test images'])
  assert len(set(seen)) == len(seen) == 1000 + number


@pytest.fixture
def labelled(monkeypatch):
  """Data sets of TFDS of as many labels as the largest draw needs, and without images."""

  def read(builder, split):
    classes = range(builder.info.features['label'].num_classes)
    if builder.name in ('imagenet_a', 'imagenet_r'):
      classes = classes[::5]
    labels = [*classes] * (10 if builder.name == 'oxford_flowers102' else 20)
    return Files([split] * len(labels), labels)

  monkeypatch.setattr(tfds, 'read', read)


def write_lists(folder, images, lists):
  """Lists of images with their labels, and the images in a folder."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, labelled in lists.items():
    write_images(images, labelled)
    (folder / name).write_text(''.join(f'{image} {label}\n' for image, label in labelled.items()))


def test_noahs_vtab_folder_is_read(tmp_path):
  folder, counts = tmp_path / 'vtab-1k' / 'clevr_count', {'train800': 5, 'val200': 3, 'test': 4}
  lists = {
    f'{split}.txt': {f'images/{split}/{n:06d}.jpg': n for n in range(count)}
    for split, count in counts.items()
  }
  write_lists(folder, folder, lists)
  task = find('vtab/clevr_count', Source(source='noah', root=str(tmp_path)))
  assert "NOAH's folder" in task.origin
  assert [len(task.open(split).labels) for split in SPLITS] == [5, 3, 4]
  opened = task.open('train+val')
  assert opened[4].path == str(folder / 'images/train800/000004.jpg')
  assert_array_equal(opened.labels, [0, 1, 2, 3, 4, 0, 1, 2])


@hypothesis.given(st.lists(st.floats(0.125, 100, width=32), min_size=3, max_size=10))
def test_clevr_rules_are_those_of_the_table(distances):
  objects = {'size': distances, 'pixel_coords': np.array([[0, 0, each] for each in distances])}
  assert vtab.clevr_count({'objects': objects}) == len(distances) - 3
  expected = sum(min(distances) > bound for bound in (8, 8.5, 9, 9.5, 10))
  assert vtab.clevr_distance({'objects': objects}) == expected


@hypothesis.given(st.lists(st.tuples(st.integers(0, 7), st.floats(-50, 200, width=32)), max_size=6))
def test_kitti_takes_the_nearest_vehicle_and_has_a_class_for_none(objects):
  kinds = np.array([kind for kind, _ in objects], int)
  found = {'type': kinds, 'location': np.array([[1, 2, depth] for _, depth in objects])}
  depths = [depth for kind, depth in objects if kind in (0, 1, 2)]
  expected = sum(min(depths) > bound for bound in (8, 20)) if depths else 3
  assert vtab.kitti_distance({'objects': found}) == expected


def test_dsprites_bins_are_floors():
  for name, number in (('x_position', 32), ('orientation', 40)):
    found = [vtab.LABELS[name]({f'label_{name}': value}) for value in range(number)]
    assert_array_equal(found, np.arange(number) * 16 // number)


@pytest.mark.parametrize('shots', [1, 16])
def test_draws_are_balanced_disjoint_and_decided_by_the_seed(labelled, shots):
  drawn = []
  for seed in (0, 0, 1):
    task = find(f'fewshot/food101/{shots}/{seed}')
    assert 'they differ from NOAH' in task.notes[0]
    train, val = task.open('train'), task.open('val')
    assert_array_equal(np.bincount(train.labels, minlength=101), shots)
    assert_array_equal(np.bincount(val.labels, minlength=101), min(shots, 4))
    assert not set(train.indices) & set(val.indices)
    drawn.append(set(train.indices))
  assert drawn[0] == drawn[1] != drawn[2]


def test_flowers_have_ten_images_a_class_in_train_and_sixteen_shots_all_the_same(labelled):
  task = find('fewshot/oxford_flowers102/16/0')
  assert len(task.open('train').labels) == 16 * 102
  assert len(task.open('val').labels) == 4 * 102
  assert_refused('too few in class 0 (20)', find('fewshot/oxford_flowers102/21/0').open, 'train')


def test_sixteen_a_class_are_trained_on_and_a_and_r_are_masked(labelled):
  task = find('generalization/0')
  assert task.tests == ('test', 'v2', 'sketch', 'a', 'r')
  train = task.open('train')
  assert_array_equal(np.bincount(train.labels), 16)
  assert not set(train.indices) & set(task.open('val').indices)
  for split in ('test', 'v2', 'sketch'):
    assert task.mask(split) is None
  for split in ('a', 'r'):
    assert_array_equal(np.flatnonzero(task.mask(split)), np.arange(0, 1000, 5))


def test_noahs_lists_of_few_shots_are_read(tmp_path):
  names = ('train_meta.list.num_shot_2.seed_1', 'val_meta.list', 'test_meta.list')
  lists = {name: {f'{label}.jpg': label} for label, name in enumerate(names)}
  write_lists(tmp_path / 'oxford_pets', tmp_path / 'oxford_pets', lists)
  task = find('fewshot/oxford_pets/2/1', Source(source='lists', root=str(tmp_path)))
  assert [task.open(split).labels.tolist() for split in SPLITS] == [[0], [1], [2]]


def test_noahs_lists_of_imagenets_are_read(tmp_path):
  for data_set in (fewshot.IMAGENET, *fewshot.IMAGENET.shifted):
    lists = {'val_meta.list': {'x/0.jpg': 7, 'x/1.jpg': 12}}
    if data_set.folder == 'imagenet':
      lists['train_meta.list.num_shot_16.seed_2'] = {'x/0.jpg': 3}
      lists['unofficial_val_list_4_shot16seed0'] = {'x/1.jpg': 3}
    folder = tmp_path / data_set.folder
    write_lists(folder / 'annotations', folder / 'images', lists)
  task = find('generalization/2', Source(source='lists', root=str(tmp_path)))
  assert [task.open(split).labels.tolist() for split in task.splits] == [[3], [3], *[[7, 12]] * 5]
  assert np.flatnonzero(task.mask('r')).tolist() == [7, 12]


# Of the labels, as TFDS gave them.
DIGESTS = {'train': 'cf2b8d988b171884', 'val': '0c79e221026b5275', 'test': '0420885e69d13f5a'}


def test_order_and_splits_of_the_digits_stay_those_of_the_first_results():
  for split, digest in DIGESTS.items():
    labels = pipeline.load(find('digits').open(split), 8).labels
    assert hashlib.sha256(labels.tobytes()).hexdigest()[:16] == digest
