"""Draws how far ours is ahead of the best fixed method, using matplotlib (the extra `notebooks`).

A panel for each budget that has results, a line for each task that has some. The fixed method is
the best of all of at most the budget, chosen by the same tests. Its name stands at the right.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.study.tables import Line
from benchmarks.study.tasks import tasks_of
from glora_jax.vision.reports.page import PALETTES

MARKERS = {'final': 'o', 'confirming': 's'}
SETS = {'final': 'task on which nothing was tuned', 'confirming': 'task written after all methods'}
COLUMNS = 2
WIDTH, HEIGHT, LINE = 8.0, 0.5, 0.27  # inches: of a picture, beside a panel's lines, of a line
LEGEND = 1.0  # inches above and below all panels
SMALL, LARGE = 9.5, 10.5  # sizes of text
COLORS = PALETTES['light']
BY_VERDICT = {'win': COLORS['teal'], 'tie': COLORS['dim'], 'loss': COLORS['red']}
VERDICTS = {
  'win': 'ahead: the 95% interval is above 0',
  'tie': 'tie: the 95% interval contains 0',
  'loss': 'behind: the 95% interval is below 0',
}


def draw(panels: Mapping[str, Mapping[str, Line]], path: pathlib.Path) -> None:
  """Draws a panel for each budget, by title."""
  columns, tables = min(COLUMNS, len(panels)), list(panels.values())
  rows = [  # the tasks of which a row of panels has a line
    list(dict.fromkeys(task for table in tables[at : at + columns] for task in table))
    for at in range(0, len(tables), columns)
  ]
  heights = [HEIGHT + LINE * len(tasks) for tasks in rows]
  figure = Figure(figsize=(WIDTH, sum(heights) + LEGEND), layout='constrained')
  shared = {'sharex': True, 'sharey': 'row', 'squeeze': False}
  axes = figure.subplots(len(rows), columns, height_ratios=heights, **shared)
  for axis in axes.flat[len(panels) :]:
    axis.set_axis_off()
  for number, (axis, (title, table)) in enumerate(zip(axes.flat, panels.items(), strict=False)):
    draw_panel(axis, table, rows[number // columns])
    if len(panels) > 1:
      axis.set_title(title, fontsize=LARGE, fontweight='bold')
  draw_legend(figure, tables)
  figure.savefig(path, dpi=175)


def set_of(task: str) -> str:
  """Whether a task was written after all methods were fixed."""
  return 'confirming' if task in tasks_of('confirming') else 'final'


def draw_panel(axis: Any, table: Mapping[str, Line], tasks: Sequence[str]) -> None:
  """Differences to the best fixed method of each task with their intervals."""
  axis.axvline(0, color=COLORS['ink'], linewidth=0.8)
  axis.set_yticks(range(len(tasks)), tasks)
  axis.set_ylim(len(tasks) - 0.5, -0.5)
  axis.tick_params(labelsize=LARGE)
  for task, line in table.items():
    (mean, half), place = line.difference, tasks.index(task)
    color = BY_VERDICT[line.difference.verdict]
    axis.plot((mean - half, mean + half), (place, place), color=color, linewidth=2)
    axis.plot(mean, place, MARKERS[set_of(task)], color=color, markersize=6)
    where = {'transform': axis.get_yaxis_transform(), 'va': 'center'}
    axis.text(1.02, place, line.best.name, fontsize=SMALL, color=COLORS['ink'], **where)
  axis.spines[['top', 'right']].set_visible(False)


def draw_legend(picture: Figure, tables: Sequence[Mapping[str, Line]]) -> None:
  """Explains the axis, the colors, and the markers of tasks if there are several."""
  verdicts = {line.difference.verdict for table in tables for line in table.values()}
  sets = {set_of(task) for table in tables for task in table}
  ink = {'color': COLORS['ink'], 'linewidth': 0}
  handles = [
    Line2D([], [], marker=marker, label=SETS[name], **ink)
    for name, marker in MARKERS.items()
    if len(sets) > 1
  ]
  handles += [
    Line2D([], [], color=color, linewidth=2, label=VERDICTS[verdict])
    for verdict, color in BY_VERDICT.items()
    if verdict in verdicts
  ]
  place = {'loc': 'outside upper center', 'ncols': COLUMNS, 'frameon': False}
  picture.legend(handles=handles, fontsize=LARGE, **place)
  text = "gradient's structure: points of accuracy over the best fixed method (at the right)"
  picture.supxlabel(text, fontsize=LARGE, color=COLORS['ink'])
  picture.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
