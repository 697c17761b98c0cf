"""The transfer benchmark's own parts: splits, image folders, names in an ONNX graph."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from benchmarks.structures import tasks as structures_tasks
from benchmarks.transfer import tasks
from glora_jax.data.catalog import find


def pictures(count, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (count, 4, 4), dtype=np.uint8)


@pytest.mark.parametrize('distinct', [tasks.distinct, structures_tasks.distinct])
def test_a_picture_is_kept_once_and_not_at_all_with_two_labels(distinct):
  images = pictures(6)
  images[3], images[5] = images[0], images[1]
  assert distinct(images, np.array([0, 1, 2, 0, 1, 2])).tolist() == [0, 2, 4]


def test_splits_are_disjoint_stratified_and_the_same_every_time():
  labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), 30))
  counts = {'train': 8, 'val': 2, 'test': 15}
  parts = tasks.split(labels, counts)
  again = tasks.split(labels, counts)
  everyone = np.concatenate(list(parts.values()))
  assert len(set(everyone.tolist())) == len(everyone) == 75
  for name, count in counts.items():
    assert np.bincount(labels[parts[name]]).tolist() == [count] * 3
    assert_array_equal(parts[name], again[name])
  assert parts['train'].tolist() != tasks.split(labels, counts, seed=1)['train'].tolist()


def test_the_folder_is_a_task_with_the_same_pixels_labels_and_classes(tmp_path):
  images, labels = pictures(30), np.arange(30) % 10
  parts = {'train': np.arange(10), 'val': np.arange(10, 20), 'test': np.arange(20, 30)}
  classes = tasks.CLASSES['fashion']
  tasks.write_task(str(tmp_path / 'task'), images, labels, classes, parts)
  before = tasks.digest(str(tmp_path / 'task'))
  task = find(f'folder:{tmp_path / "task"}')
  assert [name.split('_', 1)[1] for name in task.classes] == [
    name.replace('/', '_').replace(' ', '_') for name in classes
  ]
  for split, indices in parts.items():
    examples = task.open(split)
    assert_array_equal(examples.labels, labels[indices])
    for place in range(len(indices)):
      assert_array_equal(np.asarray(examples.image(place))[..., 0], images[indices[place]])
  tasks.write_task(str(tmp_path / 'task'), images, labels, classes, parts)
  assert tasks.digest(str(tmp_path / 'task')) == before
