"""Columns of tables: whatever a task measures has a column, and every column is measured."""

import pytest

from glora_jax.data.catalog import FAMILIES, expand
from glora_jax.reports import columns


@pytest.mark.parametrize('family', columns.LAYOUTS)
def test_the_tasks_of_a_family_fill_exactly_its_columns(family):
  tasks = expand(f'{family}/all')
  layout = columns.layout_of(tasks)
  names = [column.name for column in layout.columns(tasks)]
  measured = [filled.column for task in tasks for filled in layout.measurements(task)]
  assert len(names) == len(set(names))
  assert set(measured) == set(names)
  assert len(measured) == len(names) * (1 if family == 'vtab' else 3)  # seeds


def test_every_family_of_tasks_has_a_layout():
  assert set(columns.LAYOUTS) == set(FAMILIES)


def test_few_shot_tables_have_the_shots_that_a_suite_has():
  tasks = expand('fewshot/food101/all/0')[:2]
  titles = {column.group for column in columns.layout_of(tasks).columns(tasks)}
  assert titles == {'1 shot', '2 shots'}
