"""Folders with a checkpoint: which file is meant, and what the `config.json` beside it says."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from glora_jax.files import Path
from glora_jax.limits import check_path, shown
from glora_jax.models.containers import Container
from glora_jax.models.formats.format import Flat, Format, Variant
from glora_jax.models.metadata import OURS, Metadata, check_facts, read_json
from glora_jax.models.vit import ViT, describe

EXTENSIONS = ('.safetensors', '.npz', '.pth', '.pt', '.bin')
FILE_NAMES: dict[Container, str] = {
  'npz': 'model.npz',
  'safetensors': 'model.safetensors',
  'torch': 'model.pth',
}

# Beside model.safetensors, as in most folders of Hugging Face, they hold the same weights.
_SAME_WEIGHTS = ('pytorch_model.bin', 'open_clip_pytorch_model.bin')
REMEMBERED = ('image_size', 'normalization', 'resize', 'crop', 'classes')  # of the metadata


def locate(path: Path) -> str:
  """The checkpoint file of a path: the path itself, or the one such file in a folder.

  Of a run's folder it is the one in `folded/`: where that has one, and the folder no model itself.

  Raises:
    FileNotFoundError: the folder has no checkpoint.
    ValueError: it has several, or one in parts.
  """
  folder = check_path(path)
  if not os.path.isdir(folder):
    return folder
  checkpoints = checkpoints_in(folder)
  folded = os.path.join(folder, 'folded')
  if not any(map(_is_model, checkpoints)) and os.path.isdir(folded) and checkpoints_in(folded):
    return locate(folded)
  parts = [name for name in checkpoints if '-of-' in name]
  files = [name for name in checkpoints if name not in parts]
  if FILE_NAMES['safetensors'] in files:
    files = [name for name in files if name not in _SAME_WEIGHTS]
  named = list(filter(_is_model, files))
  if len(files) == 1 or len(named) == 1:
    return os.path.join(folder, (named or files)[0])
  if files:
    raise ValueError(
      f'The folder {folder} holds several checkpoints ({", ".join(files)}); give the path of one.'
    )
  if parts:
    raise ValueError(
      f'{folder} holds a checkpoint in several parts ({", ".join(parts)}), which is not supported; '
      'save it as one file.'
    )
  raise FileNotFoundError(
    f'There is no checkpoint in the folder {folder}; a file ending in {", ".join(EXTENSIONS)} is '
    'expected.'
  )


def _is_model(name: str) -> bool:
  return os.path.splitext(name)[0] in ('model', 'pytorch_model')


def checkpoints_in(folder: str) -> list[str]:
  """Names of the files in a folder that end as checkpoints do, in their order."""
  return sorted(name for name in os.listdir(folder) if name.endswith(EXTENSIONS))


def is_file_name(path: str) -> bool:
  """Whether a path that is to be written means a file, and not a folder."""
  return path.endswith(EXTENSIONS)


def container_of(file: str) -> Container:
  """The type of file that a name promises."""
  if file.endswith('.npz'):
    return 'npz'
  return 'safetensors' if file.endswith('.safetensors') else 'torch'


def require_no_other(folder: str, name: str) -> None:
  """Raises ValueError where a folder holds a checkpoint beside the file that is to be written."""
  if others := [other for other in checkpoints_in(folder) if other != name]:
    raise ValueError(
      f'The folder {folder} holds another checkpoint already ({", ".join(others)}); '
      'choose another folder.'
    )


def read_hints(file: str, format: Format[Any]) -> dict[str, Any]:
  """What the `config.json` beside a checkpoint says that its tensors do not.

  Args:
    file: path of the checkpoint.
    format: format that it is in: only its own code base's config, or ours, is believed.

  Returns:
    Fields of the ViT, and 'image_size', 'normalization', 'resize', 'crop', 'classes' where the
    file tells them; empty where there is none of that code base.

  Raises:
    ValueError: the file is damaged, has odd values, or describes a model that the ViT cannot be;
      the sentence names its path.
  """
  folder = os.path.dirname(file)
  path = os.path.join(folder, 'config.json')
  config = read_json(path)
  if not isinstance(config, dict):
    return {}
  stamp = config.get(OURS)
  if isinstance(stamp, dict) and stamp.get('kind') == 'config':  # of a workdir
    return {}
  with _naming(path):
    of_format = format.read_config(config)
    ours = config.get(OURS, {'model': {}})
    if not isinstance(ours, dict) or not isinstance(ours.get('model'), dict):
      raise TypeError(f'{OURS}={shown(ours)} has no model')
    facts = {name: fact for name, fact in ours.items() if name != 'model'}
    hints = _checked({**ours['model'], **facts, **of_format})
  if not of_format or format.preprocessor is None:
    return hints
  path = os.path.join(folder, format.preprocessor)
  preprocessor = read_json(path) or {}
  with _naming(path):
    return {**hints, **_checked(format.read_preprocessor(preprocessor))}


def _checked(facts: dict[str, Any]) -> dict[str, Any]:
  """The facts that are told, for which None stands otherwise; raises ValueError for an odd one."""
  told = {name: fact for name, fact in facts.items() if fact is not None}
  check_facts(told)
  return told


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
  """Names a file in the sentence on what is wrong in it."""
  try:
    yield
  except (KeyError, TypeError, AttributeError, IndexError) as error:
    raise ValueError(
      f'{path} is no {os.path.basename(path)} that transformers, timm or glora_jax wrote '
      f'({type(error).__name__}: {error}); correct it, or take it away.'
    ) from error
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error


def side_files(
  format: Format[Any], model: ViT, metadata: Metadata, variant: Variant, tensors: Flat
) -> dict[str, dict[str, Any]]:
  """The JSON files that stand beside a checkpoint, by file name.

  `config.json` says everything in the terms of the code base that will read it, and below the key
  'glora_jax' in ours.

  Args:
    format: format of the checkpoint.
    model: the ViT that is written.
    metadata: what is known of it.
    variant: how the file is laid out.
    tensors: tensors of the file.

  Raises:
    ValueError: the code base cannot be told of the model.
  """
  known = {name: metadata[name] for name in REMEMBERED if metadata.get(name) is not None}
  files = format.side_files(model, metadata, variant, tensors)
  config = {**files.get('config.json', {}), OURS: {'model': describe(model), **known}}
  return {**files, 'config.json': config}
