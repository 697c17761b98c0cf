"""Checkpoints of the ViT: reading other people's, fitting them to a task, writing them back."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import numpy as np

from glora_jax.data.normalization import Normalization
from glora_jax.files import Path, write_json, write_safetensors, write_tensors
from glora_jax.models import config_json, containers, formats, translate
from glora_jax.models.formats import FORMATS
from glora_jax.models.resize import resize_patch_embed, resize_pos_embed
from glora_jax.models.translate import Source
from glora_jax.models.vit import ViT, describe

log = logging.getLogger(__name__)

EMBEDDED = 'embedded'  # the name that configs give to the backbone in the package
EMBEDDED_FILE = os.path.join(os.path.dirname(__file__), 'fashion_mnist_vit.safetensors')
OURS = 'glora_jax'  # the name of this project's own format


def load(
  path: Path,
  *,
  image_size: int | tuple[int, int] | None = None,
  normalization: Normalization | None = None,
  **fields: Any,
) -> tuple[ViT, dict[str, Any], dict[str, Any]]:
  """Reads a checkpoint of any known format, which is told by its contents; the model's shape is read off the file.

  A `config.json` of the same code base beside the file is used for what tensors cannot say: the number of heads (npz files know it;
  without either, that of the published model of the same width), the LayerNorm epsilon, the activation, normalization, class names.

  Args:
    path: of a file, or of a folder with one.
    image_size: that the position embedding was made for, (height, width) where its grid is not square; `refit` is for another.
    normalization: of the images it was trained on, where nothing else says.
    **fields: of the ViT, which override what file and `config.json` say; `num_heads=8` for instance.

  Returns:
    (model, params as nested numpy arrays, metadata). Metadata has 'image_size', 'normalization' and, if they are known, 'classes'
    and 'resize', the rule of `data.image.resize`; for foreign files 'source', which `save` takes.

  Raises:
    FileNotFoundError: no such file.
    ImportError: a PyTorch file without PyTorch.
    ValueError: the file is damaged, hostile, of another architecture, or its tensors are not those of its model: every one that
      is missing, unexpected or misshaped is named; or a field cannot be.
  """
  check_fields(fields)
  tensors = containers.open_tensors(config_json.locate(path))
  if OURS in tensors.metadata:
    if image_size is not None:
      raise ValueError(
        f'{tensors.path} knows its image_size itself; weights.refit resizes the model for another.'
      )
    return _load_ours(tensors, fields)
  format, names, prefix = _recognize(tensors)
  hints = config_json.read_hints(tensors.path, format.name)
  read, variant = _read_shape(tensors, format, names)
  model = _build(tensors, format, read, hints, fields)
  size, class_pos = _grid(tensors, model, variant.pop('tokens'), image_size, hints)
  variant, format = {**variant, 'class_pos': class_pos}, _named(format, variant)
  params, unused = translate.read_params(
    tensors, format, model, variant, names, expected_params(model, size)
  )
  metadata = {
    'image_size': size[0] if size[0] == size[1] else list(size),
    'normalization': hints.get('normalization')
    or normalization
    or _assumed_normalization(tensors, model),
  }
  if len(hints.get('classes', ())) == model.num_classes > 0:
    metadata['classes'] = list(hints['classes'])
  if 'resize' in hints:
    metadata['resize'] = hints['resize']
  metadata['source'] = Source(
    format.name, tensors.container, prefix, tensors.wrapper, variant, unused
  )
  return model, params, metadata


def check_fields(fields: Mapping[str, Any]) -> None:
  """Raises ValueError for a name that is no field of the ViT, or a number of heads that cannot be."""
  known = {field.name for field in dataclasses.fields(ViT)} - {'parent', 'name'}
  if wrong := sorted(fields.keys() - known):
    raise ValueError(
      f'{", ".join(wrong)}: the ViT has no such field; it has {", ".join(sorted(known))}.'
    )
  if (heads := fields.get('num_heads')) is not None and (not isinstance(heads, int) or heads < 1):
    raise ValueError(f'num_heads={heads} must be a whole number above 0.')


def expected_params(model: ViT, image_size: int | Iterable[int]) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of the model's parameters for images of a size, 'path/of/parameter' -> shape and type."""
  sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
  images = jax.ShapeDtypeStruct((1, *sides, 3), np.float32)
  variables = jax.eval_shape(
    lambda images: model.init(jax.random.key(0), images), images
  )  # a concrete key would start a device
  return flax.traverse_util.flatten_dict(variables['params'], sep='/')


