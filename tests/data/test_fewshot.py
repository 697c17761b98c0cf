"""Few-shot tasks: draws from TFDS, NOAH's lists, and sentences for what cannot be."""

import numpy as np
import pytest
from label_lists import write_images
from mocked_tfds import mocked  # noqa: F401

from glora_jax.data import pipeline
from glora_jax.data.catalog import find
from glora_jax.data.task import Source

SPLITS = ('train', 'val', 'test')


@pytest.mark.parametrize('shots', [1, 4, 16])
def test_draws_are_balanced_disjoint_and_decided_by_the_seed(mocked, shots):
  drawn = []
  for seed in (0, 0, 1):
    task = find(f'fewshot/food101/{shots}/{seed}')
    assert 'not those of NOAH' in task.notes[0]
    train = task.open('train')
    val = task.open('val')
    np.testing.assert_array_equal(np.bincount(train.labels, minlength=101), shots)
    np.testing.assert_array_equal(np.bincount(val.labels, minlength=101), min(shots, 4))
    assert not set(train.indices) & set(val.indices)
    drawn.append(train.indices.tolist())
  first, again, other = drawn
  assert first == again
  assert set(first) != set(other)


def test_flowers_have_ten_images_a_class_in_train_and_sixteen_shots_all_the_same(mocked):
  task = find('fewshot/oxford_flowers102/16/0')
  assert len(task.open('train').labels) == 16 * 102
  assert len(task.open('val').labels) == 4 * 102
  with pytest.raises(ValueError, match=r'fewer in class 0 \(20\).* Take fewer shots'):
    find('fewshot/oxford_flowers102/21/0').open('train')


@pytest.mark.parametrize('images', ['', 'images'])
def test_noahs_lists_are_read(tmp_path, images):
  folder = tmp_path / 'oxford_pets'
  names = [f'{n}.jpg' for n in range(6)]
  write_images(folder / images, names)
  lists = {
    'train_meta.list.num_shot_2.seed_1': names[:2],
    'val_meta.list': names[2:4],
    'test_meta.list': names[4:],
  }
  (folder / 'annotations').mkdir()
  for list_name, chosen in lists.items():
    lines = [f'{path} {label}' for label, path in enumerate(chosen)]
    (folder / 'annotations' / list_name).write_text('\n'.join(lines))
  task = find('fewshot/oxford_pets/2/1', Source(source='lists', root=str(tmp_path)))
  for split, first in zip(SPLITS, (0, 2, 4), strict=True):
    loaded = pipeline.load(task.open(split), 4)
    np.testing.assert_array_equal(loaded.labels, [0, 1])
    greys = loaded.images[:, 0, 0, 0].astype(int)
    assert np.abs(greys - [first, first + 1]).max() <= 2  # JPEG
