"""Joining processes; a run on several devices and processes, simulated, equals that on others."""

import dataclasses
import functools
import os
import shutil

import jax
import numpy as np
import pytest
import tiny_runs
from jax.interpreters import partial_eval
from jax.sharding import PartitionSpec as P
from joining import finish, free_port, run_two

from glora_jax.files import read_json, read_tensors
from glora_jax.vision.files import read_lines
from glora_jax.vision.runs import processes
from glora_jax.vision.runs.fields import is_among
from glora_jax.vision.runs.monitoring import Line
from glora_jax.vision.runs.stages.training import TRAINING, loss_of
from glora_jax.vision.runs.workdir import LOCK


@pytest.fixture
def plain_machine(monkeypatch):
  """An environment that speaks of one process."""
  for name in (
    'JAX_COORDINATOR_ADDRESS',
    'JAX_NUM_PROCESSES',
    'JAX_PROCESS_ID',
    'SLURM_NTASKS',
    'SLURM_STEP_NODELIST',
    'OMPI_COMM_WORLD_SIZE',
    'TPU_WORKER_HOSTNAMES',
  ):
    monkeypatch.delenv(name, raising=False)
  return monkeypatch


def test_a_plain_machine_is_left_alone(plain_machine):
  for names in ((), ('SLURM_NTASKS', 'SLURM_STEP_NODELIST')):
    for name in names:
      plain_machine.setenv(name, '1')
    processes.initialize()
    assert not jax.distributed.is_initialized()
  assert processes.over_devices('one') is None
  assert (processes.over_devices('all') is None) == (jax.device_count() == 1)


def test_half_a_description_is_refused(plain_machine):
  for given in (('host:1', None, None), ('host:1', 2, 2), ('host', 1, 0)):
    with pytest.raises(ValueError, match='set all three, coordinator as HOST:PORT'):
      processes.initialize(*given)


# All fields that a training reads and that are off by default, turned on.
ON = {
  field.name: type(field.value)(0.5) or 1
  for field in tiny_runs.all_fields()
  if is_among(field.name, TRAINING) and field.value in (0, False)
}


@pytest.mark.parametrize(
  'fields', [{}, {'model.drop_path': 0.5}, *({x: ON[x]} for x in ON)], ids=str
)
def test_a_training_that_draws_on_each_device_has_their_number_in_its_key(
  fields, run_config, tmp_path
):
  """If not, other devices would continue it with other draws."""
  config = tiny_runs.changed(run_config, model__drop_path=0.0, **fields)
  run = tiny_runs.context_of(config, tmp_path)
  mesh = jax.sharding.AbstractMesh((2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  learner = run.place('lora').adapted.fix('lora')
  images, labels = run.images.split('train')
  step = jax.shard_map(
    loss_of(run, learner, labels),
    mesh=mesh,
    in_specs=(P(), P(), P('data'), P()),
    out_specs=P(),
    check_vma=False,
  )
  batch = images[:8], labels[:8]
  [traced] = jax.make_jaxpr(step)(*learner.split(run.variables), batch, jax.random.key(0)).eqns
  program, _ = partial_eval.dce_jaxpr(traced.params['jaxpr'], [True] * len(traced.outvars))
  draws = 'axis_index' in str(program)
  assert dataclasses.replace(run, mesh=mesh).shards == (2 if draws else 1)


def test_joined_processes_hear_of_a_signal_to_one_and_agree_on_what_is_finished(
  backbone, finished_run, tmp_path
):
  before = tmp_path / 'before'
  shutil.copytree(finished_run[0], before)
  (before / 'result.json').unlink()
  run_two('vision/programs/joined_processes', backbone, finished_run[0], before)


@pytest.fixture(scope='module')
def start(run_config):
  """A function that starts a tiny run in a workdir, on some devices, with more flags."""
  # Each device would drop paths by itself.
  fields = {'model__drop_path': 0.0, 'training__accumulate': 2, 'finetune__epochs': 0}
  config = tiny_runs.changed(run_config, presets=(), **fields)
  return functools.partial(tiny_runs.start_command, config)


def assert_runs_agree(workdir, expected):
  """Two runs have found the same structures with the same scores, and the same result."""
  folders = (workdir, expected)
  found, archive = (
    read_tensors(folder / 'search' / 'archive.safetensors', 'archive')[0] for folder in folders
  )
  np.testing.assert_array_equal(found['genomes'], archive['genomes'])
  np.testing.assert_allclose(found['loss'], archive['loss'], rtol=1e-3)
  assert np.abs(found['correct'] - archive['correct']).max() <= 1
  result, whole = (read_json(folder / 'result.json') for folder in folders)
  one, other = (each['structures']['search'] for each in (result, whole))
  assert one['genome'] == other['genome']
  assert one['test_accuracy'] == pytest.approx(other['test_accuracy'], abs=2.5 / 797)
  assert result['fold_max_abs_diff'] < 1e-4


@pytest.mark.full
def test_two_processes_end_as_one_does_and_one_goes_on_from_what_two_have_left(start, tmp_path):
  """Two of two simulated devices each, against one of four.

  The two stream the training images and shard the base; the one has both as a whole.
  """
  two, left, alone = (tmp_path / name for name in ('two', 'left', 'alone'))
  layout = ('--config.data.max_resident=100000', '--config.mesh.base=sharded')
  joined = (f'coordinator=localhost:{free_port()}', 'num_processes=2')
  flags = [*layout, *(f'--config.distributed.{field}' for field in joined)]
  pair = [
    start(two, *flags, f'--config.distributed.process_id={process}', devices=2)
    for process in range(2)
  ]
  tiny_runs.wait_for(pair[0], two / 'training')
  left.mkdir()
  # As if killed when the supernet was trained and the next stage had begun.
  for name in (LOCK, 'config.json', 'metrics.jsonl'):
    shutil.copy(two / name, left)
  shutil.copytree(two / 'supernet', left / 'supernet')
  printed = finish(*pair)
  assert '| **searched** |' in printed[0]
  assert 'searched' not in printed[1]
  finish(start(left, *layout, devices=2))
  finish(start(alone, devices=4))

  assert sorted(os.listdir(two)) == sorted(os.listdir(alone))
  for workdir in (two, left, alone):
    lines = read_lines(workdir / 'metrics.jsonl', 'metrics', Line)
    steps = [(line['stage'], line['step']) for line in lines]
    assert len(set(steps)) == len(steps)  # one process writes
    assert_runs_agree(workdir, alone)
