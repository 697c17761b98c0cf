"""What a format is: all questions that reading and writing a checkpoint ask of a code base."""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np

from glora_jax.vision.models.checkpoint import Arrays
from glora_jax.vision.models.metadata import Metadata
from glora_jax.vision.models.resize import Interpolation, resize_pos_embed
from glora_jax.vision.models.vit import ViT

Shapes = Mapping[str, tuple[int, ...]]

NO_NAME = r'(?!)'  # a pattern that matches nothing


@dataclasses.dataclass(frozen=True)
class Variant:
  """What a format leaves open in how a file is laid out.

  Attributes:
    class_pos: whether the class token has a position embedding of its own.
  """

  class_pos: bool = True


class Reading(NamedTuple):
  """What the names and shapes of a file's tensors say.

  Attributes:
    fields: fields of the ViT; 'num_heads' is None where nothing tells it.
    variant: how the file is laid out; whether the class token has a position is not known yet.
    tokens: number of position embeddings; None where they are computed, and not in the file.
  """

  fields: dict[str, Any]
  variant: Variant
  tokens: int | None


AnyVariant = TypeVar('AnyVariant', bound=Variant)


class Format(abc.ABC, Generic[AnyVariant]):
  """A code base's checkpoints, as they are read.

  Attributes:
    name: name of the format.
    patch_kernel: name of the patch embedding's kernel; what stands before it in a file is the
      prefix of all names.
    signature: pattern of names that only this format has.
    unprefixed: pattern of names that do not take the prefix.
    unused: pattern of tensors that the model has no use for, and that are kept for writing.
    config_fields: fields of the ViT that tensors leave open, and `config.json` may tell.
    interpolation: how the code base resizes position embeddings, see `resize.resize_pos_embed`.
    tolerates_strangers: whether a file may hold tensors beside the model, as a training state does.
    preprocessor: name of the file on images that the code base has beside `config.json`.
  """

  name: str
  signature: str
  patch_kernel: ClassVar[str]
  unprefixed: ClassVar[str] = NO_NAME
  unused: ClassVar[str] = NO_NAME
  config_fields: ClassVar[frozenset[str]] = frozenset({'num_heads', 'norm_eps', 'activation'})
  interpolation: ClassVar[Interpolation] = 'bicubic_antialias'
  tolerates_strangers: ClassVar[bool] = False
  preprocessor: ClassVar[str | None] = None

  @abc.abstractmethod
  def read_shape(self, shapes: Shapes) -> Reading:
    """Reads the model's shape off the shapes of a file's tensors.

    Args:
      shapes: shapes by name, the prefix removed.

    Raises:
      KeyError: a tensor that tells the shape is missing.
      ValueError: the model is one that the ViT cannot be.
    """

  @abc.abstractmethod
  def rules(self, model: ViT, variant: AnyVariant) -> list[Rule]:
    """Rules of all parameters that the format has a place for."""

  def read_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the code base's own `config.json` says.

    Args:
      config: contents of the file, whoever wrote it.

    Returns:
      Fields of the ViT and metadata; None for what is not said, empty where another code base
      wrote the file.

    Raises:
      ValueError: the model is one that the ViT cannot be.
    """
    return {}

  def read_preprocessor(self, preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """What the code base's file on images says, as metadata.

    Args:
      preprocessor: contents of the file; empty where there is none.

    Returns:
      Metadata; None for what is not said.
    """
    return {}

  def resize_positions(
    self, pos_embed: np.ndarray, old: tuple[int, int], new: tuple[int, int], variant: AnyVariant
  ) -> np.ndarray:
    """The position embedding for another grid of patches, as the code base itself resizes it.

    Args:
      pos_embed: position embedding, [1, tokens, width].
      old: (rows, columns) of its grid.
      new: (rows, columns) of the grid that is wanted.
      variant: layout of the file that it came from.
    """
    return resize_pos_embed(pos_embed, old, new, self.interpolation)


class TorchFormat(Format[Variant]):
  """A code base in PyTorch, whose checkpoints are also written, and whose modules PEFT adapts."""

  @abc.abstractmethod
  def represent(self, model: ViT, flat: Arrays, variant: Variant) -> tuple[ViT, Arrays]:
    """An equal model that the format has a place for, and its parameters.

    Raises:
      ValueError: there is none.
    """

  @abc.abstractmethod
  def side_files(
    self, model: ViT, metadata: Metadata, variant: Variant, tensors: Arrays
  ) -> dict[str, dict[str, Any]]:
    """Contents of the JSON files that the code base reads beside the tensors, by file name.

    Raises:
      ValueError: the code base cannot be told of the model.
    """

  def own_head(self, model: ViT, kernel: np.ndarray) -> np.ndarray:
    """The kernel of a model's head, out of what `represent` may have made of it."""
    return kernel

  def prefix(self, model: ViT, given: str) -> str:
    """The prefix of all names in a new file; `given` is that of the file the model came from."""
    return given

  def placeholders(self, width: int, dtype: np.dtype) -> Arrays:
    """Tensors that the code base expects in a file and our model does not have."""
    return {}

  def refusal(self, feature: str) -> ValueError:
    """The error for a model with a feature that the format has no place for."""
    return ValueError(f'The format {self.name} cannot store {feature}; choose another format.')

  def require_pool(self, model: ViT, pools: Sequence[str]) -> None:
    """Raises ValueError for a model that pools in a way that the format cannot say."""
    if model.pool not in pools:
      where = ' with a class token' if model.class_token else ''
      raise self.refusal(f"pool='{model.pool}'{where}")