def _load_ours(tensors, fields):
  try:
    metadata = json.loads(tensors.metadata[OURS])
    if metadata.pop('kind', None) != 'vit':
      raise ValueError
    saved = ViT(**metadata.pop('model'))
    expected = expected_params(saved, metadata['image_size'])
  except (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
  ) as error:
    raise ValueError(f'{tensors.path} is no vit file that glora_jax wrote.') from error
  translate.require(
    tensors,
    {name: spec.shape for name, spec in tensors.specs.items()},
    {name: e.shape for name, e in expected.items()},
  )
  params = {
    name: translate.stack(
      tensors.specs[name].shape, tensors.specs[name].dtype, translate.read_blocks(tensors, name)
    )
    if name.startswith('blocks/')
    else translate.finite(tensors.path, name, tensors.read(name))
    for name in expected
  }
  return saved.clone(**fields), flax.traverse_util.unflatten_dict(params, sep='/'), metadata


def _recognize(tensors):
  """(format, name without the prefix -> name in the file, prefix)."""
  if other := formats.explain(tensors.specs):
    raise ValueError(f'{tensors.path} is no plain ViT. {other}')
  found = formats.detect(tensors.specs)
  if not found:
    raise ValueError(
      f'{tensors.path} holds no ViT of a known format, but {formats.grouped(tensors.specs)}. '
      f'The formats are {OURS}, {", ".join(FORMATS)}.'
    )
  if len(found) > 1:
    raise ValueError(
      f'{tensors.path} holds several models, below {", ".join(prefix or "no prefix" for _, prefix in found)}; save one of '
      'them to a file of its own.'
    )
  ((format, prefix),) = found
  outside = re.compile(format.outside)
  names = {
    (name if outside.match(name) else name.removeprefix(prefix)): name
    for name in tensors.specs
    if name.startswith(prefix) or outside.match(name)
  }
  strays = sorted(tensors.specs.keys() - set(names.values()))
  if strays and format.container == 'npz':  # what a training state holds beside the parameters
    log.warning('%s: left aside: %s.', tensors.path, formats.grouped(strays))
  else:
    names.update(zip(strays, strays, strict=True))
  return format, names, prefix


def _read_shape(tensors, format, names):
  """(fields of the ViT, variant) as the format reads them off shapes."""
  shapes = {short: tensors.specs[name].shape for short, name in names.items()}
  try:
    if empty := [name for name, shape in shapes.items() if 0 in shape]:
      raise ValueError(f'{formats.grouped(empty)} hold nothing.')
    read, variant = format.read_shape(shapes)
    if read['depth'] > len(shapes):
      raise ValueError(
        f'block {read["depth"] - 1} is named, and there are only {len(shapes)} tensors.'
      )
    return read, variant
  except KeyError as error:
    raise ValueError(
      f'{tensors.path} looks like a {format.name} checkpoint, but the tensor {error.args[0]}, which tells its shape, is '
      f'missing. It has: {formats.grouped(shapes)}.'
    ) from error
  except (ValueError, IndexError) as error:
    what = (
      error if isinstance(error, ValueError) else 'a tensor that tells the shape has too few sides.'
    )
    raise ValueError(f'{tensors.path} looks like a {format.name} checkpoint, but {what}') from error


def _build(tensors, format, read, hints, fields):
  """The model: what the file says, then `config.json`, then the caller."""
  open_to_hints = (
    {'num_heads', 'norm_eps', 'activation'}
    if format.container != 'npz'
    else {'norm_eps', 'activation'}
  )
  if format.name == 'timm':
    open_to_hints.add('pool')
  said = {name: hints[name] for name in open_to_hints if name in hints}
  given = {name: value for name, value in fields.items() if value is not None}
  model = ViT(**{**read, **said, **given})
  if model.num_heads is None:
    raise ValueError(
      f'{tensors.path} does not say how many heads a width of {model.width} is split into; give num_heads.'
    )
  if format.container != 'npz' and 'num_heads' not in said and 'num_heads' not in given:
    log.info(
      '%s does not say how many heads there are; %d are assumed, as in the published models of width %d.',
      tensors.path,
      model.num_heads,
      model.width,
    )
  return model


