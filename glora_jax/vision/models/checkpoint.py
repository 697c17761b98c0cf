"""Files of named arrays: npz, safetensors and PyTorch are read into a dictionary.

Nothing in a file is executed, and a file that declares more data than it has is not read. Nothing
here depends on models.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np

from glora_jax import hub
from glora_jax.checks import check_path, listed, printable, shown
from glora_jax.errors import UserError
from glora_jax.files import Path, first_line, load_json, read_safetensors, require_numbers
from glora_jax.tree import differences
from glora_jax.vision.files import sha256_of

Container = Literal['npz', 'safetensors', 'torch']
Arrays = dict[str, np.ndarray]

TIMM_PREFIX = 'timm:'
EXTENSIONS = ('.safetensors', '.npz', '.pth', '.pt', '.bin')
MODEL_FILE = 'model.safetensors'  # the file that is written into a folder
INDEX_FILE = f'{MODEL_FILE}.index.json'  # of one in parts
JSON_FILES = ('config.json', 'preprocessor_config.json')  # that are read next to a checkpoint
HUB_FILES = (MODEL_FILE, *JSON_FILES)  # read from a repository

_RAW_BFLOAT16 = ('|V2', '<V2')  # NumPy stores bfloat16, which it does not know, as two raw bytes

# Weights hardly shrink; a file that unpacks to much more than its size is hostile.
MOST_UNPACKED_PER_BYTE = 8
ALWAYS_UNPACKED = 64 * 2**20

# Keys of the weights in PyTorch files, the likelier first.
WRAPPERS = ('model', 'state_dict', 'teacher', 'module')


class OtherArchitecture(ValueError):
  """A checkpoint is of another architecture than the ViT."""


class Tensors(NamedTuple):
  """The content of a file.

  Attributes:
    path: path of the file.
    container: type of the file.
    arrays: its arrays by name; the memory of an array is freed after it is removed here.
    metadata: texts by name, from a safetensors file.
  """

  path: str
  container: Container
  arrays: Arrays
  metadata: Mapping[str, str] = {}


def read_checkpoint(path: Path, key: str | None = None) -> Tensors:
  """Reads a file by its contents; its name does not matter.

  Args:
    path: path of an npz, safetensors or PyTorch file.
    key: key of the state dict in a PyTorch file that holds several.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: it is empty, cut off, of another type, or declares more data than it has; or the key
      is missing or wrong.
    ImportError: it is a PyTorch file, and PyTorch is not installed.
  """
  name = check_path(path)
  if not os.path.isfile(name):
    raise FileNotFoundError(
      f'There is no file {name}; pass the path of an npz, safetensors or PyTorch checkpoint.'
    )
  try:
    tensors = _read(name, key)
  except (ImportError, UserError):
    raise
  except Exception as error:  # zipfile, zlib, NumPy, safetensors and PyTorch raise many kinds
    raise ValueError(
      f'{name} is damaged or incomplete ({first_line(error)}); get it again.'
    ) from error
  if key is not None and tensors.container != 'torch':
    raise ValueError(f'{name} is not a PyTorch file, so it has no key {shown(key)}; leave it out.')
  return tensors


def parts_of(path: Path) -> list[str]:
  """Paths of the files of a checkpoint: its path, or those that an index names.

  Raises:
    ValueError: the index is damaged.
  """
  folder, name = os.path.split(check_path(path))
  if name != INDEX_FILE:
    return [os.path.join(folder, name)]
  index = load_json(path, 'get it again')
  files = index.get('weight_map') if isinstance(index, dict) else None
  names = set(files.values()) if isinstance(files, dict) else {''}
  if not all(isinstance(each, str) and each == os.path.basename(each) != '' for each in names):
    raise UserError(f'{path} does not name the files of a checkpoint; get it again.')
  return [os.path.join(folder, each) for each in sorted(names)]


def digest(path: Path) -> str:
  """SHA-256 of a checkpoint; for one in parts, that of the lines of their digests."""
  one, *others = (sha256_of(part) for part in parts_of(path))
  return hashlib.sha256('\n'.join([one, *others]).encode()).hexdigest() if others else one


def _read(path: str, key: str | None) -> Tensors:
  if os.path.basename(path) == INDEX_FILE:
    parts = (_read(part, key).arrays for part in parts_of(path))
    arrays = {name: array for part in parts for name, array in part.items()}
    return Tensors(path, 'safetensors', arrays)
  with open(path, 'rb') as file:
    start = file.read(16)
  if start.startswith(b'PK'):
    with zipfile.ZipFile(path) as archive:
      names = archive.namelist()
      unpacked = sum(member.file_size for member in archive.infolist())
    size = os.path.getsize(path)
    if unpacked > ALWAYS_UNPACKED + MOST_UNPACKED_PER_BYTE * size:
      raise UserError(
        f'{path} has {size} bytes and claims to unpack to {unpacked}; this is not a checkpoint.'
      )
    if any(name.endswith('data.pkl') for name in names):
      return _read_torch(path, key)
    if others := [name for name in names if not name.endswith('.npy')]:
      raise UserError(f'{path} is a zip file with {others[0]} in it, not an npz file.')
    with np.load(path, allow_pickle=False) as content:
      arrays = dict(content)
    for name, array in arrays.items():
      if array.dtype.str in _RAW_BFLOAT16:
        arrays[name] = array.view(ml_dtypes.bfloat16)
    return Tensors(path, 'npz', arrays)
  if start[8:9] == b'{':  # after the length of a safetensors file's JSON
    return Tensors(path, 'safetensors', *read_safetensors(path))
  if start.startswith(b'\x80'):  # a pickle, PyTorch's format before its files were zip files
    return _read_torch(path, key)
  fault = f'is not an npz, safetensors or PyTorch file (it starts with {start[:8]!r}).'
  raise UserError(f'{path} {fault if start else "is empty; get it again."}')


def _read_torch(path: str, key: str | None) -> Tensors:
  try:
    import torch
  except ImportError as error:
    raise ImportError(
      f'{path} is a PyTorch file and needs PyTorch: pip install torch, or convert it to '
      'safetensors on a machine that has it.'
    ) from error
  try:
    content = torch.load(path, map_location='cpu', weights_only=True)
  except Exception as error:
    raise UserError(
      f'{path} is damaged, or holds more than tensors: PyTorch does not load it with '
      'weights_only=True.'
    ) from error

  def named(content: Any, kind: type) -> dict[str, Any]:
    entries = content.items() if isinstance(content, dict) else ()
    return {k: x for k, x in entries if isinstance(k, str) and isinstance(x, kind)}

  state = named(content, torch.Tensor)
  inner = {name: named(value, torch.Tensor) for name, value in named(content, dict).items()}
  inner = {name: tensors for name, tensors in inner.items() if tensors}
  if key is not None or (inner and (not state or any(name in inner for name in WRAPPERS))):
    state = inner[_choose_wrapper(path, {name: len(x) for name, x in inner.items()}, key)]
  if not state:
    raise UserError(f'{path} holds no named tensors; expected a state dict.')
  arrays = {}
  for name, value in state.items():
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
      raise UserError(
        f'{path}: the tensor {name} declares shape {tuple(value.shape)}, but holds fewer numbers; '
        'this is not a checkpoint.'
      )
    is_bfloat16 = value.dtype == torch.bfloat16
    array = (value.view(torch.int16) if is_bfloat16 else value).detach().numpy()
    arrays[name] = array.view(ml_dtypes.bfloat16) if is_bfloat16 else array
  return Tensors(path, 'torch', arrays)


def _choose_wrapper(path: str, sizes: Mapping[str, int], key: str | None) -> str:
  """The key of the state dict to read, from the numbers of tensors in each."""
  if key is not None:
    if key not in sizes:
      kept = f'its state dicts are {listed(sizes)}' if sizes else 'leave the key out'
      raise UserError(f'{path} has no state dict at the key {shown(key)}; {kept}.')
    return key
  largest = max(sizes, key=lambda name: sizes[name])
  chosen = next((name for name in WRAPPERS if name in sizes), largest)
  # The buffers of a loss or an optimizer are not another model.
  models = [name for name, size in sizes.items() if size >= sizes[chosen] / 2]
  if len(models) > 1:
    raise UserError(
      f'{path} holds several state dicts, {listed(models)}; choose one with --key (key= in '
      'Python), and for a run convert it first with --key.'
    )
  return chosen


def require_tensors(where: str, given: Arrays, expected: Mapping[str, Any]) -> None:
  """Checks the tensors of a model.

  Raises:
    OtherArchitecture: arrays are missing, unexpected or misshaped, and all are named.
    ValueError: one of them has values other than finite floating-point numbers.
  """
  if problems := differences(given, expected):
    raise OtherArchitecture(
      f'{where}: the tensors do not match the model. {"; ".join(problems)}. Check that the '
      'checkpoint is complete and of this model.'
    )
  require_numbers(where, given)


def locate(path: Path) -> str:
  """The checkpoint file of a path: the path itself, or the one such file in a folder.

  In a run's folder it is the one in `folded/`, unless the folder itself has a model. If there are
  several, it is `MODEL_FILE`, which timm and transformers also prefer, or else the one that is
  called a model. For a checkpoint in parts it is the index.

  Raises:
    FileNotFoundError: the folder has no checkpoint.
    ValueError: it has several, or one in parts without an index.
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
  if MODEL_FILE in files:
    return os.path.join(folder, MODEL_FILE)
  if os.path.isfile(index := os.path.join(folder, INDEX_FILE)):
    return index
  models = [name for name in files if _is_model(name)] or files
  if len(models) == 1:
    return os.path.join(folder, models[0])
  if files:
    raise ValueError(
      f'The folder {folder} holds several checkpoints ({", ".join(files)}); pass the path of one.'
    )
  if parts:
    raise ValueError(
      f'{folder} holds a checkpoint in several parts ({", ".join(parts)}), but no {INDEX_FILE}; '
      'get it again, or save it as one file.'
    )
  raise FileNotFoundError(
    f'There is no checkpoint in the folder {folder}; expected folded/ of a finished run, or a file '
    f'ending in {", ".join(EXTENSIONS)}.'
  )


