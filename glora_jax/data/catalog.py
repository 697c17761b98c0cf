"""Every task by its name, and whether its data is there."""

from __future__ import annotations

import itertools

import numpy as np

from glora_jax.data.task import Source, Task
from glora_jax.data.tasks import digits, fewshot, generalization, vtab
from glora_jax.data.tasks import own as own_data


def find(name: str, source: Source = Source(), workdir: str | None = None) -> Task:
  """The task of a name that a config gives.

  Args:
    name: 'digits'; 'vtab/cifar100'; 'fewshot/food101/4/0' (shots, seed); 'generalization/0' (seed); 'folder:PATH'; 'csv:PATH';
      'tfds:NAME'.
    source: where its images come from.
    workdir: where the split of a user's own data is written down, so that it is made once; None keeps it in memory.

  Raises:
    ValueError, FileNotFoundError: the name is unknown, or what it names is not there.
  """
  kind, _, rest = name.partition('/')
  if name == 'digits':
    return digits.digits(source)
  if kind == 'vtab':
    return vtab.task(rest, source)
  if kind == 'fewshot':
    return fewshot.task(rest, source)
  if kind == 'generalization':
    return generalization.task(rest, source)
  own, _, path = name.partition(':')
  if own in own_data.KINDS and path:
    return own_data.task(own, path, source, workdir)
  raise ValueError(
    f"The task '{name}' is unknown; the tasks are: digits, vtab/NAME ({', '.join(vtab.names())}), fewshot/NAME/SHOTS/SEED "
    f'({", ".join(fewshot.NAMES)}), generalization/SEED, and your own: folder:PATH, csv:PATH, tfds:NAME.'
  )


def expand(name: str) -> list[str]:
  """The names of tasks that a name stands for: 'vtab/all', 'fewshot/all', 'fewshot/food101/all/0', 'generalization/all'; else itself."""
  kind, _, rest = name.partition('/')
  every = {
    'vtab': (vtab.names(),),
    'fewshot': (fewshot.NAMES, fewshot.SHOTS, fewshot.SEEDS),
    'generalization': (generalization.SEEDS,),
  }
  parts, every = rest.split('/'), every.get(kind, ())
  if 'all' not in parts or len(parts) > len(every):
    return [name]
  parts += ['all'] * (len(every) - len(parts))
  choices = [
    all_of_them if part == 'all' else (part,)
    for part, all_of_them in zip(parts, every, strict=True)
  ]
  return ['/'.join(map(str, (kind, *chosen))) for chosen in itertools.product(*choices)]


def counts(task: Task, split: str) -> str:
  """Images and classes of a split in one line; the count of every class where there are few."""
  labels = task.open(split).labels
  found = np.bincount(labels, minlength=task.num_classes)
  line = f'{len(labels):,} images, {np.count_nonzero(found)} of {task.num_classes} classes, {found[found > 0].min()} to {found.max()} each'
  if task.num_classes <= 20:
    line += ': ' + ', '.join(
      f'{name} {count}' for name, count in zip(task.classes, found, strict=True)
    )
  if empty := [task.classes[n] for n in np.flatnonzero(found == 0)] if split == 'train' else []:
    line += f'; none of {", ".join(empty[:10])}{" and others" if len(empty) > 10 else ""}'
  return line


def report(name: str, source: Source) -> tuple[bool, list[str]]:
  """(whether the task is ready, lines about it)."""
  try:
    task = find(name, source)
    missing = task.missing()
    if missing:
      return False, [
        f'{name}: MISSING',
        f'  {missing}',
        *(f'  note: {note}' for note in task.notes),
      ]
    lines = [f'{name}: ready, {task.origin}', *(f'  note: {note}' for note in task.notes)]
    return True, lines + [f'  {split:6} {counts(task, split)}' for split in task.splits]
  except (ValueError, OSError, ImportError) as error:
    return False, [f'{name}: NOT READY', f'  {error}']
