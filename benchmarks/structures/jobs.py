"""Jobs, the lines of JSON that keep their results, and who does them.

A job is one training. Results are appended to a file, a line each, as soon as they are there:
whatever is killed goes on where it was. A worker is a process on one core of this machine that does
job after job, so that a program is compiled once for many; or the nodes of a Ray cluster do them.
"""

import functools
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tqdm import tqdm

if TYPE_CHECKING:
  from glora_jax.runs.runners import Runner  # whose imports a worker would wait for

LAST_WORDS = 2000  # characters of a failed worker's output that are shown
COMPILED = 'runs/structures/xla'  # programs that the workers compiled


class Job(NamedTuple):
  """One training.

  Attributes:
    task: name, of `tasks.TASKS`.
    method: name of a structure, see `methods`.
    budget: most trained parameters, where the method fills a budget; 0 where its name says all.
    rate: peak learning rate.
    seed: of images, folds, initial values and order.
    epochs: of the training.
    backbone: name, of `backbones`.
  """

  task: str
  method: str
  budget: int
  rate: float
  seed: int
  epochs: int
  backbone: str = 'embedded'


class Store:
  """Results by job, in a file of JSON lines.

  Attributes:
    path: of the file.
    results: what it holds.
  """

  def __init__(self, path: str) -> None:
    """Reads the file, if there is one; a last line that was cut off is removed."""
    self.path = path
    self.results: dict[Job, dict[str, Any]] = {}
    if os.path.exists(path):
      self.results.update(_read(path))

  def add(self, job: Job, result: Mapping[str, Any]) -> None:
    """Appends a result to the file."""
    os.makedirs(os.path.dirname(self.path) or '.', exist_ok=True)
    line = json.dumps({'job': list(job), **result}, separators=(',', ':'))
    with open(self.path, 'a') as file:
      file.write(line + '\n')
    self.results[job] = dict(result)


def _read(path: str) -> Iterator[tuple[Job, dict[str, Any]]]:
  """The results of a file, from which a last line that was cut off is removed."""
  with open(path, 'rb+') as file:
    whole, newline, _ = file.read().rpartition(b'\n')
    file.truncate(len(whole + newline))
  for line in whole.splitlines():
    result = json.loads(line)
    yield Job(*result.pop('job')), result


class Hands(Protocol):
  """Who does jobs."""

  def results(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict[str, Any]]]:
    """The jobs with their results, as they end.

    Raises:
      RuntimeError: one failed; the sentence has the job, and how.
    """
    ...


class Workers(NamedTuple):
  """Processes of this machine, each on a core, that take jobs in their order."""

  number: int = 2

  def results(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict[str, Any]]]:
    """See `Hands.results`; the sentence has what the process printed last."""
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
      waiting.put(job)
    done: queue.SimpleQueue[tuple[Job, Any]] = queue.SimpleQueue()
    for number in range(min(self.number, len(jobs))):
      threading.Thread(target=_work, args=(number, waiting, done), daemon=True).start()
    for _ in jobs:
      job, result = done.get()
      if isinstance(result, Exception):
        raise RuntimeError(f'The job {job} failed.') from result
      yield job, result


class OnRunner(NamedTuple):
  """A runner of `glora_jax.runs.runners`, which does each job in a process of its own choice."""

  runner: 'Runner'

  def results(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict[str, Any]]]:
    """See `Hands.results`."""
    by_name = {' '.join(map(str, job)): job for job in jobs}
    tasks = {name: functools.partial(_train, job) for name, job in by_name.items()}
    os.makedirs(COMPILED, exist_ok=True)
    for name, outcome in self.runner.outcomes(tasks, COMPILED, lambda: False):
      yield by_name[name], outcome()


def _train(job: Job, stop: Callable[[], bool]) -> dict[str, Any]:
  """Does a job, which is too short to be stopped in the middle."""
  del stop
  from benchmarks.structures.training import run  # which a process that hands out jobs needs not

  return run(job)


def run_jobs(
  jobs: Sequence[Job],
  store: Store,
  hands: Hands,
  title: str = 'jobs',
  notes: Mapping[str, Any] | None = None,
) -> None:
  """Does the jobs whose results are not there.

  Args:
    jobs: to be done.
    store: results so far; new ones are added.
    hands: who does them.
    title: of the progress.
    notes: what is kept with every result beside it.

  Raises:
    RuntimeError: a job failed; the sentence has it, and how.
  """
  missing = [job for job in dict.fromkeys(jobs) if job not in store.results]
  if not missing:
    return
  for job, result in tqdm(hands.results(missing), desc=title, total=len(missing)):
    store.add(job, {**result, **(notes or {})})


def _work(number: int, waiting: queue.SimpleQueue, done: queue.SimpleQueue) -> None:
  """Hands jobs to one process until none is left."""
  cores = sorted(os.sched_getaffinity(0))
  core = cores[number % len(cores)]
  flags = os.environ.get('XLA_FLAGS', '') + ' --xla_cpu_multi_thread_eigen=false'
  environment = {**os.environ, 'XLA_FLAGS': flags, 'JAX_COMPILATION_CACHE_DIR': COMPILED}
  command = ['taskset', '-c', str(core), sys.executable, '-m', 'benchmarks.structures.worker']
  with subprocess.Popen(
    command,
    env=environment,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    words: list[str] = []
    threading.Thread(target=_listen, args=(process.stderr, words), daemon=True).start()
    while not waiting.empty():
      job = waiting.get()
      process.stdin.write(json.dumps(list(job)) + '\n')
      process.stdin.flush()
      answer = process.stdout.readline()
      if not answer:
        done.put((job, RuntimeError(''.join(words)[-LAST_WORDS:])))
        return
      done.put((job, json.loads(answer)))
    process.stdin.close()


def _listen(stream: Iterable[str], words: list[str]) -> None:
  """Keeps the last lines of a stream."""
  for line in stream:
    words.append(line)
    del words[:-100]
