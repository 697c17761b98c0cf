"""The user's own images: a folder with a subfolder for each class, a CSV, or any TFDS data set.

What comes unsplit is split once: stratified, by a fixed seed, 80% to train, 10% each to val and
test; the split is written into the workdir, and a resumed run reads it there. Where splits are
given, which images they have is written there.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Literal

from glora_jax.data import tfds
from glora_jax.data.examples import Examples, Files, OpenedSplit
from glora_jax.data.image import EXTENSIONS, files_below, is_image
from glora_jax.data.label_files import LabelledPath, read_csv, require_files
from glora_jax.data.splits import SEED, SPLITS, Dealer
from glora_jax.data.task import Source, Task, require_measurable, require_printable
from glora_jax.data.tfds import Builder, TfdsExamples
from glora_jax.limits import listed, printable

log = logging.getLogger(__name__)

Kind = Literal['folder', 'csv', 'tfds']
KINDS: tuple[Kind, ...] = ('folder', 'csv', 'tfds')

_SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
  'train': ('train', 'training'),
  'val': ('val', 'valid', 'validation'),
  'test': ('test', 'testing'),
}
_SPLIT_OF = {name: split for split, names in _SPLIT_NAMES.items() for name in names}
_MOST_DIGITS = 18  # of a label that is ordered as a number


def task(kind: Kind, path: str, source: Source, workdir: str | None = None) -> Task:
  """A task on the user's own images.

  Args:
    kind: what the images are, one of `KINDS`.
    path: path of the folder or CSV; the name of the TFDS data set.
    source: `dir` and `version` are used for TFDS.
    workdir: folder where `split.json` is kept; None makes the same split again every time.

  Raises:
    FileNotFoundError: the path is not there.
    ValueError: the path is not what `kind` says; a class has no images, or fewer than there are
      splits; what is split already cannot measure anything.
  """
  require_printable('The task', [path])
  split_file = os.path.join(workdir, 'split.json') if workdir else None
  if kind == 'tfds':
    return _from_tfds(path, source, split_file)
  path = absolute(path)
  return _from_folder(path, split_file) if kind == 'folder' else _from_csv(path, split_file)


def absolute(path: str) -> str:
  """The absolute path of a folder or CSV that a user gives."""
  return os.path.abspath(os.path.expanduser(path))


def _opened(splits: Mapping[str, Examples]) -> dict[str, OpenedSplit]:
  return {name: OpenedSplit(splits[name]) for name in SPLITS}


def _dealt(name: str, dealer: Dealer, examples: Examples) -> Task:
  """A task on examples that are all to be dealt."""
  note = f'Split by glora_jax, stratified, seed {SEED}: 80% train, 10% val, 10% test.'
  splits = _opened(dealer.deal(examples))
  return Task(name, dealer.classes, splits, dealer.origin, (note,))


def _from_folder(folder: str, split_file: str | None) -> Task:
  if not os.path.isdir(folder):
    raise FileNotFoundError(
      f'There is no folder {folder}; one with a subfolder of images for each class is expected.'
    )
  if given := _split_folders(folder):
    return _from_split_folders(folder, given, split_file)
  classes = _classes_in(folder, 'or train, val and test with such folders inside')
  images = _scan(folder, classes)
  return _dealt(f'folder:{folder}', Dealer(folder, classes, split_file), images)


def _classes_in(folder: str, otherwise: str = '') -> tuple[str, ...]:
  """The names of the class folders in a folder.

  Raises:
    ValueError: they are fewer than two, or a name cannot be printed.
  """
  classes = tuple(_subfolders(folder))
  if len(classes) < 2:
    expected = ', '.join(filter(None, ['two or more are expected, one for each class', otherwise]))
    raise ValueError(f'{folder} has {len(classes)} subfolders; {expected}.')
  require_printable(folder, classes)
  return classes


def _subfolders(folder: str) -> list[str]:
  """The names of the folders in a folder, sorted; what begins with a dot is left out.

  Raises:
    OSError: the folder cannot be listed.
  """
  try:
    names = os.listdir(folder)
  except OSError as error:
    raise OSError(f'The folder {folder} cannot be listed ({error.strerror}).') from error
  return sorted(
    name for name in names if not name.startswith('.') and os.path.isdir(os.path.join(folder, name))
  )


def _split_folders(folder: str) -> dict[str, str]:
  """The folders of splits in a folder by split, 'train' among them; none where it holds classes.

  Upper and lower case are the same. A single folder `train` with images in it, beside other
  folders, is a class.

  Raises:
    ValueError: there are folders of splits, but no 'train', two of one split, or others as well.
  """
  inside = _subfolders(folder)
  named = [name for name in inside if name.lower() in _SPLIT_OF]
  others = [name for name in inside if name not in named]
  is_class = len(named) == 1 and not _subfolders(os.path.join(folder, named[0]))
  if not named or (others and is_class):
    return {}
  found = listed(named)
  expected = 'train, and val and test where there are such, with the class folders inside'
  if others:
    raise ValueError(
      f'{folder} has folders of splits ({found}) beside others ({listed(others)}); expected are '
      f'class folders alone, or {expected}. Move away what is neither; classes that are called '
      f'{found} can be given by a CSV.'
    )
  by_split: dict[str, list[str]] = {}
  for name in named:
    by_split.setdefault(_SPLIT_OF[name.lower()], []).append(name)
  if 'train' not in by_split:
    raise ValueError(
      f'{folder} has folders of splits ({found}), but no train; expected are {expected}.'
    )
  for split, names in by_split.items():
    if len(names) > 1:
      raise ValueError(
        f'{folder} has {len(names)} folders for the split {split}: {listed(names)}; one is '
        'expected.'
      )
  return {
    split: os.path.join(folder, by_split[split][0]) for split in _SPLIT_NAMES if split in by_split
  }


def _scan(folder: str, classes: Sequence[str]) -> Files:
  """All images below the class folders, in the order of their names.

  Warnings say which endings the files have that are left aside, and that images beside the class
  folders are.

  Args:
    folder: folder that holds the class folders; one for each class that occurs.
    classes: names of the class folders, in the order of the labels.

  Raises:
    ValueError: a class folder holds no images, or leads back to the folder.
  """
  paths, labels, empty, others = [], [], [], []
  for label, name in enumerate(classes):
    class_folder = os.path.join(folder, name)
    if not os.path.isdir(class_folder):
      continue
    target = os.path.realpath(class_folder)
    if os.path.commonpath([target, os.path.realpath(folder)]) == target:
      raise ValueError(
        f'The class folder {class_folder} is a link to {target}, which holds the other classes, '
        'too; remove it.'
      )
    files = files_below(class_folder)
    images = list(filter(is_image, files))
    others += [file for file in files if not is_image(file)]
    paths += images
    labels += [label] * len(images)
    if not images:
      empty.append(name)
  if empty:
    raise ValueError(
      f'{folder}: no images in the class folders {listed(empty)}; '
      f'an image is a file ending in {", ".join(EXTENSIONS)}. Fill or remove them.'
    )
  names = (name for name in os.listdir(folder) if is_image(name) and not name.startswith('.'))
  loose = [name for name in names if os.path.isfile(os.path.join(folder, name))]
  if loose:
    log.warning(
      '%d images lie in %s itself and in no class folder, and are left aside, %s for instance.',
      len(loose),
      printable(folder),
      printable(min(loose)),
    )
  if others:
    endings = sorted({os.path.splitext(file)[1].lower() or 'no ending' for file in others})
    log.warning(
      '%d files below %s are no images by their endings (%s), and are left aside.',
      len(others),
      printable(folder),
      listed(endings),
    )
  return Files(paths, labels)


def _from_split_folders(folder: str, given: Mapping[str, str], split_file: str | None) -> Task:
  """A task on folders of splits; 'val' and 'test' are dealt from 'train' where they have none."""
  train = given['train']
  classes = _classes_in(train)
  for split in ('val', 'test'):
    if split in given and (unknown := set(_subfolders(given[split])) - set(classes)):
      raise ValueError(
        f'{given[split]} has classes that {train} has not: {listed(sorted(unknown))}.'
      )
  images = {split: _scan(split_folder, classes) for split, split_folder in given.items()}
  dealer = Dealer(folder, classes, split_file)
  return _split_already(f'folder:{folder}', f'the folder {folder}', dealer, images)


def _split_already(name: str, source: str, dealer: Dealer, given: Mapping[str, Files]) -> Task:
  """A task on images whose splits are given; 'val' and 'test' are dealt where they are not."""
  splits: dict[str, Examples] = {split: given[split] for split in SPLITS if split in given}
  classes, notes = dealer.classes, []
  lacking = [split for split in SPLITS if split not in given]
  if lacking:
    others = {split: examples for split, examples in splits.items() if split != 'train'}
    splits.update(dealer.deal(splits['train'], ('train', *lacking), others))
    notes.append(
      f'{" and ".join(lacking)} were dealt from train, stratified, seed {SEED}: 10% each.'
    )
  else:
    dealer.keep(splits)
  labels = {split: examples.labels for split, examples in splits.items()}
  require_measurable(dealer.origin, classes, labels)
  for split in given:
    absent = [name for label, name in enumerate(classes) if label not in labels[split]]
    if absent:
      notes.append(f'{split} has no images of {listed(absent)}.')
  return Task(name, classes, _opened(splits), source, tuple(notes))


def _from_csv(path: str, split_file: str | None) -> Task:
  rows = read_csv(path)
  classes = _classes_of(rows)
  if len(classes) < 2:
    raise ValueError(
      f'{path} has the one label {classes[0]!r}; two or more are needed to classify.'
    )
  require_printable(path, classes)
  require_files([_path_of(path, row) for row in rows], path)
  name, dealer = f'csv:{path}', Dealer(path, classes, split_file)
  if not any(row.split for row in rows):
    return _dealt(name, dealer, _files(path, rows, classes))
  given = {
    split: _files(path, of_split, classes) for split, of_split in _by_split(path, rows).items()
  }
  return _split_already(name, path, dealer, given)


def _path_of(csv: str, row: LabelledPath) -> str:
  return os.path.join(os.path.dirname(csv), row.path)


def _files(csv: str, rows: Sequence[LabelledPath], classes: Sequence[str]) -> Files:
  number_of = {name: number for number, name in enumerate(classes)}
  return Files([_path_of(csv, row) for row in rows], [number_of[row.label] for row in rows])


def _by_split(csv: str, rows: Sequence[LabelledPath]) -> dict[str, list[LabelledPath]]:
  """The rows of every split that a CSV names.

  Raises:
    ValueError: a row names none, or no row is for training.
  """
  found: dict[str, list[LabelledPath]] = {}
  for row in rows:
    split = _SPLIT_OF.get(row.split.lower())
    if split is None:
      raise ValueError(
        f'{csv}, line {row.line}: {printable(row.split)} is no split; it is one of '
        f'{", ".join(_SPLIT_OF)}.'
      )
    found.setdefault(split, []).append(row)
  if 'train' not in found:
    raise ValueError(f'{csv} has no row whose split is train; there is nothing to learn from.')
  return found


def _classes_of(rows: Sequence[LabelledPath]) -> tuple[str, ...]:
  """The labels that occur: whole numbers in their order, then words in theirs."""
  labels = {row.label for row in rows}
  numbers = {label for label in labels if label.isdecimal() and len(label) <= _MOST_DIGITS}
  # By the text, too: '01' and '1' are two labels, whose order must be the same in every process.
  in_order = sorted(sorted(numbers), key=int)
  return (*in_order, *sorted(labels - numbers))


def _from_tfds(name: str, source: Source, split_file: str | None) -> Task:
  builder = tfds.find_builder(name, source.dir, source.version)
  num_classes = tfds.num_classes(builder)
  if not num_classes:
    raise ValueError(
      f'TFDS {name} has the features {", ".join(builder.info.features)}; '
      "an 'image' and a 'label' with classes are expected, and no sequences of them."
    )
  classes = tfds.class_names(builder, num_classes)
  stored = StoredDataSet(builder, Dealer(f'TFDS {name}', classes, split_file))
  splits = {split: StoredSplit(stored, split) for split in SPLITS}
  note = f'Splits that the data set lacks were dealt from train, stratified, seed {SEED}: 10% each.'
  return tfds.task_of([builder], f'tfds:{name}', classes, splits, notes=(note,))


@dataclasses.dataclass(frozen=True)
class StoredDataSet:
  """A TFDS data set of the user; what it lacks of 'val' and 'test' is dealt from its 'train'.

  Attributes:
    builder: builder of the data set.
    dealer: what deals.
  """

  builder: Builder
  dealer: Dealer
  _read_before: dict[str, TfdsExamples] = dataclasses.field(
    default_factory=dict, init=False, repr=False, compare=False
  )

  def open(self, split: str) -> Examples:
    """The examples of a split; the data set is prepared first.

    Raises:
      ValueError: the data set has no 'train'.
    """
    tfds.prepare(self.builder)
    names = self.builder.info.splits
    stored = {split: name for name, split in reversed(_SPLIT_OF.items()) if name in names}
    if 'train' not in stored:
      raise ValueError(
        f"{self.dealer.origin} has the splits {', '.join(names)}; a 'train' is expected."
      )
    lacking = [name for name in SPLITS if name not in stored]
    if split in ('train', *lacking) and lacking:
      return self.dealer.deal(self._read(stored['train']), ('train', *lacking))[split]
    return self._read(stored[split])

  def _read(self, stored_name: str) -> TfdsExamples:
    """A stored split; its labels are read once for all that is dealt from it."""
    if stored_name not in self._read_before:
      self._read_before[stored_name] = tfds.read(self.builder, stored_name)
    return self._read_before[stored_name]


@dataclasses.dataclass(frozen=True)
class StoredSplit:
  """A split of a `StoredDataSet`.

  Attributes:
    data_set: the data set.
    name: name of the split.
  """

  data_set: StoredDataSet
  name: str

  def open(self) -> Examples:
    """The examples of the split."""
    return self.data_set.open(self.name)
