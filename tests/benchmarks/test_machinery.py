"""What all benchmarks share: clocks, the table, the last line."""

from benchmarks.machinery.measuring import Times, in_turn


def test_what_is_compared_runs_in_turn_after_one_call_to_compile():
  called = []
  functions = {name: lambda name=name: called.append(name) for name in 'ab'}
  times = in_turn(functions, 2)
  assert called == list('ababab')
  assert {name: len(values) for name, values in times.items()} == {'a': 2, 'b': 2}


def test_a_ratio_is_the_median_of_the_ratios_within_repeats():
  times = Times(ours=[1.0, 10.0, 3.0], theirs=[2.0, 10.0, 1.0])
  assert times.ratio('ours', 'theirs') == 1.0
  assert times.ratio('ours', 'not installed') is None
