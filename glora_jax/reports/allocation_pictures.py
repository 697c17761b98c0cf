"""What a structure was read off: the value of every unit, what was bought, value by budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colors, ticker
from matplotlib.axes import Axes

from glora_jax.reports.curves import total_value, value_curve
from glora_jax.reports.drawing import outline_cells, palette, panels, save
from glora_jax.search.allocated import Allocation, Unit

FORMS = ('A.vector', 'A.lora', 'B.lora', 'C.vector', 'E.vector')
TITLES = {
  'A.vector': 'A vector',
  'A.lora': 'A LoRA',
  'B.lora': 'B LoRA',
  'C.vector': 'C vector',
  'E.vector': 'E vector',
}
_GAMMA = 0.5  # of the colours: a few units are worth far more than all others


def draw_allocation(path: str, allocation: Allocation) -> None:
  """Draws what every unit would be worth, the structure, and the curve of value by budget.

  Args:
    path: path of the PNG.
    allocation: what `glora_jax.allocate` returned.
  """
  units = list(allocation.units())
  layers = [layer.name for layer in allocation.spec]
  lines = _lines(units)
  figure, (bars, curve, grid) = panels(
    figsize=(max(9, 0.34 * len(layers) + 5.5), max(5.5, 0.19 * len(lines) + 3.6)),
    mosaic='ab;cb',
    width_ratios=[2.4, 1],
    height_ratios=[1, 1.6],
  )
  _draw_structure(bars, units, len(layers), allocation.count_params())
  _draw_values(grid, units, lines, layers, 100_000 / total_value(allocation))
  _draw_curve(curve, allocation)
  save(figure, path)


def _lines(units: Sequence[Unit]) -> list[tuple[str, int]]:
  """The form and part of every line of the grid, those of A first."""
  offered = {(unit.form, unit.part) for unit in units}
  return sorted(offered, key=lambda line: (FORMS.index(line[0]), line[1]))


def _draw_structure(axis: Axes, units: Sequence[Unit], layers: int, total: int) -> None:
  """Each layer's trained parameters by form, one on top of the other."""
  below = np.zeros(layers)
  for number, form in enumerate(FORMS):
    costs = np.zeros(layers)
    for unit in units:
      costs[unit.row] += unit.cost * (unit.bought and unit.form == form)
    if costs.any():
      color = palette().series[number]
      axis.bar(range(layers), costs, bottom=below, color=color, width=0.8, label=TITLES[form])
    below += costs
  axis.set_ylabel('trained\nparameters')
  axis.yaxis.set_major_formatter(ticker.StrMethodFormatter('{x:,.0f}'))
  axis.set_title(f'What was bought: {total:,} trained parameters', loc='left')
  if below.any():
    axis.legend(frameon=False, ncols=len(FORMS), fontsize='small', loc='upper right')
  axis.set_ylim(0, 1.3 * max(below.max(), 1))
  axis.set_xlim(-0.5, layers - 0.5)
  axis.set_xticks([])


def _draw_values(
  axis: Axes,
  units: Sequence[Unit],
  lines: Sequence[tuple[str, int]],
  layers: Sequence[str],
  scale: float,
) -> None:
  """`scale` times every unit's value per parameter, a line for each form; purchases are marked."""
  values = np.full((len(lines), len(layers)), np.nan)
  marks = []
  for unit in units:
    line = lines.index((unit.form, unit.part))
    values[line, unit.row] = scale * max(unit.value, 0) / unit.cost
    if unit.bought:
      marks.append((unit.row, line))
  tones = colors.LinearSegmentedColormap.from_list('value', [palette().blank, palette().teal])
  tones = tones.with_extremes(bad=palette().paper)
  norm = colors.PowerNorm(_GAMMA, vmin=0, vmax=np.nanmax(values) or 1)
  image = axis.imshow(values, cmap=tones, norm=norm, aspect='auto')
  outline_cells(axis, values.shape, color=palette().paper, linewidth=1)
  if marks:
    axis.scatter(*zip(*marks, strict=True), color=palette().red, s=14, label='bought')
  axis.set_yticks(
    range(len(lines)),
    [TITLES[form] + (f', part {part}' if part else '') for form, part in lines],
    fontsize='small',
  )
  axis.set_xticks(range(len(layers)), layers, rotation=90, fontsize='small')
  axis.set_title('Held-out value, % of all on offer per 1,000 parameters; dots: bought', loc='left')
  bar = axis.figure.colorbar(image, ax=axis, fraction=0.03, pad=0.01)
  bar.outline.set_visible(False)
  bar.ax.tick_params(labelsize='small')


def _draw_curve(axis: Axes, allocation: Allocation) -> None:
  """The value by budget, the best bought first."""
  params, percent, knee = value_curve(allocation)
  axis.plot(params, percent, color=palette().teal, drawstyle='steps-post')
  axis.plot(params[knee], percent[knee], 'o', color=palette().dim, label=f'knee, {params[knee]:,}')
  axis.axvline(
    allocation.budget, color=palette().red, linestyle='--', label=f'budget, {allocation.budget:,}'
  )
  axis.set_ylim(0, 104)
  axis.set_xlabel('trained parameters')
  axis.set_ylabel('held-out value, % of all on offer')
  axis.xaxis.set_major_formatter(ticker.StrMethodFormatter('{x:,.0f}'))
  axis.xaxis.set_major_locator(ticker.MaxNLocator(4))
  axis.legend(frameon=False, fontsize='small', loc='lower right')
  axis.set_title('Value by budget', loc='left')
