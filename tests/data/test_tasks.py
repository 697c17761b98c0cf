"""The benchmark's tasks: records against TFDS and the published sizes, label rules, and every task read end to end on mocked data that
honours slices; NOAH's layouts on real files."""

import io
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow_datasets as tfds
from mocked_tfds import example, mocked, pixels, resolve  # noqa: F401, F811
from PIL import Image

from glora_jax.data import catalog, pipeline
from glora_jax.data import tfds as tfds_lib
from glora_jax.data.catalog import find
from glora_jax.data.task import Source
from glora_jax.data.tasks import fewshot, generalization, vtab


@pytest.mark.parametrize('record', vtab.RECORDS, ids=lambda record: record.name)
def test_splits_are_disjoint_and_of_the_published_sizes(record):
  dataset = record.builder.split(':')[0].split('/')[0]
  parts = {
    name: resolve(dataset, expression)
    for name, expression in (('train', vtab.TRAIN), ('val', record.val), ('test', record.test))
  }
  positions = {
    name: {(split, position) for position in found} for name, (split, found) in parts.items()
  }
  assert [len(positions[name]) for name in parts] == [800, 200, record.num_test]
  assert not positions['train'] & positions['val']
  assert not positions['train'] & positions['test']
  assert not positions['val'] & positions['test']


def test_there_are_nineteen_in_three_groups():
  assert [sum(record.group == group for record in vtab.RECORDS) for group in vtab.GROUPS] == [
    7,
    4,
    8,
  ]
  assert len(set(vtab.names())) == 19


@pytest.mark.parametrize('record', vtab.RECORDS, ids=lambda record: record.name)
def test_features_are_those_of_the_builder(record):
  builder = tfds_lib.find_builder(record.builder)
  features = builder.info.features
  assert 'image' in features
  used = example(builder.name, 'train', 5)
  for key, value in used.items():
    assert key in features
    if isinstance(value, dict):
      assert set(value) <= set(features[key].feature)
  if isinstance(record.classes, int):
    assert features['label'].num_classes == record.classes


@pytest.mark.parametrize('name', vtab.names())
def test_every_task_is_read_end_to_end(mocked, name):
  record, task = vtab.record(name), find(f'vtab/{name}')
  dataset = record.builder.split(':')[0].split('/')[0]
  assert task.num_classes == (
    record.classes if isinstance(record.classes, int) else len(record.classes)
  )
  assert task.group == record.group
  for split, expression in (('train', vtab.TRAIN), ('val', record.val)):
    stored, positions = resolve(dataset, expression)
    labels = [record.label(example(dataset, stored, position, False)) for position in positions]
    loaded = pipeline.load(task.open(split), 8)
    np.testing.assert_array_equal(loaded.labels, labels)
    for index in (0, len(labels) - 1):
      expected = pixels(stored, positions[index])
      if dataset in ('dsprites', 'smallnorb'):
        expected = (
          expected[..., :1]
          % (2 if dataset == 'dsprites' else 251)
          * (255 if dataset == 'dsprites' else 1)
        )
        expected = expected.repeat(3, -1)
      np.testing.assert_array_equal(
        loaded.images[index], Image.fromarray(expected).resize((8, 8), Image.Resampling.BICUBIC)
      )
  test = task.splits['test']()
  assert len(test.source) == record.num_test


@hypothesis.given(st.lists(st.floats(0.125, 100, width=32), min_size=3, max_size=10))
def test_clevr_rules_are_those_of_the_table(distances):
  objects = {
    'size': np.zeros(len(distances)),
    'pixel_coords': np.array([[0, 0, z] for z in distances]),
  }
  assert vtab.clevr_count({'objects': objects}) == len(distances) - 3
  nearest = min(distances)
  bins = [(0, 8), (8, 8.5), (8.5, 9), (9, 9.5), (9.5, 10), (10, 100)]
  assert vtab.clevr_distance({'objects': objects}) == next(
    n for n, (low, high) in enumerate(bins) if low < nearest <= high
  )


@hypothesis.given(st.lists(st.tuples(st.integers(0, 7), st.floats(-50, 200, width=32)), max_size=6))
def test_kitti_takes_the_nearest_vehicle_and_has_a_class_for_none(objects):
  example = {
    'objects': {
      'type': np.array([kind for kind, _ in objects], int),
      'location': np.array([[1, 2, z] for _, z in objects]),
    }
  }
  vehicles = [z for kind, z in objects if kind in (0, 1, 2)]
  found = vtab.kitti_distance(example)
  if not vehicles:
    assert found == 3
  else:
    nearest = min(vehicles)
    assert found == (0 if nearest <= 8 else 1 if nearest <= 20 else 2)


