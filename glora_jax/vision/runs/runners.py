"""Runners of independent jobs: this process, or the nodes of a Ray cluster.

A job is a run of a suite, or a part of one: a function of `stop` that keeps its state in a folder
that the nodes share. So it can be killed on one node and resumed on another.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from typing import Any

import jax

from glora_jax import mesh
from glora_jax.checks import shown
from glora_jax.errors import UserError
from glora_jax.files import first_line
from glora_jax.vision.runs.processes import stay_alone
from glora_jax.vision.runs.terminal import is_mistake, sentence, user_errors
from glora_jax.vision.runs.workdir import InUseError, Stop, Stopped

Job = Callable[[Stop], Any]  # saves and ends if `stop` returns True
Outcomes = Generator[tuple[str, Callable[[], Any]]]
Runner = Callable[[Mapping[str, Job], str, Stop], Outcomes]
_SECONDS = 60  # for a cluster to answer


def in_this_process(jobs: Mapping[str, Job], workdir: str, stop: Stop) -> Outcomes:
  """Runs jobs in this process, in order, each when its outcome is asked for.

  Args:
    jobs: the jobs by name.
    workdir: the folder in which they keep their state.
    stop: if it returns True, running jobs save and end, and the others do not start.

  Yields:
    The names of jobs as they end, each with a function that returns or raises its outcome.

  Raises:
    Stopped: `stop` returned True.

  Example:
    >>> jobs = {'one': lambda stop: 1, 'two': lambda stop: 2}
    >>> [(name, get()) for name, get in in_this_process(jobs, 'runs', lambda: False)]
    [('one', 1), ('two', 2)]
  """
  for name, job in jobs.items():
    if mesh.on_any(stop()):
      raise Stopped(f'before {name}', workdir)
    yield name, functools.partial(job, stop)


def on_ray(
  options: Mapping[str, Any], jobs: Mapping[str, Job], workdir: str, stop: Stop
) -> Outcomes:
  """Runs jobs as tasks of the joined Ray cluster, each in a process, with Ray's `options`.

  As `in_this_process`, but jobs end in any order, and the jobs of a dead node move to others.
  """
  import ray

  # The process of a dead node may hold the workdir for a few more seconds.
  retries = {'max_retries': 3, 'retry_exceptions': [InUseError]}
  task = ray.remote(max_calls=1, **retries, **options)(_work)
  caller = os.getcwd(), os.path.abspath(workdir), sys.argv
  running = {task.options(name=name).remote(job, *caller): name for name, job in jobs.items()}
  try:
    while running:
      if stop():
        raise Stopped('on the Ray cluster', workdir)
      for ended in ray.wait(list(running), timeout=0.5)[0]:
        name = running.pop(ended)
        yield name, functools.partial(_result, name, ended)
  finally:
    for reference in running:
      ray.cancel(reference)
    if running:
      ray.wait(list(running), num_returns=len(running))


def _work(job: Job, folder: str, workdir: str, words: list[str]) -> Any:
  """Runs a job in a process of a node, with the command's folder and words."""
  for path in (folder, workdir):
    if not os.path.isdir(path):
      raise UserError(f'{path} does not exist on {socket.gethostname()}; all nodes must share it.')
  os.chdir(folder)
  sys.argv = words  # which provenance keeps
  stay_alone()
  logging.basicConfig(level=logging.WARNING, format='%(message)s', force=True)
  logging.getLogger('glora_jax').setLevel(logging.INFO)
  keep_compiled(workdir)
  asked = threading.Event()
  signal.signal(signal.SIGINT, lambda number, frame: asked.set())  # Ray's way to cancel a task
  return job(asked.is_set)


def _result(name: str, reference: Any) -> Any:
  """The result of a job; raises UserError if it failed, unless that is a bug."""
  import ray

  try:
    return ray.get(reference)
  except ray.exceptions.RayError as error:
    cause = getattr(error, 'cause', error)
    if is_mistake(cause):
      raise UserError(sentence(cause)) from error
    if not isinstance(cause, ray.exceptions.RayError):
      raise  # a bug of this package, with its traceback
    lost = f'{name} was lost on the Ray cluster ({first_line(cause)})'
    raise UserError(f'{lost}; run the same command to resume it.') from error


