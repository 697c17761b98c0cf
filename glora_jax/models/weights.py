"""Checkpoints of the ViT: reading other people's, fitting them to a task, writing them back."""

from __future__ import annotations

import dataclasses
import hashlib
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

from glora_jax.files import Path, write_json
from glora_jax.models import containers, folders, formats, translate
from glora_jax.models.formats import FORMATS
from glora_jax.models.resize import resize_patch_embed, resize_pos_embed
from glora_jax.models.translate import Source
from glora_jax.models.vit import ViT, describe

log = logging.getLogger(__name__)

EMBEDDED = 'embedded'  # the name that configs give to the backbone in the package
EMBEDDED_FILE = os.path.join(os.path.dirname(__file__), 'fashion_mnist_vit.safetensors')
OURS = 'glora_jax'  # the name of this project's own format


def load(path: Path, *, image_size: int | tuple[int, int] | None = None, **fields: Any) -> tuple[ViT, dict[str, Any], dict[str, Any]]:
  """Reads a checkpoint of any known format, which is told by its contents; the model's shape is read off the file.

  A `config.json` beside the file is used for what tensors cannot say: the number of heads (npz files know it; without either,
  64 numbers a head as in all published models up to L), the LayerNorm epsilon, the activation, normalization and class names.

  Args:
    path: of a file, or of a folder with one.
    image_size: that the position embedding was made for, (height, width) where its grid is not square.
    **fields: of the ViT, which override what file and `config.json` say; `num_heads=8` for instance.

  Returns:
    (model, params as nested numpy arrays, metadata). Metadata has 'image_size', 'normalization' (None if nobody says) and
    'classes' (if known), and for foreign files 'source', which `save` takes.

  Raises:
    FileNotFoundError: no such file.
    ImportError: a PyTorch file without PyTorch.
    ValueError: the file is damaged, hostile, of another architecture, or its tensors are not those of its model: every one that
      is missing, unexpected, misshaped or not finite is named.
  """
  tensors = containers.open_tensors(folders.locate(path))
  if OURS in tensors.metadata:
    return _load_ours(tensors, fields)
  hints = folders.read_hints(tensors.path)
  found = formats.detect(tensors.specs)
  if other := formats.explain(tensors.specs):
    raise ValueError(f'{tensors.path} is no plain ViT. {other}')
  if found is None:
    raise ValueError(f'{tensors.path} holds no ViT of a known format, but {formats.grouped(tensors.specs)}. '
                     f'The formats are {OURS}, {", ".join(FORMATS)}.')
  format, prefix = found
  outside = re.compile(format.outside)
  specs = {name.removeprefix(prefix): spec for name, spec in tensors.specs.items() if name.startswith(prefix) or outside.match(name)}
  stray = [name for name in tensors.specs if name.removeprefix(prefix) not in specs]
  if stray and format.container == 'npz':  # optimizer state and the like stand beside the parameters
    stray = []
  model, size, variant = _shape(tensors, format, specs, hints, fields, image_size)
  format = _named(format, variant)
  unused = [name for name in specs if re.match(format.unused, name)]
  expected = expected_params(model, size)
  params = translate.read_params(tensors, format, model, variant, expected, {n: s for n, s in specs.items() if n not in unused}, stray,
                 lambda name: name if outside.match(name) else prefix + name)
  metadata = {'image_size': size[0] if size[0] == size[1] else list(size), 'normalization': _normalization(format, model, hints)}
  if len(hints.get('classes', ())) == model.num_classes > 0:
    metadata['classes'] = hints['classes']
  kept = {name: tensors.read(prefix + name) for name in unused}
  metadata['source'] = Source(format.name, tensors.container, prefix, tensors.wrapper, variant, kept)
  return model, params, metadata


def expected_params(model: ViT, image_size: int | Iterable[int]) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of the model's parameters for images of a size, 'path/of/parameter' -> shape and type."""
  sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
  images = jax.ShapeDtypeStruct((1, *sides, 3), np.float32)
  variables = jax.eval_shape(lambda images: model.init(jax.random.key(0), images), images)  # a concrete key would start a device
  return flax.traverse_util.flatten_dict(variables['params'], sep='/')


