"""TFDS data sets, read without TensorFlow: version, folder, missing data.

The tasks `tfds:NAME` are also here: any data set of images with one label each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from glora_jax.checks import shown
from glora_jax.files import first_line
from glora_jax.progress import is_watched, progress_bar
from glora_jax.vision.data.image import decode, from_array
from glora_jax.vision.data.splits import NAMES, SPLITS, divide, notes_on
from glora_jax.vision.data.task import Example, Examples, Source, Task
from glora_jax.vision.files import read_array, write_array

log = logging.getLogger(__name__)

Builder = tfds.core.DatasetBuilder
Features = Mapping[str, Any]  # of one example, from TFDS
LabelFunction = Callable[[Features], int]

FEWEST_REMEMBERED = 10_000  # examples whose labels are remembered
_READ_AT_ONCE = 256  # examples whose labels are read together, images and all


def find_builder(name: str, data_dir: str | None = None, version: str | None = None) -> Builder:
  """The builder of a TFDS name like 'cifar100:3.*.*'.

  If the installed TFDS has another version of the data set than the benchmark, that one is used,
  with a warning.

  Args:
    name: name of the data set, with or without configuration and version.
    data_dir: folder of TFDS; None for its default.
    version: version in place of the one in `name`.

  Raises:
    ValueError: TFDS does not have this data set or version, or the prepared data set is damaged.
  """
  base, _, named_version = name.partition(':')
  wanted = version or named_version
  full_name = f'{base}:{wanted}' if wanted else base
  try:
    with _temporary_files_removed():
      try:
        return tfds.builder(full_name, data_dir=data_dir)
      except AssertionError:  # no such version in this TFDS
        builder = tfds.builder(base, data_dir=data_dir)
        log.warning('TFDS has no %s:%s; using version %s.', base, wanted, builder.version)
        return builder
  except tfds.core.DatasetNotFoundError as error:
    raise ValueError(
      f'TFDS has no data set {shown(base)}; www.tensorflow.org/datasets lists the names. If you '
      'meant a folder or a CSV, check its path.'
    ) from error
  except ImportError:
    raise
  except Exception as error:  # its parsers and readers raise errors of many kinds
    raise ValueError(
      f'TFDS cannot read the data set {shown(full_name)} ({first_line(error)}); check the name on '
      'www.tensorflow.org/datasets, or remove its folder if it is damaged, to prepare it again.'
    ) from error


@contextlib.contextmanager
def _temporary_files_removed() -> Iterator[None]:
  """Removes temporary files of the block: TFDS leaves a folder for every data set."""
  before = tempfile.tempdir
  with tempfile.TemporaryDirectory() as folder:
    tempfile.tempdir = folder
    try:
      yield
    finally:
      tempfile.tempdir = before


def is_prepared(builder: Builder) -> bool:
  """Whether the data set is on disk."""
  return builder.data_path.exists()


def instructions(builder: Builder) -> str:
  """How to get a data set that is not prepared, in one paragraph."""
  manual = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
  full_name = builder.info.full_name
  if manual:
    folder = os.path.join(str(builder.data_dir_root), 'downloads', 'manual')
    return f'{full_name} needs a manual download into {folder}: {" ".join(manual.split())}'
  return (
    f'{full_name} is not prepared; a run of this task alone downloads and prepares it, a suite '
    'with --config.suite.prepare=True (some builders need TensorFlow for that: pip install '
    'tensorflow).'
  )


def prepare(builder: Builder) -> None:
  """Downloads and prepares a data set if it is missing, as array_record.

  Several processes may do so at once, each in its own folder. The first one to finish gives its
  folder the final name, and the others use that.

  Raises:
    OSError: it cannot be downloaded, or needs a manual download; the message has the instructions.
    ImportError: preparing it needs TensorFlow.
  """
  if not is_prepared(builder):
    log.info('Preparing %s', builder.info.full_name)
    tfds.display_progress_bar(is_watched())
    try:
      builder.download_and_prepare(file_format='array_record')
    except ImportError as error:
      raise ImportError(
        f'Preparing {builder.info.full_name} needs a package that is not installed ({error}); pip '
        'install tensorflow, or prepare it on a machine that has TensorFlow and copy the folder.'
      ) from error
    except Exception as error:  # TFDS raises the errors of downloads, checksums and folders
      if not is_prepared(builder):
        raise OSError(
          f'{builder.info.full_name} could not be prepared ({first_line(error)}). '
          f'{instructions(builder)}'
        ) from error
      log.info('Another process has prepared %s in the meantime.', builder.info.full_name)
  # A builder that was made before its data set was prepared must be updated.
  info_file = builder.data_path / tfds.core.constants.DATASET_INFO_FILENAME
  if not builder.info.initialized and info_file.exists():
    builder.info.set_file_format('array_record', override=True)
    builder.info.read_from_directory(builder.data_path)


@dataclasses.dataclass(frozen=True)
class LabelFeature:
  """A label that is an integer feature of the example, or a bin of its values.

  Attributes:
    feature: name of the feature.
    bin_size: number of neighboring values that are one class.

  Example:
    >>> LabelFeature('label_x_position', bin_size=2)({'label_x_position': 7})
    3
  """

  feature: str = 'label'
  bin_size: int = 1

  def __call__(self, features: Features) -> int:
    """The class of an example."""
    return int(features[self.feature]) // self.bin_size


@dataclasses.dataclass
class TfdsExamples:
  """Examples of a prepared TFDS data set, whose images stay encoded until they are read.

  Attributes:
    source: the result of TFDS's `as_data_source`.
    data_set: name of the data set, with everything that its order depends on.
    label_of: function from the features of an example to its class.
    scale: factor from the stored values of an image to pixels.
    record: path of the npz file with the labels of many examples; None for none.
    folder: folder of the data set, for messages.
  """

  source: Any
  data_set: str
  label_of: LabelFunction = LabelFeature()
  scale: int = 1
  record: str | None = None
  folder: str = ''

  def __getitem__(self, index: int) -> Example:
    """The example at a position."""
    return Example(f'example {index} of {self.data_set}', functools.partial(self._image, index))

  def _image(self, index: int, *, draft: bool = False) -> Image.Image:
    stored = self._features(index)['image']
    image = from_array(stored) if isinstance(stored, np.ndarray) else decode(stored, draft=draft)
    return image if self.scale == 1 else Image.fromarray(np.asarray(image) * np.uint8(self.scale))

  def _features(self, index: int) -> Features:
    """The features of an example, the image encoded; raises OSError if they cannot be read."""
    try:
      return self.source[index]
    except Exception as error:  # array_record and TFDS's parser raise errors of many kinds
      raise OSError(
        f'{self[index].key} in {self.folder} cannot be read ({first_line(error)}); remove the '
        'folder of the data set to prepare it again.'
      ) from error

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """The class of every example, int32 [n]; the first use reads all examples."""
    number = len(self.source)
    record = self.record if number >= FEWEST_REMEMBERED else None
    if record is not None and (kept := read_array(record, (number,), np.int32)) is not None:
      return kept
    labels = np.empty(number, np.int32)
    starts = range(0, number, _READ_AT_ONCE)
    for start in progress_bar(starts, 'reading labels', unit_scale=_READ_AT_ONCE):
      indices = range(start, min(start + _READ_AT_ONCE, number))
      labels[indices] = [self.label_of(features) for features in self._features_of(indices)]
    if record is not None:
      try:
        write_array(record, labels)
      except OSError as error:  # a shared data set, which cannot be written
        log.info('Labels cannot be cached and are read at every start: %s', error)
    return labels

  def _features_of(self, indices: range) -> Iterable[Features]:
    try:
      return self.source.__getitems__(indices)
    except Exception:  # one of them cannot be read; reading each alone names it
      return map(self._features, indices)


def read(
  builder: Builder, split: str, label_of: LabelFunction = LabelFeature(), scale: int = 1
) -> TfdsExamples:
  """A split of a data set, which is prepared first; images stay encoded until they are read.

  Args:
    builder: builder of the data set.
    split: TFDS expression, as 'train[:800]'.
    label_of: see `TfdsExamples`.
    scale: see `TfdsExamples`.

  Raises:
    ValueError: the data set is stored in a format without random access, or lacks the split.
  """
  prepare(builder)
  try:
    source = builder.as_data_source(split=split, decoders={'image': tfds.decode.SkipDecoding()})
  except NotImplementedError as error:
    raise ValueError(
      f'{builder.data_path} is stored as {builder.info.file_format.value}, which has no random '
      f'access; convert it: tfds convert_format --dataset_dir={builder.data_path} '
      '--out_file_format=array_record --out_path=FOLDER'
    ) from error
  except (KeyError, ValueError, AssertionError) as error:
    raise ValueError(
      f"{builder.info.full_name} cannot be read as '{split}' ({first_line(error)})."
    ) from error
  data_set = f'{builder.info.full_name} {split}, {builder.info.dataset_size} bytes'
  if label_of != LabelFeature():  # another task has other labels of the same images
    data_set += f' {getattr(label_of, "__name__", label_of)}'
  record, folder = None, os.fspath(builder.data_path)
  # Next to the records, by the feature that they are read from; a user's function may change.
  if isinstance(label_of, LabelFeature) and os.path.isdir(folder):
    key = hashlib.sha256(f'{split}|{label_of}'.encode()).hexdigest()[:16]
    record = os.path.join(folder, f'glora_jax_labels-{key}.npz')
  return TfdsExamples(source, data_set, label_of, scale, record, folder)


def class_names(builder: Builder, num_classes: int) -> tuple[str, ...]:
  """The names of a data set's classes; their numbers if it does not have as many names."""
  features = builder.info.features
  names = features['label'].names if 'label' in features else None
  if names and len(names) == num_classes:
    return tuple(names)
  return tuple(map(str, range(num_classes)))


