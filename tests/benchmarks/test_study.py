"""What a study trains, and what its tables say."""

import dataclasses

import numpy as np
import pytest

from benchmarks.study.study import CEILING, PROBE, Group, Study, pack, read_results, run
from benchmarks.study.tables import Row, lines_of

RIGHT = np.arange(12) % 3 > 0


class Killed(Exception):
  """Stands for a kill."""


@dataclasses.dataclass(frozen=True, eq=False)
class Fake(Study):
  """A study that learns nothing, and is killed before some training."""

  left: list[int] = dataclasses.field(default_factory=list)

  def train(self, job):
    if self.left and not self.left.pop():
      raise Killed
    return {'params': 5, 'tests': len(RIGHT), 'answers': pack(RIGHT)}


def study(**fields):
  """A study of two tasks with one fixed method and the rates of words."""
  return Fake('words', ('a', 'b'), 3, seeds=2, fixed=('bitfit',), budget=41_472, **fields)


def test_a_study_that_was_killed_goes_on_and_trains_nothing_twice(tmp_path):
  with pytest.raises(Killed):
    run(study(left=[0, 1, 1]), str(tmp_path))
  run(study(), str(tmp_path))
  lines = (tmp_path / 'final.jsonl').read_text().splitlines()
  planned = [*study().plan(read_results(str(tmp_path)))]
  assert len(lines) == len(planned) == len(set(planned)) == 2 * 2 * 5
  run(study(left=[0]), str(tmp_path))
  assert {job.epochs for job in planned if job.method == PROBE} == {0}
  assert {job.epochs for job in planned if job.method == CEILING} == {3}


def test_a_difference_has_the_interval_of_its_seeds_and_examples():
  ours, theirs = np.array([[100.0, 0, 100, 100]]), np.array([[0.0, 0, 100, 100]])
  mean, half = Row('ours', 1, ours).less(Row('theirs', 1, theirs))
  assert (mean, half) == (25, pytest.approx(1.959964 * 50 / 2, rel=1e-6))
  several = np.concatenate([ours, 100 - ours])  # whose examples have the same mean over seeds
  mean, half = Row('ours', 1, several).less()
  assert (mean, half) == (50, pytest.approx(12.706205 * 25 * 2**0.5 / 2**0.5, rel=1e-6))


def test_the_best_fixed_method_has_as_many_seeds_as_ours():
  def result(right):
    answers = pack(np.arange(12) < right)
    return {'params': 5, 'tests': 12, 'answers': answers}

  results = {
    ('a', 'ours', 0): {0: result(6), 1: result(6)},
    ('a', 'lucky', 0): {0: result(12)},
    ('a', 'fixed', 0): {0: result(5), 1: result(5)},
  }
  methods = [(name, 0) for name in ('lucky', 'fixed')]
  group = Group('', ['a', 'b'], [('ours', 0)], methods, [])
  lines = lines_of(results, group)
  assert lines.keys() == {'a'}
  assert lines['a'].best.name == 'fixed'
  assert lines['a'].difference.mean == pytest.approx(100 / 12)
