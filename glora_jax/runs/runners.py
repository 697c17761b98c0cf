"""Who does jobs that do not depend on each other: this process, or the nodes of a Ray cluster.

A job is a run of a suite, a method of a comparison: a function of `stop` that keeps all it does in
a folder that the nodes share. So a job can be killed anywhere and begun again anywhere else, and
whoever hands jobs out needs no more than their names and what they return.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib.util
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from glora_jax import mesh as meshes
from glora_jax.files import first_line
from glora_jax.limits import shown
from glora_jax.runs.terminal import MISTAKES, sentence
from glora_jax.runs.workdir import InUseError, Stopped

log = logging.getLogger(__name__)

Stop = Callable[[], bool]
Job = Callable[[Stop], Any]
Outcome = tuple[str, Callable[[], Any]]

PROCESS, RAY = 'process', 'ray'
_RETRIES = 3  # of a job whose node or process dies, as Ray has it
_POLL_SECONDS = 0.5
# The process of a dead node outlives it for a moment, and holds its workdir until then.
_RELEASE_SECONDS = 60
ACCELERATORS = ('TPU', 'GPU')  # as Ray calls them; the first that a cluster has is what runs take
# Of others than Ray, that say to `mesh.initialize` that a process is one of several.
_MEMBERSHIPS = (
  'JAX_COORDINATOR_ADDRESS',
  'JAX_NUM_PROCESSES',
  'JAX_PROCESS_ID',
  'OMPI_COMM_WORLD_SIZE',
  'SLURM_STEP_NODELIST',
  'TPU_WORKER_HOSTNAMES',
)
_PORT_SECONDS, _CONNECTING_SECONDS, _STARTING_SECONDS = 5, 30, 300


class Runner(Protocol):
  """Does jobs that do not depend on each other."""

  def outcomes(self, jobs: Mapping[str, Job], workdir: str, stop: Stop) -> Generator[Outcome]:
    """The jobs' names as they end, each with a function that returns or raises what it did.

    Args:
      jobs: functions of `stop`, see `experiment.run`, by name.
      workdir: folder, already there, in which the jobs keep what they do.
      stop: where it says True, what is running saves and ends.

    Raises:
      Stopped: `stop` asked for it.
    """
    ...


class ThisProcess:
  """Does jobs in this process, in their order, each when its outcome is asked for.

  Example:
    >>> jobs = {'one': lambda stop: 1, 'two': lambda stop: 2}
    >>> never = lambda: False
    >>> [(name, outcome()) for name, outcome in ThisProcess().outcomes(jobs, 'runs', never)]
    [('one', 1), ('two', 2)]
  """

  def outcomes(self, jobs: Mapping[str, Job], workdir: str, stop: Stop) -> Generator[Outcome]:
    """See `Runner.outcomes`."""
    for name, job in jobs.items():
      if meshes.on_any(stop()):
        raise Stopped(f'before {name}', workdir)
      yield name, functools.partial(job, stop)


def named(name: str, resources: str | None = None) -> Runner:
  """The runner that a command line names.

  Args:
    name: 'process', or 'ray:ADDRESS' of a cluster; 'ray' alone is the cluster of RAY_ADDRESS or the
      one that runs on this machine, which is started, until this process ends, where there is none.
    resources: what each job takes of a node, as 'GPU=1,CPU=8'; None for one TPU chip or GPU of a
      cluster that has some, and else for all cores of a node, of the smallest where they differ.

  Raises:
    ValueError: an unknown runner, resources that cannot be read, or that no node has.
    ImportError: Ray is not installed.
    OSError: nobody answers at the address.
    RuntimeError: the cluster cannot be joined.

  Example:
    >>> named('slurm')
    Traceback (most recent call last):
    ValueError: --runner='slurm' is unknown; it is process, or ray[:ADDRESS].
  """
  kind, _, address = name.partition(':')
  if kind != RAY and name != PROCESS:
    raise ValueError(f'--runner={shown(name)} is unknown; it is process, or ray[:ADDRESS].')
  asked = parse_resources(resources)
  if name == PROCESS:
    if asked:
      raise ValueError(f'--runner.resources={resources} is for --runner ray; give that, too.')
    return THIS_PROCESS
  if importlib.util.find_spec('ray') is None:
    raise ImportError(f"--runner={name} needs Ray, which is not there; pip install 'ray'.")
  # A process that hands out jobs computes nothing, and leaves the accelerators to them.
  jax.config.update('jax_platforms', 'cpu')
  leave_others()
  connect(address)
  needed = {'CPU': 1.0, **(asked or default_resources(nodes()))}
  if not fits_somewhere(needed):
    raise ValueError(f'{lacking(needed)} Ask for less by --runner.resources, or add such a node.')
  return OnRay(needed)


@dataclasses.dataclass(frozen=True)
class OnRay:
  """Does jobs as tasks of the Ray cluster that this process is connected to, see `named`.

  A job whose node dies begins again on another one, three times at most. Where this process is
  asked to stop, running jobs save and end, and waiting ones do not begin.

  Attributes:
    resources: what each job takes of a node, by Ray's name.
  """

  resources: Mapping[str, float]

  def outcomes(self, jobs: Mapping[str, Job], workdir: str, stop: Stop) -> Generator[Outcome]:
    """See `Runner.outcomes`; jobs end in any order."""
    import ray

    caller = _Caller(sys.orig_argv, os.getcwd(), os.path.abspath(workdir))
    task = ray.remote(**self._options())(_work)
    names = {task.options(name=name).remote(job, caller): name for name, job in jobs.items()}
    running = list(names)
    was_stuck = False
    try:
      while running:
        if stop():
          raise Stopped('on the Ray cluster', workdir)
        ended, running = ray.wait(running, timeout=_POLL_SECONDS)
        for reference in ended:
          yield names[reference], functools.partial(_result, names[reference], reference)
        is_stuck = not ended and not fits_somewhere(self.resources)
        if is_stuck and not was_stuck:
          log.warning('%s What is left waits for one to come back.', lacking(self.resources))
        was_stuck = is_stuck
    finally:
      for reference in running:
        ray.cancel(reference)
      if running:
        ray.wait(running, num_returns=len(running))

  def _options(self) -> dict[str, Any]:
    """What Ray is told of every job."""
    has_accelerator = any(self.resources.get(name) for name in ACCELERATORS)
    return {
      'num_cpus': self.resources['CPU'],
      'num_gpus': self.resources.get('GPU', 0),
      'resources': {
        name: amount for name, amount in self.resources.items() if name not in ('CPU', 'GPU')
      },
      'max_retries': _RETRIES,
      # A process keeps the memory of its accelerator until it ends.
      'max_calls': 1 if has_accelerator else 0,
    }


THIS_PROCESS = ThisProcess()


class _Failure(NamedTuple):
  """What a node sends in place of a result: the sentence that a job has failed with."""

  sentence: str


class _Caller(NamedTuple):
  """What a job takes over from the process that hands it out.

  Attributes:
    words: of its command line.
    folder: that it works in.
    workdir: absolute path of the folder in which jobs keep what they do.
  """

  words: Sequence[str]
  folder: str
  workdir: str


def _work(job: Job, caller: _Caller) -> Any:
  """Does a job in a process of a node, as the caller would."""
  leave_others()
  logging.basicConfig(level=logging.WARNING, format='%(message)s', force=True)
  logging.getLogger('glora_jax').setLevel(logging.INFO)
  sys.orig_argv = list(caller.words)  # which provenance keeps
  asked = threading.Event()
  # Ray cancels a task by the signal of Ctrl-C.
  handler = signal.signal(signal.SIGINT, lambda number, frame: asked.set())
  try:
    _enter(caller)
    keep_compiled(caller.workdir)
    return _once_free(job, asked.is_set)
  except MISTAKES as error:
    return _Failure(sentence(error))
  finally:
    signal.signal(signal.SIGINT, handler)
    jax.clear_caches()
    gc.collect()


def _enter(caller: _Caller) -> None:
  """Makes relative paths mean what they mean to the caller.

  Raises:
    ValueError: the caller's folders are not there.
  """
  for path in (caller.folder, caller.workdir):
    if not os.path.isdir(path):
      raise ValueError(
        f'{path} is not there on the node {socket.gethostname()}; the nodes must share the file '
        'system with the process that hands out the runs.'
      )
  os.chdir(caller.folder)


def _once_free(job: Job, stop: Stop) -> Any:
  """Does a job, once a process that was killed with its node has let go of the workdir."""
  last = time.monotonic() + _RELEASE_SECONDS
  while True:
    try:
      return job(stop)
    except InUseError:
      if stop() or time.monotonic() > last:
        raise
      time.sleep(1)


def _result(name: str, reference: Any) -> Any:
  """What a job returned.

  Raises:
    RuntimeError: it failed; the sentence says how.
  """
  import ray

  try:
    result = ray.get(reference)
  except ray.exceptions.RayError as error:
    is_rays_own = isinstance(error, ray.exceptions.RaySystemError)
    if isinstance(error, ray.exceptions.RayTaskError) and not is_rays_own:
      raise  # a fault of this package, with its traceback
    reason = first_line(getattr(error, 'cause', error))
    raise RuntimeError(
      f'{name} was lost on the Ray cluster ({reason}); the same command goes on with it.'
    ) from error
  if isinstance(result, _Failure):
    raise RuntimeError(result.sentence)
  return result


def keep_compiled(workdir: str) -> None:
  """Makes JAX keep what it compiles in the workdir, unless it keeps it elsewhere.

  It serves runs of equal shapes, and a restart.
  """
  if jax.config.values['jax_compilation_cache_dir'] is None:
    jax.config.update('jax_compilation_cache_dir', os.path.join(workdir, 'compiled'))


def leave_others() -> None:
  """Makes this process stay alone, in whichever cluster it was started; before JAX is used."""
  for name in _MEMBERSHIPS:
    os.environ.pop(name, None)


def connect(address: str) -> None:
  """Connects this process to a Ray cluster.

  Raises:
    OSError: nobody answers at the address.
    RuntimeError: the cluster cannot be joined.
  """
  os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')  # of a cluster that is started
  os.environ.setdefault('RAY_DEDUP_LOGS', '0')  # runs say the same, each of itself
  import ray

  logging.getLogger('ray').setLevel(logging.ERROR)
  if ray.is_initialized():
    return
  address = address or os.environ.get('RAY_ADDRESS', '')
  _require_port(address)
  errors: list[Exception] = []

  def join() -> None:
    try:
      ray.init(address or None, configure_logging=False, logging_level=logging.ERROR)
    except Exception as error:
      errors.append(error)

  # In a thread, since Ray waits for minutes, and takes the handlers of signals in the main one.
  thread = threading.Thread(target=join, daemon=True)
  thread.start()
  seconds = _CONNECTING_SECONDS if address else _STARTING_SECONDS
  thread.join(seconds)
  if thread.is_alive():
    raise _no_answer(address or 'this machine', f'nothing in {seconds} seconds')
  if errors:
    where = f' at {shown(address)}' if address else ''
    raise RuntimeError(
      f'The Ray cluster{where} cannot be joined: {first_line(errors[0])}'
    ) from errors[0]


def _require_port(address: str) -> None:
  """Raises OSError where nobody listens at 'HOST:PORT'; other forms are left to Ray."""
  host, _, port = address.rpartition(':')
  if not host or not port.isdigit() or '/' in host:
    return
  try:
    socket.create_connection((host.strip('[]'), int(port)), _PORT_SECONDS).close()
  except (OSError, OverflowError) as error:
    raise _no_answer(address, first_line(error)) from error


def _no_answer(address: str, reason: str) -> OSError:
  return OSError(
    f'No Ray cluster answers at {shown(address)} ({reason}); `ray start --head` prints the address '
    'of the one that it starts.'
  )


def parse_resources(text: str | None) -> dict[str, float]:
  """Amounts by name.

  Raises:
    ValueError: the text has another form.

  Example:
    >>> parse_resources('GPU=0.5,CPU=8')
    {'GPU': 0.5, 'CPU': 8.0}
  """
  if text is None:
    return {}
  amounts = {}
  for part in text.split(','):
    name, _, amount = part.partition('=')
    try:
      amounts[name] = float(amount)
    except ValueError:
      amounts[name] = math.nan
    if not name or not 0 < amounts[name] < math.inf:
      raise ValueError(
        f'--runner.resources={shown(text)}: {shown(part)} is no NAME=NUMBER above 0, as GPU=1 or '
        'TPU=4,CPU=8.'
      )
  return amounts


def nodes() -> list[dict[str, float]]:
  """The resources of every node that is alive."""
  import ray

  return [node['Resources'] for node in ray.nodes() if node['Alive']]


def default_resources(nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """What a job takes where nothing is given.

  Example:
    >>> default_resources([{'CPU': 8.0}, {'CPU': 64.0, 'GPU': 8.0}])
    {'GPU': 1.0}
    >>> default_resources([{'CPU': 8.0}, {'CPU': 64.0}])
    {'CPU': 8.0}
  """
  for name in ACCELERATORS:
    if any(node.get(name) for node in nodes):
      return {name: 1.0}
  return {'CPU': min((node['CPU'] for node in nodes if node.get('CPU')), default=1.0)}


def fits_somewhere(needed: Mapping[str, float]) -> bool:
  """Whether a node that is alive has all that a job takes."""
  return any(
    all(node.get(name, 0) >= amount for name, amount in needed.items()) for node in nodes()
  )


def lacking(needed: Mapping[str, float]) -> str:
  """The sentence where no node has what a job takes."""
  has = sorted({_amounts(node) for node in nodes()})
  return f'No node of the Ray cluster has {_amounts(needed)}; they have {" or ".join(has)}.'


def _amounts(resources: Mapping[str, float]) -> str:
  """Amounts in words, without those that Ray gives to every node."""
  hidden = ('memory', 'object_store_memory')
  shown_names = [name for name in resources if name not in hidden and ':' not in name]
  return ', '.join(f'{name}={resources[name]:g}' for name in shown_names) or 'no cores'