def _grid(tensors, model, tokens, image_size, hints):
  """((height, width), whether the class token has a position) from the number of position embeddings."""
  patch, told = model.patch_size, image_size or hints.get('image_size')
  if told is None:
    if tokens is None:  # computed ones fit any grid; 224 is what they were published for
      return (224 // patch * patch,) * 2, False
    for extra in (1, 0) if model.class_token else (0,):
      side = math.isqrt(max(tokens - extra, 0))
      if side * side + extra == tokens and side:
        return (side * patch, side * patch), bool(extra)
    raise ValueError(
      f'{tensors.path}: {tokens} position embeddings fit no square grid '
      f'{"with or without" if model.class_token else "without"} a class token; give the image_size they are for.'
    )
  height, width = (told, told) if isinstance(told, int) else tuple(told)
  patches = (height // patch) * (width // patch)
  if tokens is None:
    if height != width:
      raise ValueError(
        f'{tensors.path} has computed positions, which are supported for square images; image_size is {height} x {width}.'
      )
    return (height, width), False
  if tokens - patches not in ((0, 1) if model.class_token else (0,)):
    raise ValueError(
      f'{tensors.path} has {tokens} position embeddings; images of {height} x {width} in patches of {patch} have {patches} '
      f'patches{" and perhaps a class token" if model.class_token else " and no class token"}. Check '
      f'{"image_size" if image_size else "image_size in the config.json beside it"}.'
    )
  return (height, width), tokens > patches


def _named(format, variant):
  """The format whose own variant comes nearest: the three npz layouts are told apart here."""
  family = [other for other in FORMATS.values() if other.rules is format.rules]
  agree = lambda other: sum(variant.get(name) == value for name, value in other.variant.items())
  return max(family, key=agree)


def _assumed_normalization(tensors, model):
  if tensors.container == 'npz':
    return 'inception'  # vision_transformer and big_vision know no other
  # DeiT, DINO, MAE and their like are published as PyTorch files, and trained with ImageNet's statistics; so are models with LayerScale.
  guess = (
    'clip'
    if model.pre_norm
    else 'imagenet'
    if model.layer_scale is not None or tensors.container == 'torch'
    else 'inception'
  )
  log.warning(
    "%s does not say how images were normalized; '%s' is assumed. Set model.normalization if that is wrong.",
    tensors.path,
    guess,
  )
  return guess


def refit(
  model: ViT,
  params: Mapping[str, Any],
  metadata: Mapping[str, Any],
  *,
  num_classes: int | None = None,
  image_size: int | tuple[int, int] | None = None,
  patch_size: int | None = None,
) -> tuple[ViT, dict[str, Any], dict[str, Any]]:
  """A pretrained model for another task: position and patch embedding resized, a new head of zeros.

  Args:
    model, params, metadata: what `load` returned.
    num_classes: of the new head, which takes the place of the old one and of its pre-logits; None keeps the head.
    image_size: to resize the position embedding for, in the way of the checkpoint's own code base (`resize_pos_embed`).
    patch_size: to resize the patch embedding to (`resize_patch_embed`); the position embedding follows.

  Raises:
    ValueError: an image size that is no multiple of the patch size.
  """
  params, metadata = dict(params), dict(metadata)
  patch = model.patch_size if patch_size is None else patch_size
  sides = lambda size: (size, size) if isinstance(size, int) else tuple(size)
  old, new = (
    sides(metadata['image_size']),
    sides(metadata['image_size'] if image_size is None else image_size),
  )
  if patch < 1 or any(side % patch or side < 1 for side in new):
    raise ValueError(
      f'image_size={image_size or metadata["image_size"]} is not a multiple of the patch size {patch}.'
    )
  source = metadata.get('source')
  if patch != model.patch_size:
    params['embed'] = {
      **params['embed'],
      'kernel': resize_patch_embed(params['embed']['kernel'], patch),
    }
  grids = tuple(side // model.patch_size for side in old), tuple(side // patch for side in new)
  if grids[0] != grids[1]:
    fixed = (
      source is not None
      and source.format.startswith('big_vision')
      and source.variant.get('position') is None
    )
    if fixed:
      params['pos_embed'] = formats.sincos_2d(
        (1, math.prod(grids[1]) + model.class_token, model.width), model.class_token
      )
    else:
      interpolation = FORMATS[source.format].interpolation if source else 'bicubic_antialias'
      params['pos_embed'] = resize_pos_embed(params['pos_embed'], *grids, interpolation)
  model = model.clone(patch_size=patch)
  metadata['image_size'] = new[0] if new[0] == new[1] else list(new)
  if num_classes is not None:
    params.pop('pre_logits', None)
    params.pop('head', None)
    metadata.pop('classes', None)
    model = model.clone(num_classes=num_classes, pre_logits=None)
    if num_classes:
      width = model.width * (2 if model.pool == 'token+gap' else 1)
      params['head'] = {
        'kernel': np.zeros((width, num_classes), np.float32),
        'bias': np.zeros(num_classes, np.float32),
      }
  return model, params, metadata


def save(
  path: Path,
  model: ViT,
  params: Any,
  metadata: Mapping[str, Any],
  format: str | Source | None = None,
) -> None:
  """Writes a checkpoint.

  Args:
    path: of a file (ending in .safetensors, .npz, .pth, .pt or .bin), or else of a folder, which then holds the file and the
      `config.json` with which transformers, timm and `load` know all about it. A file alone leaves out what tensors cannot say; what
      that is, is logged.
    model, params: what is written.
    metadata: 'image_size', and 'normalization', 'resize' and 'classes' where they are known; in this project's own format any JSON types.
    format: name in `formats.FORMATS` or 'glora_jax'; a `Source` writes back what `load` read, key by key; None is 'glora_jax'.

  Raises:
    ValueError: the format is unknown, or has no room for the model; the folder holds another checkpoint already.
    OSError: it cannot be written there.
    ImportError: a PyTorch file without PyTorch.
  """
  path = os.fspath(path)
  flat = {
    name: np.asarray(value)
    for name, value in flax.traverse_util.flatten_dict(nn.meta.unbox(params), sep='/').items()
  }
  metadata = {name: value for name, value in metadata.items() if name != 'source'}
  own, as_file = format in (None, OURS), path.endswith(config_json.EXTENSIONS)
  source = None if own else _as_source(format, model, flat)
  container = 'safetensors' if own else source.container
  if as_file:
    container = {'.npz': 'npz', '.safetensors': 'safetensors'}.get(
      os.path.splitext(path)[1], 'torch'
    )
  if own and container != 'safetensors':
    raise ValueError(
      f'The format {OURS} is written as safetensors; {path} should end in .safetensors.'
    )
  if not own:
    model, tensors = translate.to_tensors(
      model, flat, source
    )  # before anything is written: it may refuse
  file = (
    path
    if as_file
    else os.path.join(
      path,
      {'npz': 'model.npz', 'safetensors': 'model.safetensors', 'torch': 'model.pth'}[container],
    )
  )
  os.makedirs(os.path.dirname(os.path.abspath(file)), exist_ok=True)
  if not as_file and (
    others := [
      name
      for name in os.listdir(path)
      if name.endswith(config_json.EXTENSIONS) and name != os.path.basename(file)
    ]
  ):
    raise ValueError(
      f'The folder {path} holds another checkpoint already ({", ".join(sorted(others))}); choose another folder.'
    )
  if own:
    return write_tensors(file, flat, 'vit', {'model': describe(model), **metadata})
  known = {
    **metadata,
    'class_pos': source.variant.get('class_pos', True),
    'mask_token': any('mask_token' in name for name in tensors),
  }
  config = config_json.config_for(source.format, model, known)
  if container == 'npz':
    containers.write_npz(file, tensors)
  elif container == 'safetensors':
    write_safetensors(file, tensors, {} if source.container == 'npz' else {'format': 'pt'})
  else:
    containers.write_torch(file, tensors, source.wrapper)
  if as_file:
    return _log_unsaid(file, model, source, tensors)
  write_json(os.path.join(path, 'config.json'), config)
  if source.format.startswith('hf_') and (preprocessor := config_json.preprocessor_for(metadata)):
    write_json(os.path.join(path, 'preprocessor_config.json'), preprocessor)


def _as_source(format, model, flat):
  if isinstance(format, Source):
    return format
  if format not in FORMATS:
    raise ValueError(
      f"The format '{format}' is unknown; the formats are {OURS}, {', '.join(FORMATS)}."
    )
  # DINOv2 in transformers has a token for masked patches, which only its pretraining uses.
  unused = (
    {'embeddings.mask_token': np.zeros((1, model.width), flat['norm/scale'].dtype)}
    if 'dinov2' in format
    else {}
  )
  return Source(format, FORMATS[format].container, variant=FORMATS[format].variant, unused=unused)


def _log_unsaid(file, model, source, tensors):
  """Says which fields a reader of the file alone will take for something else."""
  format = FORMATS[source.format]
  read, _ = format.read_shape(
    {name.removeprefix(source.prefix): value.shape for name, value in tensors.items()}
    | {
      name.removeprefix('dinov2.').removeprefix('vit.'): value.shape
      for name, value in tensors.items()
    }
  )
  open_fields = ('num_heads', 'pool', 'activation', 'norm_eps', 'norm_after_pool')
  unsaid = [
    f'{name}={getattr(model, name)} (without it: {read[name]})'
    for name in open_fields
    if name in read and read[name] != getattr(model, name)
  ]
  if unsaid:
    log.warning(
      '%s alone cannot say %s; a folder in its place has a config.json that does.',
      file,
      ', '.join(unsaid),
    )