class Rule(NamedTuple):
  """One parameter of ours and the tensors that it is made of; it reads and writes.

  Attributes:
    ours: path of the parameter.
    theirs: names of the tensors. '{}' stands for the number of the block where a file has one for
      each block; the functions take and give these stacked, blocks first.
    to_ours: makes the parameter of the tensors.
    to_theirs: makes the tensors of the parameter.
  """

  ours: str
  theirs: tuple[str, ...]
  to_ours: Callable[..., np.ndarray]
  to_theirs: Callable[[np.ndarray], tuple[np.ndarray, ...]]


def same(ours: str, theirs: str) -> Rule:
  """A parameter that is one tensor of the file as it stands."""
  return Rule(ours, (theirs,), lambda tensor: tensor, lambda parameter: (parameter,))


def torch_linear(ours: str, *theirs: str) -> list[Rule]:
  """A `torch.nn.Linear`, whose weight is [out, in], or several side by side in a layer of ours."""
  return [
    Rule(
      f'{ours}/kernel',
      tuple(f'{name}.weight' for name in theirs),
      lambda *weights: _beside(*(weight.swapaxes(-1, -2) for weight in weights)),
      lambda kernel: tuple(x.swapaxes(-1, -2) for x in np.split(kernel, len(theirs), axis=-1)),
    ),
    Rule(
      f'{ours}/bias',
      tuple(f'{name}.bias' for name in theirs),
      _beside,
      lambda bias: tuple(np.split(bias, len(theirs), axis=-1)),
    ),
  ]


def _beside(*parts: np.ndarray) -> np.ndarray:
  return np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]


def torch_norm(ours: str, theirs: str) -> list[Rule]:
  """A `torch.nn.LayerNorm`."""
  return [same(f'{ours}/scale', f'{theirs}.weight'), same(f'{ours}/bias', f'{theirs}.bias')]


def torch_conv(ours: str, theirs: str) -> list[Rule]:
  """A `torch.nn.Conv2d`, [out, in, height, width]; ours is [height, width, in, out]."""
  return [
    Rule(
      f'{ours}/kernel',
      (f'{theirs}.weight',),
      lambda weight: weight.transpose(2, 3, 1, 0),
      lambda kernel: (kernel.transpose(3, 2, 0, 1),),
    ),
    same(f'{ours}/bias', f'{theirs}.bias'),
  ]


def positions(theirs: str, *, lacks_class_position: bool) -> Rule:
  """The position embedding; ours is zero where the file has no position for the class token."""
  if not lacks_class_position:
    return same('pos_embed', theirs)
  return Rule(
    'pos_embed',
    (theirs,),
    lambda grid: np.concatenate([np.zeros_like(grid[:, :1]), grid], axis=1),
    lambda pos_embed: (pos_embed[:, 1:],),
  )


# Number of heads of the published models, by width.
HEADS = {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}


def depth(shapes: Shapes, pattern: str) -> int:
  """Number of blocks; the pattern's first group is the number of a block."""
  matches = (re.match(pattern, name) for name in shapes)
  last = max((int(match.group(1)) for match in matches if match), default=-1)
  if last >= len(shapes):
    raise ValueError(f'block {last} is named, but there are only {len(shapes)} tensors.')
  return last + 1


def patch_side(height: int, width: int) -> int:
  """The side of a patch.

  Raises:
    ValueError: patches are not square.
  """
  if height != width:
    raise ValueError(f'the patches are {height} x {width}; only square ones are supported.')
  return height


def fold_layer_scale(model: ViT, flat: Arrays) -> tuple[ViT, Arrays]:
  """Multiplies LayerScale into the layers before it; nothing changes in what is computed."""
  if model.layer_scale is None:
    return model, flat
  flat = dict(flat)
  for scale, layer in (('scale1', 'attn/proj'), ('scale2', 'mlp/fc2')):
    gamma = flat.pop(f'blocks/{scale}/gamma')
    flat[f'blocks/{layer}/kernel'] = flat[f'blocks/{layer}/kernel'] * gamma[:, None, :]
    flat[f'blocks/{layer}/bias'] = flat[f'blocks/{layer}/bias'] * gamma
  return model.clone(layer_scale=None), flat


def fold_class_position(model: ViT, flat: Arrays, variant: Variant) -> Arrays:
  """Adds the class token's position to the token itself where a file has no place for it."""
  if variant.class_pos or not model.class_token:
    return flat
  class_pos, grid = flat['pos_embed'][:, :1], flat['pos_embed'][:, 1:]
  return {
    **flat,
    'cls': flat['cls'] + class_pos,
    'pos_embed': np.concatenate([np.zeros_like(class_pos), grid], axis=1),
  }
