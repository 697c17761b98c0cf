"""What papers print of a family of tasks: its columns, and which of them a task fills."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from glora_jax.data import catalog
from glora_jax.data.tasks import fewshot, generalization, vtab

TEST_SETS = {
  'test': 'ImageNet',
  'v2': 'ImageNet-V2',
  'sketch': 'ImageNet-Sketch',
  'a': 'ImageNet-A',
  'r': 'ImageNet-R',
}


class Column(NamedTuple):
  """What papers give one number for.

  Attributes:
    name: name of a task of VTAB, of a data set with a number of shots, or of a test set.
    title: what tables call it.
    group: what it is averaged with.
  """

  name: str
  title: str
  group: str


class Measurement(NamedTuple):
  """A number that a task gives a column.

  Attributes:
    column: name of the column.
    split: name of the test split that is measured.
  """

  column: str
  split: str


@dataclasses.dataclass(frozen=True)
class Layout:
  """The table that papers print of a family of tasks.

  Attributes:
    columns: columns of a table of tasks, by the names of the tasks.
    measurements: what a task measures, by its name.
    mean_of_groups: whether the headline is the mean of the groups' means, as VTAB's is.
  """

  columns: Callable[[Sequence[str]], list[Column]]
  measurements: Callable[[str], list[Measurement]]
  mean_of_groups: bool = False


def family_name(task: str) -> str:
  """The first word of a task's name.

  Example:
    >>> family_name('fewshot/food101/4/0')
    'fewshot'
  """
  return task.partition('/')[0]


def title_of(tasks: Sequence[str]) -> str:
  """What tables call the family that all tasks of a suite belong to."""
  return catalog.FAMILIES[family_name(tasks[0])].title


def layout_of(tasks: Sequence[str]) -> Layout:
  """The layout of the family that all tasks of a suite belong to."""
  return LAYOUTS[family_name(tasks[0])]


def _vtab_columns(tasks: Sequence[str]) -> list[Column]:
  """All 19 tasks, whichever of them a suite has."""
  del tasks
  return [Column(task.name, task.name, task.group) for task in vtab.TASKS]


def _vtab_measurements(task: str) -> list[Measurement]:
  return [Measurement(task.removeprefix('vtab/'), 'test')]


def _fewshot_columns(tasks: Sequence[str]) -> list[Column]:
  """All data sets with each number of shots that a suite has."""
  numbers = dict.fromkeys(task.split('/')[2] for task in tasks)
  titles = {number: '1 shot' if number == '1' else f'{number} shots' for number in numbers}
  return [
    Column(f'{name}/{number}', f'{name}, {title}', title)
    for number, title in titles.items()
    for name in fewshot.NAMES
  ]


def _fewshot_measurements(task: str) -> list[Measurement]:
  """Its column is the task without its seed: seeds are averaged."""
  column, _, _ = task.removeprefix('fewshot/').rpartition('/')
  return [Measurement(column, 'test')]


def _generalization_columns(tasks: Sequence[str]) -> list[Column]:
  """All test sets."""
  del tasks
  return [
    Column(
      test_set.name,
      TEST_SETS[test_set.name],
      'source' if test_set.name == 'test' else 'shifted',
    )
    for test_set in generalization.TESTS
  ]


def _generalization_measurements(task: str) -> list[Measurement]:
  """Every test set; seeds are averaged."""
  del task
  return [Measurement(test_set.name, test_set.name) for test_set in generalization.TESTS]


LAYOUTS = {
  'vtab': Layout(_vtab_columns, _vtab_measurements, mean_of_groups=True),
  'fewshot': Layout(_fewshot_columns, _fewshot_measurements),
  'generalization': Layout(_generalization_columns, _generalization_measurements),
}