def task_of(
  builders: Sequence[Builder],
  name: str,
  classes: tuple[str, ...],
  splits: Mapping[str, Callable[[], Examples]],
  **details: Any,
) -> Task:
  """A task on TFDS data sets, with their origin and those that are not prepared.

  Args:
    builders: builders of all data sets of the task.
    name: see `Task`.
    classes: see `Task`.
    splits: see `Task`.
    **details: `notes` and `masked` of `Task`.
  """

  def missing() -> str | None:
    return (
      ' '.join(instructions(builder) for builder in builders if not is_prepared(builder)) or None
    )

  origin = ', '.join(f'TFDS {builder.info.full_name}' for builder in builders)
  return Task(name, classes, splits, origin, missing=missing, **details)


def own_task(name: str, source: Source) -> Task:
  """A task on any data set of images with one label each; missing splits are split off.

  Args:
    name: name of the data set, see `find_builder`.
    source: its `dir` and `version` are used.

  Raises:
    ValueError: TFDS cannot read it, or its examples are not images with one label.
  """
  builder = find_builder(name, source.dir, source.version)
  features = builder.info.features
  is_single = all(
    feature in features and not isinstance(features[feature], tfds.features.Sequence)
    for feature in ('image', 'label')
  )
  number = getattr(features['label'], 'num_classes', None) if is_single else None
  if not number:
    raise ValueError(
      f'TFDS {name} has the features {", ".join(features)}; expected an '
      "'image' and a 'label' with classes, not sequences of them."
    )
  classes = class_names(builder, number)

  def stored() -> dict[str, str]:  # once it is prepared
    return {split: name for name, split in reversed(NAMES.items()) if name in builder.info.splits}

  @functools.cache
  def examples() -> Mapping[str, Examples]:
    prepare(builder)
    if 'train' not in stored():
      names = ', '.join(builder.info.splits)
      raise ValueError(f"TFDS {name} has the splits {names}; expected a 'train'.")
    given = {split: read(builder, stored_name) for split, stored_name in stored().items()}
    return divide(f'TFDS {name}', classes, given)

  splits = {split: lambda split=split: examples()[split] for split in SPLITS}
  notes = notes_on(stored()) if is_prepared(builder) else []
  return task_of([builder], f'tfds:{name}', classes, splits, notes=tuple(notes))