def keep_compiled(workdir: str) -> None:
  """Makes JAX cache compiled programs in the workdir, unless it caches them elsewhere.

  Short ones are cached as well: every run of a suite has dozens.
  """
  if jax.config.values['jax_compilation_cache_dir'] is None:
    jax.config.update('jax_compilation_cache_dir', os.path.join(workdir, 'compiled'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


@user_errors()
def named(name: str, resources: str | None = None) -> Runner:
  """The runner of a command line: 'process', 'ray' or 'ray:ADDRESS', see docs/howto/many_runs.md.

  Raises:
    ValueError, ImportError, OSError: an unknown name or resource, no Ray, no answer.
  """
  if name == 'process':
    if resources is not None:
      raise ValueError(f'--runner.resources={resources} needs --runner ray; give both.')
    return in_this_process
  if not re.fullmatch(r'ray(:.*)?', name):
    raise ValueError(f'--runner={shown(name)} is unknown; give process or ray[:ADDRESS].')
  amounts = {}
  for part in () if resources is None else resources.split(','):
    found = re.fullmatch(r'(.+)=(\d*\.?\d+)', part)
    if found is None or not float(found[2]):
      raise ValueError(f'--runner.resources: {shown(part)} must be like GPU=1 or TPU=4,CPU=8.')
    amounts[found[1]] = float(found[2])
  if importlib.util.find_spec('ray') is None:
    raise ImportError(f"--runner={name} needs Ray, which is not installed; pip install 'ray'.")
  # A process that hands out jobs computes nothing, and leaves accelerators to the jobs.
  jax.config.update('jax_platforms', 'cpu')
  stay_alone()
  nodes = _join(name[len('ray:') :] or os.environ.get('RAY_ADDRESS', ''))
  return functools.partial(on_ray, _options(amounts, nodes))


def _join(address: str) -> list[dict[str, float]]:
  """Joins the cluster at an address, or on this machine; returns the resources of its nodes."""
  os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')  # if it starts a cluster
  os.environ.setdefault('RAY_DEDUP_LOGS', '0')  # runs log equal lines
  import ray

  reasons = ['no answer']

  def join() -> None:
    try:
      host, _, port = address.rpartition(':')
      if host and '/' not in host:  # Ray would ask for minutes
        socket.create_connection((host.strip('[]'), int(port)), 5).close()
      ray.init(address or None, ignore_reinit_error=True, logging_level=logging.ERROR)
      reasons.clear()
    except Exception as error:
      reasons[:] = [first_line(error)]

  # In a thread, since Ray may wait long, and replaces signal handlers in the main one.
  thread = threading.Thread(target=join, daemon=True)
  thread.start()
  thread.join(_SECONDS)
  if reasons:
    where = shown(address or 'this machine')
    raise OSError(
      f'No Ray cluster answers at {where} ({reasons[0]}); start one with `ray start --head`.'
    )
  return [node['Resources'] for node in ray.nodes() if node['Alive']]


def _options(amounts: dict[str, float], nodes: list[dict[str, float]]) -> dict[str, Any]:
  """The resources that a job needs, as Ray's options; by default a device or all cores."""
  if not amounts:
    devices = [name for name in ('TPU', 'GPU') if any(node.get(name) for node in nodes)]
    cores = min((node['CPU'] for node in nodes if node.get('CPU')), default=1.0)
    amounts = {devices[0]: 1.0} if devices else {'CPU': cores}
  needed = {'CPU': 1.0, **amounts}
  has = [{name: node.get(name, 0.0) for name in needed} for node in nodes]
  if not any(all(node[name] >= needed[name] for name in needed) for node in has):
    raise ValueError(
      f'No node of the Ray cluster has {needed}, which a job needs; lower --runner.resources to '
      f'those of a node: {has}.'
    )
  others = {name: amount for name, amount in needed.items() if name not in ('CPU', 'GPU')}
  return {'num_cpus': needed['CPU'], 'num_gpus': needed.get('GPU', 0), 'resources': others}
