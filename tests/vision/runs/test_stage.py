"""A list of stages: what is read, what runs again, and what a kill or a correction leaves."""

import contextlib
import dataclasses
import functools
import logging
import os
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from places import digests, program
from tiny_jobs import Job
from tiny_runs import changed, stages_of

import glora_jax
from glora_jax.compiling import reported
from glora_jax.errors import UserError
from glora_jax.files import write_json
from glora_jax.method.presets import parse_preset_name
from glora_jax.vision.data.pipeline import Images
from glora_jax.vision.runs import experiment, fields, stage
from glora_jax.vision.runs.config import default_config
from glora_jax.vision.runs.context import never
from glora_jax.vision.runs.job import begin
from glora_jax.vision.runs.settings import RunSettings
from glora_jax.vision.runs.stage import Stage, read_mark, walk
from glora_jax.vision.runs.workdir import LOCK, Stopped


@pytest.fixture
def job(tmp_path):
  return Job(tmp_path)


@pytest.mark.parametrize(
  'changes, again',
  [
    ({'search__parents': 5}, ['first', 'parts/third']),
    ({'budget': 5}, ['second']),
    ({'search__mode': 'random'}, ['parts/third']),
    ({'search__generations': 5}, []),  # nobody reads it
    ({'checkpoint_epochs': 5, 'mesh__devices': 'one', 'data__workers': 2}, []),
    ({'seed': 5}, ['first', 'second', 'parts/third']),
    ({'facts': {'weights': 'others'}}, ['first', 'second', 'parts/third']),
  ],
)
def test_a_corrected_field_runs_again_what_reads_it_and_nothing_more(changes, again, job, tmp_path):
  before, _ = job.start()
  after, ran = job.start(**changes)
  assert ran == again
  assert after == Job(tmp_path / 'anew').start(**changes)[0]
  assert job.start(**changes) == (after, [])
  assert stage.stages_to_repeat(job.context(), job.stages) == []  # corrected back
  assert job.start() == (before, [])  # what was made at first is there


def test_a_file_that_was_removed_from_a_complete_stage_is_written_again(job):
  before, _ = job.start()
  (job.folder / 'first' / 'genome.json').unlink()
  assert job.start() == (before, ['first'])
  assert job.start() == (before, [])


def test_a_stages_record_keeps_its_seconds_and_what_it_compiled_in_all_its_starts(job):
  sizes = [8, 2]

  def run(context, *results):
    for size in sizes:
      reported('sum', jax.jit(lambda x: x.sum()))(np.ones(size, np.float32))
    if 2 in sizes:
      time.sleep(1)
      raise OSError('no space left')

  job.stages = (dataclasses.replace(job.stages[0], run=run),)
  with pytest.raises(OSError, match='no space'):
    job.start()
  first = read_mark(str(job.folder / 'first'))
  sizes[:] = [4]
  job.start()
  mark = read_mark(str(job.folder / 'first'))
  assert mark['seconds'] >= first['seconds'] >= 1
  first, kept = (each['programs']['sum'] for each in (first, mark))
  assert kept['memory']['arguments'] == 4 * 8  # of the largest
  assert kept['seconds'] >= first['seconds']


GRADIENT = ['head', 'gradient', 'structure', 'training/gradient']


ON_ALL = {'train_on': 'train+val'}


BASELINES = {'structure': 'search', 'presets': ('gradient', 'lora')}


TRAINED = ['training/linear', 'training/gradient', 'training/lora', 'finetune']


def test_on_other_devices_what_is_complete_is_kept_and_the_rest_begins_again(job):
  result, _ = job.start()
  assert job.start(shards=4) == (result, [])
  mark = read_mark(str(job.folder / 'second'))
  write_json(job.folder / 'second' / 'stage.json', {**mark, 'complete': False}, 'stage')
  assert stage.stages_to_repeat(job.context(), job.stages) == []
  assert stage.stages_to_repeat(job.context(shards=4), job.stages) == ['second']
  assert job.start(shards=4)[1] == ['second']
  assert job.start(budget=5, shards=2)[1] == ['second']
  assert job.start(budget=5)[1] == []