@hypothesis.given(st.integers(0, 31), st.integers(0, 39))
def test_dsprites_bins_are_floors(x, orientation):
  example = {'label_x_position': x, 'label_orientation': orientation}
  assert vtab.record('dsprites_loc').label(example) == int(np.floor(x / (32 / 16)))
  assert vtab.record('dsprites_ori').label(example) == int(np.floor(orientation / (40 / 16)))


def test_versions_that_tfds_no_longer_builds_are_noted(tmp_path):
  for name, version in (('oxford_iiit_pet', '4.0.0'), ('svhn', '3.1.0')):
    task = find(f'vtab/{name}', Source(dir=str(tmp_path)))
    assert version in task.origin
    assert "is not the benchmark's" in task.notes[0]
  assert find('vtab/cifar100', Source(dir=str(tmp_path))).notes == ()


class Pets(
  tfds.core.GeneratorBasedBuilder, skip_registration=True
):  # or it would take the place of TFDS's own
  """Stands for a version that was prepared with an older TFDS."""

  name = 'oxford_iiit_pet'
  VERSION = tfds.core.Version('3.2.0')

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(None, None, 3), encoding_format='png'),
          'label': tfds.features.ClassLabel(num_classes=37),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples(3200), 'test': self._generate_examples(40)}

  def _generate_examples(self, count):
    for n in range(count):
      buffer = io.BytesIO()
      Image.fromarray(np.full((4, 4, 3), n % 256, np.uint8)).save(buffer, 'png')
      yield n, {'image': io.BytesIO(buffer.getvalue()), 'label': n % 37}


def test_a_prepared_old_version_is_read_from_its_folder(tmp_path):
  Pets(data_dir=tmp_path, file_format='array_record').download_and_prepare()
  task = find('vtab/oxford_iiit_pet', Source(dir=str(tmp_path)))
  assert task.origin == 'TFDS oxford_iiit_pet/3.2.0'
  assert task.notes == ()
  assert task.missing() is None
  assert [len(task.open(split).labels) for split in ('train', 'val', 'test')] == [800, 200, 40]


@pytest.mark.parametrize('shots', [1, 4, 16])
def test_few_shot_draws_are_balanced_disjoint_and_decided_by_the_seed(mocked, shots):
  drawn = {}
  for seed in (0, 1):
    task = find(f'fewshot/food101/{shots}/{seed}')
    train, val = task.open('train'), task.open('val')
    np.testing.assert_array_equal(np.bincount(train.labels, minlength=101), shots)
    np.testing.assert_array_equal(np.bincount(val.labels, minlength=101), min(shots, 4))
    assert not set(train.indices) & set(val.indices)
    np.testing.assert_array_equal(
      train.indices, find(f'fewshot/food101/{shots}/{seed}').open('train').indices
    )
    drawn[seed] = set(train.indices)
    assert 'not those of NOAH' in task.notes[0]
  assert drawn[0] != drawn[1]


def test_few_shot_tasks_that_are_not_there_are_explained():
  with pytest.raises(ValueError, match="TFDS has no data set for fgvc_aircraft; take NOAH's lists"):
    find('fewshot/fgvc_aircraft/4/0')
  for wrong in ('food', 'food101', 'food101/4', 'food101/four/0', 'food101/0/0'):
    with pytest.raises(ValueError, match=f'fewshot/{wrong}'):
      find(f'fewshot/{wrong}')
  with pytest.raises(ValueError, match="'tfds' or 'lists'"):
    find('fewshot/food101/4/0', Source(source='noah'))
  with pytest.raises(ValueError, match=r'needs data\.root'):
    find('fewshot/food101/4/0', Source(source='lists'))


def test_generalization_trains_on_sixteen_a_class_and_masks_a_and_r(mocked):
  task = find('generalization/0')
  assert task.tests == ('test', 'v2', 'sketch', 'a', 'r')
  np.testing.assert_array_equal(np.bincount(task.open('train').labels), 16)
  assert not set(task.open('train').indices) & set(task.open('val').indices)
  for split in ('test', 'v2', 'sketch'):
    assert task.mask(split) is None
  for split in ('a', 'r'):
    np.testing.assert_array_equal(np.flatnonzero(task.mask(split)), np.arange(0, 1000, 5))


def write_images(folder, names):
  for number, name in enumerate(names):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(path)


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


