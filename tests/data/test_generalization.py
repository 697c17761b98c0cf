"""Domain generalization: draws from TFDS, masks of A and R, NOAH's lists."""

import numpy as np
from label_lists import write_images
from mocked_tfds import mocked  # noqa: F401

from glora_jax.data.catalog import find
from glora_jax.data.task import Source
from glora_jax.data.tasks import generalization


def test_sixteen_a_class_are_trained_on_and_a_and_r_are_masked(mocked):
  task = find('generalization/0')
  assert task.tests == ('test', 'v2', 'sketch', 'a', 'r')
  train = task.open('train')
  np.testing.assert_array_equal(np.bincount(train.labels), 16)
  assert not set(train.indices) & set(task.open('val').indices)
  for split in ('test', 'v2', 'sketch'):
    assert task.mask(split) is None
  for split in ('a', 'r'):
    np.testing.assert_array_equal(np.flatnonzero(task.mask(split)), np.arange(0, 1000, 5))


def test_noahs_lists_are_read(tmp_path):
  for test_set in generalization.TESTS:
    folder = tmp_path / test_set.folder
    write_images(folder / 'images', ['x/0.jpg', 'x/1.jpg'])
    (folder / 'annotations').mkdir()
    (folder / 'annotations' / 'val_meta.list').write_text('x/0.jpg 7\nx/1.jpg 12\n')
  annotations = tmp_path / 'imagenet' / 'annotations'
  (annotations / 'train_meta.list.num_shot_16.seed_2').write_text('x/0.jpg 3\n')
  (annotations / 'unofficial_val_list_4_shot16seed0').write_text('x/1.jpg 3\n')
  task = find('generalization/2', Source(source='lists', root=str(tmp_path)))
  assert [task.open(split).labels.tolist() for split in task.splits] == [[3], [3], *[[7, 12]] * 5]
  assert np.flatnonzero(task.mask('r')).tolist() == [7, 12]
