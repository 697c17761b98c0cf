"""Devices: joining processes, placing arrays, and runs on several simulated devices and processes that equal the run on others."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, program, randomized

from glora_jax import mesh
from glora_jax.files import read_arrays, read_json
from glora_jax.models import weights
from glora_jax.models.vit import ViT
from glora_jax.runs.config import default_config


@pytest.mark.parametrize(
  'shape, devices, axis',
  [
    ((768, 3072), 8, 1),
    ((3072, 768), 8, 0),
    ((12, 64, 64), 4, 2),
    ((64, 16, 24), 8, 2),
    ((64, 3, 5), 8, None),
    ((8,), 8, 0),
    ((), 8, None),
    ((16, 16, 3, 768), 8, 3),
  ],
)
def test_the_largest_axis_that_fits_is_sharded_and_no_stack(shape, devices, axis):
  assert mesh.sharded_axis(shape, devices) == axis


def test_a_plain_machine_is_left_alone_and_half_a_description_refused(monkeypatch):
  for name in (
    'JAX_COORDINATOR_ADDRESS',
    'JAX_NUM_PROCESSES',
    'JAX_PROCESS_ID',
    'SLURM_NTASKS',
    'OMPI_COMM_WORLD_SIZE',
    'TPU_WORKER_HOSTNAMES',
  ):
    monkeypatch.delenv(name, raising=False)
  mesh.initialize()
  assert not jax.distributed.is_initialized()
  monkeypatch.setenv('SLURM_NTASKS', '1')
  monkeypatch.setenv('SLURM_STEP_NODELIST', 'node1')
  mesh.initialize()
  assert not jax.distributed.is_initialized()
  for given in (('host:1', None, None), ('host:1', 2, 2), (None, 2, 0)):
    with pytest.raises(
      ValueError, match='give all three, the last from 0 to num_processes - 1, or none'
    ):
      mesh.initialize(*given)
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'host:1')
  with pytest.raises(ValueError, match='coordinator=host:1, num_processes=None'):
    mesh.initialize()


def test_on_one_device_there_is_no_mesh():
  assert mesh.over_devices('one') is None
  assert (mesh.over_devices('all') is None) == (jax.device_count() == 1)


def environment(devices):
  flags = f'--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0'  # less to compile, the same to compute
  return {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': flags,
    'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }


def test_eight_devices_with_the_base_replicated_or_sharded_train_and_score_as_one():
  ran = subprocess.run(program('eight_devices'), env=environment(8), capture_output=True, text=True)
  assert ran.returncode == 0, ran.stderr[-3000:]


def free_port():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


def test_joined_processes_wait_for_each_other_share_arrays_and_hear_of_a_signal_to_one(tmp_path):
  port = free_port()
  finish(
    *(
      subprocess.Popen(
        [*program('two_processes'), str(port), str(process), str(tmp_path)],
        cwd=ROOT,
        env=environment(1),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
      )
      for process in range(2)
    )
  )


@pytest.fixture(scope='module')
def overrides(tmp_path_factory):
  """A tiny run as the fields that differ from the default config."""
  folder = tmp_path_factory.mktemp('mesh')
  model = ViT(10, patch_size=4, width=16, depth=2, num_heads=2)
  params = randomized(model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))['params'], scale=0.2)
  weights.save(
    folder / 'tiny.safetensors', model, params, {'image_size': 8, 'normalization': 'unit'}
  )
  (folder / 'config.py').write_text(
    'from glora_jax.runs.config import default_config as get_config\n'
  )
  fields = {
    'model.weights': folder / 'tiny.safetensors',
    'data.dir': folder / 'tfds',
    'budget': 1000,
    'supernet.epochs': 2,
    'supernet.warmup_epochs': 1,
    'supernet.accumulate': 2,
    'supernet.learning_rate': 1e-2,
    'search.population': 6,
    'search.generations': 1,
    'search.parents': 3,
    'search.mutations': 3,
    'search.crossovers': 3,
    'finetune.epochs': 0,
    'finetune.warmup_epochs': 0,
  }
  return folder, [f'--config.{name}={value}' for name, value in fields.items()]


def start(overrides, workdir, devices, *more):
  folder, fields = overrides
  arguments = [
    sys.executable,
    '-m',
    'glora_jax.main',
    '--config',
    str(folder / 'config.py'),
    '--workdir',
    str(workdir),
    *fields,
    *more,
  ]
  return subprocess.Popen(
    arguments,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    env=environment(devices),
  )


def start_two(overrides, workdir, *more):
  joined = (
    f'--config.distributed.coordinator=localhost:{free_port()}',
    '--config.distributed.num_processes=2',
  )
  return [
    start(overrides, workdir, 4, *joined, f'--config.distributed.process_id={process}', *more)
    for process in range(2)
  ]


def finish(*processes):
  """Standard output of each."""
  said = [process.communicate(timeout=300) for process in processes]
  for process, (_, errors) in zip(processes, said, strict=True):
    assert process.returncode == 0, errors[-3000:]
  return [output for output, _ in said]


def test_two_processes_end_as_one_does_and_one_goes_on_from_what_two_have_left(overrides, tmp_path):
  """Four simulated devices each, training images streamed and the base sharded, against eight in one process, resident and replicated."""
  layout = ('--config.data.max_resident=100000', '--config.mesh.base=sharded')
  pair = start_two(overrides, tmp_path / 'two', *layout)
  while not (tmp_path / 'two' / 'baselines').exists() and all(
    process.poll() is None for process in pair
  ):
    time.sleep(0.05)
  # What a kill at this moment would leave: the supernet's checkpoints are done, the next stage has begun.
  (tmp_path / 'four').mkdir()
  for name in ('config.json', 'metrics.jsonl'):
    shutil.copy(tmp_path / 'two' / name, tmp_path / 'four')
  shutil.copytree(tmp_path / 'two' / 'supernet', tmp_path / 'four' / 'supernet')
  printed = finish(*pair)
  assert 'winner, finetuned' in printed[0]
  assert 'winner' not in printed[1]
  finish(start(overrides, tmp_path / 'four', 4, *layout))
  finish(start(overrides, tmp_path / 'eight', 8))

  assert sorted(os.listdir(tmp_path / 'two')) == sorted(os.listdir(tmp_path / 'eight'))
  for name in ('two', 'four', 'eight'):
    with open(tmp_path / name / 'metrics.jsonl') as file:
      entries = [json.loads(line) for line in file]
    assert len({(entry['stage'], entry['step']) for entry in entries}) == len(
      entries
    )  # one process writes
    assert read_json(tmp_path / name / 'config.json')['search']['population'] == 6
  eight = read_json(tmp_path / 'eight' / 'result.json')
  archive = read_arrays(tmp_path / 'eight' / 'search' / 'archive.npz')
  _, params, _ = weights.load(tmp_path / 'eight' / 'folded')
  for name in ('two', 'four'):
    other, found = (
      read_json(tmp_path / name / 'result.json'),
      read_arrays(tmp_path / name / 'search' / 'archive.npz'),
    )
    np.testing.assert_array_equal(found['genomes'], archive['genomes'])
    np.testing.assert_allclose(found['loss'], archive['loss'], rtol=1e-3)
    assert np.abs(found['correct'] - archive['correct']).max() <= 1
    assert other['winner']['genome'] == eight['winner']['genome']
    assert other['winner']['test_accuracy'] == pytest.approx(
      eight['winner']['test_accuracy'], abs=2.5 / 797
    )
    assert other['fold_max_abs_diff'] < 1e-4
    _, others, _ = weights.load(tmp_path / name / 'folded')
    close = [
      np.isclose(a, b, rtol=1e-2, atol=1e-3)
      for a, b in zip(jax.tree.leaves(others), jax.tree.leaves(params), strict=True)
    ]
    assert np.mean(np.concatenate([np.ravel(part) for part in close])) > 0.98


def test_fields_of_the_machine_are_explained():
  from glora_jax.runs.config import check_config

  for name in ('devices', 'base'):
    config = default_config()
    config.mesh[name] = 'some'
    with pytest.raises(ValueError, match=f"mesh.{name}='some' is unknown; it is one of"):
      check_config(config)
