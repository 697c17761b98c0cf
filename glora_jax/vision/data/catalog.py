"""Every task by its name, and whether its data is there."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from glora_jax.checks import shown
from glora_jax.vision.data import own, tfds
from glora_jax.vision.data.task import Source, Task, require_printable
from glora_jax.vision.data.tasks import digits, fewshot, vtab


class Family(NamedTuple):
  """The tasks of a benchmark, whose names begin with the same word: 'fewshot/food101/4/0'.

  Attributes:
    title: name of the benchmark in reports.
    task: makes a task from the rest of its name after the first word.
    parts: the parts of a name after the first word, each with the values that 'all' stands for.
  """

  title: str
  task: Callable[[str, Source], Task]
  parts: Mapping[str, tuple[str | int, ...]]


FAMILIES: Mapping[str, Family] = {
  'vtab': Family('VTAB-1k', vtab.task, {'NAME': vtab.NAMES}),
  'fewshot': Family(
    'Few-shot',
    fewshot.task,
    {'NAME': fewshot.NAMES, 'SHOTS': fewshot.SHOTS, 'SEED': fewshot.SEEDS},
  ),
  'generalization': Family(
    'Domain generalization', fewshot.generalization, {'SEED': fewshot.SEEDS}
  ),
}


def find(name: str, source: Source = Source()) -> Task:
  """The task of a name in a config.

  Args:
    name: 'digits'; 'vtab/cifar100'; 'fewshot/food101/4/0' (shots, seed); 'generalization/0' (seed);
      'folder:PATH'; 'csv:PATH'; 'tfds:NAME'.
    source: where the images of the task come from.

  Raises:
    ValueError: the name is unknown, or its images cannot be a task.
    FileNotFoundError: a folder or file in the name does not exist.

  Example:
    >>> task = find('fewshot/oxford_pets/4/0')
    >>> task.num_classes
    37
  """
  if source.groups is not None and not name.startswith(('folder:', 'csv:')):
    raise ValueError(f'data.groups={shown(source.groups)} is for folders and CSVs; leave it out.')
  if name == 'digits':
    return digits.digits()
  kind, _, rest = name.partition('/')
  if kind in FAMILIES:
    return FAMILIES[kind].task(rest, source)
  kind, _, path = name.partition(':')
  if kind in ('folder', 'csv', 'tfds') and path:
    require_printable('The task', [path])
    if kind == 'tfds':
      return tfds.own_task(path, source)
    find_own = own.folder_task if kind == 'folder' else own.csv_task
    return find_own(absolute(path), source.groups)
  patterns = ', '.join(_pattern(kind) for kind in FAMILIES)
  raise ValueError(
    f'The task {shown(name)} is unknown; the tasks are: digits, {patterns}, '
    'and your own: folder:PATH, csv:PATH, tfds:NAME.'
  )


def absolute(path: str) -> str:
  """The absolute path of a user's folder or CSV."""
  return os.path.abspath(os.path.expanduser(path))


def canonical(name: str) -> str:
  """A task's name with an absolute path, so that one task has one name.

  Example:
    >>> canonical('folder:/data/../data/photos/'), canonical('digits')
    ('folder:/data/photos', 'digits')
  """
  kind, _, path = name.partition(':')
  if kind not in ('folder', 'csv') or not path:
    return name
  return f'{kind}:{absolute(path)}'


def has_files(name: str, source: Source) -> bool:
  """Whether a task's images are files of the user, which may change."""
  return name.startswith(('folder:', 'csv:')) or source.root is not None


def require_apart(name: str, written: str, field: str = '--workdir') -> None:
  """Checks that a run will not write into the folder of its task's images.

  Args:
    name: name of the task.
    written: folder that the run writes into.
    field: the field or flag with that folder.

  Raises:
    ValueError: it would; the folders of a run would be read as classes, its pictures as images.
  """
  kind, _, path = name.partition(':')
  if kind != 'folder' or not path or '\0' in path:  # `find` raises an error for these
    return
  folder = os.path.realpath(absolute(path))
  inside = os.path.relpath(os.path.realpath(written), folder)
  is_hidden = inside != os.curdir and any(part.startswith('.') for part in inside.split(os.sep))
  if not is_hidden:  # nor elsewhere, which begins with '..'
    raise ValueError(
      f'{field}={written} is in {folder}, whose folders are read as classes of images; choose a '
      'folder elsewhere.'
    )


def _pattern(kind: str) -> str:
  """The pattern of a family's names: 'vtab/NAME (cifar100, ...)'."""
  parts = FAMILIES[kind].parts
  pattern = '/'.join((kind, *parts))
  if 'NAME' not in parts:
    return pattern
  return f'{pattern} ({", ".join(map(str, parts["NAME"]))})'


def expand(name: str) -> list[str]:
  """The names of all tasks that a name stands for.

  Args:
    name: name of a task, or a name with 'all' for one or more of its parts. Parts that are left out
      after an 'all' are also 'all'.

  Example:
    >>> expand('fewshot/food101/all/0')[:3]
    ['fewshot/food101/1/0', 'fewshot/food101/2/0', 'fewshot/food101/4/0']
    >>> len(expand('vtab/all')), expand('digits')
    (19, ['digits'])
  """
  kind, _, rest = name.partition('/')
  given = rest.split('/')
  values = list(FAMILIES[kind].parts.values()) if kind in FAMILIES else []
  if 'all' not in given or len(given) > len(values):
    return [name]
  given += ['all'] * (len(values) - len(given))
  choices = (
    all_values if part == 'all' else (part,) for part, all_values in zip(given, values, strict=True)
  )
  return ['/'.join(map(str, (kind, *chosen))) for chosen in itertools.product(*choices)]


def data_sets(kind: str) -> list[str]:
  """A task for each data set of a family; shots and seeds are drawn from the same images.

  Example:
    >>> data_sets('fewshot')[:2], data_sets('generalization')
    (['fewshot/food101/1/0', 'fewshot/stanford_cars/1/0'], ['generalization/0'])
  """
  parts = FAMILIES[kind].parts.items()
  first = ('all' if part == 'NAME' else str(values[0]) for part, values in parts)
  return expand('/'.join((kind, *first)))


def is_ready(name: str, source: Source) -> bool:
  """Whether all data of a task is there; nothing is opened, downloaded or prepared."""
  try:
    return find(name, source).missing() is None
  except (ValueError, OSError, ImportError):
    return False
