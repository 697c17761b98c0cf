"""The fuzzer's oracle can fail: whatever is planted is named, and cases come back by number."""

import pathlib
import time

import numpy as np
import pytest

from benchmarks.fuzz.oracle import Case, flaw_of, judge
from benchmarks.fuzz.place import Place
from benchmarks.fuzz.strategies import STRATEGIES, choose
from glora_jax.limits import Domain
from glora_jax.records import read_record


@pytest.fixture
def place(tmp_path):
  return Place(str(tmp_path))


def refuse():
  return Domain(int).check('x', 'seed')


def raise_type_error():
  return len(3)


def raise_a_library_s_own_sentence():
  return np.zeros(3).reshape(2)


def test_what_is_right_is_accepted_and_a_sentence_of_ours_is_a_refusal(place):
  assert judge(Case('', lambda: [np.ones(2), 'x']), place).outcome == 'accepted'
  verdict = judge(Case('', refuse), place)
  assert verdict == ('refused', "seed='x' must be a whole number.")
  missing = Case('', lambda: read_record('nowhere.json', 'seconds', dict))
  assert judge(missing, place).outcome == 'refused'


@pytest.mark.parametrize('attempt', [raise_type_error, raise_a_library_s_own_sentence])
def test_a_bug_is_a_traceback(place, attempt):
  assert judge(Case('', attempt), place).outcome == 'traceback'


@pytest.mark.parametrize('name', ['home', 'here', 'shared', 'given', 'temporary'])
def test_a_file_outside_of_the_workdir_is_touched(place, name):
  attempt = pathlib.Path(place.path(name, 'x')).touch
  assert judge(Case('', attempt), place) == ('touched', f'outside of the workdir: {name}/x')


def test_what_does_not_end_is_a_hang(place):
  assert judge(Case('', lambda: time.sleep(10), limit=0.1), place).outcome == 'hang'


def refuse_after_writing(place):
  pathlib.Path(place.workdir).mkdir()
  refuse()


@pytest.mark.parametrize(
  'attempt, reason',
  [
    (lambda: np.array([1.0, np.nan]), 'not finite'),
    (time.perf_counter_ns, 'the same again gives another result'),
    (lambda: Domain(int).check('x', 'a\n'), 'line ends'),
  ],
)
def test_nonsense_is_wrong(place, attempt, reason):
  verdict = judge(Case('', attempt), place)
  assert verdict.outcome == 'wrong'
  assert reason in verdict.reason


def test_a_refusal_that_leaves_something_is_wrong(place):
  verdict = judge(Case('', lambda: refuse_after_writing(place)), place)
  assert verdict.outcome == 'wrong'
  assert 'refused, and the workdir changed: work' in verdict.reason


def test_what_should_not_matter_and_does_is_wrong(place):
  case = Case('', lambda: 1, alike={'another order': lambda: 2})
  assert judge(case, place) == ('wrong', 'another order gives another result: 1, then 2')


@pytest.mark.parametrize('text', ['Traceback (most', 'two\nlines.', 'x' * 3000 + '.', 'no reason'])
def test_flaws_of_sentences(text):
  assert flaw_of(text)
  assert not flaw_of('ranks=0 must be 1 or more.')


def test_a_case_is_made_by_seed_and_number_alone(tmp_path):
  quick = [name for name, strategy in STRATEGIES.items() if not strategy.is_slow]
  for number in (3, 1, 3):
    shown = []
    for folder in ('a', 'a'):
      place = Place(str(tmp_path / folder))
      name, rng = choose(number, 0, quick)
      shown.append((name, STRATEGIES[name].make(rng, place).shown))
    assert shown[0] == shown[1]
