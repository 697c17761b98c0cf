"""A runner of jobs, as those of `glora_jax.runs.runners`: processes of this machine, one a core."""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from glora_jax.runs import runners
from glora_jax.runs.runners import Job, Outcomes


class Cores(NamedTuple):
  """Does jobs in processes that each have a core, and do job after job."""

  number: int = 2

  def outcomes(self, jobs: Mapping[str, Job], workdir: str, stop: Callable[[], bool]) -> Outcomes:
    """See `ThisProcess.outcomes`; a job, which is pickled, is never asked to stop in its middle."""
    del stop
    context = multiprocessing.get_context('spawn')
    cores = sorted(os.sched_getaffinity(0))
    free = context.SimpleQueue()
    for number in range(self.number):
      free.put(cores[number % len(cores)])
    pool = concurrent.futures.ProcessPoolExecutor(self.number, context, _begin, (free, workdir))
    try:
      names = {pool.submit(job, _never): name for name, job in jobs.items()}
      for future in concurrent.futures.as_completed(names):
        yield names[future], future.result
    finally:
      pool.shutdown(cancel_futures=True)


def _begin(free: multiprocessing.SimpleQueue, workdir: str) -> None:
  """Takes a core for this process, before JAX starts its backend."""
  os.sched_setaffinity(0, {free.get()})
  flags = os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = f'{flags} --xla_cpu_multi_thread_eigen=false'
  runners.keep_compiled(workdir)


def _never() -> bool:
  return False
