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

from glora_jax.files import read_json, sha256_of, write_json
from glora_jax.runs import experiment, schema, used_fields
from glora_jax.runs.config import RunSettings, check_config, default_config
from glora_jax.runs.workdir import claim, claim_workdir, read_config


@pytest.fixture
def used(tmp_path):
  """A workdir whose every stage has used its config."""
  claim_workdir(default_config(), str(tmp_path))
  write_json(tmp_path / 'test_list.json', {})
  return str(tmp_path)


@pytest.mark.parametrize(
  'name, value, sentence',
  [
    ('search.parents', 2, 'search.parents was 10 and is now 2'),
    ('space.ranks', (4,), r'space.ranks was None and is now \[4\]'),
    ('presets', ('lora',), r"presets was \[\] and is now \['lora'\]"),
    ('seed', 7, 'seed was 42 and is now 7'),
  ],
)
def test_another_value_is_another_config(used, name, value, sentence):
  config = default_config()
  config.update_from_flattened_dict({name: value})
  with pytest.raises(ValueError, match=f'belongs to another config: {sentence}'):
    claim_workdir(config, used)


def test_a_path_of_images_that_is_written_otherwise_is_the_same(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  workdir = str(tmp_path / 'run')
  (tmp_path / 'run').mkdir()
  claim_workdir(changed(task='folder:photos/'), workdir)
  write_json(tmp_path / 'run' / 'test_list.json', {})
  for same in ('photos', './photos', f'{tmp_path}/photos', f'{tmp_path}/run/../photos//'):
    claim_workdir(changed(task=f'folder:{same}'), workdir)
  with pytest.raises(ValueError, match='belongs to another config: task was'):
    claim_workdir(changed(task='folder:others'), workdir)


def test_a_workdirs_images_are_the_same_from_every_directory(tmp_path, monkeypatch):
  workdir = tmp_path / 'run'
  for folder in ('run', 'a', 'b'):
    (tmp_path / folder).mkdir()
  monkeypatch.chdir(tmp_path / 'a')
  claim_workdir(changed(task='folder:photos'), str(workdir))
  write_json(workdir / 'test_list.json', {})
  monkeypatch.chdir(tmp_path)
  claim_workdir(changed(task='folder:a/photos'), str(workdir))
  monkeypatch.chdir(tmp_path / 'b')
  with pytest.raises(ValueError, match='belongs to another config: task was'):
    claim_workdir(changed(task='folder:photos'), str(workdir))


def test_a_field_that_changes_no_result_may_change(used):
  config = default_config()
  config.watch.profile = 'search'
  config.mesh.devices = 'one'
  config.data.cache, config.data.workers, config.checkpoint_epochs = 'cache', 2, 3
  claim_workdir(config, used)


def changed(**fields):
  """A config with other values; `search__mode` is the field `search.mode`."""
  return tiny_runs.changed(default_config(), **fields)


@pytest.mark.parametrize(
  'traces, fields',
  [
    ((), {'seed': 7, 'task': 'tfds:beans', 'supernet__epochs': 20}),
    (('supernet/',), {'supernet__epochs': 20}),  # made, but without a state
    (('supernet/50/', 'baselines/linear/50/'), {'search__mode': 'random', 'finetune__epochs': 30}),
    (('supernet/50/',), {'budget': 100, 'presets': ('lora',), 'allocation__folds': 4}),
    (('search/archive.npz',), {'finetune__batch_size': 5000, 'training__epochs': 20}),
    (('search/archive.npz.host.3.glora_jax.partial',), {'search__parents': 2, 'budget': 100}),
  ],
)
def test_what_no_stage_has_used_may_change_and_the_log_says_so(traces, fields, tmp_path, caplog):
  claim_workdir(default_config(), str(tmp_path))
  leave(tmp_path, traces)
  caplog.set_level(logging.INFO)
  claim_workdir(changed(**fields), str(tmp_path))
  for name in fields:
    assert f'{name.replace("__", ".")} was ' in caplog.text
  assert caplog.text.count('which no stage has used yet') == len(fields)
  assert check_config(read_config(tmp_path)) == check_config(changed(**fields))


@pytest.mark.parametrize(
  'traces, fields, stage',
  [
    (('supernet/50/',), {'seed': 7}, 'supernet'),
    (('supernet/50/',), {'supernet__epochs': 20}, 'supernet'),
    (('supernet/50/',), {'data__skip_broken': True}, 'supernet'),
    (('supernet/50/', 'baselines/lora/50/'), {'presets': ('ssf',)}, 'baselines'),
    (('search/archive.npz',), {'search__parents': 2}, 'search'),
    (('search/archive.npz',), {'augment__flip': True}, 'search'),  # by the supernet before it
    (('finetune/50/',), {'finetune__batch_size': 5000}, 'finetune'),
    (('result.json',), {'finetune__batch_size': 5000}, 'test'),
    (('rates.json',), {'compare__rate__prompt': 0.1}, 'tuning'),
  ],
)
def test_what_a_stage_has_used_is_refused_and_the_stage_named(traces, fields, stage, tmp_path):
  job = 'compare' if stage == 'tuning' else 'adapt'
  claim_workdir(changed(job=job), str(tmp_path))
  leave(tmp_path, traces)
  before = (tmp_path / 'config.json').read_bytes()
  with pytest.raises(ValueError, match=f'another config: .* its stage {stage} depends on what has'):
    claim_workdir(changed(job=job, **fields), str(tmp_path))
  assert (tmp_path / 'config.json').read_bytes() == before


def test_a_gradient_beside_a_search_has_used_its_fields_before_the_supernet(tmp_path):
  claim_workdir(changed(presets=('gradient',)), str(tmp_path))
  leave(tmp_path, ('head/50/',))
  with pytest.raises(ValueError, match=r'allocation\.folds was .* its stage head depends on'):
    claim_workdir(changed(presets=('gradient',), allocation__folds=4), str(tmp_path))


@pytest.mark.parametrize('other', [{'structure': 'lora:4'}, {'budget': 10}])
def test_a_structure_that_was_given_has_been_used_from_when_it_is_written_down(other, tmp_path):
  claim_workdir(changed(structure='lora:2'), str(tmp_path))
  leave(tmp_path, ('structure/genome.json',))
  with pytest.raises(ValueError, match=r'another config: .* its stage structure depends on'):
    claim_workdir(changed(**{'structure': 'lora:2', **other}), str(tmp_path))


@pytest.mark.parametrize(
  'trace, stage',
  [('supernet/50/', 'supernet'), ('training/50/', 'training'), ('rates.json', 'tuning')],
)
def test_what_stages_left_belongs_to_nobody_without_its_config(trace, stage, tmp_path):
  leave(tmp_path, (trace,))
  with pytest.raises(
    ValueError, match=f'config.json is gone, and stage {stage} has left something'
  ):
    claim_workdir(default_config(), str(tmp_path))
  assert not (tmp_path / 'config.json').exists()


def test_numbers_of_numpy_are_those_of_the_config_file(tmp_path):
  config = changed(space__ranks=tuple(2 ** np.arange(3)), compare__rates=(np.float32(0.5),))
  claim_workdir(config, str(tmp_path))
  claim_workdir(changed(space__ranks=(1, 2, 4), compare__rates=(0.5,)), str(tmp_path))
  settings = check_config(config)
  assert settings == check_config(read_config(tmp_path))
  assert {type(rank) for rank in settings.space.ranks} == {int}
  assert {type(rate) for rate in settings.compare.rates} == {float}


def test_a_config_of_scalars_and_arrays_is_one_of_numbers(tmp_path):
  scalars = {'learning_rate': jnp.float32(0.5), 'epochs': np.float32(30), 'flip': np.bool_(True)}
  content = changed().to_dict()
  content['supernet'] |= {name: scalars[name] for name in ('learning_rate', 'epochs')}
  content['augment'] |= {'flip': scalars['flip'], 'shift': jnp.int32(2)}
  content['space']['ranks'] = jnp.array([1, 2, 4])
  config = ml_collections.ConfigDict(content)
  claim_workdir(config, str(tmp_path))
  plain = changed(
    supernet__learning_rate=0.5,
    supernet__epochs=30,
    augment__flip=True,
    augment__shift=2,
    space__ranks=(1, 2, 4),
  )
  assert repr(check_config(config)) == repr(check_config(plain))
  claim_workdir(plain, str(tmp_path))
  assert check_config(read_config(tmp_path)) == check_config(plain)


def test_a_refused_config_leaves_no_lock(tmp_path):
  claim_workdir(changed(), str(tmp_path))
  leave(tmp_path, ('supernet/50/',))
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


def leave(workdir, traces):
  for trace in traces:
    path = workdir / trace
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if trace.endswith('/') else path.write_text('')


def test_a_suite_s_config_is_fixed_by_what_its_tasks_have_used(tmp_path):
  config = changed(task='vtab/all')
  claim_workdir(config, str(tmp_path))
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


STAMPED = '{"glora_jax": {"kind": "config", "format": 1}'


@pytest.mark.parametrize(
  'text, sentence',
  [
    ('[1, 2]', r'config.json is damaged (glora_jax=None says no kind); put the right one back'),
    (
      '{"seed": 42}',
      r'config.json is damaged (glora_jax=None says no kind); put the right one back',
    ),
    (f'{STAMPED}, "seed": {{"a": 1}}}}', r'another config: .*seed.a was 1 and is now None'),
    (f'{STAMPED}, "presets": 3}}', 'another config: .*presets was 3 and is now'),
    (
      f'{STAMPED}, "job": "compare", "compare": {{"methods": 3}}}}',
      'another config: .*compare.methods was 3',
    ),
    (
      f'{STAMPED}, "space": 3, "supernet": [], "structure": null}}',
      'belongs to another config',
    ),
    ('{"glora_jax": {"kind": "config", "format": 9}}', 'was written by a later version'),
    ('{"glora_jax": {"kind": "result", "format": 1}}', "of the kind 'result', where 'config'"),
    ('not json', 'config.json is damaged'),
  ],
)
def test_a_config_json_of_another_kind_is_one_sentence(text, sentence, tmp_path):
  (tmp_path / 'config.json').write_text(text)
  (tmp_path / 'test_list.json').write_text('{}')
  with pytest.raises(ValueError, match=sentence.replace('(', r'\(').replace(')', r'\)')):
    claim_workdir(default_config(), str(tmp_path))
  with pytest.raises(ValueError, match=r'config.json'):
    check_config(read_config(tmp_path))


@pytest.mark.parametrize('name, value', [('momentum', 0.9), ('protocol', None)])
def test_a_config_json_with_other_fields_is_of_another_config(used, name, value):
  written = {**read_json(f'{used}/config.json', 'config'), name: value}
  kept = {name: value for name, value in written.items() if value is not None}
  write_json(f'{used}/config.json', kept, 'config')
  with pytest.raises(ValueError, match=f'belongs to another config: {name} was {value} and is now'):
    claim_workdir(default_config(), used)


def test_what_is_no_folder_is_no_workdir(tmp_path):
  (tmp_path / 'file').touch()
  (tmp_path / 'nowhere').symlink_to(tmp_path / 'none')
  cases = [
    ('file', 'file is no folder; choose another --workdir'),
    ('nowhere', 'nowhere is no folder; choose another --workdir'),
    ('bytes\udcff', r'The path of the workdir has the name .*bytes\\udcff.* not UTF-8'),
  ]
  for name, sentence in cases:
    with pytest.raises(ValueError, match=sentence), claim(tmp_path / name):
      pass
  assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'nowhere']


