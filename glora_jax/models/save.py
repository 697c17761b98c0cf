"""Writes a checkpoint of the ViT, in this project's own format or another code base's."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from glora_jax.files import Path, write_arrays, write_json, write_safetensors, write_tensors
from glora_jax.limits import check_path, check_type, shown
from glora_jax.models import folder
from glora_jax.models.containers import Container, require_torch, write_torch
from glora_jax.models.folder import side_files
from glora_jax.models.formats.format import Flat
from glora_jax.models.formats.table import FORMATS
from glora_jax.models.load import KIND, assumed_normalization
from glora_jax.models.metadata import OURS, check_metadata_of, sides
from glora_jax.models.translate import Origin, to_tensors
from glora_jax.models.vit import ViT, describe, expected_params
from glora_jax.tree import differences

log = logging.getLogger(__name__)

# Fields of the ViT that a reader of the file alone may take for something else.
OPEN_FIELDS = ('num_heads', 'pool', 'activation', 'norm_eps', 'norm_after_pool')


def save(
  path: Path,
  model: ViT,
  params: Any,
  metadata: Mapping[str, Any],
  format: str | Origin | None = None,
) -> None:
  """Writes a checkpoint, whole or not at all.

  Args:
    path: path of a file, ending in .safetensors, .npz, .pth, .pt or .bin; or else of a folder,
      which then holds the file and the `config.json` with which transformers, timm and `load` know
      all about it. A file alone leaves out what tensors cannot say; what that is, is logged.
    model: the ViT.
    params: its parameters, nested.
    metadata: 'image_size', and 'normalization', 'resize', 'crop' and 'classes' where they are
      known; in this project's own format any JSON types.
    format: name of a format in `FORMATS`; what `load` returned as metadata's 'source', which writes
      a file back key by key; 'glora_jax' or None for this project's own format.

  Raises:
    ValueError: the parameters are not the model's, or not finite; metadata cannot be; the format is
      unknown, or has no place for the model; the folder holds another checkpoint already.
    OSError: it cannot be written there.
    ImportError: a PyTorch file is asked for, and PyTorch is not installed.

  Example:
    >>> import tempfile
    >>> from glora_jax.models import weights
    >>> model, params, metadata = weights.load(weights.EMBEDDED_FILE)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   weights.save(folder, model, params, metadata, 'timm')
    ...   print(sorted(os.listdir(folder)), weights.load(folder).metadata['source'].format)
    ['config.json', 'model.safetensors'] timm
  """
  target = check_path(path)
  check_type(model, ViT, 'model')
  check_type(params, Mapping, 'params')
  check_type(metadata, Mapping, 'metadata')
  flat = {
    name: np.asarray(value)
    for name, value in flax.traverse_util.flatten_dict(nn.meta.unbox(params), sep='/').items()
  }
  metadata = {name: value for name, value in metadata.items() if name != 'source'}
  _require_whole(target, model, flat, metadata)
  if format is None or format == OURS:
    _save_own(target, model, flat, metadata)
  else:
    origin = format if isinstance(format, Origin) else _new_origin(format, model, flat)
    _save_foreign(target, model, flat, metadata, origin)


def _require_whole(path: str, model: ViT, flat: Flat, metadata: Mapping[str, Any]) -> None:
  """Checks a checkpoint before it is written.

  Raises:
    ValueError: parameters or metadata are not the model's; the sentence says which.
  """
  refusal = f'{path} is not written:'
  try:
    check_metadata_of(metadata, model.num_classes)
  except ValueError as error:
    raise ValueError(f'{refusal} {error}') from error
  expected = expected_params(model, metadata['image_size'])
  if problems := differences(flat, expected):
    raise ValueError(
      f'{refusal} these params are not those of the model. {"; ".join(problems)}. Give the params '
      'of this very model.'
    )
  for name, value in flat.items():
    if not jnp.issubdtype(value.dtype, jnp.floating):
      raise ValueError(f'{refusal} {name} is {value.dtype}; params are floating-point numbers.')
    if not np.isfinite(value).all():
      raise ValueError(
        f'{refusal} {name} has numbers that are not finite; the training diverged, lower its '
        'learning rate.'
      )


def _save_own(path: str, model: ViT, flat: Flat, metadata: Mapping[str, Any]) -> None:
  if folder.is_file_name(path) and folder.container_of(path) != 'safetensors':
    raise ValueError(
      f'The format {OURS} is written as safetensors; {path} should end in .safetensors.'
    )
  file = _prepare_file(path, 'safetensors')
  write_tensors(file, flat, KIND, {'model': describe(model), **metadata})


def _save_foreign(
  path: str, model: ViT, flat: Flat, metadata: dict[str, Any], origin: Origin
) -> None:
  """Writes another code base's checkpoint; whatever may be refused is refused before."""
  is_alone = folder.is_file_name(path)
  container = folder.container_of(path) if is_alone else origin.container
  model, tensors = to_tensors(model, flat, origin)
  contents = side_files(FORMATS[origin.format], model, metadata, origin.variant, tensors)
  if container == 'torch':
    require_torch(path)
  file = _prepare_file(path, container)
  if container == 'npz':
    write_arrays(file, tensors)  # bfloat16 as two raw bytes, as big_vision expects
  elif container == 'safetensors':
    in_torch_layout = origin.container != 'npz'
    write_safetensors(file, tensors, {'format': 'pt'} if in_torch_layout else {})
  else:
    write_torch(file, tensors, origin.wrapper)
  if is_alone:
    _log_open(file, model, metadata, container, origin, tensors)
    return
  for name, content in contents.items():
    write_json(os.path.join(path, name), content)


