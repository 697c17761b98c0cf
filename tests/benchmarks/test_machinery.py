"""What all benchmarks share: clocks, the table, the last line, jobs that go on where they were."""

import json

import jax.numpy as jnp
import pytest

from benchmarks.machinery.jobs import parse_arguments, run_jobs
from benchmarks.machinery.output import print_result, print_table, rounded
from benchmarks.machinery.timing import in_turn, median_ratio
from glora_jax.files import write_json


@pytest.mark.parametrize('warm, calls', [(False, 'ab ab ab'), (True, 'ab ab')])
def test_what_is_compared_runs_in_turn_after_one_call_to_compile(warm, calls):
  called = []
  functions = {name: lambda name=name: called.append(name) for name in 'ab'}
  times = in_turn(functions, 2, warm=warm)
  assert called == list(calls.replace(' ', ''))
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


def test_a_job_writes_its_result_and_finished_ones_are_only_read(tmp_path, monkeypatch):
  path = tmp_path / 'digits-1.json'
  arguments = ['benchmark', '--job', json.dumps(['digits', 1]), str(path)]
  monkeypatch.setattr('sys.argv', arguments)
  assert parse_arguments('', folder='', quick='', run=lambda *values: list(values)) is None
  assert json.loads(path.read_text()) == ['digits', 1]
  write_json(path, 'kept')
  assert run_jobs('no.such.module', [('digits', 1)], str(tmp_path)) == {('digits', 1): 'kept'}


def test_a_failed_job_is_named_with_its_last_words(tmp_path):
  with pytest.raises(
    RuntimeError, match=r"job \('digits', 2\) failed: .*no module named|No module"
  ):
    run_jobs('no_such_module', [('digits', 2)], str(tmp_path))
