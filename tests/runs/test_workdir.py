"""A workdir belongs to one config."""

import logging
import os
import pathlib
import re
import shutil
from collections.abc import Mapping

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import tiny_runs
from places import digests

from glora_jax.files import read_json, write_json
from glora_jax.runs import experiment, schema, used_fields
from glora_jax.runs.config import RunSettings, check_config, default_config
from glora_jax.runs.workdir import claim, claim_workdir, read_config


def changed(**fields):
  """A config with other values; `search__mode` is the field `search.mode`."""
  return tiny_runs.changed(default_config(), **fields)


def leave(workdir, traces):
  for trace in traces:
    path = workdir / trace
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if trace.endswith('/') else path.write_text('')


def test_a_path_of_images_means_the_same_however_and_from_wherever_it_is_given(
  tmp_path, monkeypatch
):
  workdir = tmp_path / 'run'
  for folder in ('run', 'a', 'b'):
    (tmp_path / folder).mkdir()
  monkeypatch.chdir(tmp_path / 'a')
  claim_workdir(changed(task='folder:photos/'), str(workdir))
  leave(workdir, ['test_list.json'])
  monkeypatch.chdir(tmp_path)
  for same in ('a/photos', './a/photos', f'{tmp_path}/a/photos', f'{tmp_path}/run/../a/photos//'):
    claim_workdir(changed(task=f'folder:{same}'), str(workdir))
  monkeypatch.chdir(tmp_path / 'b')
  with pytest.raises(ValueError, match='belongs to another config: task was'):
    claim_workdir(changed(task='folder:photos'), str(workdir))


def test_a_field_that_changes_no_result_may_change(tmp_path):
  claim_workdir(changed(), str(tmp_path))
  leave(tmp_path, ['test_list.json'])
  free = {'watch__profile': 'search', 'mesh__devices': 'one', 'data__cache': 'cache'}
  claim_workdir(changed(**free, data__workers=2, checkpoint_epochs=3), str(tmp_path))


@pytest.mark.parametrize(
  'traces, fields',
  [
    ((), {'seed': 7, 'task': 'tfds:beans', 'supernet__epochs': 20}),
    (('supernet/',), {'supernet__epochs': 20}),  # made, but without a state
    (
      ('supernet/50/',),
      {'search__mode': 'random', 'budget': 100, 'presets': ('lora',), 'allocation__folds': 4},
    ),
    (('search/archive.npz',), {'finetune__batch_size': 5000, 'training__epochs': 20}),
    (('search/archive.npz.host.3.glora_jax.partial',), {'search__parents': 2}),
  ],
)
def test_what_no_stage_has_used_may_change_and_the_log_says_so(traces, fields, tmp_path, caplog):
  claim_workdir(default_config(), str(tmp_path))
  leave(tmp_path, traces)
  caplog.set_level(logging.INFO)
  claim_workdir(changed(**fields), str(tmp_path))
  for name in fields:
    assert f'{name.replace("__", ".")} was ' in caplog.text
  assert len(caplog.messages) == len(fields)
  assert check_config(read_config(tmp_path)) == check_config(changed(**fields))


@pytest.mark.parametrize(
  'given, trace, fields, stage',
  [
    ({}, 'supernet/50/', {'seed': 7}, 'supernet'),
    ({}, 'baselines/lora/50/', {'presets': ('ssf',)}, 'baselines'),
    ({}, 'search/archive.npz', {'augment__flip': True}, 'search'),  # by the supernet before it
    ({}, 'finetune/50/', {'finetune__batch_size': 5000}, 'finetune'),
    ({}, 'result.json', {'finetune__batch_size': 5000}, 'test'),
    ({'presets': ('gradient',)}, 'head/50/', {'allocation__folds': 4}, 'head'),
    ({'structure': 'lora:2'}, 'structure/genome.json', {'budget': 10}, 'structure'),
    ({'job': 'compare'}, 'rates.json', {'compare__rate__prompt': 0.1}, 'tuning'),
  ],
)
def test_what_a_stage_has_used_is_refused_and_the_stage_named(
  given, trace, fields, stage, tmp_path
):
  claim_workdir(changed(**given), str(tmp_path))
  leave(tmp_path, [trace])
  before = digests(tmp_path)
  [name] = fields
  sentence = f'another config: {name.replace("__", ".")} was .* its stage {stage} depends on what'
  with pytest.raises(ValueError, match=sentence):
    claim_workdir(changed(**given, **fields), str(tmp_path))
  assert digests(tmp_path) == before


@pytest.mark.parametrize('trace, stage', [('training/50/', 'training'), ('rates.json', 'tuning')])
def test_what_stages_left_belongs_to_nobody_without_its_config(trace, stage, tmp_path):
  leave(tmp_path, [trace])
  with pytest.raises(ValueError, match=f'config.json is gone, and stage {stage} has left'):
    claim_workdir(default_config(), str(tmp_path))
  assert not (tmp_path / 'config.json').exists()


