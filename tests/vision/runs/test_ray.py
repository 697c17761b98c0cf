"""Suites on a real Ray cluster of three nodes, of which one dies.

They need the extra `ray`.
"""

import contextlib
import csv
import glob
import itertools
import os
import pathlib
import re
import signal

import jax
import pytest
from few_shot_lists import write_few_shot_lists
from tiny_runs import changed, start_command, wait_for, without_seconds

from benchmarks.machinery import killable
from glora_jax import main
from glora_jax.errors import UserError
from glora_jax.files import read_json
from glora_jax.vision.runs import runners, suite
from glora_jax.vision.runs.context import never
from glora_jax.vision.runs.workdir import LOCK, InUseError

ray = pytest.importorskip('ray', reason='needs the extra ray')
cluster_utils = pytest.importorskip('ray.cluster_utils')
pytestmark = pytest.mark.slow

SEEDS = range(3)
NODE = {'num_cpus': 1, 'object_store_memory': 80 * 2**20}


@pytest.fixture(scope='module')
def cluster():
  """Three nodes, each with one core, that compile into the tests' cache, and one that leads."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JAX_PLATFORMS', 'cpu')
    patch.setenv('JAX_COMPILATION_CACHE_DIR', jax.config.jax_compilation_cache_dir)
    patch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
    patch.setenv('RAY_USAGE_STATS_ENABLED', '0')
    # Where other tests keep the machine busy.
    patch.setenv('RAY_raylet_start_wait_time_s', '300')
    patch.setenv('RAY_agent_register_timeout_ms', '300000')
    head = {**NODE, 'num_cpus': 0, 'include_dashboard': False, 'include_log_monitor': True}
    cluster = cluster_utils.Cluster(True, head_node_args=head)
    add_nodes(cluster)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope='module')
def config(run_config, tmp_path_factory):
  """Three tasks of two training images each, and a structure that is given."""
  root = tmp_path_factory.mktemp('lists')
  write_few_shot_lists(root / 'oxford_pets')
  config = changed(run_config, task='fewshot/oxford_pets/1/all', structure='lora', budget=5000)
  config.presets = ()
  config.data.update(source='lists', root=str(root), cache=None)
  config.training.update(batch_size=2, epochs=12, warmup=0.0, learning_rate=1e-3)
  return config


def add_nodes(cluster):
  """Adds nodes until there are three besides the one that leads."""
  while len(cluster.worker_nodes) < 3:
    cluster.add_node(**NODE)


def left_by(workdir):
  """The table of a suite, and what its runs leave, times apart."""
  with open(workdir / 'table.csv') as file:
    rows = killable.without_seconds([*csv.DictReader(file)])
  files = {
    path.relative_to(workdir): path.read_bytes()
    for name in ('adapter.safetensors', 'test_list.json')
    for path in workdir.rglob(name)
  }
  results = {
    path.relative_to(workdir): without_seconds(read_json(path))
    for path in workdir.rglob('result.json')
  }
  return rows, results, files


def raylet_of(lock):
  """The node's process whose worker holds a lock; None if nobody does."""
  for link in glob.glob('/proc/[0-9]*/fd/*'):
    with contextlib.suppress(OSError):
      if os.readlink(link) == str(lock):
        status = pathlib.Path(link).parents[1].joinpath('status').read_text()
        return int(re.search(r'PPid:\s*(\d+)', status)[1])
  return None


def run_and_kill_a_node(cluster, config, workdir):
  """Runs a suite on three nodes, of which one is killed that holds the lock of a run."""
  add_nodes(cluster)
  dead = []

  def kill_once():
    for node, lock in itertools.product(cluster.worker_nodes, workdir.glob(f'*/1/*/{LOCK}')):
      if not dead and raylet_of(lock) == node.all_processes['raylet'][0].process.pid:
        dead.append(lock)
        cluster.remove_node(node, allow_graceful=False)
    return False

  board = suite.run(config, str(workdir), kill_once, runners.named(f'ray:{cluster.address}'))
  assert dead
  assert not board.failed


def test_ctrl_c_and_the_death_of_a_node_leave_the_table_that_one_process_makes(
  cluster, config, tmp_path
):
  suite.run(config, str(tmp_path / 'process'))
  workdir = tmp_path / 'ray'
  folder = workdir / 'oxford_pets' / '1'
  process = start_command(config, workdir, f'--runner=ray:{cluster.address}')
  wait_for(process, *(folder / str(seed) / 'training' for seed in range(3)))
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate()
  assert process.returncode == main.STOPPED, errors
  assert f'Stopped on the Ray cluster. Everything is saved in {workdir}; ' in errors
  assert re.search(r'\(oxford_pets/1/\d .*Training: oxford_pets/1/\d \(\d of 3\)', errors)
  assert not (folder / '2' / 'result.json').exists()
  run_and_kill_a_node(cluster, config, workdir)
  assert left_by(workdir) == left_by(tmp_path / 'process')


def test_a_failing_job_is_its_own_sentence_and_what_no_node_has_is_said(cluster, tmp_path):
  runner = runners.named(f'ray:{cluster.address}')

  def fail(stop):
    raise UserError('there is too little of it')

  def held(stop):
    """The first time by a process that is about to end."""
    if not (tmp_path / 'tried').exists():
      (tmp_path / 'tried').touch()
      raise InUseError('it is in use')
    return 3

  jobs = {
    'good': lambda stop: 2 - stop(),
    'held': held,
    'bad': fail,
    'fault': lambda stop: stop.nothing,
    'lost': known_here_alone,
  }
  outcomes = dict(runner(jobs, '.', never))
  assert (outcomes['good'](), outcomes['held']()) == (2, 3)
  with pytest.raises(UserError, match=r'^there is too little of it$'):
    outcomes['bad']()
  with pytest.raises(AttributeError, match='nothing'):
    outcomes['fault']()
  with pytest.raises(UserError, match=r'^lost was lost on the Ray .*No module named .*; run the '):
    outcomes['lost']()
  [(_, elsewhere)] = runner({'good': jobs['good']}, str(tmp_path / 'not_shared'), never)
  with pytest.raises(UserError, match=r'not_shared does not exist on .*; all nodes must share it'):
    elsewhere()
  with pytest.raises(
    ValueError, match=r"^No node of the Ray cluster has .*'TPU': 4\.0.*; lower --runner.*'TPU': 0"
  ):
    runners.named(f'ray:{cluster.address}', 'TPU=4')


def known_here_alone(stop):
  """A job of a module that the nodes cannot import."""
