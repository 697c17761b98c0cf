"""Every method's scores, ours less each of them, and ours against the best fixed one."""

import math
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from benchmarks.machinery.measuring import print_table
from benchmarks.study.study import RANDOM, Group, Method, Results, unpack

CONFIDENCE = 0.95
TEST = 4000  # test images of results that do not say it


class Difference(NamedTuple):
  """A mean difference of scores, with its interval.

  Attributes:
    mean: of the differences.
    half: of the interval.
  """

  mean: float
  half: float

  @property
  def verdict(self) -> str:
    """'win', 'loss' or, if the interval holds 0, 'tie'."""
    if abs(self.mean) <= self.half:
      return 'tie'
    return 'win' if self.mean > 0 else 'loss'

  def text(self, digits: int) -> str:
    """The mean and the ends of the interval."""
    ends = self.mean, self.mean - self.half, self.mean + self.half
    return '{} [{}, {}]'.format(*(f'{end:+.{digits}f}' for end in ends))


class Row(NamedTuple):
  """A method on a task.

  Attributes:
    name: of the method.
    params: trained parameters.
    scores: [seed, example]; a right answer is 100 points.
  """

  name: str
  params: int
  scores: np.ndarray

  @property
  def mean(self) -> float:
    """Mean score."""
    return float(self.scores.mean())

  def less(self, other: 'Row | None' = None) -> Difference:
    """The difference to another method, or to 0, over the seeds and examples that both have.

    The variance of the mean has two parts: that of the seeds' mean differences, with Student's t,
    and that of the examples' differences, averaged over the seeds, with a normal distribution. They
    are added up, as if what an example does and what a seed does were independent.
    """
    theirs = 0 * self.scores if other is None else other.scores
    seeds = min(len(self.scores), len(theirs))
    differences = self.scores[:seeds] - theirs[:seeds]
    tail = (1 + CONFIDENCE) / 2
    of_examples = differences.mean(0)
    squares = (stats.norm.ppf(tail) * of_examples.std(ddof=1)) ** 2 / len(of_examples)
    if seeds > 1:
      by_seed = differences.mean(1).std(ddof=1)
      squares += (stats.t.ppf(tail, seeds - 1) * by_seed) ** 2 / seeds
    return Difference(float(differences.mean()), math.sqrt(squares))


class Line(NamedTuple):
  """What a group's table says of a task.

  Attributes:
    ours: the row that is compared.
    rows: those of all methods by name.
    best: the best fixed method, if there are some.
    random: mean score of random structures.
  """

  ours: Row
  rows: dict[str, Row]
  best: Row | None
  random: float | None

  @property
  def difference(self) -> Difference:
    """To the best fixed method."""
    return self.ours.less(self.best)


def rows_of(results: Results, task: str, methods: Iterable[Method]) -> list[Row]:
  """The methods that have results on a task, with all their seeds."""
  rows = []
  for name, budget in methods:
    if found := results.get((task, name, budget)):
      scores = np.stack([scores_of(found[seed]) for seed in sorted(found)])
      rows.append(Row(name, next(iter(found.values()))['params'], scores))
  return rows


def scores_of(result: dict[str, Any]) -> np.ndarray:
  """Scores of the examples to test on."""
  if 'scores' in result:
    return np.array(result['scores'])
  return 100.0 * unpack(result['answers'], result.get('tests', TEST))


def lines_of(results: Results, group: Group) -> dict[str, Line]:
  """The lines of the tasks on which ours and all fixed methods were trained.

  The best has the largest mean score, among those with as many seeds as ours, or with most: a bar
  that is biased against us, since it is chosen by what it is compared by.
  """
  lines = {}
  for task in group.tasks:
    ours, fixed, others = (
      rows_of(results, task, methods) for methods in (group.ours, group.fixed, group.others)
    )
    if ours and len(fixed) == len(group.fixed):
      seeds = min(len(ours[0].scores), max((len(row.scores) for row in fixed), default=0))
      whole = [row for row in fixed if len(row.scores) >= seeds]
      best = max(whole, key=lambda row: row.scores[:seeds].mean(), default=None)
      drawn = [row.mean for row in others if RANDOM in row.name]
      rows = {row.name: row for row in (*ours, *others, *fixed)}
      lines[task] = Line(ours[0], rows, best, statistics.mean(drawn) if drawn else None)
  return lines


def print_group(title: str, lines: dict[str, Line], digits: int, seconds: dict[str, float]) -> None:
  """Prints all scores with the half of their intervals, ours less them, and the best fixed ones."""
  spec, scores, less = f'.{digits}f', [], []
  names = dict.fromkeys(name for line in lines.values() for name in line.rows)
  for name in names:
    rows = [line.rows.get(name) for line in lines.values()]
    found = [row for row in rows if row]
    cells = [
      f'{row.mean:{spec}} ± {row.less().half:{spec}} ({len(row.scores)})' if row else ''
      for row in rows
    ]
    scores.append((name, found[0].params, *cells, seconds.get(name)))
    gaps = [row and line.ours.less(row) for row, line in zip(rows, lines.values(), strict=True)]
    mean = statistics.mean(gap.mean for gap in gaps if gap)
    less.append((name, *(gap.text(digits) if gap else '' for gap in gaps), mean))
  print_table({title: '', 'params': ',', **dict.fromkeys(lines, ''), 'seconds': ',.3g'}, scores)
  print_table(dict.fromkeys(('ours less', *lines, 'mean'), f'+{spec}'), less)
  compared = []
  for task, line in lines.items():
    if line.best:
      best = f'{line.best.name} ({line.best.params:,}) {line.best.mean:{spec}}'
      text, verdict = line.difference.text(digits), line.difference.verdict
      compared.append((task, line.ours.mean, best, text, verdict, line.random, chances(line)))
  if compared:
    mean = statistics.mean(line.difference.mean for line in lines.values())
    compared.append(('mean', None, None, f'{mean:+{spec}}', None, None, None))
    titles = (title, 'ours', 'best fixed', 'difference', '', 'random', 'McNemar')
    print_table(dict.fromkeys(titles, spec), compared)


def chances(line: Line) -> str:
  """McNemar's exact p-values of the two best methods, for each seed."""
  one, other = sorted(line.rows.values(), key=lambda row: -row.mean)[:2]
  found = []
  for first, second in zip(one.scores, other.scores, strict=False):
    only = int((first > second).sum()), int((second > first).sum())
    found.append(f'{stats.binomtest(only[0], max(sum(only), 1)).pvalue:.2g}')
  return f'{one.name}, {other.name}: {", ".join(found)}'


def as_json(lines: dict[str, Line]) -> dict[str, Any]:
  """Lines in JSON types."""
  return {
    task: {
      'ours': [line.ours.name, line.ours.mean],
      'best_fixed': line.best and [line.best.name, line.best.params, line.best.mean],
      'difference': line.best and [*line.difference, line.difference.verdict],
      'scores': {name: row.less() for name, row in line.rows.items()},
    }
    for task, line in lines.items()
  }
