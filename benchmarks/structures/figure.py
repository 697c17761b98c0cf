"""Draws ours less the best fixed method, with intervals, by matplotlib (the extra `notebooks`).

A panel for each budget that has results, a line for each task that has some. The fixed method is
the best of all of at most the budget, by the means of the tests that it is compared on; its name
stands at the right. Squares are tasks that were written when all methods were fixed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from benchmarks.structures.tables import Line
from benchmarks.structures.tasks import TASKS
from glora_jax.vision.reports.page import PALETTES

MARKERS = {'final': 'o', 'confirming': 's'}
COLUMNS = 2
WIDTH, HEIGHT, LINE = 4.9, 1.0, 0.27  # inches: of a panel, beside its lines, of a line
SMALL = 8  # size of text
COLORS = PALETTES['light']
BY_VERDICT = {'win': COLORS['teal'], 'tie': COLORS['dim'], 'loss': COLORS['red']}


def draw_differences(
  axis: Any, table: Mapping[str, Line], tasks: Sequence[str], marker: Callable[[str], str]
) -> None:
  """Differences to the best fixed method of each task with their intervals, in a panel."""
  axis.axvline(0, color=COLORS['ink'], linewidth=0.8)
  axis.set_yticks(range(len(tasks)), tasks)
  axis.set_ylim(len(tasks) - 0.5, -0.5)
  for task, line in table.items():
    mean, low, high = line.difference
    color, place = BY_VERDICT[line.difference.verdict], tasks.index(task)
    axis.plot((low, high), (place, place), color=color, linewidth=2)
    axis.plot(mean, place, marker(task), color=color, markersize=6)
    where = {'transform': axis.get_yaxis_transform(), 'va': 'center'}
    axis.text(1.02, place, line.best.method[0], fontsize=SMALL, color=COLORS['dim'], **where)
  axis.spines[['top', 'right']].set_visible(False)
  axis.set_xlabel('points over the best fixed method (right)')


def draw(found: Mapping[int, Mapping[str, Line]], path: str) -> None:
  """Draws the tables of some budgets."""
  tables = list(found.values())
  rows = [  # the tasks of which a row of panels has a line
    list(dict.fromkeys(task for table in tables[at : at + COLUMNS] for task in table))
    for at in range(0, len(tables), COLUMNS)
  ]
  heights = [HEIGHT + LINE * len(tasks) for tasks in rows]
  figure = Figure(figsize=(WIDTH * COLUMNS, sum(heights)), layout='constrained')
  shared = {'sharex': True, 'sharey': 'row', 'squeeze': False}
  axes = figure.subplots(len(rows), COLUMNS, height_ratios=heights, **shared)
  for axis in axes.flat[len(found) :]:
    axis.set_axis_off()
  for number, (axis, budget) in enumerate(zip(axes.flat, found, strict=False)):
    tasks = rows[number // COLUMNS]
    draw_differences(axis, found[budget], tasks, lambda task: MARKERS[TASKS[task].set])
    axis.set_title(f'{budget:,} parameters', fontsize=10)
  figure.savefig(path, dpi=150)
