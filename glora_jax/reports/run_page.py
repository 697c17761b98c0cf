"""The page of a run: `report.html`, from the numbers and sentences of its report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from glora_jax.reports import (
  charts,
  errors,
  page,
  run_charts,
  run_report,
  snippets,
  structure_report,
)
from glora_jax.reports.findings import Findings
from glora_jax.reports.markdown import PAPER_LABEL, weights_name
from glora_jax.reports.provenance import distinct
from glora_jax.reports.structure_figure import StructureFigure, structure_figure
from glora_jax.reports.verdict import interval, tell_verdict

STAGES = {
  'head': 'head alone, before the gradient',
  'baselines': 'rows beside the winner',
  'finetune': 'finetuning',
  'tuning': 'learning rates',
}


def write(workdir: str, findings: Findings) -> None:
  """Writes `report.html` into the workdir of a run."""
  page.write(workdir, 'run.html', facts(workdir, findings))


def facts(workdir: str, findings: Findings) -> dict[str, Any]:
  """What the template of a run asks for."""
  result, allocation = findings.result, findings.allocation
  winner, number = result['winner'], result['data']['images']['test']
  provenances = distinct(findings.made)
  return {
    'task': findings.task.name,
    'verdict': tell_verdict(result),
    'warning': PAPER_LABEL if findings.is_paper else '',
    'accuracy': f'{100 * winner["test_accuracy"]:.1f}%',
    'interval': interval(winner['test_accuracy'], number),
    'params': winner['params'],
    'seconds': sum(result['seconds'].values()),
    'accuracies': run_charts.accuracy_plot(result),
    'accuracy_table': run_report.accuracies(result),
    'rows_explained': run_report.tell_rows(result),
    'equation': run_report.EQUATION,
    'structures': _structures(findings),
    'cost': stage_bars(result['seconds']),
    'search': run_charts.search_charts(findings),
    'searched': run_report.tell_search(result),
    'allocation': allocation and _allocation(findings),
    'training': run_charts.training_charts(os.path.join(workdir, 'metrics.jsonl')),
    'trained': run_report.tell_training(findings),
    'errors': errors.facts(findings.task.classes, findings.outcome),
    'told': [
      run_report.tell_run(findings),
      run_report.tell_protocol(findings),
      run_report.tell_images(result),
    ],
    'seed': str(result['seed']),
    'weights': weights_name(result),
    'provenances': provenances,
    'devices': ', '.join(dict.fromkeys(each.device.partition(';')[0] for each in provenances)),
    'snippets': snippets.snippets(workdir, findings),
  }


def stage_bars(seconds: Mapping[str, float]) -> list[charts.Bar]:
  """A bar for the time of every stage, in the order in which they ran."""
  return charts.bars(
    [(STAGES.get(stage, stage), value, page.duration(value)) for stage, value in seconds.items()]
  )


def _structures(findings: Findings) -> list[StructureFigure]:
  """The winner's structure, and beside a searched one the gradient's."""
  genome = findings.result['winner']['genome']
  figures = [structure_figure('The winner', findings.spec, genome)]
  if findings.allocation is not None and findings.archive is not None:
    other = findings.allocation
    figures.append(structure_figure("The gradient's structure", other.spec, other.genome))
  return figures


def _allocation(findings: Findings) -> dict[str, Any]:
  """What is told of a structure that was read off a gradient."""
  allocation, result = findings.allocation, findings.result
  return {
    'told': [
      structure_report.tell_choice(allocation, result),
      structure_report.tell_cost(result),
    ],
    'chart': run_charts.value_chart(allocation),
    'table': structure_report.values_table(list(allocation.units())),
    'explained': structure_report.VALUES_EXPLAINED,
  }
