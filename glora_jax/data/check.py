"""What a config's data needs before it can be read: `python -m glora_jax.data.check --config configs/vtab.py:all`.

For each task: ready or not, what is missing and how to get it, images and class counts of every split. Nothing is downloaded or
prepared. 'all' stands for all tasks of a suite, and for all data sets, shots or seeds of the few-shot tasks.
"""

from __future__ import annotations

import itertools
import sys

import numpy as np

from glora_jax.config import data_source
from glora_jax.data import fewshot, generalization, vtab
from glora_jax.data.task import Source, Task, find


def expand(name: str) -> list[str]:
  """The names of tasks that a name stands for: 'vtab/all', 'fewshot/all', 'fewshot/food101/all/0', 'generalization/all'; else itself."""
  kind, _, rest = name.partition('/')
  every = {'vtab': (vtab.names(),), 'fewshot': (fewshot.NAMES, fewshot.SHOTS, fewshot.SEEDS), 'generalization': (generalization.SEEDS,)}
  parts, every = rest.split('/'), every.get(kind, ())
  if 'all' not in parts or len(parts) > len(every):
    return [name]
  parts += ['all'] * (len(every) - len(parts))
  choices = [all_of_them if part == 'all' else (part,) for part, all_of_them in zip(parts, every, strict=True)]
  return ['/'.join(map(str, (kind, *chosen))) for chosen in itertools.product(*choices)]


def counts(task: Task, split: str) -> str:
  """Images and classes of a split in one line; the count of every class where there are few."""
  labels = task.open(split).labels
  found = np.bincount(labels, minlength=task.num_classes)
  line = f'{len(labels):,} images, {np.count_nonzero(found)} of {task.num_classes} classes, {found[found > 0].min()} to {found.max()} each'
  if task.num_classes <= 20:
    line += ': ' + ', '.join(f'{name} {count}' for name, count in zip(task.classes, found, strict=True))
  if empty := [task.classes[n] for n in np.flatnonzero(found == 0)] if split == 'train' else []:
    line += f'; none of {", ".join(empty[:10])}{" and others" if len(empty) > 10 else ""}'
  return line


def report(name: str, source: Source) -> tuple[bool, list[str]]:
  """(whether the task is ready, lines about it)."""
  try:
    task = find(name, source)
    missing = task.missing()
    if missing:
      return False, [f'{name}: MISSING', f'  {missing}', *(f'  note: {note}' for note in task.notes)]
    lines = [f'{name}: ready, {task.origin}', *(f'  note: {note}' for note in task.notes)]
    return True, lines + [f'  {split:6} {counts(task, split)}' for split in task.splits]
  except (ValueError, OSError, ImportError) as error:
    return False, [f'{name}: NOT READY', f'  {error}']


def main(config) -> None:
  """Prints the report of every task; ends with status 1 unless all are ready."""
  names = expand(config.task)
  source = data_source(config)
  ready = 0
  for name in names:
    fine, lines = report(name, source)
    ready += fine
    print('\n'.join(lines), flush=True)
  print(f'\n{ready} of {len(names)} ready.')
  sys.exit(0 if ready == len(names) else 1)


if __name__ == '__main__':
  from glora_jax.main import run_with_config

  run_with_config(main)