def _load_ours(tensors, fields):
  try:
    metadata = json.loads(tensors.metadata[OURS])
    if metadata.pop('kind', None) != 'vit':
      raise ValueError
    model = ViT(**{**metadata.pop('model'), **fields})
    expected = expected_params(model, metadata['image_size'])
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'{tensors.path} is no vit file that glora_jax wrote.') from error
  translate.require(tensors, {name: spec.shape for name, spec in tensors.specs.items()}, {name: e.shape for name, e in expected.items()})
  params = {
      name: translate.stack(tensors.specs[name].shape, tensors.specs[name].dtype, translate.read_blocks(tensors, name))
      if name.startswith('blocks/') else translate.finite(tensors.path, name, tensors.read(name)) for name in expected}
  return model, flax.traverse_util.unflatten_dict(params, sep='/'), metadata


def _shape(tensors, format, specs, hints, fields, image_size):
  """(model, (height, width), variant) of a foreign file."""
  try:
    read, variant = format.read_shape({name: spec.shape for name, spec in specs.items()})
  except (KeyError, IndexError) as error:
    raise ValueError(f'{tensors.path} looks like a {format.name} checkpoint, but the tensor {error.args[0]}, which tells its shape, is '
                     f'missing or odd. It has: {formats.grouped(specs)}.') from error
  except ValueError as error:
    raise ValueError(f'{tensors.path}: {error}') from error
  known = {f.name for f in dataclasses.fields(ViT)}
  if wrong := sorted(fields.keys() - known):
    raise ValueError(f'{", ".join(wrong)}: the ViT has no such field.')
  said = {name: value for name, value in {**hints, **fields}.items() if name in known and value is not None}
  read.update({name: said[name] for name in said if name not in ('width', 'depth', 'mlp_dim', 'num_classes', 'layer_scale', 'patch_size')})
  if read['num_heads'] is None:
    raise ValueError(f'{tensors.path} does not say how many heads a width of {read["width"]} is split into; give num_heads.')
  model = ViT(**{**read, **{name: value for name, value in fields.items() if name in ('drop_path', 'remat', 'dtype')}})
  size, class_pos = _grid(tensors, model, variant.pop('tokens'), image_size or hints.get('image_size'))
  return model, size, {**variant, 'class_pos': class_pos}


