"""A workdir belongs to one config from when its test images were read, and to one process."""

import os
import pathlib
import re
import shutil
import signal
import subprocess

import pytest
import tiny_runs
from label_lists import write_images
from places import digests, program

import glora_jax
from glora_jax.vision.runs import experiment
from glora_jax.vision.runs.config import check_config, default_config
from glora_jax.vision.runs.context import never
from glora_jax.vision.runs.stage import fields_of
from glora_jax.vision.runs.workdir import (
  LOCK,
  TEST_LIST,
  InUseError,
  Stopped,
  changes_of,
  claim,
  write_config,
)


def changed(**fields):
  """A config with other values; `search__mode` is the field `search.mode`."""
  return tiny_runs.changed(default_config(), **fields)


def change(workdir, tested=False, tasks=(), **fields):
  """What a config changes in a workdir."""
  config = changed(**fields)
  if tested:
    (pathlib.Path(tasks[0] if tasks else workdir) / TEST_LIST).touch()
  settings, fields = check_config(config), fields_of(tiny_runs.stages_of(config))
  changes = changes_of(settings, workdir, fields, tasks)
  write_config(settings, workdir)
  return changes


def test_a_path_of_images_means_the_same_however_and_from_wherever_it_is_given(
  tmp_path, monkeypatch
):
  workdir = tmp_path / 'run'
  for folder in ('run', 'a'):
    (tmp_path / folder).mkdir()
  monkeypatch.chdir(tmp_path / 'a')
  change(workdir, task='folder:photos/')
  monkeypatch.chdir(tmp_path)
  for same in ('a/photos', './a/photos', f'{tmp_path}/a/photos', f'{tmp_path}/run/../a/photos//'):
    assert not change(workdir, tested=True, task=f'folder:{same}')
  with pytest.raises(ValueError, match='belongs to another config: task was'):
    change(workdir, task='csv:a/photos')


def test_a_run_knows_its_images_wherever_they_are(short, tmp_path, caplog):
  photos, moved, workdir = (tmp_path / name for name in ('photos', 'moved', 'run'))
  write_images(photos, [f'{name}/{n}.png' for n in range(10) for name in 'ab'])

  def run(folder, stop=never):
    config = tiny_runs.changed(short, task=f'folder:{folder}')
    return experiment.run(config, str(workdir), stop)

  with pytest.raises(Stopped, match='Everything is saved'):
    run(photos, stop=(workdir / 'structure' / 'stage.json').exists)
  shutil.move(photos, moved)
  result = run(moved)
  for path in moved.rglob('*.png'):
    path.touch()
  caplog.clear()
  assert run(moved) == result
  assert not caplog.text
  shutil.copytree(moved, photos)
  write_images(photos, ['a/new.png'])
  with pytest.raises(ValueError, match=r'not those of this run \(1 added; a/new.png\)'):
    run(photos)
  shutil.rmtree(moved)
  shutil.move(photos, moved)
  assert run(moved) == result
  assert 'not those of this run (1 added; a/new.png)' in caplog.text


def test_a_field_may_be_corrected_until_the_test_images_were_read(tmp_path):
  change(tmp_path)
  assert change(tmp_path, training__epochs=20, seed=7) == {
    'seed': 'seed was 42 and is now 7',
    'training.epochs': 'training.epochs was 500 and is now 20',
  }
  free = {'watch__profile': 'search', 'mesh__devices': 'one', 'data__dir': 'moved'}
  fields = {'training__epochs': 20, 'seed': 7, **free, 'data__workers': 2}
  assert not change(tmp_path, tested=True, **fields, checkpoint_epochs=3)
  assert not change(tmp_path, **fields, allocation__max_rank=3)  # no stage reads it
  before = digests(tmp_path)
  with pytest.raises(
    ValueError, match=r'search.parents was 10 and is now 2\. Its test images were'
  ):
    change(tmp_path, **fields, search__parents=2)
  assert digests(tmp_path) == before


def test_a_suite_s_config_is_fixed_by_what_its_tasks_have_tested(tmp_path):
  folder = tmp_path / 'dtd'
  folder.mkdir()
  change(tmp_path, tasks=[folder], task='vtab/all')
  change(tmp_path, tasks=[folder], task='vtab/all', finetune__epochs=30)
  with pytest.raises(ValueError, match=r'training.epochs was 500 and is now 20'):
    change(tmp_path, True, [folder], task='vtab/all', finetune__epochs=30, training__epochs=20)


@pytest.mark.parametrize('before, after', [('vtab/all', 'digits'), ('digits', 'vtab/all')])
def test_a_workdir_is_of_one_suite_or_of_one_run(before, after, tmp_path):
  """Each writes the page of its own; the tasks of another list have nothing of the first."""
  change(tmp_path, task=before)
  for task in (after, 'fewshot/all'):
    with pytest.raises(ValueError, match=f"task was '{before}' and is now '{task}'"):
      change(tmp_path, task=task)


