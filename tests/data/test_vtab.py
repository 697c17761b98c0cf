"""VTAB-1k: the table against TFDS and the published sizes, every task read on mocked data."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from label_lists import write_images
from mocked_tfds import dataset_of, example, mocked, pixels, resolve  # noqa: F401
from PIL import Image

from glora_jax.data import pipeline
from glora_jax.data import tfds as tfds_lib
from glora_jax.data.catalog import find
from glora_jax.data.task import Source
from glora_jax.data.tasks import vtab

SPLITS = ('train', 'val', 'test')


def test_there_are_nineteen_in_three_groups():
  groups = [vtab_task.group for vtab_task in vtab.TASKS]
  assert [groups.count(group) for group in vtab.GROUPS] == [7, 4, 8]
  assert len(set(vtab.NAMES)) == 19


@pytest.mark.parametrize('vtab_task', vtab.TASKS, ids=lambda vtab_task: vtab_task.name)
def test_splits_are_disjoint_and_of_the_published_sizes(vtab_task):
  positions = {}
  for name, expression in zip(SPLITS, (vtab.TRAIN, *vtab_task.splits[:2]), strict=True):
    stored, stored_positions = resolve(dataset_of(vtab_task), expression)
    positions[name] = {(stored, position) for position in stored_positions}
  assert [len(positions[name]) for name in SPLITS] == [800, 200, vtab_task.splits.num_test]
  assert not positions['train'] & positions['val']
  assert not positions['train'] & positions['test']
  assert not positions['val'] & positions['test']


@pytest.mark.parametrize('vtab_task', vtab.TASKS, ids=lambda vtab_task: vtab_task.name)
def test_features_are_those_of_the_builder(vtab_task):
  builder = tfds_lib.find_builder(vtab_task.builder)
  features = builder.info.features
  for feature, value in example(builder.name, 'train', 5).items():
    assert feature in features
    if isinstance(value, dict):
      assert set(value) <= set(features[feature].feature)
  if isinstance(vtab_task.classes, int):
    assert features['label'].num_classes == vtab_task.classes


@pytest.mark.parametrize('vtab_task', vtab.TASKS, ids=lambda vtab_task: vtab_task.name)
def test_every_task_is_read_end_to_end(mocked, vtab_task):
  task = find(f'vtab/{vtab_task.name}')
  dataset = dataset_of(vtab_task)
  assert task.num_classes == vtab_task.num_classes
  assert task.group == vtab_task.group
  for split, expression in (('train', vtab.TRAIN), ('val', vtab_task.splits.val)):
    stored, positions = resolve(dataset, expression)
    loaded = pipeline.load(task.open(split), 8)
    labels = [vtab_task.label(example(dataset, stored, position, False)) for position in positions]
    np.testing.assert_array_equal(loaded.labels, labels)
    for index in (0, len(labels) - 1):
      picture = Image.fromarray(pixels(dataset, stored, positions[index]))
      expected = picture.resize((8, 8), Image.Resampling.BICUBIC)
      np.testing.assert_array_equal(loaded.images[index], expected)
  assert len(task.splits['test'].open().source) == vtab_task.splits.num_test


@pytest.mark.parametrize(
  'names', [('clevr_count', 'clevr_dist'), ('smallnorb_azi', 'smallnorb_ele')]
)
def test_two_tasks_on_the_same_images_keep_decoded_ones_apart(mocked, tmp_path, caplog, names):
  for name in (*names, *names):
    pipeline.load(find(f'vtab/{name}').open('val'), 8, cache=str(tmp_path))
  assert len(list(tmp_path.iterdir())) == 2
  assert not caplog.text


def test_versions_that_tfds_no_longer_builds_are_noted(tmp_path):
  for name, version in (('oxford_iiit_pet', '4.0.0'), ('svhn', '3.1.0')):
    task = find(f'vtab/{name}', Source(dir=str(tmp_path)))
    assert version in task.origin
    assert "is not the benchmark's" in task.notes[0]
  assert find('vtab/cifar100', Source(dir=str(tmp_path))).notes == ()


def test_noahs_vtab_folder_is_read(tmp_path):
  folder = tmp_path / 'vtab-1k' / 'clevr_count'
  for split, count in (('train800', 5), ('val200', 3), ('test', 4)):
    names = [f'images/{split}/{n:06d}.jpg' for n in range(count)]
    write_images(folder, names)
    (folder / f'{split}.txt').write_text(''.join(f'{name} {n}\n' for n, name in enumerate(names)))
  task = find('vtab/clevr_count', Source(source='noah', root=str(tmp_path)))
  assert "NOAH's folder" in task.origin
  assert [len(task.open(split).labels) for split in ('train', 'val', 'test')] == [5, 3, 4]
  loaded = pipeline.load(task.open('train+val'), 4)
  assert abs(int(loaded.images[4, 0, 0, 0]) - 4) <= 2
  np.testing.assert_array_equal(loaded.labels, [0, 1, 2, 3, 4, 0, 1, 2])


DISTANCES = [(0, 8), (8, 8.5), (8.5, 9), (9, 9.5), (9.5, 10), (10, 100)]


@hypothesis.given(st.lists(st.floats(0.125, 100, width=32), min_size=3, max_size=10))
def test_clevr_rules_are_those_of_the_table(distances):
  objects = {
    'size': np.zeros(len(distances)),
    'pixel_coords': np.array([[0, 0, distance] for distance in distances]),
  }
  assert vtab.clevr_count({'objects': objects}) == len(distances) - 3
  nearest = min(distances)
  expected = next(n for n, (low, high) in enumerate(DISTANCES) if low < nearest <= high)
  assert vtab.clevr_distance({'objects': objects}) == expected


@hypothesis.given(st.lists(st.tuples(st.integers(0, 7), st.floats(-50, 200, width=32)), max_size=6))
def test_kitti_takes_the_nearest_vehicle_and_has_a_class_for_none(objects):
  example = {
    'objects': {
      'type': np.array([kind for kind, _ in objects], int),
      'location': np.array([[1, 2, depth] for _, depth in objects]),
    }
  }
  depths = [depth for kind, depth in objects if kind in (0, 1, 2)]
  bounds = (8, 20)
  expected = sum(min(depths) > bound for bound in bounds) if depths else 3
  assert vtab.kitti_distance(example) == expected


@hypothesis.given(st.integers(0, 31), st.integers(0, 39))
def test_dsprites_bins_are_floors(x, orientation):
  example = {'label_x_position': x, 'label_orientation': orientation}
  assert vtab.find('dsprites_loc').label(example) == int(np.floor(x / (32 / 16)))
  assert vtab.find('dsprites_ori').label(example) == int(np.floor(orientation / (40 / 16)))
