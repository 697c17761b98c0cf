"""Jobs, the lines of JSON that keep their results, and the processes that do them.

A job is one training. Results are appended to a file, a line each, as soon as they are there:
whatever is killed goes on where it was. A worker is a process on one core that does job after job,
so that a program is compiled once for many.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

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
  """

  task: str
  method: str
  budget: int
  rate: float
  seed: int
  epochs: int


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


def run_jobs(
  jobs: Sequence[Job],
  store: Store,
  workers: int = 2,
  title: str = 'jobs',
  notes: Mapping[str, Any] | None = None,
) -> None:
  """Does the jobs whose results are not there; workers take them in their order.

  Args:
    jobs: to be done.
    store: results so far; new ones are added.
    workers: processes.
    title: of the progress.
    notes: what is kept with every result beside it.

  Raises:
    RuntimeError: a worker ended; the sentence has its job and what it printed last.
  """
  missing = [job for job in dict.fromkeys(jobs) if job not in store.results]
  if not missing:
    return
  waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
  for job in missing:
    waiting.put(job)
  done: queue.SimpleQueue[tuple[Job, Any]] = queue.SimpleQueue()
  for number in range(min(workers, len(missing))):
    threading.Thread(target=_work, args=(number, waiting, done), daemon=True).start()
  for _ in tqdm(missing, desc=title):
    job, result = done.get()
    if isinstance(result, Exception):
      raise RuntimeError(f'The job {job} failed.') from result
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
