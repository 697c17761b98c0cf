"""Tasks on the user's own images.

A folder has a subfolder for each class, or folders of splits with these inside; a CSV lists paths
and labels.
"""

from __future__ import annotations

import collections
import itertools
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np

from glora_jax.checks import listed, printable, shown
from glora_jax.vision.data.image import EXTENSIONS, files_below, is_image, raise_listing_error
from glora_jax.vision.data.label_files import WHOLE_NUMBER, image_paths, read_csv
from glora_jax.vision.data.splits import NAMES, SPLITS, divide, notes_on
from glora_jax.vision.data.task import Files, Task, require_measurable, require_printable

_UNEVEN = 5  # times as many images of one class as of another, from which on there is a note


def folder_task(folder: str, groups: str | None = None) -> Task:
  """A task on a folder with a subfolder for each class, or with these in train, val and test.

  Args:
    folder: absolute path of the folder.
    groups: see `Source`.

  Raises:
    FileNotFoundError: it does not exist.
    ValueError: it has other contents, such as several data sets; a class has no images, or fewer
      than there are splits; or the given splits cannot measure anything.
  """
  if not os.path.isdir(folder):
    raise FileNotFoundError(
      f'There is no folder {folder}; expected one with a subfolder of images for each class.'
    )
  given = _split_folders(folder)
  train = given.get('train', folder)
  classes = tuple(_subfolders(train))
  if len(classes) < 2:
    otherwise = '' if given else ', or train, val and test with such folders inside'
    raise ValueError(
      f'{train} has {len(classes)} subfolders; expected two or more, one for each class{otherwise}.'
    )
  require_printable(train, classes)
  if sets := [name for name in classes if _is_data_set(os.path.join(train, name))]:
    raise ValueError(
      f'{train} holds data sets, not classes ({listed(sets)}); run each, '
      f'for example --config.task=folder:{os.path.join(train, sets[0])}.'
    )
  for other in given.values():
    if unknown := set(_subfolders(other)) - set(classes):
      raise ValueError(f'{other} has classes that {train} lacks: {listed(sorted(unknown))}.')
  images: dict[str, Files] = {}
  ignored: list[str] = []
  for split, path in (given or {'train': folder}).items():
    images[split], notes = _scan(path, classes, folder)
    ignored += notes
    if groups:
      files = images[split]
      files.groups += [_group(groups, files[at].key) for at in range(len(files.paths))]
  return _task('folder', folder, classes, images, ignored)


def csv_task(path: str, groups: str | None = None) -> Task:
  """A task on the images of a CSV, whose paths are relative to the folder of the CSV.

  Args:
    path: absolute path of the CSV.
    groups: see `Source`.

  Raises:
    FileNotFoundError: it does not exist, or images in it do not.
    ValueError: it is invalid (see `read_csv`); an image occurs twice; a class has fewer images than
      there are splits; or the given splits cannot measure anything.
  """
  rows = read_csv(path)
  paths = image_paths(path, rows, os.path.dirname(path))
  labels = {row.label for row in rows}
  if len(labels) < 2:
    raise ValueError(f'{path} has only the label {rows[0].label!r}; two or more are needed.')
  require_printable(path, labels)
  # Also by the text: '01' and '1' are two labels, whose order must be the same in every process.
  numbers = set(filter(WHOLE_NUMBER.fullmatch, labels))
  classes = (*sorted(sorted(numbers), key=int), *sorted(labels - numbers))
  number_of = {name: number for number, name in enumerate(classes)}
  given: dict[str, Files] = {}
  for row, image in zip(rows, paths, strict=True):
    name = row.cells.get('split', 'train')
    split = NAMES.get(name.lower())
    if split is None:
      raise ValueError(
        f'{path}, line {row.line}: {printable(name)} is not a split; use one of {", ".join(NAMES)}.'
      )
    files = given.setdefault(split, Files([], [], os.path.dirname(path)))
    files.paths.append(image)
    files.given_labels.append(number_of[row.label])
    if groups:
      files.groups.append(row.cells.get(groups.lower()) or _group(groups, row.path))
  if 'train' not in given:
    raise ValueError(f'{path} has no row with split=train, so there is nothing to train on.')
  return _task('csv', path, classes, given)


