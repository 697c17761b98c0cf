"""Reads a checkpoint of the ViT, whoever wrote it."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax

from glora_jax.data.normalization import Normalization
from glora_jax.files import Path, check_metadata
from glora_jax.models import hub
from glora_jax.models.containers import (
  Container,
  Tensors,
  finite,
  grouped,
  open_tensors,
  read_finite,
  require_floats,
  require_shapes,
)
from glora_jax.models.folder import locate, read_hints
from glora_jax.models.formats.format import Format, Reading
from glora_jax.models.formats.rules import BLOCKS
from glora_jax.models.formats.table import FORMATS, detect, explain
from glora_jax.models.metadata import (
  OURS,
  Metadata,
  check_agreement,
  check_facts,
  check_metadata_of,
  check_vit_fields,
  shortest,
)
from glora_jax.models.resize import find_grid
from glora_jax.models.translate import Origin, PlainNames, read_params, stack
from glora_jax.models.vit import ViT, describe, expected_params
from glora_jax.settings import Text, taken

log = logging.getLogger(__name__)
KIND = 'vit'  # among the kinds of files that `files.write_tensors` writes


class Checkpoint(NamedTuple):
  """A model, its parameters, and what else is known of it.

  Attributes:
    model: the ViT.
    params: nested dictionary of NumPy arrays.
    metadata: see `metadata.Metadata`.
  """

  model: ViT
  params: dict[str, Any]
  metadata: Metadata


def load(
  path: Path,
  *,
  key: str | None = None,
  image_size: int | tuple[int, int] | None = None,
  normalization: Normalization | None = None,
  **fields: Any,
) -> Checkpoint:
  """Reads a checkpoint of any known format, which its contents tell.

  The model's shape is read off the file. A `config.json` of the same code base beside it tells what
  tensors cannot: the LayerNorm epsilon, the activation, normalization, class names, and the number
  of heads. Without it, that of the published model of the same width is assumed; npz files know it.

  Args:
    path: path of a file, or of a folder with one; or a name on the Hugging Face hub,
      `hf:owner/name` or `hf:owner/name@revision` (see `models.hub`).
    key: key of the state dict in a PyTorch file that holds several, 'model_ema' for instance.
    image_size: image size that the position embedding was made for, (height, width) where its grid
      is not square; `refit` is for another.
    normalization: normalization of the images that the model was trained on, where nothing else
      tells it; what the file says comes first.
    **fields: fields of the ViT that file and `config.json` leave open, `num_heads=8` for instance.

  Returns:
    (model, params, metadata). Metadata has 'image_size', 'normalization' and, where they are known,
    'classes', 'resize' and 'crop'; for foreign files also 'source', which `save` takes.

  Raises:
    FileNotFoundError: there is no such file, or none of that name on the hub.
    ImportError: it is a PyTorch file, and PyTorch is not installed; or it is on the hub, and
      `huggingface_hub` is not.
    ValueError: the file is damaged, hostile or of another architecture; its tensors are not those
      of its model, and every one that is missing, unexpected or misshaped is named; or a field
      cannot be, or is another in the file.

  Example:
    >>> from glora_jax.models import weights
    >>> model, params, metadata = weights.load(weights.EMBEDDED_FILE)
    >>> model.width, model.depth, metadata['image_size']
    (96, 6, 28)
  """
  known = {field.name for field in dataclasses.fields(ViT)} - {'parent', 'name'}
  if wrong := sorted(fields.keys() - known):
    raise ValueError(
      f'{", ".join(wrong)}: the ViT has no such field; it has {", ".join(sorted(known))}.'
    )
  check_vit_fields(fields)
  check_facts({'image_size': image_size, 'normalization': normalization})
  taken(key, 'key', Text | None)
  tensors = open_tensors(locate(hub.local(path)), key)
  if OURS not in tensors.metadata:
    return _load_foreign(tensors, image_size, normalization, fields)
  if image_size is not None:
    raise ValueError(
      f'{tensors.path} knows its image_size itself; weights.refit resizes the model for another.'
    )
  model, params, metadata = read_own(tensors)
  if normalization is not None and metadata.get('normalization') is None:
    metadata['normalization'] = normalization
  if given := {name: value for name, value in fields.items() if value is not None}:
    stated = describe(model)
    model = model.clone(**given)
    expected = expected_params(model, metadata['image_size'])
    require_shapes(
      tensors.path,
      {name: spec.shape for name, spec in tensors.specs.items()},
      {name: spec.shape for name, spec in expected.items()},
    )
    check_agreement(tensors.path, stated, given)
  return Checkpoint(model, params, metadata)


def _load_foreign(
  tensors: Tensors,
  image_size: int | tuple[int, int] | None,
  normalization: Normalization | None,
  fields: Mapping[str, Any],
) -> Checkpoint:
  format, prefix, plain = _recognize(tensors)
  hints = read_hints(tensors.path, format)
  reading = _read_shape(plain, format)
  check_agreement(f'{tensors.path} or its config.json', hints, {'image_size': image_size})
  model = _build(tensors.path, format, reading.fields, hints, fields)
  size, class_pos = find_grid(
    tensors.path, model, reading.tokens, image_size, hints.get('image_size')
  )
  variant = dataclasses.replace(reading.variant, class_pos=class_pos)
  expected = expected_params(model, size)
  params, unused = read_params(plain, format, model, variant, expected)
  metadata = {
    'image_size': shortest(*size),
    'normalization': hints.get('normalization')
    or normalization
    or assumed_normalization(tensors.container, model),
  }
  if not (hints.get('normalization') or normalization or tensors.container == 'npz'):
    log.warning(
      "%s does not say how images were normalized; '%s' is assumed. "
      'If that is wrong, give model.normalization, or a command --normalization.',
      tensors.path,
      metadata['normalization'],
    )
  classes = list(hints.get('classes', ()))
  if len(classes) == model.num_classes > 0:
    metadata['classes'] = classes
  elif classes and model.num_classes:
    log.warning(
      '%s: the config.json beside it names %d classes, and its head has %d outputs; the names are '
      'left aside.',
      tensors.path,
      len(classes),
      model.num_classes,
    )
  metadata |= {name: hints[name] for name in ('resize', 'crop') if name in hints}
  metadata['source'] = Origin(
    format=format.nearest(variant).name,
    container=tensors.container,
    variant=variant,
    prefix=prefix,
    wrapper=tensors.wrapper,
    unused=unused,
  )
  return Checkpoint(model, params, metadata)


def _recognize(tensors: Tensors) -> tuple[Format[Any], str, PlainNames]:
  """The one model in a file: its format, its prefix, and its tensors."""
  if other := explain(tensors.specs):
    raise ValueError(f'{tensors.path} is no plain ViT. {other}')
  found = detect(tensors.specs)
  if not found:
    raise ValueError(
      f'{tensors.path} holds no ViT of a known format, but {grouped(tensors.specs)}. '
      f'The formats are {OURS}, {", ".join(FORMATS)}.'
    )
  if len(found) > 1:
    prefixes = ', '.join(prefix or 'no prefix' for _, prefix in found)
    raise ValueError(
      f'{tensors.path} holds several models, below {prefixes}; save one of them to a file of its '
      'own.'
    )
  ((format, prefix),) = found
  in_file = {}
  strangers = []
  for name in tensors.specs:
    if re.match(format.unprefixed, name):
      in_file[name] = name
    elif name.startswith(prefix):
      in_file[name.removeprefix(prefix)] = name
    else:
      strangers.append(name)
  strangers.sort()
  if strangers and format.tolerates_strangers:
    log.warning('%s: left aside: %s.', tensors.path, grouped(strangers))
  else:  # they will be named as unexpected, or are known to be of no use
    in_file.update(zip(strangers, strangers, strict=True))
  return format, prefix, PlainNames(tensors, in_file)


def _read_shape(tensors: PlainNames, format: Format[Any]) -> Reading:
  """What the format reads off the shapes; every failure is a sentence with the file's path."""
  shapes = {name: spec.shape for name, spec in tensors.specs.items()}
  beginning = f'{tensors.path} looks like a {format.name} checkpoint, but'
  try:
    if empty := [name for name, shape in shapes.items() if 0 in shape]:
      raise ValueError(f'{grouped(empty)} hold nothing.')
    reading = format.read_shape(shapes)
    if reading.fields['depth'] > len(shapes):
      last = reading.fields['depth'] - 1
      raise ValueError(f'block {last} is named, and there are only {len(shapes)} tensors.')
  except KeyError as error:
    raise ValueError(
      f'{beginning} the tensor {error.args[0]}, which tells its shape, is missing. '
      f'It has: {grouped(shapes)}.'
    ) from error
  except ValueError as error:
    raise ValueError(f'{beginning} {error}') from error
  except IndexError as error:
    raise ValueError(f'{beginning} a tensor that tells the shape has too few sides.') from error
  return reading