def test_after_the_test_no_stage_runs_on_something_else(job):
  """Images and devices are in no `config.json`."""
  job.start()
  freeze(job)
  for shards in (1, 4):
    assert not stage.stages_to_repeat(job.context(shards=shards), job.stages)
  shutil.rmtree(job.folder / 'first')
  assert not stage.stages_to_repeat(job.context(), job.stages)  # a removed folder is made again
  for values in ({'facts': {'images': 3}}, {'search__mode': 'random'}):
    with pytest.raises(ValueError, match=r'the test images were read since\. Start with the same'):
      stage.stages_to_repeat(job.context(**values), job.stages)


def freeze(job):
  """Writes the list after which test images may be read."""
  listed = {'version': glora_jax.__version__, 'result': 'linear', 'structures': {}}
  write_json(job.folder / 'test_list.json', listed, 'test list')


@pytest.mark.parametrize('is_tested', [False, True])
@pytest.mark.parametrize('is_shared', [False, True])
def test_another_version_repeats_all_stages_until_the_test_images_may_be_read(
  is_shared, is_tested, tmp_path, monkeypatch
):
  job = Job(tmp_path / 'run', tmp_path / 'shared' if is_shared else None)
  result, ran = job.start()
  if is_tested:
    freeze(job)
  monkeypatch.setattr(glora_jax, '__version__', 'later')
  assert job.start() == (result, [] if is_tested else ran)


class Killed(BaseException):
  """What a process that is killed does no more than this."""


def or_die(function, left, *arguments, **options):
  """Calls a function while a process that was killed after so many calls is alive."""
  if next(left, None) is None:
    raise Killed
  return function(*arguments, **options)


@pytest.mark.parametrize('is_shared', [False, True])
def test_a_kill_between_any_two_writes_resumes_to_the_same_result(is_shared, tmp_path, monkeypatch):
  """Before every file that is written, and every folder that is made or moved."""
  values = {'search__parents': 5, 'budget': 5}
  expected, _ = Job(tmp_path / 'whole').start(**values)
  writes = [(stage, 'write_json'), (os, 'makedirs'), (os, 'rename')]
  for moment in range(100):
    shared = tmp_path / f'{moment}-shared' if is_shared else None
    job, left = Job(tmp_path / str(moment), shared), iter(range(moment))
    job.start()
    with monkeypatch.context() as patched, contextlib.suppress(Killed):
      for module, name in writes:
        patched.setattr(module, name, functools.partial(or_die, getattr(module, name), left))
      assert job.start(**values)[0] == expected
      break
    assert job.start(**values)[0] == expected
    assert job.start()[1] == [], moment  # what was complete before is there
  assert 10 < moment < 99


def test_a_shared_stage_is_made_once_and_gives_what_an_unshared_one_does(tmp_path):
  """Whatever else differs between the runs; a correction of what it reads makes another one."""
  expected, _ = Job(tmp_path / 'alone').start(budget=5)
  jobs = [Job(tmp_path / name, tmp_path / 'shared') for name in ('one', 'other')]
  assert jobs[0].start()[1] == ['first', 'second', 'parts/third']
  before = digests(tmp_path / 'shared')
  assert jobs[1].start(budget=5) == (expected, ['second', 'parts/third'])
  assert jobs[1].start(budget=5, shards=4) == (expected, [])
  assert not (tmp_path / 'other' / 'first').exists()
  assert digests(tmp_path / 'shared') == before
  assert jobs[1].start(search__parents=5)[1] == ['first', 'second', 'parts/third']
  assert jobs[1].start(budget=5) == (expected, [])
  assert len([*(tmp_path / 'shared').rglob('genome.json')]) == 2