def _grid(tensors, model, tokens, image_size):
  """((height, width), whether the class token has a position) from the number of position embeddings."""
  patch = model.patch_size
  if image_size is None:
    if tokens is None:  # computed ones fit any grid; 224 is what they were published for
      return (224 // patch * patch,) * 2, False
    for extra in (1, 0) if model.class_token else (0,):
      side = math.isqrt(max(tokens - extra, 0))
      if side * side + extra == tokens and side:
        return (side * patch, side * patch), bool(extra)
    raise ValueError(f'{tensors.path}: {tokens} position embeddings fit no square grid '
                     f'{"with or without" if model.class_token else "without"} a class token; give the image_size they are for.')
  height, width = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
  patches = (height // patch) * (width // patch)
  if tokens is None:
    return (height, width), False
  if tokens - patches not in ((0, 1) if model.class_token else (0,)):
    raise ValueError(f'{tensors.path} has {tokens} position embeddings; images of {height} x {width} in patches of {patch} have {patches} '
                     f'patches{" and perhaps a class token" if model.class_token else " and no class token"}. Check image_size.')
  return (height, width), tokens > patches


def _named(format, variant):
  """The format whose own variant comes nearest: the three npz layouts are told apart here."""
  family = [other for other in FORMATS.values() if other.rules is format.rules]
  agree = lambda other: sum(variant.get(name) == value for name, value in other.variant.items())
  return max(family, key=agree)


def _normalization(format, model, hints):
  if 'normalization' in hints:
    return hints['normalization']
  if format.container == 'npz':
    return 'inception'
  guess = 'imagenet' if model.layer_scale is not None else 'clip' if model.pre_norm else 'inception'
  log.warning("The checkpoint does not say how images were normalized; '%s' is assumed. Set model.normalization if that is wrong.", guess)
  return guess


def refit(
    model: ViT, params: Mapping[str, Any], metadata: Mapping[str, Any], *,
    num_classes: int | None = None, image_size: int | tuple[int, int] | None = None, patch_size: int | None = None,
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
  patch = patch_size or model.patch_size
  sides = lambda size: (size, size) if isinstance(size, int) else tuple(size)
  old, new = sides(metadata['image_size']), sides(image_size or metadata['image_size'])
  if any(side % patch or not side for side in new):
    raise ValueError(f'image_size={image_size or metadata["image_size"]} is not a multiple of the patch size {patch}.')
  source = metadata.get('source')
  if patch != model.patch_size:
    params['embed'] = {**params['embed'], 'kernel': resize_patch_embed(params['embed']['kernel'], patch)}
  grids = tuple(side // model.patch_size for side in old), tuple(side // patch for side in new)
  if grids[0] != grids[1]:
    fixed = source is not None and source.format.startswith('big_vision') and source.variant.get('position') is None
    if fixed:
      params['pos_embed'] = formats.sincos_2d((1, math.prod(grids[1]) + model.class_token, model.width), model.class_token)
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
      params['head'] = {'kernel': np.zeros((width, num_classes), np.float32), 'bias': np.zeros(num_classes, np.float32)}
  return model, params, metadata


def save(path: Path, model: ViT, params: Any, metadata: Mapping[str, Any], format: str | Source | None = None) -> None:
  """Writes a checkpoint.

  Args:
    path: of a file (ending in .safetensors, .npz, .pth, .pt or .bin), or else of a folder, which then holds the file and the
      `config.json` with which transformers, timm and `load` know all about it.
    model, params: what is written.
    metadata: 'image_size', and 'normalization' and 'classes' where they are known; in this project's own format any JSON types.
    format: name in `formats.FORMATS` or 'glora_jax'; a `Source` writes back what `load` read, key by key; None is 'glora_jax'.

  Raises:
    ValueError: the format is unknown, or has no room for the model.
    ImportError: a PyTorch file without PyTorch.
  """
  path, flat = os.fspath(path), flax.traverse_util.flatten_dict(nn.meta.unbox(params), sep='/')
  flat = {name: np.asarray(value) for name, value in flat.items()}
  metadata = {name: value for name, value in metadata.items() if name != 'source'}
  as_file = path.endswith(folders.EXTENSIONS)
  if format in (None, OURS):
    described = json.dumps({'kind': 'vit', 'model': describe(model), **metadata})
    os.makedirs(os.path.dirname(path) if as_file else path or '.', exist_ok=True) if os.path.dirname(path) or not as_file else None
    file = path if as_file else os.path.join(path, 'model.safetensors')
    return containers.write_safetensors(file, flat, {OURS: described})
  source = _as_source(format)
  model, tensors = translate.to_tensors(model, flat, source)
  names = {'npz': 'model.npz', 'safetensors': 'model.safetensors', 'torch': 'model.pth'}
  if as_file:
    container = {'.npz': 'npz', '.safetensors': 'safetensors'}.get(os.path.splitext(path)[1], 'torch')
    return _write(path, tensors, container, source)
  os.makedirs(path, exist_ok=True)
  _write(os.path.join(path, names[source.container]), tensors, source.container, source)
  write_json(os.path.join(path, 'config.json'),
             folders.config_for(source.format, model, {**metadata, 'class_pos': source.variant.get('class_pos', True)}))
  if source.format.startswith('hf_') and (preprocessor := folders.preprocessor_for(metadata)):
    write_json(os.path.join(path, 'preprocessor_config.json'), preprocessor)


def _as_source(format):
  if isinstance(format, Source):
    return format
  if format not in FORMATS:
    raise ValueError(f"The format '{format}' is unknown; the formats are {OURS}, {', '.join(FORMATS)}.")
  return Source(format, FORMATS[format].container, variant=FORMATS[format].variant)


def _write(path, tensors, container, source):
  if container == 'npz':
    containers.write_npz(path, tensors)
  elif container == 'safetensors':
    containers.write_safetensors(path, tensors, {'format': 'pt'} if source.container != 'npz' else {})
  else:
    containers.write_torch(path, tensors, source.wrapper)


def fingerprint(params: Any) -> str:
  """SHA-256 over names, shapes, types and contents of all tensors."""
  digest = hashlib.sha256()
  for name, value in sorted(flax.traverse_util.flatten_dict(params, sep='/').items()):
    value = np.asarray(nn.meta.unbox(value), order='C')
    digest.update(f'{name}:{value.shape}:{value.dtype};'.encode())
    digest.update(value.tobytes())
  return digest.hexdigest()
