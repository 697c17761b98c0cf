"""All names of tasks; workdirs among images."""

from comparing import assert_refused

from glora_jax.vision.data import catalog
from glora_jax.vision.data.tasks import fewshot, vtab


def test_all_stands_for_every_value_of_a_part():
  expand = catalog.expand
  assert expand('vtab/all') == [f'vtab/{name}' for name in vtab.NAMES]
  assert expand('fewshot/all/4/0') == [f'fewshot/{name}/4/0' for name in fewshot.NAMES]
  assert expand('fewshot/food101/all/1') == [f'fewshot/food101/{n}/1' for n in fewshot.SHOTS]
  assert len(set(expand('fewshot/all'))) == 5 * len(fewshot.SHOTS) * len(fewshot.SEEDS)
  assert expand('generalization/all') == [f'generalization/{seed}' for seed in range(3)]
  for name in ('vtab/al', 'digits', 'folder:photos/all', 'vtab/all/all'):
    assert expand(name) == [name]


def test_a_workdir_among_the_images_is_refused_but_not_one_elsewhere_or_hidden(tmp_path):
  task, photos = f'folder:{tmp_path}/photos', tmp_path / 'photos'
  for workdir in ('../runs', '.runs/own', 'cat/.out', '../photos2'):
    catalog.require_apart(task, str(photos / workdir))
  catalog.require_apart('digits', str(tmp_path))
  for workdir in ('', 'runs/own', 'cat/out'):
    named = f'--workdir={photos / workdir}'
    assert_refused(named, catalog.require_apart, f'{task}/', str(photos / workdir))