def _build(
  path: str,
  format: Format[Any],
  read: Mapping[str, Any],
  hints: Mapping[str, Any],
  fields: Mapping[str, Any],
) -> ViT:
  """The model: what the file says, then `config.json`, and the caller where both say nothing."""
  hinted = {name: hints[name] for name in format.config_fields if name in hints}
  # Shapes tell whether there is a LayerScale, and not what it began with.
  assumed = {*format.config_fields, 'layer_scale'}
  stated = {name: value for name, value in read.items() if name not in assumed} | hinted
  check_agreement(f'{path} or its config.json', stated, fields)
  given = {name: value for name, value in fields.items() if value is not None}
  model = ViT(**{**read, **hinted, **given})
  if model.num_heads is None:
    raise ValueError(
      f'{path} does not say how many heads a width of {model.width} is split into; give num_heads.'
    )
  if 'num_heads' in format.config_fields - hinted.keys() - given.keys():
    log.info(
      '%s does not say how many heads there are; %d are assumed, as in the published models of '
      'width %d.',
      path,
      model.num_heads,
      model.width,
    )
  return model


def assumed_normalization(container: Container, model: ViT) -> str:
  """The normalization of images for a file that does not tell it."""
  if container == 'npz':
    return 'inception'  # vision_transformer and big_vision know no other
  if model.pre_norm:
    return 'clip'
  if model.layer_scale is not None or container == 'torch':
    # DeiT, DINO, MAE and their like are published as PyTorch files, and trained with ImageNet's
    # statistics; so are models with LayerScale.
    return 'imagenet'
  return 'inception'


