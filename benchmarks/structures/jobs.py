"""Jobs, and the lines of JSON that keep their results.

A job is one training. Results are appended to a file, a line each, as soon as they are there:
whatever is killed goes on where it was.
"""

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from glora_jax.runs.runners import Runner

COMPILED = 'runs/structures'  # where processes keep programs that they compiled


class Job(NamedTuple):
  """One training.

  Attributes:
    task: name, of `tasks.TASKS`.
    method: name of a structure, see `methods`.
    budget: most trained parameters, where the method fills a budget; 0 where its name says all.
    rate: peak learning rate.
    seed: of images, folds, initial values and order.
    epochs: of the training.
    backbone: name, of `laboratory.FOLDERS`.
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
    if not os.path.exists(path):
      return
    with open(path, 'rb+') as file:
      whole, newline, _ = file.read().rpartition(b'\n')
      file.truncate(len(whole + newline))
    for line in whole.splitlines():
      result = json.loads(line)
      self.results[Job(*result.pop('job'))] = result

  def add(self, job: Job, result: Mapping[str, Any]) -> None:
    """Appends a result to the file."""
    os.makedirs(os.path.dirname(self.path) or '.', exist_ok=True)
    line = json.dumps({'job': list(job), **result}, separators=(',', ':'))
    with open(self.path, 'a') as file:
      file.write(line + '\n')
    self.results[job] = dict(result)


def run_jobs(
  jobs: Sequence[Job],
  store: Store,
  runner: Runner,
  title: str = 'jobs',
  notes: Mapping[str, Any] | None = None,
) -> None:
  """Does the jobs whose results are not there.

  Args:
    jobs: to be done.
    store: results so far; new ones are added.
    runner: who does them.
    title: of the progress.
    notes: what is kept with every result beside it.

  Raises:
    RuntimeError: a job failed; the sentence has it.
  """
  missing = {' '.join(map(str, job)): job for job in jobs if job not in store.results}
  tasks = {name: functools.partial(_train, job) for name, job in missing.items()}
  if not tasks:
    return
  os.makedirs(COMPILED, exist_ok=True)
  outcomes = runner.outcomes(tasks, COMPILED, lambda: False)
  for name, outcome in tqdm(outcomes, desc=title, total=len(tasks)):
    try:
      result = outcome()
    except Exception as error:
      raise RuntimeError(f'The job {name} failed.') from error
    store.add(missing[name], {**result, **(notes or {})})


def _train(job: Job, stop: Callable[[], bool]) -> dict[str, Any]:
  """Does a job, which is too short to be stopped in the middle."""
  del stop
  from benchmarks.structures.training import run  # which imports this module

  return run(job)