def _task(
  kind: str,
  path: str,
  classes: tuple[str, ...],
  given: Mapping[str, Files],
  ignored: Sequence[str] = (),
) -> Task:
  """A task on a user's image files.

  Args:
    kind: 'folder' or 'csv'.
    path: path of the folder or CSV.
    classes: names of the classes.
    given: files of 'train', and of 'val' and 'test' unless they are split off from it.
    ignored: notes on files that are ignored.

  Raises:
    ValueError: see `divide`; or the given splits cannot measure anything, or cut a group.
  """
  train = given['train']
  for (one, its), (other, others) in itertools.combinations(given.items(), 2):
    if common := {*its.groups} & {*others.groups}:
      raise ValueError(
        f'{path}: {one} and {other} share the groups {listed(sorted(common))}; move the images of '
        'each into one of the two.'
      )
  splits = divide(path, classes, given, train.groups)
  labels = {split: examples.labels for split, examples in splits.items()}
  require_measurable(path, classes, labels)
  notes = notes_on(given)
  for split in SPLITS:
    if absent := [name for label, name in enumerate(classes) if label not in labels[split]]:
      notes.append(f'{split} has no images of {listed(absent)}.')
  counts = np.bincount(train.labels, minlength=len(classes))
  least, most = counts.argmin(), counts.argmax()
  if counts[most] >= _UNEVEN * counts[least]:
    notes.append(
      f'Classes differ in size, from {classes[least]} ({counts[least]} images) to {classes[most]} '
      f'({counts[most]}); --config.data.balance=sample and --config.report.metric=balanced make '
      'them count alike.'
    )
  return Task(f'{kind}:{path}', classes, splits, path, (*notes, *ignored))


def _group(pattern: str, path: str) -> str:
  """The group of an image by a pattern in its path; ValueError if the pattern does not match."""
  try:
    match = re.search(pattern, path)
  except re.error:
    match = None
  if match is None or not (group := match[min(match.re.groups, 1)]):
    raise ValueError(
      f'data.groups={shown(pattern)} is neither a column of a CSV with a value in every row nor a '
      f'regular expression that is found in {printable(path)}.'
    )
  return group


def _subfolders(folder: str) -> list[str]:
  """The names of the folders in a folder, sorted, without those that begin with a dot.

  Raises:
    OSError: the folder cannot be listed.
  """
  _, names, _ = next(os.walk(folder, onerror=raise_listing_error))
  return sorted(name for name in names if not name.startswith('.'))


def _split_folders(folder: str) -> dict[str, str]:
  """The folders of splits in a folder by split, 'train' among them; none if it has classes.

  Upper and lower case are the same. A single folder `train` with images in it, next to other
  folders, is a class.

  Raises:
    ValueError: there are folders of splits, but no 'train', or two of one split, or other folders.
  """
  inside = _subfolders(folder)
  named = [name for name in inside if name.lower() in NAMES]
  others = [name for name in inside if name not in named]
  is_class = len(named) == 1 and not _subfolders(os.path.join(folder, named[0]))
  if not named or (others and is_class):
    return {}
  found = f'{folder} has split folders ({listed(named)})'
  expected = 'train, and optionally val and test, with the class folders inside'
  if others:
    raise ValueError(
      f'{found} and others ({listed(others)}); expected class folders only, or {expected}. Move '
      'the others away, or list the images in a CSV if a class has the name of a split.'
    )
  splits = [NAMES[name.lower()] for name in named]
  if 'train' not in splits:
    raise ValueError(f'{found}, but no train; expected {expected}.')
  if len(set(splits)) < len(splits):
    raise ValueError(f'{found}, several for one split; keep one.')
  return {split: os.path.join(folder, name) for split, name in zip(splits, named, strict=True)}


def _is_data_set(folder: str) -> bool:
  """Whether a folder has train, and val or test, with folders inside."""
  named = [name for name in _subfolders(folder) if name.lower() in NAMES]
  splits = {NAMES[name.lower()] for name in named if _subfolders(os.path.join(folder, name))}
  return 'train' in splits and len(splits) > 1


def _scan(folder: str, classes: Sequence[str], root: str) -> tuple[Files, list[str]]:
  """All images below the class folders, in the order of their names, and notes on ignored files.

  Args:
    folder: folder with the class folders, one for each class that occurs.
    classes: names of the class folders, in the order of the labels.
    root: see `Files`.

  Raises:
    ValueError: a class folder has no images, or is a link that leads back to the folder.
  """
  paths, labels, empty, notes = [], [], [], []
  others: collections.Counter[str] = collections.Counter()
  for label, name in enumerate(classes):
    class_folder = os.path.join(folder, name)
    if not os.path.isdir(class_folder):
      continue
    target = os.path.realpath(class_folder)
    if os.path.commonpath([target, os.path.realpath(folder)]) == target:
      raise ValueError(
        f'The class folder {class_folder} is a link to {target}, which has the other classes; '
        'remove it.'
      )
    files = files_below(class_folder)
    images = list(filter(is_image, files))
    endings = (os.path.splitext(file)[1].lower() for file in files if not is_image(file))
    others.update(ending or 'with none' for ending in endings)
    paths += images
    labels += [label] * len(images)
    if not images:
      empty.append(name)
  if empty:
    raise ValueError(
      f'{folder}: no images in the class folders {listed(empty)}; '
      f'an image is a file ending in {", ".join(EXTENSIONS)}. Fill or remove them.'
    )
  _, _, names = next(os.walk(folder))
  if loose := [name for name in names if is_image(name) and not name.startswith('.')]:
    notes.append(f'Images outside of class folders are ignored: {listed(sorted(loose))}.')
  if others:
    counts = listed(f'{others[ending]} {ending}' for ending in sorted(others))
    notes.append(f'Files without the extension of an image are ignored: {counts}.')
  return Files(paths, labels, root), notes
