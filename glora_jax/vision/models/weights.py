"""Checkpoints of the ViT: `load` them in many formats, `refit` them to a task, `save` them."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import flax
import flax.linen as nn
import numpy as np

from glora_jax import files, hub
from glora_jax.checks import check_path, shown, validate
from glora_jax.files import Path, write_json, write_safetensors
from glora_jax.tree import grouped
from glora_jax.vision.data.normalization import Normalization
from glora_jax.vision.models.checkpoint import (
  HUB_FILES,
  INDEX_FILE,
  MODEL_FILE,
  Arrays,
  Container,
  OtherArchitecture,
  Tensors,
  checkpoints_in,
  hub_name,
  locate,
  read_checkpoint,
  require_no_other,
  require_tensors,
)
from glora_jax.vision.models.formats.format import Format, Reading, TorchFormat
from glora_jax.vision.models.formats.table import WRITTEN, recognize
from glora_jax.vision.models.metadata import (
  OURS,
  REMEMBERED,
  Metadata,
  check_agreement,
  check_facts,
  check_metadata_of,
  read_json,
  shortest,
)
from glora_jax.vision.models.resize import (
  check_patches,
  find_grid,
  resize_patch_embed,
  resize_pos_embed,
)
from glora_jax.vision.models.vit import ViT, describe, expected_params, sides

if TYPE_CHECKING:  # it needs PyTorch
  from glora_jax.vision.models.torch_backbone import TorchBackbone

log = logging.getLogger(__name__)

EMBEDDED = 'embedded'  # name of the package's backbone in configs
EMBEDDED_FILE = os.path.join(os.path.dirname(__file__), 'fashion_mnist_vit.safetensors')
EMBEDDED_TRANSFER = EMBEDDED_FILE.replace('.safetensors', '.transfer.json')  # see `search.transfer`
KIND = 'vit'  # among the kinds of files that `files.write_tensors` writes
# Endings of files that are not written; a folder with one would be unexpected.
_OF_OTHERS = (
  *('.npz', '.pth', '.pt', '.bin', '.onnx', '.h5', '.keras', '.msgpack', '.ckpt', '.pb', '.tflite'),
  *('.gguf', '.pkl'),
)


class Checkpoint(NamedTuple):
  """A model, its parameters and its metadata.

  Attributes:
    model: the ViT, or another backbone as a PyTorch module.
    params: nested dictionary of NumPy arrays.
    metadata: see `metadata.Metadata`.
  """

  model: ViT | TorchBackbone
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
  """Reads a checkpoint of any known format, which is found from its contents.

  The model's shape is read from the tensors. Other facts are read from a `config.json` of the same
  code base next to the file: the LayerNorm epsilon, the activation, normalization, class names, and
  the number of heads. Without it, the number of heads is assumed to be that of the published model
  of the same width; npz files contain it.

  Args:
    path: path of a file, or of a folder with one; or a name on the Hugging Face hub,
      `hf:owner/name` or `hf:owner/name@revision` (see `glora_jax.hub`).
    key: key of the state dict in a PyTorch file that holds several, 'model_ema' for instance.
    image_size: image size that the position embedding was made for, (height, width) if its grid is
      not square; use `refit` for another size.
    normalization: normalization of the images that the model was trained on, if the file does not
      have it.
    **fields: fields of the ViT that neither file nor `config.json` has, `num_heads=8` for instance.

  Returns:
    (model, params, metadata). Metadata has 'image_size', 'normalization' and, if they are known,
    'classes', 'resize' and 'crop'; for files of other code bases also 'source', for `save`.

  Raises:
    FileNotFoundError: the file does not exist, here or on the hub.
    ImportError: it is a PyTorch file, and PyTorch is not installed; or it is on the hub, and
      `huggingface_hub` is not.
    ValueError: the file is damaged, hostile or of another architecture; its tensors do not match
      its model (missing, unexpected and misshaped ones are named); or a field is invalid, or
      differs from the file's.

  Example:
    >>> from glora_jax.vision.models import weights
    >>> model, params, metadata = weights.load(weights.EMBEDDED_FILE)
    >>> model.width, model.depth, metadata['image_size']
    (96, 6, 28)
  """
  known = {field.name for field in dataclasses.fields(ViT)} - {'parent', 'name'}
  if wrong := sorted(fields.keys() - known):
    raise ValueError(
      f'The ViT has no field {", ".join(wrong)}; its fields are {", ".join(sorted(known))}.'
    )
  check_facts({**fields, 'image_size': image_size, 'normalization': normalization})
  fields = {name: value for name, value in fields.items() if value is not None}
  file = locate(hub.local(hub_name(path), HUB_FILES))
  tensors = read_checkpoint(file, validate(key, str | None, 'key'))
  if OURS not in tensors.metadata:
    try:
      return _load_foreign(tensors, image_size, normalization, fields)
    except OtherArchitecture as error:
      if image_size or fields or key:
        raise
      return _load_torch(file, error, normalization)
  model, params, metadata = _load_own(tensors, fields)
  check_agreement(tensors.path, metadata, {'image_size': image_size})
  if normalization is not None and metadata.get('normalization') is None:
    metadata['normalization'] = normalization
  return Checkpoint(model, params, metadata)


def _load_own(tensors: Tensors, fields: Mapping[str, Any]) -> Checkpoint:
  """The checkpoint that `save` wrote in the format of this project."""
  path, arrays = tensors.path, tensors.arrays
  metadata = files.check_metadata(path, tensors.metadata[OURS], KIND)
  try:
    model = ViT(**metadata.pop('model'))
    expected = expected_params(model, metadata['image_size'])
  except Exception as error:  # Flax and JAX raise errors of many kinds
    raise ValueError(f'{path} is not a glora_jax {KIND} file.') from error
  if fields:
    check_agreement(path, describe(model), fields)
    model = model.clone(**fields)
    expected = expected_params(model, metadata['image_size'])
  with _naming(path):
    check_metadata_of(metadata, model.num_classes)
  require_tensors(path, arrays, expected)
  return Checkpoint(model, flax.traverse_util.unflatten_dict(arrays, sep='/'), metadata)


def _load_foreign(
  tensors: Tensors,
  image_size: int | tuple[int, int] | None,
  normalization: Normalization | None,
  fields: Mapping[str, Any],
) -> Checkpoint:
  path, container = tensors.path, tensors.container
  format = recognize(path, list(tensors.arrays))
  arrays = _take_plain(tensors, format)
  hints = _read_hints(path, format)
  reading = _read_shape(path, arrays, format)
  check_agreement(f'{path} or its config.json', hints, {'image_size': image_size})
  model = _build(path, format, reading.fields, hints, fields)
  told = image_size or hints.get('image_size')
  size, class_pos = find_grid(path, model, reading.tokens, told)
  expected = expected_params(model, size)
  format = dataclasses.replace(reading.format, class_pos=class_pos)
  params, source = format.read_params(path, arrays, model, expected)
  normalization = hints.get('normalization') or normalization
  metadata: Metadata = {
    'image_size': shortest(*size),
    'normalization': normalization or _assumed_normalization(container, model),
  }
  if not normalization and container != 'npz':
    log.warning(
      "%s does not have the normalization of images; assuming '%s'. If that is wrong, set "
      'model.normalization, or pass --normalization.',
      path,
      metadata['normalization'],
    )
  classes = list(hints.get('classes', ()))
  if len(classes) == model.num_classes > 0:
    metadata['classes'] = classes
  elif classes and model.num_classes:
    log.warning(
      '%s: the config.json next to it names %d classes, but the head has %d outputs; ignoring the '
      'names.',
      path,
      len(classes),
      model.num_classes,
    )
  metadata |= {name: hints[name] for name in ('resize', 'crop') if name in hints}
  metadata['source'] = source
  return Checkpoint(model, params, metadata)


def _load_torch(
  file: str,
  reason: OtherArchitecture,
  normalization: Normalization | None,
) -> Checkpoint:
  """The module of timm or transformers for a checkpoint.

  Raises:
    OtherArchitecture: the `config.json` next to it is from neither, or PyTorch or the library is
      not installed.
  """
  folder, name = os.path.split(file)
  config = read_json(os.path.join(folder, 'config.json'))
  if not {'architecture', 'model_type'} & config.keys():
    raise reason
  if name not in (MODEL_FILE, INDEX_FILE) and len(checkpoints_in(folder)) > 1:
    raise OtherArchitecture(
      f'{file} is not a plain ViT, and timm or transformers might read another file in its folder; '
      'put it into a separate folder, with its config.json.'
    )
  try:
    from glora_jax.vision.models import torch_backbone

    checkpoint = Checkpoint(*torch_backbone.load(folder))
  except ImportError as error:
    raise OtherArchitecture(
      f"{reason} To run PyTorch's own module: pip install 'glora_jax[torch]' timm transformers "
      f'({error}).'
    ) from error
  model = checkpoint.model
  log.info('%s: %s runs as a PyTorch module of %s.', folder, model.__name__, model.library)
  checkpoint.metadata.setdefault('normalization', normalization)
  return checkpoint


def _take_plain(tensors: Tensors, format: Format) -> Arrays:
  """The arrays of a model by plain name, removed from those of its file."""
  plain, strangers = {}, {}
  for name in list(tensors.arrays):
    array = tensors.arrays.pop(name)
    if re.match(format.unprefixed, name):
      plain[name] = array
    elif name.startswith(format.prefix):
      plain[name.removeprefix(format.prefix)] = array
    else:
      strangers[name] = array
  if strangers and format.tolerates_strangers:
    log.warning('%s: ignored: %s.', tensors.path, grouped(strangers))
  else:  # an error will name them as unexpected, or the model does not need them
    plain |= strangers
  return plain


def _read_hints(file: str, format: Format) -> dict[str, Any]:
  """Facts from the JSON files next to a checkpoint.

  Only files of the format's code base, or ours, are read.
  """
  folder = os.path.dirname(file)
  path = os.path.join(folder, 'config.json')
  config = read_json(path)
  with _naming(path):
    of_format = format.read_config(config)
    ours = {**config.get(OURS, {})}  # in the config of a workdir it has no model
    hints = {**ours.pop('model', {}), **ours, **of_format}
    check_facts(hints)
  if of_format and format.preprocessor is not None:
    path = os.path.join(folder, format.preprocessor)
    with _naming(path):
      facts = format.read_preprocessor(read_json(path))
      check_facts(facts)
    hints |= {name: fact for name, fact in facts.items() if fact is not None}
  return {name: fact for name, fact in hints.items() if fact is not None}


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
  """Adds the path of a file to the messages of errors in it."""
  try:
    yield
  except (KeyError, TypeError, AttributeError, IndexError) as error:
    raise ValueError(
      f'{path} is invalid ({type(error).__name__}: {error}); correct or remove it.'
    ) from error
  except ValueError as error:
    kind = OtherArchitecture if isinstance(error, OtherArchitecture) else ValueError
    raise kind(f'{path}: {error}') from error


def _read_shape(path: str, arrays: Arrays, format: Format) -> Reading:
  """The format's reading of the shapes; every error message has the file's path."""
  shapes = {name: array.shape for name, array in arrays.items()}
  try:
    if empty := [name for name, shape in shapes.items() if 0 in shape]:
      raise ValueError(f'{grouped(empty)} are empty.')
    return format.read_shape(shapes)
  except KeyError as error:
    reason = (
      f'the tensor {error.args[0]}, which has its shape, is missing. It has: {grouped(shapes)}.'
    )
  except IndexError:
    reason = 'a tensor that has its shape has too few axes.'
  except ValueError as error:
    reason = str(error)
  raise OtherArchitecture(f'{path} looks like a {format.name} checkpoint, but {reason}')


def _build(
  path: str,
  format: Format,
  read: Mapping[str, Any],
  hints: Mapping[str, Any],
  fields: Mapping[str, Any],
) -> ViT:
  """The model: fields of the file, then of `config.json`, then of the caller."""
  hinted = {name: hints[name] for name in format.config_fields if name in hints}
  # Shapes show whether there is a LayerScale, but not its initial value.
  assumed = {*format.config_fields, 'layer_scale'}
  stated = {name: value for name, value in read.items() if name not in assumed} | hinted
  check_agreement(f'{path} or its config.json', stated, fields)
  model = ViT(**{**read, **hinted, **fields})
  if model.num_heads is None:
    raise OtherArchitecture(
      f'{path} does not have the number of heads of its width {model.width}; pass num_heads.'
    )
  if 'num_heads' in format.config_fields - hinted.keys() - fields.keys():
    log.info(
      '%s does not have the number of heads; assuming %d, as in the published models of width %d.',
      path,
      model.num_heads,
      model.width,
    )
  return model


def _assumed_normalization(container: Container, model: ViT) -> str:
  """The normalization of images for a file that does not have it."""
  if container == 'npz':
    return 'inception'  # vision_transformer and big_vision have only this one
  if model.pre_norm:
    return 'clip'
  if model.layer_scale is not None or container == 'torch':
    # DeiT, DINO, MAE and similar models are published as PyTorch files, and trained with ImageNet's
    # statistics; so are models with LayerScale.
    return 'imagenet'
  return 'inception'


def refit(
  model: ViT | TorchBackbone,
  params: Mapping[str, Any],
  metadata: Mapping[str, Any],
  *,
  num_classes: int | None = None,
  image_size: int | tuple[int, int] | None = None,
  patch_size: int | None = None,
) -> Checkpoint:
  """Fits a pretrained model to another task; the arguments are not changed.

  Args:
    model: the ViT.
    params: its parameters, nested.
    metadata: the metadata that `load` returned.
    num_classes: size of a new head of zeros, which replaces the old one and its pre-logits; 0
      leaves the model without a head, None keeps the old one.
    image_size: image size, (height, width) if it is not square, that the position embedding is
      resized for, as in the checkpoint's code base (see `resize_pos_embed`). A PyTorch module is
      read from its files again, and `params` are ignored.
    patch_size: patch size that the patch embedding is resized to (see `resize_patch_embed`); the
      position embedding follows.

  Returns:
    (model, params, metadata) of the new model.

  Raises:
    ValueError: the image size is not a multiple of the patch size, has too many patches, or a size
      is invalid.

  Example:
    >>> from glora_jax.vision.models import weights
    >>> checkpoint = weights.load(weights.EMBEDDED_FILE)
    >>> model, params, metadata = weights.refit(*checkpoint, num_classes=3, image_size=56)
    >>> params['head']['kernel'].shape, metadata['image_size']
    ((96, 3), 56)
  """
  check_facts({'image_size': image_size})
  if not isinstance(model, ViT):
    return Checkpoint(
      *model.refit(
        params, metadata, num_classes=num_classes, image_size=image_size, patch_size=patch_size
      )
    )
  patch_size = validate(patch_size, int | None, 'patch_size', least=1, most=256)
  num_classes = validate(num_classes, int | None, 'num_classes', least=0)
  params, metadata = dict(params), dict(metadata)
  old_size = sides(metadata['image_size'])
  new_size = old_size if image_size is None else sides(image_size)
  patch = model.patch_size if patch_size is None else patch_size
  if any(side % patch or side < 1 for side in new_size):
    wanted = shortest(*new_size)
    raise ValueError(f'image_size={wanted} is not a multiple of the patch size {patch}.')
  check_patches(shortest(*new_size), patch)
  if patch != model.patch_size:
    kernel = resize_patch_embed(params['embed']['kernel'], patch)
    params['embed'] = {**params['embed'], 'kernel': kernel}
  old_grid = old_size[0] // model.patch_size, old_size[1] // model.patch_size
  new_grid = new_size[0] // patch, new_size[1] // patch
  if old_grid != new_grid:
    source, positions = metadata.get('source'), (params['pos_embed'], old_grid, new_grid)
    params['pos_embed'] = (
      source.resize_positions(*positions)
      if source
      else resize_pos_embed(*positions, 'bicubic_antialias')
    )
  model = model.clone(patch_size=patch)
  metadata['image_size'] = shortest(*new_size)
  if num_classes is not None:
    model = model.clone(num_classes=num_classes, pre_logits=None)
    for name in ('pre_logits', 'head'):
      params.pop(name, None)
    metadata.pop('classes', None)
  if num_classes:
    inputs = model.width * (2 if model.pool == 'token+gap' else 1)
    params['head'] = {
      'kernel': np.zeros((inputs, num_classes), np.float32),
      'bias': np.zeros(num_classes, np.float32),
    }
  return Checkpoint(model, params, metadata)


def save(
  path: Path,
  model: ViT | TorchBackbone,
  params: Any,
  metadata: Mapping[str, Any],
  format: str | Format | None = None,
) -> None:
  """Writes a checkpoint as safetensors, whole or not at all.

  Args:
    path: path of a file, ending in .safetensors; or else of a folder, which then has the file and a
      `config.json` for transformers, timm and `load`. A single file does not have the facts that
      tensors cannot store.
    model: the ViT.
    params: its parameters, nested.
    metadata: 'image_size', and 'normalization', 'resize', 'crop' and 'classes' if they are known;
      in the format of this project any JSON types.
    format: 'timm', 'hf_vit' or 'hf_dinov2'; the metadata's 'source' from `load`, which writes a
      file back key by key if its format is one of these; otherwise, and for 'glora_jax' or None,
      the format of this project.

  Raises:
    ValueError: the parameters are not the model's, or not finite; metadata are invalid; the format
      is unknown, or cannot store the model; the folder already holds another checkpoint.
    OSError: it cannot be written there.

  Example:
    >>> import tempfile
    >>> from glora_jax.vision.models import weights
    >>> model, params, metadata = weights.load(weights.EMBEDDED_FILE)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   weights.save(folder, model, params, metadata, 'timm')
    ...   print(sorted(os.listdir(folder)), weights.load(folder).metadata['source'].name)
    ['config.json', 'model.safetensors'] timm
  """
  target = check_path(path)
  if target.endswith(_OF_OTHERS) and not os.path.isdir(target):
    raise ValueError(
      f'{target}: {os.path.splitext(target)[1]} files are not written; end the name in '
      '.safetensors, or leave the ending out for a folder.'
    )
  validate(params, Mapping, 'params')
  validate(metadata, Mapping, 'metadata')
  metadata = {name: value for name, value in metadata.items() if name != 'source'}
  refusal = f'{target} is not written'
  try:
    check_metadata_of(metadata, model.num_classes)
  except (TypeError, ValueError) as error:
    raise ValueError(f'{refusal}: {error}') from error
  known = {name: metadata[name] for name in REMEMBERED if metadata.get(name) is not None}
  if not isinstance(model, ViT):
    if target.endswith('.safetensors') or format not in (None, model.library):
      raise ValueError(
        f'{target}: {model.__name__} is written only as a folder of {model.library}.'
      )
    model.save(target, params, known)
    return
  flat = {
    name: np.asarray(value)
    for name, value in flax.traverse_util.flatten_dict(nn.meta.unbox(params), sep='/').items()
  }
  require_tensors(refusal, flat, expected_params(model, metadata['image_size']))
  other, tensors, beside = _foreign(format), flat, {}
  if other is not None:
    model, tensors = other.to_tensors(model, flat)
    beside = other.side_files(model, metadata)
    # It has everything in the terms of the code base that will read it, and in ours.
    beside['config.json'] |= {OURS: {'model': describe(model), **known}}
  # All errors are raised before something is written.
  if target.endswith('.safetensors'):
    folder, beside = os.path.dirname(os.path.abspath(target)), {}
    os.makedirs(folder, exist_ok=True)
  else:
    folder, target = target, os.path.join(target, MODEL_FILE)
    os.makedirs(folder, exist_ok=True)
    require_no_other(folder)
  if other is None:
    files.write_tensors(target, tensors, KIND, {'model': describe(model), **metadata})
  else:
    write_safetensors(target, tensors, {'format': 'pt'})
  for name, content in beside.items():
    write_json(os.path.join(folder, name), content)


def _foreign(format: str | Format | None) -> TorchFormat | None:
  """The format to write, with the layout of a file; None for ours."""
  if isinstance(format, Format):
    return format if isinstance(format, TorchFormat) and format.is_written else None
  if format is None or format == OURS:
    return None
  if not isinstance(format, str) or format not in WRITTEN:
    raise ValueError(
      f'The format {shown(format)} is not written; use one of {OURS}, {", ".join(WRITTEN)}.'
    )
  return WRITTEN[format]