def test_a_config_of_scalars_and_arrays_is_one_of_numbers(tmp_path):
  content = changed().to_dict()
  content['supernet'] |= {'learning_rate': jnp.float32(0.5), 'epochs': np.float32(30)}
  content['space']['ranks'] = jnp.array([1, 2, 4])
  content['compare']['rates'] = (np.float32(0.5),)
  config = ml_collections.ConfigDict(content)
  claim_workdir(config, str(tmp_path))
  numbers = {'supernet__learning_rate': 0.5, 'supernet__epochs': 30, 'compare__rates': (0.5,)}
  plain = changed(**numbers, space__ranks=(1, 2, 4))
  assert repr(check_config(config)) == repr(check_config(plain))
  claim_workdir(plain, str(tmp_path))


def test_a_refused_config_leaves_no_lock(tmp_path):
  claim_workdir(changed(), str(tmp_path))
  leave(tmp_path, ['supernet/50/'])
  before = set(os.listdir(tmp_path))
  with pytest.raises(ValueError, match='belongs to another config: seed was 42'):
    experiment.run(changed(seed=7), str(tmp_path))
  assert set(os.listdir(tmp_path)) == before


def test_what_to_remove_for_a_stage_to_begin_anew_is_said(tmp_path):
  claim_workdir(default_config(), str(tmp_path))
  leave(tmp_path, ('supernet/50/', 'search/archive.npz', 'finetune/50/', 'test_list.json'))
  with pytest.raises(ValueError) as caught:
    claim_workdir(changed(search__parents=2, finetune__epochs=30), str(tmp_path))
  kept = [tmp_path / name for name in ('search', 'finetune', 'test_list.json')]
  assert str(caught.value).endswith(
    f' Without {", ".join(map(str, kept))} the stage search begins anew.'
  )
  for path in kept:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  claim_workdir(changed(search__parents=2, finetune__epochs=30), str(tmp_path))


def test_a_suite_s_config_is_fixed_by_what_its_tasks_have_used(tmp_path):
  claim_workdir(changed(task='vtab/all'), str(tmp_path))
  leave(tmp_path, ['dtd/supernet/50/'])
  folders = [str(tmp_path / 'cifar100'), str(tmp_path / 'dtd')]
  claim_workdir(changed(task='vtab/all', finetune__epochs=3), str(tmp_path), folders)
  with pytest.raises(ValueError, match=r'supernet.epochs was 500 and is now 20'):
    claim_workdir(changed(task='vtab/all', supernet__epochs=20), str(tmp_path), folders)


def test_every_field_is_free_or_used_by_a_stage():
  ways = (used_fields.SEARCHED, used_fields.GIVEN, used_fields.COMPARED)
  known = (
    *used_fields.FREE_FIELDS,
    *(field for stages in ways for field in used_fields.used_by(stages, stages[-1])),
  )
  for name, setting in schema.walk(RunSettings()):
    dotted = f'{name}.' if isinstance(setting.default, Mapping) else name
    assert used_fields.is_among(dotted, known), name


@pytest.mark.parametrize(
  'content, named',
  [
    ({'seed': {'a': 1}}, 'seed.a was 1 and is now None'),
    ({'presets': 3}, 'presets was 3 and is now'),
    ({'space': 3, 'supernet': [], 'structure': None}, 'structure was None and is now'),
    ({'momentum': 0.9}, 'momentum was 0.9 and is now None'),
  ],
)
def test_a_config_json_that_somebody_has_edited_is_another_config(content, named, tmp_path):
  write_json(tmp_path / 'config.json', content, 'config')
  leave(tmp_path, ['test_list.json'])
  with pytest.raises(ValueError, match=f'another config: .*{named}'):
    claim_workdir(default_config(), str(tmp_path))
  with pytest.raises(ValueError, match=r'config.json|momentum'):
    check_config(read_config(tmp_path))


