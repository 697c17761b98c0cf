"""Draws `notebooks/pictures/structures.png`: ours less the best fixed method, with intervals.

  python -m benchmarks.structures.figure [--budgets 5184 9216 18432 36864]

A panel for each budget, by default those whose fixed methods all have results; a line for each task
that has some. The fixed method is the best of all of at most the budget, by the means of the tests
that it is compared on; its name stands at the right. Squares are tasks that were written when all
methods were fixed. It draws with matplotlib, which the extra `notebooks` brings.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.structures import plan
from benchmarks.structures.__main__ import read_rates, store_of
from benchmarks.structures.tables import budget_table
from benchmarks.structures.tasks import TASKS
from glora_jax.reports.page import PALETTES

PATH = 'notebooks/pictures/structures.png'
MARKERS = {'final': 'o', 'confirming': 's'}
COLUMNS = 2
WIDTH, HEIGHT, LINE = 4.9, 1.0, 0.27  # inches: of a panel, beside its lines, of a line
SMALL = 8  # size of text


def tables_of(budget: int) -> dict[str, Any]:
  """The lines of `budget_table` of a budget, by task."""
  rates = read_rates()
  final = budget_table(store_of('final'), plan.tasks('final'), rates, budget)
  return final | budget_table(store_of('confirming'), plan.confirming(), rates, budget)


def tasks_of(tables: Iterable[Mapping[str, Any]]) -> list[str]:
  """The tasks of which tables have a line, in their order."""
  return list(dict.fromkeys(task for lines in tables for task in lines))


def draw_panel(axis: Axes, lines: Mapping[str, Mapping[str, Any]], tasks: Sequence[str]) -> None:
  """A budget's differences, a line for each task that has one."""
  colors = PALETTES['light']
  by_verdict = {'win': colors['teal'], 'tie': colors['dim'], 'loss': colors['red']}
  axis.axvline(0, color=colors['ink'], linewidth=0.8)
  axis.set_yticks(range(len(tasks)), tasks)
  axis.set_ylim(len(tasks) - 0.5, -0.5)
  right = axis.get_yaxis_transform()
  for task, line in lines.items():
    mean, low, high = line['difference']
    color, place = by_verdict[line['verdict']], tasks.index(task)
    axis.plot((low, high), (place, place), color=color, linewidth=2)
    axis.plot(mean, place, MARKERS[TASKS[task].set], color=color, markersize=6)
    name, *_ = line['best_fixed']
    axis.text(1.02, place, name, transform=right, va='center', fontsize=SMALL, color=colors['dim'])


def main() -> None:
  """Draws all budgets of which there are results."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--budgets', type=int, nargs='+', default=plan.BUDGETS)
  found = {budget: tables_of(budget) for budget in parser.parse_args().budgets}
  found = {budget: lines for budget, lines in found.items() if lines}
  lines = list(found.values())
  rows = [tasks_of(lines[at : at + COLUMNS]) for at in range(0, len(lines), COLUMNS)]
  heights = [HEIGHT + LINE * len(tasks) for tasks in rows]
  figure = Figure(figsize=(WIDTH * COLUMNS, sum(heights)), layout='constrained')
  axes = figure.subplots(
    len(rows),
    COLUMNS,
    height_ratios=heights,
    sharex=True,
    sharey='row',
    squeeze=False,
  )
  for axis in axes.flat[len(found) :]:
    axis.set_axis_off()
  for number, (axis, budget) in enumerate(zip(axes.flat, found, strict=False)):
    draw_panel(axis, found[budget], rows[number // COLUMNS])
    axis.spines[['top', 'right']].set_visible(False)
    axis.set_title(f'{budget:,} parameters', fontsize=10)
    axis.set_xlabel('points over the best fixed method (right)')
  figure.savefig(PATH, dpi=150)
  print(PATH)


if __name__ == '__main__':
  main()
