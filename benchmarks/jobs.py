"""Jobs of a benchmark, each in a process of its own on one core, with their results kept: what was interrupted goes on where it was."""

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from glora_jax.files import read_json, write_json


def command_line(
  text: str, folder: str, quick: str, job: Callable[..., Any], names: Sequence[str] = ()
) -> argparse.Namespace | None:
  """What the command line says; None where it was that of one job, which is done then.

  Args:
    text: the benchmark's docstring.
    folder: for the jobs' results, by default.
    quick: what `--quick` does.
    job: called with a job's values.
    names: of what `--only` can choose among; it gives all of them otherwise.
  """
  parser = argparse.ArgumentParser(
    description=text, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--quick', action='store_true', help=quick)
  parser.add_argument('--folder', default=folder)
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--workers', type=int, default=2)
  if names:
    parser.add_argument(
      '--only',
      nargs='+',
      choices=names,
      default=list(names),
      metavar='NAME',
      help=f'some of {", ".join(names)}',
    )
  parser.add_argument('--job', nargs=2, help=argparse.SUPPRESS)
  given = parser.parse_args()
  if not given.job:
    return given
  values, path = given.job
  write_json(path, job(*json.loads(values)))
  return None


def run_jobs(module: str, jobs: Sequence[tuple], folder: str, workers: int = 2) -> dict[tuple, Any]:
  """Results by job, JSON types; those that are in the folder are read.

  Args:
    module: of the benchmark, which calls `command_line`.
    jobs: tuples of JSON scalars.
    folder: one file a job.
    workers: jobs at a time.

  Raises:
    RuntimeError: a job failed; with what it printed last.
  """
  os.makedirs(folder, exist_ok=True)
  cores = sorted(os.sched_getaffinity(0))
  path = lambda job: os.path.join(folder, '-'.join(map(str, job)) + '.json')

  def run(number, job):
    if not os.path.exists(path(job)):
      flags = os.environ.get('XLA_FLAGS', '') + ' --xla_cpu_multi_thread_eigen=false'
      environment = {
        **os.environ,
        'XLA_FLAGS': flags,
        'JAX_COMPILATION_CACHE_DIR': os.path.join(folder, 'xla'),
      }
      command = [
        'taskset',
        '-c',
        str(cores[number % workers % len(cores)]),
        sys.executable,
        '-m',
        module,
        '--job',
        json.dumps(job),
        path(job),
      ]
      ran = subprocess.run(command, env=environment, capture_output=True, text=True)
      if ran.returncode:
        raise RuntimeError(f'The job {job} failed: {ran.stderr[-2000:]}')
    return read_json(path(job))

  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    futures = [pool.submit(run, number, job) for number, job in enumerate(jobs)]
    for future in tqdm(concurrent.futures.as_completed(futures), total=len(futures), desc='jobs'):
      future.result()
  return {job: future.result() for job, future in zip(jobs, futures, strict=True)}