@pytest.mark.parametrize(
  'name, named',
  [('file', 'file is no folder'), ('nowhere', 'nowhere is no folder'), ('\udcff', r'\\udcff')],
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
  config.training.update(epochs=1, warmup_epochs=0, batch_size=512)
  return config


def scatter(folder, *names):
  """Writes files of somebody else into a folder, and returns their digests by path."""
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(name)
  return digests(folder)


def test_a_run_removes_its_own_half_written_files_and_nobody_elses(short, tmp_path):
  claim_workdir(short, str(tmp_path))
  others = scatter(
    tmp_path,
    'download.123.partial',
    'head/deep/y.4.partial',
    'training/x.json.host.5.partial',
    'folded/6.glora_jax.partial',
    'folded/x.json.host.glora_jax.partial',
    'folded/x.json.host.6.glora_jax.partial.gz',
  )
  both = scatter(
    tmp_path,
    'result.json.host.name.of.it.7.glora_jax.partial',
    'baselines/deep/x.json..8.glora_jax.partial',  # of a machine without a name
  )
  experiment.run(short, str(tmp_path))
  left = digests(tmp_path)
  assert others.items() <= left.items()
  assert both.keys() & left.keys() == others.keys()


@pytest.mark.parametrize(
  'names, first',
  [
    (('.DS_Store',), '.DS_Store'),
    (('compiled/program',), 'compiled'),
    (('split.json', 'images.npz'), 'images.npz'),  # the names of ours, and nothing says so
    (('head/deep/y.4.partial', 'photo.jpg', 'x.json.host.7.glora_jax.partial'), 'head'),
    (('lock', 'photo.jpg'), 'photo.jpg'),  # a lock of somebody else
    (('config.json', 'model.safetensors'), 'config.json'),
  ],
)
def test_a_folder_of_somebody_else_is_refused_and_nothing_in_it_is_touched(
  names, first, short, tmp_path
):
  scatter(tmp_path, *names)
  for name, text in (('lock', ''), ('config.json', '{"glora_jax": {"model": {}}, "job": 1}')):
    if name in names:
      (tmp_path / name).write_text(text)
  before = digests(tmp_path)
  sentence = f'{tmp_path} is not empty and not a workdir of glora_jax: {first} is there. Choose a '
  with pytest.raises(ValueError, match=re.escape(sentence)):
    experiment.run(short, str(tmp_path))
  assert digests(tmp_path) == before


def test_a_workdir_is_one_by_its_lock_or_its_config(tmp_path):
  """The lock is written first, and written over without being empty in between."""
  killed, moved = tmp_path / 'killed', tmp_path / 'moved'
  scatter(killed, 'split.json')
  (killed / 'lock').write_text(2 * 'process 1 on host\n')
  scatter(moved, 'metrics.jsonl', 'notes.txt')
  claim_workdir(default_config(), str(moved))
  for folder in (killed, moved):
    with claim(folder):
      assert (folder / 'lock').read_text().count('\n') == 1
  assert (killed / 'split.json').exists()


def test_a_suite_takes_a_folder_of_its_tasks_runs_and_of_nothing_else(tmp_path):
  tasks = [str(tmp_path / 'food101' / '4' / seed) for seed in '012']
  for task in tasks[:2]:
    with claim(task):
      (pathlib.Path(task) / 'split.json').touch()
  (tmp_path / 'compiled').mkdir()  # by JAX, in a process of several
  scatter(tmp_path, 'food101/4/2/photo.jpg')
  with pytest.raises(ValueError, match=r'4/2 .* photo\.jpg is there'), claim(tmp_path, tasks):
    pass
  (tmp_path / 'food101/4/2/photo.jpg').unlink()
  with claim(tmp_path, tasks):
    pass
  os.remove(tmp_path / 'lock')
  with pytest.raises(ValueError, match='workdir of glora_jax: food101 is there'), claim(tmp_path):
    pass


@pytest.fixture(scope='module')
def finished(short, tmp_path_factory):
  """The workdirs of two runs, of which the first has the config `short`."""
  folder = tmp_path_factory.mktemp('runs')
  experiment.run(short, str(folder / 'linear'))
  other = tiny_runs.changed(short, structure='lora', budget=5000, training__epochs=3)
  experiment.run(other, str(folder / 'lora'))
  return folder / 'linear', folder / 'lora'


@pytest.mark.parametrize(
  'name', ['adapter.safetensors', 'folded/model.safetensors', 'genome.json', 'test_list.json']
)
def test_a_file_of_another_run_in_a_finished_workdir_is_named(name, short, finished, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(finished[0], workdir)
  result = experiment.run(short, str(workdir))
  assert result['sha256'].keys() >= {'config.json', name}
  shutil.copy(finished[1] / name, workdir / name)
  with pytest.raises(ValueError, match=re.escape(f'{workdir / name} does not belong to ')):
    experiment.run(short, str(workdir))
  os.remove(workdir / name)
  assert experiment.run(short, str(workdir)) == result


def test_a_result_of_another_run_is_not_reported(short, finished, tmp_path):
  """Nor one whose digests are damaged; without it the same command makes its own again."""
  workdir = tmp_path / 'run'
  shutil.copytree(finished[0], workdir)
  shutil.copy(finished[1] / 'result.json', workdir)
  before = digests(workdir)
  path = workdir / 'result.json'
  with pytest.raises(ValueError, match=f'{path} does not belong to {workdir}/config.json'):
    experiment.run(short, str(workdir))
  assert digests(workdir) == before
  write_json(path, {**read_json(path), 'sha256': [1]}, 'result')
  with pytest.raises(ValueError, match=r'result.json is damaged \(\[1\] at sha256'):
    experiment.run(short, str(workdir))
  os.remove(path)
  again = tiny_runs.without_seconds(experiment.run(short, str(workdir)))
  assert again == tiny_runs.without_seconds(read_json(finished[0] / 'result.json'))


def test_results_do_not_depend_on_where_data_lie(short, finished, tmp_path):
  config = tiny_runs.changed(short, data__dir=str(tmp_path / 'tfds'), data__workers=1)
  found = tiny_runs.without_seconds(experiment.run(config, str(tmp_path / 'run')))
  assert found == tiny_runs.without_seconds(experiment.run(short, str(finished[0])))
