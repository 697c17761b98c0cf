"""Columns of tables: whatever a task measures has a column, and every column is measured."""

import pytest

from glora_jax.data.catalog import expand
from glora_jax.reports import columns


@pytest.mark.parametrize('family', columns.FAMILIES)
def test_the_tasks_of_a_family_fill_exactly_its_columns(family):
  tasks = expand(f'{family}/all')
  assert columns.family_of(tasks) is columns.FAMILIES[family]
  names = [column.name for column in columns.FAMILIES[family].columns(tasks)]
  measured = [
    measurement.column
    for task in tasks
    for measurement in columns.FAMILIES[family].measurements(task)
  ]
  assert len(names) == len(set(names))
  assert set(measured) == set(names)
  assert len(measured) == len(names) * (1 if family == 'vtab' else 3)  # seeds


def test_few_shot_tables_have_the_shots_that_a_suite_has():
  tasks = expand('fewshot/food101/all/0')[:2]
  titles = {column.group for column in columns.family_of(tasks).columns(tasks)}
  assert titles == {'1 shot', '2 shots'}
