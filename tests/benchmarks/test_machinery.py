"""What all benchmarks share: clocks, the table, the last line, jobs on cores."""

import functools
import json
import os

import jax.numpy as jnp
import pytest

from benchmarks.machinery.cores import Cores
from benchmarks.machinery.measuring import (
  in_turn,
  median_ratio,
  print_result,
  print_table,
  rounded,
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


def test_the_last_line_is_json_with_name_machine_and_null_for_what_was_not_run(capsys):
  print_table(('', 'seconds'), [('ours', '1.00'), ('a peer', '10.00')])
  print_result('example', {'ratio': rounded(jnp.float32(1.23456)), 'over_peer': rounded(None)})
  *table, last = capsys.readouterr().out.splitlines()
  assert table == ['        seconds', 'ours       1.00', 'a peer    10.00']
  result = json.loads(last)
  assert result['benchmark'] == 'example'
  assert result['machine'].keys() == {'cpu', 'cores', 'device', 'jax'}
  assert (result['ratio'], result['over_peer']) == (1.235, None)


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