def test_who_waits_for_a_shared_stage_can_be_stopped_and_resumes_it_if_its_maker_is_killed(
  tmp_path, caplog
):
  folders = [str(tmp_path / name) for name in ('other', 'shared')]
  maker = subprocess.Popen(
    [*program('vision/programs/make_shared_stage'), *folders], stdout=subprocess.PIPE, text=True
  )
  assert maker.stdout.readline() == 'half of it\n'
  job, asked = Job(tmp_path / 'run', folders[1]), iter([False, True])
  context = dataclasses.replace(job.context(), stop=lambda: next(asked))
  with caplog.at_level(logging.INFO), pytest.raises(Stopped):
    walk(context, job.stages)
  assert caplog.text.count('first: waiting for another process') == 1
  maker.send_signal(signal.SIGKILL)
  maker.communicate()
  expected, _ = Job(tmp_path / 'alone').start()
  assert job.start() == (expected, ['first', 'second', 'parts/third'])


def test_notes_in_the_folder_of_a_stage_stay_with_what_they_are_about(job):
  job.start()
  path = job.folder / 'parts' / 'third' / 'plots' / 'loss.png'
  path.parent.mkdir()
  path.write_text('mine')
  job.start(search__mode='random')
  [moved] = job.folder.rglob('loss.png')
  assert moved.relative_to(job.folder).parts[:3] == ('replaced', 'parts', 'third')
  job.start()
  assert path.read_text() == 'mine'


def test_a_part_of_a_job_runs_what_it_needs(job):
  assert job.start(until='parts/third')[1] == ['first', 'parts/third']
  assert job.start()[1] == ['second']


def test_every_field_is_free_or_read_by_a_stage():
  jobs = [
    {'presets': ('gradient', 'lora')},
    {'structure': 'gradient'},
  ]
  read = [*fields.FREE, 'suite.']
  for values in jobs:
    read += stage.fields_of(stages_of(changed(default_config(), **values)))
  for name in fields.values_of(RunSettings()):
    assert fields.is_among(name, read), name


@pytest.mark.parametrize(
  'values, changes, again',
  [
    ({'structure': 'gradient'}, {'budget': 600}, GRADIENT[2:]),
    ({'structure': 'gradient'}, {'training__learning_rate': 5e-3, 'test': False}, GRADIENT[3:]),
    ({'structure': 'gradient'}, {'seed': 7}, GRADIENT),
    ({'structure': 'search'}, {'budget': 600}, ['search', 'finetune']),
    ({'structure': 'search'}, {'finetune__learning_rate': 5e-3}, ['finetune']),
    # No stage that chooses depends on whether all images are trained on afterwards.
    (BASELINES, {**ON_ALL, 'presets': BASELINES['presets']}, TRAINED),
    ({'structure': 'lora:2'}, ON_ALL, ['training/lora:2']),
  ],
)
def test_runs_have_in_common_what_does_not_depend_on_their_difference(values, changes, again, job):
  """A budget, a learning rate, whether there are baselines and a test; not a seed."""
  keys = []
  for each in (values, {**values, 'presets': None, **changes}):
    context = job.context(allocation__head_rate=0.02, **each)
    stages = [one for one in stages_of(context.settings) if one.has_folder]
    keys.append(stage.keys_of(context, stages))
  assert {name for name, key in keys[1].items() if keys[0][name] != key} == {*again}


def recorded(settings, prefix, note):
  """Settings that note which of their fields are read, by dotted name."""
  kind = type(settings)
  names = {field.name for field in dataclasses.fields(kind)}

  class Recorded(kind):
    def __getattribute__(self, name):
      value = super().__getattribute__(name)
      if name in names and not dataclasses.is_dataclass(value):
        note(prefix + name)
      return value

  copy = object.__new__(Recorded)
  for name in names:
    value = getattr(settings, name)
    is_section = dataclasses.is_dataclass(value)
    object.__setattr__(
      copy, name, recorded(value, f'{prefix}{name}.', note) if is_section else value
    )
  return copy