@pytest.fixture(scope='module')
def short(run_config):
  """The config of the shortest run that there is."""
  config = tiny_runs.changed(run_config, structure='linear', presets=())
  config.training.update(epochs=1, warmup_epochs=0, batch_size=512)
  return config


def command(config, workdir):
  """Exit code, output and errors of the command."""
  flags = tiny_runs.overrides(tiny_runs.all_fields(config))
  process = tiny_runs.start_command('configs/quickstart.py', workdir, flags)
  printed, errors = process.communicate()
  return process.returncode, printed, errors


def scatter(folder, *names):
  """Writes files of somebody else into a folder, and returns their digests by path."""
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(name)
  return {folder / name: sha256_of(folder / name) for name in names}


def test_a_command_removes_its_own_half_written_files_and_nobody_elses(short, tmp_path):
  claim_workdir(short, str(tmp_path))
  others = scatter(
    tmp_path,
    'download.123.partial',
    'head/deep/y.4.partial',
    'training/x.json.host.5.partial',
    'folded/6.glora_jax.partial',
    'folded/x.6.glora_jax.partial',
    'folded/x.json.host.glora_jax.partial',
    'folded/x.json.host.6.glora_jax.partial.gz',
  )
  ours = scatter(
    tmp_path,
    'result.json.host.name.of.it.7.glora_jax.partial',
    'baselines/deep/x.json..8.glora_jax.partial',  # of a machine without a name
  )
  assert command(short, tmp_path)[0] == 0
  assert {path: sha256_of(path) for path in others} == others
  assert not any(path.exists() for path in ours)


