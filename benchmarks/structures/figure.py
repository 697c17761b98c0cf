"""Draws `notebooks/pictures/structures.png`: ours less the best fixed method, with intervals.

  python -m benchmarks.structures.figure [--version VERSION ...]

A panel for each budget that has results, a line for each task that has some. The fixed method is
the best of all of at most the budget, by the means of the tests that it is compared on; its name
stands at the right. Squares are tasks that were written when all methods were fixed. It draws with
matplotlib, which the extra `notebooks` brings.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from benchmarks.machinery.measuring import make_parser
from benchmarks.structures import plan
from benchmarks.structures.tables import budget_table, print_others
from benchmarks.structures.tasks import TASKS
from glora_jax.reports.page import PALETTES

PATH = 'notebooks/pictures/structures.png'
MARKERS = {'final': 'o', 'confirming': 's'}
COLUMNS = 2
WIDTH, HEIGHT, LINE = 4.9, 1.0, 0.27  # inches: of a panel, beside its lines, of a line
SMALL = 8  # size of text
COLORS = PALETTES['light']
BY_VERDICT = {'win': COLORS['teal'], 'tie': COLORS['dim'], 'loss': COLORS['red']}


def draw_differences(
  axis: Any, table: Mapping[str, Any], tasks: Sequence[str], marker: Callable[[str], str]
) -> None:
  """Differences to the best fixed method of each task with their intervals, in a panel."""
  axis.axvline(0, color=COLORS['ink'], linewidth=0.8)
  axis.set_yticks(range(len(tasks)), tasks)
  axis.set_ylim(len(tasks) - 0.5, -0.5)
  for task, line in table.items():
    mean, low, high = line['difference']
    color, place = BY_VERDICT[line['verdict']], tasks.index(task)
    axis.plot((low, high), (place, place), color=color, linewidth=2)
    axis.plot(mean, place, marker(task), color=color, markersize=6)
    name, *_ = line['best_fixed']
    where = {'transform': axis.get_yaxis_transform(), 'va': 'center'}
    axis.text(1.02, place, name, fontsize=SMALL, color=COLORS['dim'], **where)
  axis.spines[['top', 'right']].set_visible(False)
  axis.set_xlabel('points over the best fixed method (right)')


def main() -> None:
  """Draws all budgets of which there are results."""
  parser = make_parser(__doc__)
  parser.add_argument('--version', nargs='+', help='of the lines; by default the present one')
  versions = parser.parse_args().version
  stores = {part: plan.MAIN.store(part, versions) for part in MARKERS}
  print_others(stores)
  rates, found = plan.MAIN.read_rates(), {}
  for budget in plan.BUDGETS:
    lines = {}
    for part, store in stores.items():
      names = plan.tasks('final') if part == 'final' else plan.tasks_of(part, budget)
      lines |= budget_table(store, names, rates, budget)
    if lines:
      found[budget] = lines
  if not found:
    raise SystemExit('There is nothing to draw.')
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
  figure.savefig(PATH, dpi=150)
  print(PATH)


if __name__ == '__main__':
  main()