def checkpoints_in(folder: str) -> list[str]:
  """Names of the files in a folder with the extension of a checkpoint, sorted."""
  return sorted(name for name in os.listdir(folder) if name.endswith(EXTENSIONS))


def _is_model(name: str) -> bool:
  return os.path.splitext(name)[0] in ('model', 'pytorch_model')


def hub_name(path: Path) -> Path:
  """The name on the hub that `timm:NAME` is short for; all other paths unchanged.

  A name without the tag of its weights, which follows a point, stands for timm's default weights.

  Raises:
    ImportError: timm, which has the default weights of a name, is not installed.
    ValueError: timm has no weights of that name.

  Example:
    >>> hub_name('timm:convnext_atto.d2_in1k'), hub_name('folder')
    ('hf:timm/convnext_atto.d2_in1k', 'folder')
  """
  if not (isinstance(path, str) and path.startswith(TIMM_PREFIX)):
    return path
  name, at, revision = path.removeprefix(TIMM_PREFIX).partition('@')
  if '.' in name:
    return f'{hub.PREFIX}timm/{name}{at}{revision}'
  try:
    import timm
  except ImportError as error:
    raise ImportError(
      f"'{path}' needs timm, to know its weights: pip install timm; or name them, as in "
      'timm:convnext_atto.d2_in1k.'
    ) from error
  known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
  if known is None or not known.hf_hub_id:
    raise UserError(f"timm has no weights for '{printable(name)}'; see timm.list_pretrained().")
  return f'{hub.PREFIX}{known.hf_hub_id}{at}{revision}'


def require_no_other(folder: str) -> None:
  """Raises ValueError if a folder has a checkpoint other than the file to write."""
  if others := [name for name in checkpoints_in(folder) if name != MODEL_FILE]:
    raise ValueError(
      f'The folder {folder} already holds another checkpoint ({", ".join(others)}); choose another '
      'folder.'
    )