@pytest.mark.parametrize(
  'line, message',
  [
    ('images/a.png', r'line 2: .* does not hold a path and a whole number'),
    ('images/a.png three', 'line 2'),
    ('images/a.png 8', 'line 2: the label 8 is none of the 8 classes'),
    ('images/a.png -1', 'the label -1 is none'),
    ('images/0.png 1', 'line 2: images/0.png occurs a second time, first in line 1'),
    ('images/none.png 1', '1 of 2 images .* are not there, .*none.png'),
  ],
)
def test_broken_lists_are_explained_with_the_line(tmp_path, line, message):
  folder = tmp_path / 'clevr_count'
  write_images(folder, ['images/0.png', 'images/a.png'])
  (folder / 'train800.txt').write_text(f'images/0.png 0\n{line}\n')
  task = find('vtab/clevr_count', Source(source='noah', root=str(tmp_path)))
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    task.open('train')
  with pytest.raises(FileNotFoundError, match=r'There is no list .*val200\.txt'):
    task.open('val')


def test_missing_folders_and_sources_are_explained(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'There is no folder .*cifar.*NOAH'):
    find('vtab/cifar100', Source(source='noah', root=str(tmp_path)))
  with pytest.raises(ValueError, match=r'needs data\.root'):
    find('vtab/cifar100', Source(source='noah'))
  with pytest.raises(ValueError, match="'tfds' or 'noah'"):
    find('vtab/cifar100', Source(source='torch'))
  with pytest.raises(ValueError, match='its tasks are cifar100'):
    find('vtab/cifar10')


@pytest.mark.parametrize('images', ['', 'images'])
def test_few_shot_lists_are_read(tmp_path, images):
  folder = tmp_path / 'oxford_pets'
  names = [f'{n}.jpg' for n in range(6)]
  write_images(folder / images, names)
  (folder / 'annotations').mkdir()
  for name, chosen in (
    ('train_meta.list.num_shot_2.seed_1', names[:2]),
    ('val_meta.list', names[2:4]),
    ('test_meta.list', names[4:]),
  ):
    (folder / 'annotations' / name).write_text(
      '\n'.join(f'{path} {n}' for n, path in enumerate(chosen))
    )
  task = find('fewshot/oxford_pets/2/1', Source(source='lists', root=str(tmp_path)))
  assert [len(pipeline.load(task.open(split), 4).labels) for split in ('train', 'val', 'test')] == [
    2,
    2,
    2,
  ]


def test_generalization_lists_are_read(tmp_path):
  for _, _, _, path, images in generalization.TESTS:
    write_images(tmp_path / images, ['x/0.jpg', 'x/1.jpg'])
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text('x/0.jpg 7\nx/1.jpg 12\n')
  annotations = tmp_path / 'imagenet' / 'annotations'
  (annotations / 'train_meta.list.num_shot_16.seed_2').write_text('x/0.jpg 3\n')
  (annotations / 'unofficial_val_list_4_shot16seed0').write_text('x/1.jpg 3\n')
  task = find('generalization/2', Source(source='lists', root=str(tmp_path)))
  assert [task.open(split).labels.tolist() for split in task.splits] == [[3], [3], *[[7, 12]] * 5]
  assert np.flatnonzero(task.mask('r')).tolist() == [7, 12]


def test_the_check_covers_a_suite_without_preparing_anything(tmp_path, monkeypatch):
  monkeypatch.setattr(tfds_lib, 'prepare', lambda builder: pytest.fail('prepared'))
  assert catalog.expand('vtab/all') == [f'vtab/{name}' for name in vtab.names()]
  assert catalog.expand('fewshot/all/4/0') == [f'fewshot/{name}/4/0' for name in fewshot.NAMES]
  assert catalog.expand('fewshot/food101/all/1') == [
    f'fewshot/food101/{number}/1' for number in fewshot.SHOTS
  ]
  assert len(set(catalog.expand('fewshot/all'))) == 5 * len(fewshot.SHOTS) * len(fewshot.SEEDS)
  assert catalog.expand('generalization/all') == [
    'generalization/0',
    'generalization/1',
    'generalization/2',
  ]
  assert catalog.expand('vtab/al') == ['vtab/al']
  said = {
    name: catalog.report(name, Source(dir=str(tmp_path))) for name in catalog.expand('vtab/all')
  }
  assert not any(ready for ready, _ in said.values())
  text = '\n'.join(line for _, lines in said.values() for line in lines)
  assert 'resisc45/3.0.0 needs a manual download into' in text
  assert 'You can download it' in text or 'Dataset can be downloaded' in text
  assert "is not the benchmark's" in text


def test_the_check_counts_classes(tmp_path):
  source = Source(dir=str(tmp_path))
  find('digits', source).open('train')
  ready, lines = catalog.report('digits', source)
  assert ready
  assert re.search(
    r'train  800 images, 10 of 10 classes, \d+ to \d+ each: 0 \d+, 1 \d+', '\n'.join(lines)
  )