HOLDER = 'process 1 on host\n'


@pytest.mark.parametrize(
  'names, first',
  [
    (('.DS_Store',), '.DS_Store'),
    (('compiled/program',), 'compiled'),
    (('split.json', 'images.npz'), 'images.npz'),  # the names of ours, and nothing says so
    (('supernet/50/state', 'x.json.host.7.glora_jax.partial'), 'supernet'),
    (('lock', 'photo.jpg'), 'photo.jpg'),  # a lock of somebody else
    (('config.json', 'model.safetensors'), 'config.json'),
  ],
)
def test_a_folder_of_somebody_else_is_refused_and_nothing_in_it_is_touched(names, first, tmp_path):
  others = scatter(tmp_path, *names)
  for name, text in (('lock', ''), ('config.json', '{"glora_jax": {"model": {}}, "job": 1}')):
    if name in names:
      (tmp_path / name).write_text(text)
      others[tmp_path / name] = sha256_of(tmp_path / name)
  sentence = f'{tmp_path} is not empty and not a workdir of glora_jax: {first} is there. Choose a '
  with pytest.raises(ValueError, match=re.escape(sentence)), claim(tmp_path):
    pass
  assert {path: sha256_of(path) for path in tmp_path.rglob('*') if path.is_file()} == others


def test_a_command_refuses_folders_of_somebody_else(short, tmp_path):
  others = scatter(tmp_path, 'head/deep/y.4.partial', 'photo.jpg', 'training/5/state')
  code, _, errors = command(short, tmp_path)
  assert code == 1
  sentence = f'error: {tmp_path} is not empty and not a workdir of glora_jax: head is there.'
  assert sentence in errors
  assert {path: sha256_of(path) for path in tmp_path.rglob('*') if path.is_file()} == others
  with pytest.raises(ValueError, match=r'^/ is not empty and not a workdir'), claim('/'):
    pass


