"""TFDS data sets: which version, where it lies, what is missing; read without TensorFlow."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow_datasets as tfds

from glora_jax.data.examples import Records

log = logging.getLogger(__name__)
logging.getLogger('absl').addFilter(lambda record: 'OpenCV' not in record.getMessage())

Builder = tfds.core.DatasetBuilder


def find_builder(name: str, data_dir: str | None = None, version: str | None = None) -> Builder:
  """The builder of a TFDS name like 'cifar100:3.*.*'.

  TFDS no longer constructs some versions that benchmarks ask for. Such a version is read where it lies prepared in `data_dir`; otherwise
  the version that TFDS has now serves, and a warning says so.

  Args:
    name: with or without configuration and version.
    data_dir: of TFDS, None for its default.
    version: in place of the one in `name`.

  Raises:
    ValueError: TFDS knows no such data set.
  """
  base, _, asked = name.partition(':')
  asked = version or asked
  try:
    return tfds.builder(f'{base}:{asked}' if asked else base, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    raise ValueError(
      f"TFDS knows no data set '{base}'; its names are on www.tensorflow.org/datasets."
    ) from error
  except AssertionError:  # no such version in this TFDS
    folder = os.path.join(os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR), base)
    prefix = asked.split('*')[0]
    prepared = sorted(
      entry
      for entry in (os.listdir(folder) if os.path.isdir(folder) else ())
      if entry.startswith(prefix)
    )
    if prepared:
      return tfds.builder_from_directory(os.path.join(folder, prepared[-1]))
    builder = tfds.builder(base, data_dir=data_dir)
    log.warning(
      'TFDS no longer constructs %s:%s, and none lies prepared in %s: version %s serves.',
      base,
      asked,
      folder,
      builder.version,
    )
    return builder


def is_prepared(builder: Builder) -> bool:
  """Whether the data set lies on disk."""
  return builder.data_path.exists()


def instructions(builder: Builder) -> str:
  """How to get a data set that is not prepared, TFDS's own instructions for a manual download included; one paragraph."""
  manual = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
  full = f'{builder.info.full_name}'
  if manual:
    folder = os.path.join(str(builder.data_dir_root), 'downloads', 'manual')
    return f'{full} needs a manual download into {folder}: {" ".join(manual.split())}'
  return f'{full} is downloaded and prepared at its first use (some builders need TensorFlow for that: pip install "glora_jax[tf]").'


def missing(*wanted: Builder) -> Callable[[], str | None]:
  """For `Task.missing`: the instructions for those of the data sets that are not prepared."""
  return lambda: (
    ' '.join(instructions(builder) for builder in wanted if not is_prepared(builder)) or None
  )


def prepare(builder: Builder) -> None:
  """Downloads and prepares a data set where it is not there yet, as array_record, with TFDS's progress bars.

  Of several processes that do so at once each works in a folder of its own; the first one's takes the final name, and the others use it.

  Raises:
    OSError: it cannot be downloaded, or a manual download is missing; with the instructions.
    ImportError: preparing it needs TensorFlow.
  """
  if is_prepared(builder):
    return _catch_up(builder)
  log.info('Preparing %s', builder.info.full_name)
  try:
    builder.download_and_prepare(file_format='array_record')
  except ImportError as error:
    raise ImportError(
      f'Preparing {builder.info.full_name} needs a package that is not there ({error}); pip install "glora_jax[tf]", or '
      'prepare it on a machine that has TensorFlow and copy the folder.'
    ) from error
  except (
    Exception
  ) as error:  # downloads, checksums, manual folders: TFDS raises whatever they raise
    if is_prepared(builder):
      log.info('%s was prepared by another process meanwhile.', builder.info.full_name)
      return _catch_up(builder)
    raise OSError(
      f'{builder.info.full_name} could not be prepared ({str(error).strip().splitlines()[0][:200]}). '
      f'{instructions(builder)}'
    ) from error


def _catch_up(builder):
  """Tells a builder that was made before its data set was prepared what lies there now."""
  if (
    not builder.info.initialized
    and (builder.data_path / tfds.core.constants.DATASET_INFO_FILENAME).exists()
  ):
    builder.info.set_file_format('array_record', override=True)
    builder.info.read_from_directory(builder.data_path)


def read(
  builder: Builder,
  split: str,
  image_of: Callable[[Mapping[str, Any]], Any],
  label_of: Callable[[Mapping[str, Any]], int],
  image_keys: tuple[str, ...] = ('image',),
) -> Records:
  """A split of a prepared data set, images left encoded until they are asked for.

  Args:
    builder: prepared.
    split: TFDS expression.
    image_of, label_of: see `Records`.
    image_keys: features to leave encoded.

  Raises:
    ValueError: it lies there in a format without random access, or lacks the split; the sentence says what to do.
  """
  try:
    source = builder.as_data_source(
      split=split, decoders={key: tfds.decode.SkipDecoding() for key in image_keys}
    )
  except NotImplementedError as error:
    raise ValueError(
      f'{builder.data_path} is stored as {builder.info.file_format.value}, which has no random access; convert it: '
      f'tfds convert_format --dataset_dir={builder.data_path} --out_file_format=array_record --out_path=FOLDER'
    ) from error
  except (KeyError, ValueError, AssertionError) as error:
    raise ValueError(
      f"{builder.info.full_name} cannot be read as '{split}' ({str(error).strip().splitlines()[0][:200]})."
    ) from error
  return Records(
    source, f'{builder.info.full_name} {split} {builder.data_path}', image_of, label_of
  )
