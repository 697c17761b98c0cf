"""Folders with a checkpoint: which file in one is meant, and what a new one is called."""

from __future__ import annotations

import os

from glora_jax.files import Path
from glora_jax.limits import check_path
from glora_jax.models.containers import Container

EXTENSIONS = ('.safetensors', '.npz', '.pth', '.pt', '.bin')
FILE_NAMES: dict[Container, str] = {
  'npz': 'model.npz',
  'safetensors': 'model.safetensors',
  'torch': 'model.pth',
}

# Beside model.safetensors, as in most folders of Hugging Face, they hold the same weights.
_SAME_WEIGHTS = ('pytorch_model.bin', 'open_clip_pytorch_model.bin')


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