def test_a_start_that_was_killed_before_it_had_a_config_goes_on(tmp_path):
  """The lock is written first, and written over without being empty in between."""
  write_json(tmp_path / 'split.json', {}, 'split')
  (tmp_path / 'lock').write_text(f'{HOLDER}{HOLDER}')
  with claim(tmp_path):
    assert (tmp_path / 'lock').read_text().count('\n') == 1
  assert (tmp_path / 'split.json').exists()


def test_a_workdir_without_a_lock_is_one_by_its_config(tmp_path):
  claim_workdir(default_config(), str(tmp_path))
  scatter(tmp_path, 'metrics.jsonl', 'notes.txt')
  with claim(tmp_path):
    pass


def test_a_suite_takes_a_folder_of_its_tasks_runs_and_of_nothing_else(tmp_path):
  tasks = [str(tmp_path / 'food101' / '4' / seed) for seed in '012']
  for task in tasks[:2]:
    with claim(task):
      (pathlib.Path(task) / 'split.json').touch()
  (tmp_path / 'compiled').mkdir()  # by JAX, in a process of several
  others = scatter(tmp_path, 'food101/4/2/photo.jpg')
  with (
    pytest.raises(ValueError, match=r'4/2 is not empty and .* photo\.jpg is there'),
    claim(tmp_path, tasks),
  ):
    pass
  for path in others:
    path.unlink()
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
  'name',
  [
    'adapter.safetensors',
    'folded/model.safetensors',
    'genome.json',
    'result.json',
    'test_list.json',
  ],
)
def test_a_file_of_another_run_in_a_finished_workdir_is_named(name, short, finished, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(finished[0], workdir)
  result = experiment.run(short, str(workdir))
  assert result['sha256'].keys() >= {'config.json', name} - {'result.json'}
  shutil.copy(finished[1] / name, workdir / name)
  with pytest.raises(ValueError, match=re.escape(f'{workdir / name} does not belong to ')):
    experiment.run(short, str(workdir))
  os.remove(workdir / name)
  if name != 'result.json':
    assert experiment.run(short, str(workdir)) == result


def test_a_command_reports_no_result_of_another_run(short, finished, tmp_path):
  """Nor one whose digests are damaged; without it the same command makes its own again."""
  workdir = tmp_path / 'run'
  shutil.copytree(finished[0], workdir)
  shutil.copy(finished[1] / 'result.json', workdir)
  before = {path: sha256_of(path) for path in workdir.rglob('*') if path.is_file()}
  code, printed, errors = command(short, workdir)
  assert (code, printed) == (1, '')
  path = workdir / 'result.json'
  assert f'error: {path} does not belong to {workdir}/config.json: it is from another run' in errors
  assert 'This run is finished' not in errors
  assert {path: sha256_of(path) for path in workdir.rglob('*') if path.is_file()} == before
  write_json(path, {**read_json(path), 'sha256': [1]}, 'result')
  with pytest.raises(
    ValueError, match=r'result.json is damaged \(\[1\] at sha256 is not an object'
  ):
    experiment.run(short, str(workdir))
  os.remove(path)
  again = tiny_runs.without_seconds(experiment.run(short, str(workdir)))
  assert again == tiny_runs.without_seconds(read_json(finished[0] / 'result.json'))


def test_results_do_not_depend_on_where_data_lie(short, finished, tmp_path):
  config = tiny_runs.changed(short, data__dir=str(tmp_path / 'tfds'), data__workers=1)
  found = tiny_runs.without_seconds(experiment.run(config, str(tmp_path / 'run')))
  assert found == tiny_runs.without_seconds(experiment.run(short, str(finished[0])))
