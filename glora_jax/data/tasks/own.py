"""The user's own images: a folder with a subfolder for each class, a CSV, or any TFDS data set.

What comes unsplit is split once: stratified, by a fixed seed, 80% to train, 10% each to val and
test; the split is written into the workdir, and a resumed run reads it there. Where splits are
given, which images they have is written there.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Container, Mapping, Sequence
from typing import Literal

from glora_jax.data import tfds
from glora_jax.data.class_folders import (
  SPLIT_NAMES,
  SPLIT_OF,
  scan,
  split_folders,
  subfolders,
)
from glora_jax.data.examples import Examples, Files, OpenedSplit
from glora_jax.data.label_files import LabelledPath, read_csv, require_files
from glora_jax.data.splits import SEED, SPLITS, Dealer
from glora_jax.data.task import Source, Task, require_measurable, require_printable
from glora_jax.data.tfds import Builder
from glora_jax.data.tfds_examples import TfdsExamples
from glora_jax.limits import listed, printable

Kind = Literal['folder', 'csv', 'tfds']
KINDS: tuple[Kind, ...] = ('folder', 'csv', 'tfds')

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
  if given := split_folders(folder):
    return _from_split_folders(folder, given, split_file)
  classes = _classes_in(folder, 'or train, val and test with such folders inside')
  images = scan(folder, classes)
  return _dealt(f'folder:{folder}', Dealer(folder, classes, split_file), images)


def _classes_in(folder: str, otherwise: str = '') -> tuple[str, ...]:
  """The names of the class folders in a folder.

  Raises:
    ValueError: they are fewer than two, or a name cannot be printed.
  """
  classes = tuple(subfolders(folder))
  if len(classes) < 2:
    expected = ', '.join(filter(None, ['two or more are expected, one for each class', otherwise]))
    raise ValueError(f'{folder} has {len(classes)} subfolders; {expected}.')
  require_printable(folder, classes)
  return classes


def _from_split_folders(folder: str, given: Mapping[str, str], split_file: str | None) -> Task:
  """A task on folders of splits; 'val' and 'test' are dealt from 'train' where they have none."""
  train = given['train']
  classes = _classes_in(train)
  for split in ('val', 'test'):
    if split in given:
      _require_known_classes(given[split], train, classes)
  images = {split: scan(split_folder, classes) for split, split_folder in given.items()}
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


def _require_known_classes(folder: str, train: str, classes: Sequence[str]) -> None:
  unknown = sorted(set(subfolders(folder)) - set(classes))
  if unknown:
    raise ValueError(f'{folder} has classes that {train} has not: {listed(unknown)}.')


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
    split = SPLIT_OF.get(row.split.lower())
    if split is None:
      raise ValueError(
        f'{csv}, line {row.line}: {printable(row.split)} is no split; it is one of '
        f'{", ".join(SPLIT_OF)}.'
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
  in_order = sorted(numbers, key=_number_and_text)
  return (*in_order, *sorted(labels - numbers))


def _number_and_text(label: str) -> tuple[int, str]:
  return int(label), label


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
    stored = _stored_splits(self.builder.info.splits)
    if 'train' not in stored:
      raise ValueError(
        f'{self.dealer.origin} has the splits {", ".join(self.builder.info.splits)}; '
        "a 'train' is expected."
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


def _stored_splits(names: Container[str]) -> dict[str, str]:
  """What a data set calls the splits that it has."""
  present = {
    split: next((name for name in known if name in names), None)
    for split, known in SPLIT_NAMES.items()
  }
  return {split: name for split, name in present.items() if name is not None}


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
