"""What all benchmarks share: clocks, the table, the last line, jobs on cores."""

import functools
import os

import pytest

from benchmarks.machinery.cores import Cores
from benchmarks.machinery.measuring import (
  in_turn,
  median_ratio,
)


def test_what_is_compared_runs_in_turn_after_one_call_to_compile():
  called = []
  functions = {name: lambda name=name: called.append(name) for name in 'ab'}
  times = in_turn(functions, 2)
  assert called == list('ababab')
  assert {name: len(values) for name, values in times.items()} == {'a': 2, 'b': 2}


def test_a_ratio_is_the_median_of_the_ratios_within_repeats():
  times = {'ours': [1.0, 10.0, 3.0], 'theirs': [2.0, 10.0, 1.0]}
  assert median_ratio(times, 'ours', 'theirs') == 1.0
  assert median_ratio(times, 'ours', 'not installed') is None


def work(number, stop):
  """What a job says of the process that does it."""
  if number < 0:
    raise ValueError('too little')
  return number, len(os.sched_getaffinity(0)), os.environ['XLA_FLAGS'].split()[-1], stop()


def test_jobs_run_on_one_core_each_and_a_failure_is_that_of_one_job(tmp_path):
  jobs = {str(number): functools.partial(work, number) for number in (3, -1, 4)}
  outcomes = dict(Cores(2).outcomes(jobs, str(tmp_path), lambda: False))
  for number in (3, 4):
    assert outcomes[str(number)]() == (number, 1, '--xla_cpu_multi_thread_eigen=false', False)
  with pytest.raises(ValueError, match='too little'):
    outcomes['-1']()
