"""Jobs, and the lines of JSON that tables are made of.

A runner of `glora_jax.runs.runners` does jobs, here or on a Ray cluster. Each result says which
version of the method made it.
"""

import ast
import collections
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks.machinery.measuring import append_line, read_lines
from glora_jax.runs import runners

FOLDER = os.path.join('runs', 'structures')  # where compiled programs are kept
UNKNOWN = 'unknown'  # of lines that several versions made, before lines had one
_SOURCES = (
  *(f'glora_jax/{room}/**/*.py' for room in ('method', 'search', 'training')),
  *(f'benchmarks/structures/{name}.py' for name in ('laboratory', 'methods', 'scenes', 'tasks')),
)


class Job(NamedTuple):
  """One training.

  Attributes:
    task: name, of `tasks.TASKS`.
    method: name of a structure, see `methods`.
    budget: most trained parameters, where the method fills a budget; 0 where its name says all.
    rate: peak learning rate.
    seed: of images, folds, initial values and order.
    epochs: of the training.
    backbone: name of what is trained.
  """

  task: str
  method: str
  budget: int
  rate: float
  seed: int
  epochs: int
  backbone: str = 'embedded'


@functools.cache
def version() -> str:
  """The version of the method: a digest of the code that finds, trains and tests structures."""
  root = pathlib.Path(__file__).parents[2]
  return digest_of(path for source in _SOURCES for path in sorted(root.glob(source)))


def digest_of(paths: Iterable[pathlib.Path]) -> str:
  """A digest of Python files that comments, docstrings and layout do not change."""
  digest = hashlib.sha256()
  for path in paths:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
      if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
        node.body[0] = ast.Pass()
    digest.update(f'{path.name}\n{ast.unparse(tree)}\n'.encode())
  return digest.hexdigest()[:10]


class Store:
  """Results of some versions by job, in a file of JSON lines that has those of others, too.

  Attributes:
    path: of the file.
    own: the present version, which new results get.
    versions: of the results.
    results: what the file holds of them.
    others: the number of lines that it holds of each other version.
  """

  def __init__(
    self, path: str, wanted: Sequence[str] | None = None, own: str | None = None
  ) -> None:
    """Reads the file, if there is one; by default for the present version of structures."""
    self.path, self.own = path, own or version()
    self.versions = wanted or [self.own]
    self.results: dict[Job, dict[str, Any]] = {}
    self.others: collections.Counter[str] = collections.Counter()
    for line in read_lines(path):
      self._note(**line)

  def _note(self, job: Sequence[Any], version: str = UNKNOWN, **result: Any) -> None:
    if version in self.versions:
      self.results[Job(*job)] = result
    else:
      self.others[version] += 1

  def add(self, job: Job, result: Mapping[str, Any]) -> None:
    """Appends a result to the file, with its version."""
    content = {'job': list(job), 'version': self.own, **result}
    append_line(self.path, content)
    self._note(**content)


def run_jobs(
  jobs: Iterable[Job],
  store: Store,
  runner: runners.Runner,
  title: str = 'jobs',
  notes: Mapping[str, Any] | None = None,
  train: Callable[[Job, Any], dict[str, Any]] | None = None,
) -> None:
  """Does the jobs whose results are not there.

  Args:
    jobs: to be done.
    store: results so far; new ones are added.
    runner: who does them.
    title: of the progress.
    notes: what is kept with every result beside it.
    train: gives a job's result; None for that of a structure.

  Raises:
    RuntimeError: a job failed; the sentence has it.
  """
  missing = {' '.join(map(str, job)): job for job in jobs if job not in store.results}
  os.makedirs(FOLDER, exist_ok=True)
  runners.keep_compiled(FOLDER)
  works = {name: functools.partial(train or _train, job) for name, job in missing.items()}
  outcomes = runner.outcomes(works, FOLDER, lambda: False)
  for name, outcome in tqdm(outcomes, desc=title, total=len(works), disable=not works):
    try:
      result = outcome()
    except Exception as error:
      raise RuntimeError(f'The job {name} failed.') from error
    store.add(missing[name], {**result, **(notes or {})})


def _train(job: Job, stop: Any) -> dict[str, Any]:
  """A job's result; it is too short to be stopped."""
  from benchmarks.structures.laboratory import run  # which imports this module

  del stop
  return run(job)
