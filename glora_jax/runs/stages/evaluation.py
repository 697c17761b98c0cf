"""The stage that tests: a list frozen to disk first, then the test images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from glora_jax import mesh as meshes
from glora_jax import tree
from glora_jax.files import write_json
from glora_jax.records import read_record
from glora_jax.reports.verdict import PAIRED
from glora_jax.runs.run import Candidate, Run
from glora_jax.search.scoring import Predictions


def freeze_and_evaluate(
  run: Run, candidates: dict[str, Candidate]
) -> tuple[dict[str, dict[str, Any]], Predictions]:
  """Freezes the list of candidates to disk, and only then evaluates it on the test split.

  Args:
    run: the run.
    candidates: what to test, by name; 'winner' is among them.

  Returns:
    (the rows of the list with their test accuracies, by name, and but for the winner how many
    images it alone got right, and the row alone; what the winner answered for each test image).

  Raises:
    ValueError: another list was frozen before.
  """
  scored = {name: in_the_runs_space(run, candidate) for name, candidate in candidates.items()}
  rows = {
    name: {
      'params': (candidate.adapted or run.adapted).count_params(candidate.genome),
      'val_accuracy': None if _trained_on_val(run, name) else run.accuracy(*scored[name], 'val'),
      'genome': candidate.genome.tolist(),
      'weights': tree.fingerprint(run.adapted.split(candidate.variables)[0]),
    }
    for name, candidate in candidates.items()
  }
  freeze(run, rows)
  labels = np.asarray(run.data('test').labels)
  answers, is_right = {}, {}
  for name, row in rows.items():
    answers[name] = run.predict(*scored[name], 'test')
    is_right[name] = answers[name].are(labels)
    row['test_accuracy'] = int(is_right[name].sum()) / len(labels)
    if others := run.task.tests[1:]:
      row['other_test_accuracies'] = {split: run.accuracy(*scored[name], split) for split in others}
  for name in rows.keys() - {'winner'}:
    rows[name][PAIRED] = {
      'winner_only': int((is_right['winner'] & ~is_right[name]).sum()),
      'row_only': int((is_right[name] & ~is_right['winner']).sum()),
    }
  return rows, answers['winner']


def in_the_runs_space(run: Run, candidate: Candidate) -> tuple[Any, np.ndarray]:
  """(variables, genome) for the run's own scorers; what is of another space is folded before."""
  if candidate.adapted is None:
    return candidate.variables, candidate.genome
  folded = jax.jit(candidate.adapted.fold)(candidate.variables, candidate.genome)
  return {**run.variables, 'params': folded}, np.zeros((len(run.adapted.spec), 5), np.int8)


def _trained_on_val(run: Run, name: str) -> bool:
  """Whether a candidate was trained on the validation images, which then say nothing of it."""
  finetuning = run.settings.finetune
  if run.settings.protocol == 'paper':
    return True
  if run.settings.structure != 'search':
    return False
  return name == 'winner' and finetuning.on == 'train+val' and finetuning.epochs > 0


def freeze(run: Run, rows: dict[str, Any]) -> None:
  """Writes the list of what will be tested, with fingerprints of the weights, to `test_list.json`.

  Raises:
    ValueError: another list was frozen before.
  """
  path = run.path('test_list.json')
  if os.path.exists(path):
    remedy = 'use a new workdir, since what this one tests is no longer known'
    frozen = read_record(path, 'test list', dict[str, Any], remedy)
    if _without_accuracies(frozen) != _without_accuracies(rows):
      raise ValueError(
        f'{path} was frozen with other subnets than this run has now; use a new workdir.'
      )
  if meshes.primary():
    write_json(path, rows, 'test list')


def _without_accuracies(rows: Any) -> Any:
  """A list to compare: accuracies may differ by an image or two between devices."""
  if isinstance(rows, Mapping):
    return {name: _without_accuracies(row) for name, row in rows.items() if name != 'val_accuracy'}
  return [_without_accuracies(row) for row in rows] if isinstance(rows, list) else rows