@pytest.mark.parametrize(
  'name, named',
  [('file', 'file is not a folder'), ('nowhere', 'here is not a folder'), ('\udcff', r'\\udcff')],
)
def test_what_is_no_folder_is_no_workdir(name, named, tmp_path):
  (tmp_path / 'file').touch()
  (tmp_path / 'nowhere').symlink_to(tmp_path / 'none')
  with pytest.raises(ValueError, match=named), claim(tmp_path / name):
    pass
  assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'nowhere']


@pytest.fixture(scope='module')
def short(run_config):
  """The config of the shortest run that there is."""
  config = tiny_runs.changed(run_config, structure='linear', presets=())
  config.training.update(epochs=1, warmup=0.0, batch_size=512)
  return config


def scatter(folder, *names):
  """Writes files of somebody else into a folder, and returns their digests by path."""
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(name)
  return digests(folder)


@pytest.mark.parametrize(
  'names, first',
  [
    (('.DS_Store',), '.DS_Store'),
    (('report.html', 'images.csv'), 'images.csv'),  # the names of ours, and nothing says so
  ],
)
def test_a_folder_of_somebody_else_is_refused_and_nothing_in_it_is_touched(
  names, first, short, tmp_path
):
  before = scatter(tmp_path, *names)
  sentence = f'{tmp_path} is not a workdir of glora_jax and has {first}; choose a new '
  with pytest.raises(ValueError, match=re.escape(sentence)):
    experiment.run(short, str(tmp_path))
  assert digests(tmp_path) == before


def test_a_suite_takes_a_folder_of_its_tasks_runs_and_of_nothing_else(tmp_path):
  scatter(tmp_path, 'food101/4/0/images.csv', 'compiled/program')  # by JAX, before there is a lock
  with pytest.raises(ValueError, match='workdir of glora_jax and has food101'), claim(tmp_path):
    pass
  with claim(tmp_path, tasks=['food101', '4', '0']):
    pass
  with claim(tmp_path):
    assert (tmp_path / 'food101/4/0/images.csv').exists()


@pytest.fixture(scope='module')
def finished(short, tmp_path_factory):
  """The workdirs of two runs, of which the first has the config `short`."""
  folder = tmp_path_factory.mktemp('runs')
  experiment.run(short, str(folder / 'first'))
  experiment.run(tiny_runs.changed(short, seed=7), str(folder / 'other'))
  return folder / 'first', folder / 'other'


def test_a_result_and_a_stage_of_two_runs_in_one_workdir_are_named(short, finished, tmp_path):
  """Without them the same command ends in the result that there was."""
  for name, folder in (
    ('result.json', 'structure'),
    ('training/linear/stage.json', 'training/linear'),
  ):
    workdir = tmp_path / folder
    shutil.copytree(finished[0], workdir)
    result = experiment.run(short, str(workdir))
    shutil.copy(finished[1] / name, workdir / name)
    before = digests(workdir)
    sentence = f'{workdir}/result.json does not belong to {workdir / folder}: '
    with pytest.raises(ValueError, match=re.escape(sentence)):
      experiment.run(short, str(workdir))
    assert digests(workdir) == before
  shutil.rmtree(workdir / 'training')
  (workdir / 'result.json').unlink()
  again = experiment.run(short, str(workdir))
  assert tiny_runs.without_seconds(again) == tiny_runs.without_seconds(result)


def test_a_finished_run_is_only_read_by_its_own_config_and_by_any_version(
  short, finished, tmp_path, monkeypatch
):
  workdir = tmp_path / 'run'
  shutil.copytree(finished[0], workdir)
  result = experiment.run(short, str(workdir))
  monkeypatch.setattr(glora_jax, '__version__', 'later')
  assert experiment.run(short, str(workdir)) == result
  (workdir / 'config.json').unlink()
  with pytest.raises(FileNotFoundError, match=r'config\.json is missing; restore it'):
    experiment.run(tiny_runs.changed(short, seed=7), str(workdir))


def test_a_folder_is_held_until_its_holder_ends_however_it_ends(tmp_path):
  folder = tmp_path / 'new' / 'run'
  holder = subprocess.Popen(
    [*program('vision/programs/hold_folder'), str(folder)], stdout=subprocess.PIPE, text=True
  )
  assert holder.stdout.readline() == 'held\n'
  with pytest.raises(InUseError, match=r'The workdir .*run is in use by .*another --workdir'):
    claim(folder).__enter__()
  holder.send_signal(signal.SIGKILL)
  holder.communicate()
  with claim(folder), pytest.raises(InUseError):
    claim(folder).__enter__()
  with pytest.raises(KeyError), claim(folder):
    raise KeyError
  with claim(folder):
    assert os.listdir(folder) == [LOCK]


def test_what_killed_writers_left_is_removed_where_a_run_writes_and_nowhere_else(tmp_path):
  ours = ('1.glora_jax.partial', 'training/lora/2.glora_jax.partial')
  others = ('notes/3.glora_jax.partial', 'task/4.glora_jax.partial', 'x.partial', 'training/x')
  for name in (LOCK, *ours, *others):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  with claim(tmp_path, ['training'], tasks=['task']):
    assert [name for name in (*ours, *others) if (tmp_path / name).exists()] == [*others]