def _prepare_file(path: str, container: Container) -> str:
  """The path of the file that is to be written, whose folder is there and holds no other."""
  if folder.is_file_name(path):
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    return path
  os.makedirs(path, exist_ok=True)
  name = folder.FILE_NAMES[container]
  folder.require_no_other(path, name)
  return os.path.join(path, name)


def _new_origin(name: str, model: ViT, flat: Flat) -> Origin:
  """A format's own layout, for a model that comes from elsewhere."""
  if not isinstance(name, str) or name not in FORMATS:
    raise ValueError(
      f'The format {shown(name)} is unknown; the formats are {OURS}, {", ".join(FORMATS)}.'
    )
  format = FORMATS[name]
  placeholders = format.placeholders(model.width, flat['norm/scale'].dtype)
  return Origin(name, format.container, format.variant, unused=placeholders)


def _log_open(
  file: str,
  model: ViT,
  metadata: Mapping[str, Any],
  container: Container,
  origin: Origin,
  tensors: Flat,
) -> None:
  """Logs what a reader of the file alone will not have, or take for something else."""
  format = FORMATS[origin.format]
  prefix = format.prefix(model, origin.prefix)
  read = format.read_shape(
    {name.removeprefix(prefix): value.shape for name, value in tensors.items()}
  )
  height, width = sides(metadata['image_size'])
  assumed = {
    'image_size': metadata['image_size'] if height == width and read.tokens else None,
    'normalization': assumed_normalization(container, model),
    'resize': 'squash',
    'crop': None,
    'classes': None,
  }
  open_fields = [
    f'{name}={getattr(model, name)} (without it: {read.fields[name]})'
    for name in OPEN_FIELDS
    if name in read.fields and read.fields[name] != getattr(model, name)
  ]
  open_facts = [
    f'{name}={shown(metadata[name])}' + (f' (without it: {other})' if other else '')
    for name, other in assumed.items()
    if metadata.get(name) and metadata[name] != other
  ]
  if open_fields or open_facts:
    log.warning(
      '%s alone cannot say %s; a folder in its place has a config.json that does.',
      file,
      ', '.join(open_fields + open_facts),
    )
