"""Classifiers of timm and transformers as backbones: PyTorch modules, run with `glora_jax.torch`.

They are for models that `ViT` does not support: registers, rotary positions, SwiGLU, attention
pooling, Swin, ConvNeXt. The `config.json` next to a checkpoint names the library of the module.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import torch

import glora_jax.torch
from glora_jax.checks import shown
from glora_jax.errors import UserError
from glora_jax.files import first_line, require_numbers, write_json, write_safetensors
from glora_jax.method.adapt import adapt_function
from glora_jax.method.adapted import Adapted
from glora_jax.method.selection import exactly
from glora_jax.torch import nest, unnest
from glora_jax.torch_environment import shape_of
from glora_jax.vision.models.checkpoint import MODEL_FILE, require_no_other
from glora_jax.vision.models.formats import hugging_face, timm
from glora_jax.vision.models.metadata import OURS, Metadata, check_facts, read_json
from glora_jax.vision.models.vit import sides

_PUBLISHED_SIZE = 224


class TorchBackbone(glora_jax.torch.Module):
  """A classifier as a function of its parameters: images [batch, height, width, 3] to logits.

  It always runs in evaluation mode, without dropout and with the statistics of the checkpoint.

  Attributes:
    library: the library that builds the module, 'timm' or 'transformers'.
    folder: folder of the checkpoint that it was built from.
    config: contents of its `config.json`.
    head: PyTorch's name of the last linear layer.
    width: its inputs.
    num_classes: size of the head; 0 returns the features that the head would read.
    options: further arguments of each call.
  """

  def __init__(
    self,
    module: torch.nn.Module,
    library: str,
    folder: str,
    config: Mapping[str, Any],
    head: str,
    options: Mapping[str, Any],
  ):
    super().__init__(module)
    self.library, self.folder, self.config = library, folder, config
    self.head, self.options = head, options
    linear: Any = module.get_submodule(head)
    self.width, self.num_classes = linear.in_features, linear.out_features

  def apply(self, variables: Mapping[str, Any], images: jax.Array, *, train: bool = False) -> Any:
    """Logits, or features, of normalized images."""
    del train
    # Frozen weights may be stored in bfloat16, and PyTorch does not mix types.
    variables = jax.tree.map(lambda x: x.astype(jnp.float32), variables)
    outputs = super().apply(variables, jnp.moveaxis(images, -1, 1), **self.options)
    return getattr(outputs, 'logits', outputs)

  def clone(self, *, num_classes: int) -> Self:
    """The same model with a head of another size, or with none."""
    cloned = copy.copy(self)
    cloned.skeleton, cloned.num_classes = copy.deepcopy(self.skeleton), num_classes
    head: torch.nn.Module = torch.nn.Identity()
    if num_classes:
      head = torch.nn.Linear(self.width, num_classes, device='meta')
    cloned.skeleton.set_submodule(self.head, head)
    return cloned

  def logits_of(self, params: Any, features: jax.Array) -> jax.Array:
    """Logits [batch, class] of features [batch, width]."""
    for name in self.head.split('.'):
      params = params[name]
    return features @ params['weight'].T + params['bias']

  def adapt(self, sample: Any, **chosen: Any) -> Adapted:
    """Adapts the linear layers, or the convolutions of a network that has only these.

    Args:
      sample: images, or their shape.
      **chosen: `structure`, `space` and the like, see `glora_jax.adapt`.
    """
    shapes = {name: shape_of(value) for name, value in self.skeleton.named_parameters()}
    heads = exactly(self.head.replace('.', '/'))
    modules = self.skeleton.named_modules()
    linear = {name for name, part in modules if isinstance(part, torch.nn.Linear)}
    convs = linear <= {self.head}
    adapted = adapt_function(self, nest(shapes), sample, heads=heads, convs=convs, **chosen)
    return dataclasses.replace(adapted, model=self)

  def refit(
    self,
    params: Any,
    metadata: Mapping[str, Any],
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
  ) -> tuple[TorchBackbone, Any, Metadata]:
    """See `weights.refit`. For another image size the checkpoint is read again."""
    model: TorchBackbone = self
    metadata = dict(metadata)
    if patch_size is not None:
      raise UserError(f'patch_size={patch_size} is only for the ViT; leave it out.')
    if image_size not in (None, metadata['image_size']):
      if not isinstance(image_size, int):
        raise UserError(f'image_size={shown(image_size)} must be one number for {self.__name__}.')
      model, params, _ = load(self.folder, image_size)
      metadata['image_size'] = image_size
    if num_classes is None:
      return model, params, metadata
    metadata.pop('classes', None)
    model, by_name = model.clone(num_classes=num_classes), unnest(params)
    fitted = {
      name: np.zeros(value.shape, np.float32) if name.startswith(f'{self.head}.') else by_name[name]
      for name, value in model.skeleton.named_parameters()
    }
    return model, nest(fitted), metadata

  def save(self, folder: str, params: Any, metadata: Mapping[str, Any]) -> None:
    """Writes a folder that the library loads; `config.json` also has our metadata.

    Raises:
      ValueError: the parameters are not the model's, or not finite.
    """
    arrays = {name: np.asarray(value) for name, value in unnest(params).items()}
    require_numbers(f'{folder} is not written', arrays)
    module = copy.deepcopy(self.skeleton).to_empty(device='cpu')
    state = module.state_dict()
    buffers = {name: value for name, value in self.buffers.items() if name in state}
    glora_jax.torch.copy_to(params, module, buffers=buffers)
    os.makedirs(folder, exist_ok=True)
    require_no_other(folder)
    if self.library == 'timm':
      tensors = {name: value.numpy() for name, value in state.items()}
      write_safetensors(os.path.join(folder, MODEL_FILE), tensors, {'format': 'pt'})
      arguments = {**(self.config.get('model_args') or {}), 'num_classes': self.num_classes}
      if hasattr(module, 'set_input_size'):
        arguments['img_size'] = metadata['image_size']
      kept = module.pretrained_cfg
      for name in ('file', 'source', 'label_names', 'label_descriptions'):  # of the old folder
        kept.pop(name, None)
      config = {
        'architecture': self.config['architecture'],
        'num_classes': self.num_classes,
        'model_args': arguments,
        'pretrained_cfg': {**kept, **timm.write_images(self.num_classes, metadata)},
      }
    else:
      with tempfile.TemporaryDirectory(dir=folder) as written:  # names in files are others
        with _quiet():
          module.save_pretrained(written, max_shard_size='1TB')
        os.replace(os.path.join(written, MODEL_FILE), os.path.join(folder, MODEL_FILE))
        config = read_json(os.path.join(written, 'config.json'))
      config |= hugging_face.write_classes(self.num_classes, metadata)
      if metadata.get('normalization') is not None:
        preprocessor = hugging_face.write_images(metadata)
        write_json(os.path.join(folder, hugging_face.PREPROCESSOR), preprocessor)
    write_json(os.path.join(folder, 'config.json'), {**config, OURS: metadata})


def load(folder: str, image_size: int | None = None) -> tuple[TorchBackbone, Any, Metadata]:
  """Builds a classifier and reads its weights.

  Args:
    folder: folder with `config.json` and safetensors.
    image_size: side of the images that the position embeddings are resized for; None for that of
      the checkpoint.

  Returns:
    (model, params, metadata): params as NumPy arrays in nested dictionaries, with PyTorch's names.

  Raises:
    ImportError: the library is not installed.
    ValueError: the library cannot build the model or load the weights; or the head is not a linear
      layer.
  """
  config = read_json(os.path.join(folder, 'config.json'))
  library = 'transformers' if 'model_type' in config else 'timm'
  build = _build_timm if library == 'timm' else _build_transformers
  try:
    module, linear, has_head, options, metadata = build(folder, config, image_size)
    if not isinstance(linear, torch.nn.Linear) or linear.bias is None:
      raise ValueError(f'its head is a {type(linear).__name__}, not a linear layer with a bias')
    (head,) = (name for name, part in module.named_modules() if part is linear)
    model = TorchBackbone(module.eval(), library, folder, config, head, options)
    arrays = {name: value.detach().numpy() for name, value in module.named_parameters()}
    metadata |= config.get(OURS, {})
    if image_size is not None:
      metadata['image_size'] = image_size
    images = jax.ShapeDtypeStruct((1, *sides(metadata['image_size']), 3), np.float32)
    jax.eval_shape(model.apply, {'params': nest(arrays)}, images)
  except ImportError:
    raise
  except Exception as error:  # of the libraries, and of modules
    raise UserError(f'{folder}: {library} cannot load and run it ({first_line(error)}).') from error
  require_numbers(folder, arrays)
  check_facts(metadata)
  if not has_head:
    return model.refit(nest(arrays), metadata, num_classes=0)
  if len(metadata.get('classes') or ()) != model.num_classes:
    metadata.pop('classes', None)
  return model, nest(arrays), metadata


def _build_timm(
  folder: str, config: Mapping[str, Any], image_size: int | None
) -> tuple[torch.nn.Module, Any, bool, dict[str, Any], Metadata]:
  """A module of timm; see `_build_transformers`."""
  import timm as library

  known = library.get_pretrained_cfg(config['architecture'])
  has_fixed_size = image_size is not None and getattr(known, 'fixed_input_size', False)
  resized = {'img_size': image_size} if has_fixed_size else {}
  module = library.create_model(f'local-dir:{folder}', pretrained=True, **resized)
  if not (has_head := module.num_classes > 0):
    module.reset_classifier(1)
  facts = module.pretrained_cfg
  arguments = {**(config.get('model_args') or {}), **resized}
  metadata = timm.read_images(facts, arguments.get('img_size'))
  metadata['classes'] = facts.get('label_names') or config.get('label_names')
  return module, module.get_classifier(), has_head, {}, metadata


def _build_transformers(
  folder: str, config: Mapping[str, Any], image_size: int | None
) -> tuple[torch.nn.Module, Any, bool, dict[str, Any], Metadata]:
  """(module, its head, whether the head was in the file, options of calls, metadata)."""
  import transformers

  with _quiet():
    module, found = transformers.AutoModelForImageClassification.from_pretrained(
      folder,
      output_loading_info=True,
      local_files_only=True,
      trust_remote_code=False,
      dtype=torch.float32,
    )
  *_, head = module.classifier.modules()
  missing = {name for name in found['missing_keys'] if not name.startswith('classifier.')}
  if missing:
    raise ValueError(f'it lacks {", ".join(sorted(missing))}')
  has_head = not found['missing_keys']
  preprocessor = read_json(os.path.join(folder, hugging_face.PREPROCESSOR))
  own = config.get('vision_config', config).get('image_size')
  metadata = {
    'image_size': hugging_face.size_of(preprocessor) or own or _PUBLISHED_SIZE,
    **hugging_face.read_images(preprocessor),
    'classes': hugging_face.read_classes(config),
  }
  options = {}
  is_resized = own not in (None, image_size or metadata['image_size'])
  if is_resized and 'interpolate_pos_encoding' in inspect.signature(module.forward).parameters:
    options['interpolate_pos_encoding'] = True
  return module, head, has_head, options, metadata


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Turns off transformers' progress bars and its table of weights that are not read."""
  from transformers.utils import logging

  verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
  logging.set_verbosity_error()
  logging.disable_progress_bar()
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)
    if has_bars:
      logging.enable_progress_bar()
