"""The page of a comparison: `report.html`, from the numbers and sentences of its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glora_jax.method.space import Spec
from glora_jax.reports import comparison_report, comparison_rows, page
from glora_jax.reports.charts import Bar, DotPlot, Dots, Mark, axis, bars
from glora_jax.reports.comparison_rows import COLORS, percent_of, style_of
from glora_jax.reports.markdown import plain, weights_name
from glora_jax.reports.provenance import Made, distinct
from glora_jax.reports.run_page import stage_bars
from glora_jax.reports.structure_figure import StructureFigure, structure_figure


def write(workdir: str, result: Mapping[str, Any], spec: Spec, made: Sequence[Made]) -> None:
  """Writes `report.html` into the workdir of a comparison.

  Args:
    workdir: its folder.
    result: content of its `result.json`.
    spec: the layers that the gradient's structures describe.
    made: with what it was made, process by process.
  """
  page.write(workdir, 'comparison.html', facts(result, spec, made))


def facts(result: Mapping[str, Any], spec: Spec, made: Sequence[Made]) -> dict[str, Any]:
  """What the template of a comparison asks for."""
  return {
    'task': result['task'],
    'verdict': comparison_report.tell_best(result),
    'warning': ' '.join(comparison_rows.troubles(result)),
    'verdicts': comparison_report.verdicts(result),
    'plot': accuracy_plot(result),
    'table': comparison_report.accuracies(result),
    'structures': _structures(result, spec),
    'agreements': comparison_report.agreements(result),
    'cost': _cost(result),
    'stages': stage_bars(result['seconds']),
    'told': [comparison_report.tell_making(result), comparison_report.tell_images(result)],
    'seeds': ', '.join(map(str, result['seeds'])),
    'weights': weights_name(result),
    'provenances': distinct(made),
  }


def accuracy_plot(result: Mapping[str, Any]) -> DotPlot:
  """The test accuracy of every row, with its spread over the seeds, by parameters."""
  rows = comparison_rows.rows(result)
  ends = {row['method']: _ends(row) for row in rows}
  scale = axis('test accuracy in %', [end for pair in ends.values() for end in pair], most=100)
  seeds = len(result['seeds'])
  drawn = [
    Dots(
      label=plain(comparison_rows.row_title(row, seeds)).replace('at most ', '≤\N{NO-BREAK SPACE}'),
      value=percent_of(row, 'test_accuracy', with_spread=seeds > 1),
      marks=[
        Mark(
          (scale.place(100 * row['test_accuracy']), 50),
          f'{100 * row["test_accuracy"]:.2f}%; {row["params"]:,.0f} trained parameters',
          *style_of(row['method']),
        )
      ],
      detail=f'{row["params"]:,.0f}',
      low=scale.place(ends[row['method']][0]),
      high=scale.place(ends[row['method']][1]),
    )
    for row in rows
  ]
  over = f'{seeds} seeds' if seeds > 1 else 'one seed'
  legend = [('fixed', 'purple', 'dot')]
  legend += [
    (label, COLORS[name], 'star')
    for name, label in comparison_rows.CHOSEN.items()
    if any(row['method'].startswith(f'{name}-') for row in rows)
  ]
  title = f'Test accuracy in %, mean and standard deviation over {over}, by trained parameters'
  return DotPlot(
    title if seeds > 1 else 'Test accuracy in %, by trained parameters', scale, drawn, legend
  )


def _ends(row: Mapping[str, Any]) -> tuple[float, float]:
  """A standard deviation below and above the mean test accuracy, in percent."""
  mean, deviation = 100 * row['test_accuracy'], 100 * (row['test_accuracy_spread'] or 0.0)
  return max(0.0, mean - deviation), min(100.0, mean + deviation)


def _structures(result: Mapping[str, Any], spec: Spec) -> list[StructureFigure]:
  """The gradient's structure of the first seed, for each budget."""
  return [
    structure_figure(f'{comparison_rows.title(name)}, seed {result["seeds"][0]}', spec, genomes[0])
    for name, genomes in result.get('structures', {}).items()
  ]


def _cost(result: Mapping[str, Any]) -> list[Bar]:
  """The seconds of training of every row."""
  return bars(
    [
      (row['title'], row['seconds'], page.duration(row['seconds']))
      for row in comparison_rows.rows(result)
    ]
  )
