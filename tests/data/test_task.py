"""Tasks check what they open; sources say what they lack."""

import numpy as np
import pytest

from glora_jax.data.catalog import find
from glora_jax.data.examples import Files, OpenedSplit
from glora_jax.data.task import Source, Task


def make_task(labels, **fields):
  split = OpenedSplit(Files([f'{n}.png' for n in range(len(labels))], labels))
  return Task('pets', ('cat', 'dog', 'owl'), {'test': split, 'rare': split}, 'photos', **fields)


def test_a_label_beyond_the_classes_is_explained():
  with pytest.raises(ValueError, match='pets test has labels 0 to 9, but 3 classes'):
    make_task([0, 9]).open('test')


def test_an_empty_split_is_explained():
  with pytest.raises(ValueError, match='pets has no images in test'):
    make_task([]).open('test')


def test_only_masked_test_sets_have_a_mask():
  task = make_task([0, 2], masked=('rare',))
  assert task.tests == ('test', 'rare')
  assert task.mask('test') is None
  np.testing.assert_array_equal(task.mask('rare'), [True, False, True])


@pytest.mark.parametrize(
  'task, unknown, known',
  [
    ('vtab/cifar100', 'torch', "'tfds' or 'noah'"),
    ('fewshot/food101/4/0', 'noah', "'tfds' or 'lists'"),
    ('generalization/0', 'noah', "'tfds' or 'lists'"),
  ],
)
def test_sources_that_a_task_lacks_are_explained(task, unknown, known):
  with pytest.raises(ValueError, match=f"data.source='{unknown}' is unknown for .* it is {known}"):
    find(task, Source(source=unknown))


@pytest.mark.parametrize(
  'task, source',
  [('vtab/cifar100', 'noah'), ('fewshot/food101/4/0', 'lists'), ('generalization/0', 'lists')],
)
def test_folders_need_a_root(task, source):
  with pytest.raises(ValueError, match=rf"data.source='{source}' needs data\.root"):
    find(task, Source(source=source))


@pytest.mark.parametrize(
  'task, reader',
  [('vtab/cifar100', 'noah'), ('fewshot/food101/4/0', 'lists'), ('generalization/0', 'lists')],
)
def test_what_a_source_does_not_read_is_refused(task, reader):
  """Other images than those in the folder would be trained on."""
  sentence = rf"data\.root='/data' is read with data\.source='{reader}' alone; give that, or leave"
  for source in (Source(root='/data'), Source(source='tfds', root='/data')):
    with pytest.raises(ValueError, match=sentence):
      find(task, source)
  sentence = (
    rf"data\.version='3\.0\.2' is that of a TFDS data set, and data\.source='{reader}' reads"
  )
  with pytest.raises(ValueError, match=sentence):
    find(task, Source(source=reader, root='/data', version='3.0.2'))
