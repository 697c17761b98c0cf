"""The stage that tests: a list frozen to disk first, then the test images."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from glora_jax import mesh as meshes
from glora_jax import tree
from glora_jax.files import read_json, write_json
from glora_jax.runs.run import Run
from glora_jax.search.scoring import Predictions


def test(
  this: Run, candidates: dict[str, tuple[Any, np.ndarray]]
) -> tuple[dict[str, dict[str, Any]], Predictions]:
  """Freezes the list of subnets with their weights to disk, and only then evaluates it on the test split.

  Returns:
    (entries of the list with their test accuracies, what the winner answered for each test image).
  """
  seen = (
    this.config.finetune.on == 'train+val'
    and this.config.protocol == 'honest'
    and this.config.finetune.epochs > 0
  )
  entries = {}
  for name, (variables, genome) in candidates.items():
    trained_on_val = this.config.protocol == 'paper' or (name == 'winner' and seen)
    entries[name] = {
      'params': this.adapted.count_params(genome),
      'val_accuracy': None if trained_on_val else this.accuracy(variables, genome, 'val'),
      'genome': genome.tolist(),
      'weights': tree.fingerprint(this.adapted.split(variables)[0]),
    }
  freeze(this, entries)
  labels, answers = np.asarray(this.data('test').labels), {}
  for name, entry in entries.items():
    answers[name] = this.predict(*candidates[name], 'test')
    entry['test_accuracy'] = int((answers[name].classes == labels).sum()) / len(labels)
    if others := this.task.tests[1:]:
      entry['other_test_accuracies'] = {
        split: this.accuracy(*candidates[name], split) for split in others
      }
  return entries, answers['winner']


def freeze(this: Run, entries: dict[str, Any]) -> None:
  """Writes the list of what will be tested, with the fingerprints of its weights, before the test images are read.

  Raises:
    ValueError: another list was frozen before.
  """
  path = this.path('test_list.json')
  if os.path.exists(path) and read_json(path) != entries:
    raise ValueError(
      f'{path} was frozen with other subnets than this run has now; use a new workdir.'
    )
  if meshes.primary():
    write_json(path, entries)