def read_own(tensors: Tensors) -> tuple[ViT, dict[str, Any], Metadata]:
  """Reads a file that `save` wrote in this project's own format.

  Args:
    tensors: the opened file, in whose metadata the key 'glora_jax' stands.

  Returns:
    (model, nested parameters, metadata).

  Raises:
    ValueError: the file is of another kind, says what cannot be, or its tensors are not those of
      its model.
  """
  refusal = f'{tensors.path} is no vit file that glora_jax wrote.'
  try:
    metadata = json.loads(tensors.metadata[OURS])
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise ValueError(refusal) from error
  metadata = check_metadata(tensors.path, metadata, KIND)
  try:
    model = ViT(**metadata.pop('model'))
    expected = expected_params(model, metadata['image_size'])
  except (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
  ) as error:
    raise ValueError(refusal) from error
  try:
    check_metadata_of(metadata, model.num_classes)
  except ValueError as error:
    raise ValueError(f'{tensors.path}: {error}') from error
  require_floats(tensors.path, tensors.specs)
  require_shapes(
    tensors.path,
    {name: spec.shape for name, spec in tensors.specs.items()},
    {name: spec.shape for name, spec in expected.items()},
  )
  params = {}
  for name in expected:
    if name.startswith(BLOCKS):
      blocks = (finite(tensors.path, name, block) for block in tensors.blocks(name))
      params[name] = stack(*tensors.specs[name], blocks)
    else:
      params[name] = read_finite(tensors, name)
  return model, flax.traverse_util.unflatten_dict(params, sep='/'), metadata


def inspection(checkpoint: Checkpoint) -> str:
  """A page about a checkpoint.

  It says what the file was read as, the fields of the model, and a line for each parameter.
  """
  model, params, metadata = checkpoint
  origin = metadata.get('source')
  facts = {
    'format': f'{origin.format} ({origin.container})' if origin else OURS,
    **(dataclasses.asdict(origin.variant) if origin else {}),
    'image_size': metadata['image_size'],
    'normalization': metadata.get('normalization'),
  }
  flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep='/')
  rows = [('parameter', 'shape', 'type', 'numbers')]
  for name, value in flat.items():
    shape = ' x '.join(map(str, value.shape))
    rows.append((name, shape, value.dtype.name, f'{value.size:,}'))
  rows.append(('all', '', '', f'{sum(value.size for value in flat.values()):,}'))
  lines = [
    *(f'{name:14} {value}' for name, value in (facts | describe(model)).items()),
    '',
    *(f'{name:26} {shape:>24} {dtype:>9} {numbers:>13}' for name, shape, dtype, numbers in rows),
    '',
    f'{sum(value.nbytes for value in flat.values()) / 2**20:.1f} MiB',
  ]
  return '\n'.join(lines)