SHORT = {
  'allocation__head_epochs': 1,
  'training__epochs': 6,
  'training__warmup': 0.0,
  'training__batch_size': 80,
}


SEARCHED = {'presets': ('gradient', 'lora'), 'train_on': 'train+val', **SHORT}
TRANSFER = {'structure': 'transfer', 'presets': (), **SHORT, 'training__epochs': 1}
TRIAL = {
  'structure': 'gradient',
  'presets': None,
  'test': False,
  'allocation__head_rate': 1e-2,
  'allocation__prior': 'shifts',
  **SHORT,
}
TUNED = {'structure': 'finetuning', 'presets': None, 'budget': None, **SHORT, 'training__epochs': 1}


@pytest.mark.parametrize(
  'values',
  [
    pytest.param(SEARCHED, marks=pytest.mark.slow),
    pytest.param({**TRANSFER, 'model__weights': 'embedded'}, marks=pytest.mark.full),
    pytest.param(TRIAL, marks=pytest.mark.full),
    pytest.param(TUNED, marks=pytest.mark.full),
  ],
)
def test_a_stage_reads_no_field_and_no_image_but_those_that_it_names(
  values, run_config, tmp_path, monkeypatch
):
  """So no result can depend on a field or an image that is not in its key."""
  config = changed(run_config, **values)
  current, unnamed, split_of = [], [], Images.split

  def note(name):
    if not current:
      return
    named = (*fields.FREE, *fields.COMMON, *current[0].reads)
    if not fields.is_among(name, named):
      unnamed.append((current[0].name, name))

  def split_noted(images, name):
    if current:
      used = {*current[0].splits, *current[0].images}
      unnamed.extend({*name.split('+')}.difference(*(each.split('+') for each in used)))
    return split_of(images, name)

  def noted(one, function, context, *results):
    settings = recorded(context.settings, '', note)
    current.append(one)
    try:
      return function(dataclasses.replace(context, settings=settings), *results)
    finally:
      current.clear()

  def noting(one):
    return dataclasses.replace(one, run=functools.partial(noted, one, one.run))

  stages = [noting(one) if one.has_folder else one for one in stages_of(config)]
  monkeypatch.setattr(experiment, 'stages_of', lambda settings: tuple(stages))
  monkeypatch.setattr(Images, 'split', split_noted)
  experiment.run(config, str(tmp_path / 'run'))
  assert not unnamed


@pytest.mark.parametrize('name', ['folded', 'training', 'training/lora:2'])
def test_a_stage_whose_folder_is_a_link_is_refused(name, tmp_path):
  outside, folder = tmp_path / 'outside', tmp_path / 'run'
  (outside / '1.glora_jax.partial').mkdir(parents=True)
  (folder / name).parent.mkdir(parents=True)
  (folder / LOCK).touch()
  (folder / name).symlink_to(outside)
  stages = stages_of(changed(default_config(), structure='linear', presets=('lora:2',)))
  with pytest.raises(ValueError, match=f'{name} is a link, and a run writes only within'):
    begin(RunSettings(), stages, str(folder), never).__enter__()
  assert os.listdir(outside) == ['1.glora_jax.partial']


@pytest.mark.parametrize('where', ['check', 'run'])
def test_what_a_check_refuses_is_the_users_mistake_and_all_else_is_a_bug(
  where, tmp_path, monkeypatch
):
  def fail(context):
    parse_preset_name('lora:0')

  stages = [Stage('one', **{'run': lambda context: {}, where: fail}, splits=('train',))]
  monkeypatch.setattr(experiment, 'stages_of', lambda settings: stages)
  with pytest.raises(ValueError, match='lora:0') as raised:
    experiment.run(default_config(), str(tmp_path / 'run'))
  assert isinstance(raised.value, UserError) == (where == 'check')
