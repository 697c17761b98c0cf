"""Jobs of a benchmark, each in a process of its own on one core, with their results kept.

A benchmark that was interrupted goes on where it was: finished jobs are read from their files.
"""

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

from benchmarks.machinery.output import make_parser
from glora_jax.files import read_json, write_json

LAST_WORDS = 2000  # characters of a failed job's output that are shown
Job = TypeVar('Job', bound=tuple)


def parse_arguments(
  text: str,
  *,
  folder: str,
  quick: str,
  run: Callable[..., Any],
) -> argparse.Namespace | None:
  """Reads the command line; a command line that asks for one job does the job instead.

  Args:
    text: the benchmark's docstring.
    folder: default folder for the jobs' results.
    quick: what `--quick` does.
    run: does a job; called with the job's values.

  Returns:
    The arguments; None where the command line was that of a job, which is done.
  """
  parser = make_parser(text, quick)
  parser.add_argument('--folder', default=folder, help='for the results of jobs')
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--workers', type=int, default=2, help='jobs at a time')
  parser.add_argument('--job', nargs=2, help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if not arguments.job:
    return arguments
  values, path = arguments.job
  write_json(path, run(*json.loads(values)))
  return None


def run_jobs(module: str, jobs: Sequence[Job], folder: str, workers: int = 2) -> dict[Job, Any]:
  """Results by job, as JSON types.

  Args:
    module: name of the benchmark's module, which calls `parse_arguments`.
    jobs: tuples of JSON scalars.
    folder: one file for each job; a job whose file is there is not done again.
    workers: jobs at a time.

  Raises:
    RuntimeError: a job failed; the sentence ends with what it printed last.
  """
  os.makedirs(folder, exist_ok=True)
  cores = sorted(os.sched_getaffinity(0))
  environment = {
    **os.environ,
    'XLA_FLAGS': os.environ.get('XLA_FLAGS', '') + ' --xla_cpu_multi_thread_eigen=false',
    'JAX_COMPILATION_CACHE_DIR': os.path.join(folder, 'xla'),
  }
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    futures = []
    for number, job in enumerate(jobs):
      core = cores[number % workers % len(cores)]
      path = os.path.join(folder, '-'.join(map(str, job)) + '.json')
      futures.append(pool.submit(_result, module, job, path, core, environment))
    for future in tqdm(concurrent.futures.as_completed(futures), total=len(futures), desc='jobs'):
      future.result()
  return {job: future.result() for job, future in zip(jobs, futures, strict=True)}


def _result(module: str, job: tuple, path: str, core: int, environment: Mapping[str, str]) -> Any:
  """The result of a job, which is done on a core unless its file is there."""
  if not os.path.exists(path):
    program = [sys.executable, '-m', module, '--job', json.dumps(job), path]
    finished = subprocess.run(
      ['taskset', '-c', str(core), *program], env=environment, capture_output=True, text=True
    )
    if finished.returncode:
      raise RuntimeError(f'The job {job} failed: {finished.stderr[-LAST_WORDS:]}')
  return read_json(path)
