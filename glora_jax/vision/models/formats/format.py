"""The interface of a format: everything about a code base that reading and writing needs."""

from __future__ import annotations

import abc
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import flax
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.vision.models.checkpoint import Arrays, require_tensors
from glora_jax.vision.models.metadata import Metadata
from glora_jax.vision.models.resize import Interpolation, resize_pos_embed
from glora_jax.vision.models.vit import ViT

Shapes = Mapping[str, tuple[int, ...]]

NO_NAME = r'(?!)'  # a pattern that matches nothing


class Reading(NamedTuple):
  """The model that the names and shapes of a file's tensors determine.

  Attributes:
    fields: fields of the ViT; 'num_heads' is None if the file does not determine it.
    format: the format of the file, with everything that differs between files of it.
    tokens: number of position embeddings; None if they are computed, and not in the file.
  """

  fields: dict[str, Any]
  format: Format
  tokens: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format(abc.ABC):
  """The checkpoints of a code base, or the layout of one of them.

  Attributes:
    name: name of the format.
    signature: pattern of names that only this format has.
    is_written: whether checkpoints are also written in it.
    class_pos: whether the file has a position embedding for the class token.
    prefix: prefix of all names in the file.
    kept: tensors of the file that the model does not need.
    patch_kernel: name of the patch embedding's kernel; the text before it in a file is the prefix
      of all names.
    unprefixed: pattern of names without the prefix.
    unused: pattern of tensors that the model does not need, and that are kept for writing.
    output_axis: axis of the outputs in a kernel.
    patch_axes: axes of height and width in the patch embedding's kernel.
    config_fields: fields of the ViT that tensors do not determine, but `config.json` may.
    interpolation: how the code base resizes position embeddings, see `resize.resize_pos_embed`.
    tolerates_strangers: whether a file may have tensors other than the model, as a training state.
    preprocessor: name of the code base's file on images, next to `config.json`.
  """

  name: str
  signature: str
  is_written: bool = True
  class_pos: bool = True
  prefix: str = ''
  kept: Arrays = dataclasses.field(default_factory=dict, repr=False)
  patch_kernel: ClassVar[str]
  unprefixed: ClassVar[str] = NO_NAME
  unused: ClassVar[str] = NO_NAME
  output_axis: ClassVar[int] = 0
  patch_axes: ClassVar[tuple[int, int]] = (2, 3)
  config_fields: ClassVar[frozenset[str]] = frozenset({'num_heads', 'norm_eps', 'activation'})
  interpolation: ClassVar[Interpolation] = 'bicubic_antialias'
  tolerates_strangers: ClassVar[bool] = False
  preprocessor: ClassVar[str | None] = None

  def read_shape(self, shapes: Shapes) -> Reading:
    """The model's shape, from the shapes of a file's tensors.

    Args:
      shapes: shapes by name, the prefix removed.

    Raises:
      KeyError: a tensor that determines the shape is missing.
      IndexError: it has too few axes.
      ValueError: the ViT does not support the model.
    """
    names = {rule.ours: rule.theirs[0] for rule in self.rules(ViT(0)) if rule.theirs}

    def is_there(ours: str) -> bool:
      return ours in names and names[ours].format(0) in shapes

    def outputs(ours: str) -> int:
      return shapes[names[ours].format(0)][self.output_axis]

    height, side = (shapes[names['embed/kernel']][axis] for axis in self.patch_axes)
    if height != side:
      raise ValueError(f'the patches are {height} x {side}; only square ones are supported.')
    width, class_token = outputs('embed/kernel'), is_there('cls')
    fields = {
      'width': width,
      'patch_size': side,
      'num_heads': HEADS.get(width),
      'depth': _depth(shapes, names['blocks/norm1/scale']),
      'mlp_dim': outputs('blocks/mlp/fc1/kernel'),
      'class_token': class_token,
      'pool': 'token' if class_token else 'gap',
      'pre_norm': is_there('pre_norm/scale'),
      'layer_scale': 1.0 if is_there('blocks/scale1/gamma') else None,
      'pre_logits': outputs('pre_logits/kernel') if is_there('pre_logits/kernel') else None,
      'num_classes': outputs('head/kernel') if is_there('head/kernel') else 0,
      'norm_eps': 1e-6,
      'activation': 'gelu',
    }
    return Reading(fields, self, shapes[names['pos_embed']][1] if 'pos_embed' in names else None)

  @abc.abstractmethod
  def rules(self, model: ViT) -> list[Rule]:
    """Rules of all parameters that the format can store."""

  def read_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields and metadata from the code base's `config.json`.

    Args:
      config: contents of the file, from any code base.

    Returns:
      Fields of the ViT and metadata, None if they are missing; empty if another code base wrote the
      file.

    Raises:
      ValueError: the ViT does not support the model.
    """
    return {}

  def read_preprocessor(self, preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata from the code base's file on images.

    Args:
      preprocessor: contents of the file; empty if there is none.

    Returns:
      Metadata; None if they are missing.
    """
    return {}

  def resize_positions(
    self, pos_embed: np.ndarray, old: tuple[int, int], new: tuple[int, int]
  ) -> np.ndarray:
    """The position embedding for another grid of patches, resized as in the code base.

    Args:
      pos_embed: position embedding, [1, tokens, width].
      old: (rows, columns) of its grid.
      new: (rows, columns) of the new grid.
    """
    return resize_pos_embed(pos_embed, old, new, self.interpolation)

  def modules(self, model: ViT) -> dict[str, list[str]]:
    """Names of linear layers and norms in the code base, by our path; '{}' is the block number."""
    return {
      rule.ours.rpartition('/')[0]: [
        self.full_name(name.removesuffix('.weight')) for name in rule.theirs
      ]
      for rule in self.rules(model)
      if rule.ours.endswith(('/kernel', '/scale'))
    }

  def full_name(self, name: str) -> str:
    """The name of a tensor or module in a file, with the prefix if it has one."""
    return name if re.match(self.unprefixed, f'{name}.') else self.prefix + name

  def read_params(
    self,
    path: str,
    arrays: Arrays,
    model: ViT,
    expected: Mapping[str, jax.ShapeDtypeStruct],
  ) -> tuple[dict[str, Any], Self]:
    """Makes all parameters of a model. Arrays are removed from `arrays` one by one, to save memory.

    Args:
      path: path of the file.
      arrays: its arrays by name, the prefix removed.
      model: the ViT.
      expected: shapes of the model's parameters, by path.

    Returns:
      (nested parameters, the format with the arrays that the model does not need).

    Raises:
      ValueError: arrays are missing, unexpected or misshaped, and all are named; or one of them
        has values other than finite floating-point numbers.
    """
    rules = {rule.ours: rule for rule in self.rules(model) if rule.ours in expected}
    empty = {name: np.broadcast_to(np.float32(0), spec.shape) for name, spec in expected.items()}
    shapes = _to_theirs(rules, empty, model.depth)
    unused = [name for name in arrays if name not in shapes and re.match(self.unused, name)]
    kept = {name: arrays.pop(name) for name in unused}
    require_tensors(path, arrays, shapes)
    params = {
      name: _to_ours(rules[name], arrays, spec.shape, model.depth)
      for name, spec in expected.items()
    }
    return flax.traverse_util.unflatten_dict(params, sep='/'), dataclasses.replace(self, kept=kept)


class TorchFormat(Format):
  """A code base in PyTorch: its checkpoints are also written, and PEFT adapts its modules."""

  @abc.abstractmethod
  def represent(self, model: ViT, flat: Arrays) -> tuple[ViT, Arrays]:
    """An equal model that the format can store, and its parameters.

    Args:
      model: the ViT.
      flat: its parameters, by path; the dictionary may be changed.

    Raises:
      ValueError: there is none.
    """

  @abc.abstractmethod
  def side_files(self, model: ViT, metadata: Metadata) -> dict[str, dict[str, Any]]:
    """Contents of the JSON files that the code base reads next to the tensors, by file name.

    Raises:
      ValueError: these files cannot describe the model.
    """

  def fit(self, model: ViT, flat: Arrays) -> tuple[ViT, Arrays, dict[str, Rule]]:
    """An equal model that the format can store; nothing is written.

    Parameters that the format cannot store are folded into others if that is exact: LayerScale into
    the layers before it, the class token's position into the class token.

    Args:
      model: the ViT.
      flat: its parameters, by path.

    Returns:
      (the ViT that the code base will build, its parameters by path, their rules by path).

    Raises:
      ValueError: the format cannot store the model.
    """
    model, flat = self.represent(model, dict(flat))
    rules = {rule.ours: rule for rule in self.rules(model) if rule.ours in flat}
    if homeless := sorted(flat.keys() - rules.keys()):
      raise self.refusal(', '.join(homeless))
    return model, flat, rules

  def to_tensors(self, model: ViT, flat: Arrays) -> tuple[ViT, Arrays]:
    """The ViT that the code base will build, and the tensors of its file by name; see `fit`."""
    model, flat, rules = self.fit(model, flat)
    tensors, format = _to_theirs(rules, flat, model.depth) | self.kept, self.for_model(model)
    return model, {format.full_name(name): value for name, value in tensors.items()}

  def own_head(self, model: ViT, kernel: np.ndarray) -> np.ndarray:
    """The kernel of a model's head, from the one that `represent` may have changed."""
    return kernel

  def for_model(self, model: ViT) -> Self:
    """The format with the prefix of a new file of the model."""
    return self

  def refusal(self, feature: str) -> ValueError:
    """The error for a model with a feature that the format cannot store."""
    return ValueError(f'The format {self.name} cannot store {feature}; choose another format.')


class Rule(NamedTuple):
  """One of our parameters and the tensors that it is made from, for reading and writing.

  Attributes:
    ours: path of the parameter.
    theirs: names of the tensors. '{}' stands for the number of the block if a file has one for each
      block; inputs and results of the functions are then stacked, blocks first.
    to_ours: makes the parameter from the tensors.
    to_theirs: makes the tensors from the parameter.
  """

  ours: str
  theirs: tuple[str, ...]
  to_ours: Callable[..., np.ndarray]
  to_theirs: Callable[[np.ndarray], tuple[np.ndarray, ...]]


def _to_ours(rule: Rule, arrays: Arrays, shape: tuple[int, ...], depth: int) -> np.ndarray:
  """A parameter. Its tensors are removed from `arrays`; those of blocks are stacked in one type."""
  if not rule.theirs:  # computed positions, made from their shape only
    return rule.to_ours(shape)
  in_file = [
    [name.format(block) for block in range(depth if '{}' in name else 1)] for name in rule.theirs
  ]
  dtype = functools.reduce(jnp.promote_types, (arrays[x].dtype for found in in_file for x in found))
  parts = []
  for name, found in zip(rule.theirs, in_file, strict=True):
    blocks = [arrays.pop(x).astype(dtype, copy=False) for x in found]
    parts.append(np.stack(blocks) if '{}' in name else blocks[0])
  return np.asarray(rule.to_ours(*parts), order='C')


def _to_theirs(rules: Mapping[str, Rule], flat: Arrays, depth: int) -> Arrays:
  """The tensors of parameters, by plain name."""
  tensors = {}
  for path, rule in rules.items():
    for name, part in zip(rule.theirs, rule.to_theirs(flat[path]), strict=True):
      if '{}' in name:
        tensors |= {name.format(block): part[block] for block in range(depth)}
      else:
        tensors[name] = part
  return tensors


def same(ours: str, theirs: str) -> Rule:
  """A parameter that is one tensor of the file, unchanged."""
  return Rule(ours, (theirs,), lambda tensor: tensor, lambda parameter: (parameter,))


def torch_linear(ours: str, *theirs: str) -> list[Rule]:
  """A `torch.nn.Linear`, with weight [out, in], or several side by side in one of our layers."""
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


def positions(theirs: str, lacks_class_position: bool = False) -> Rule:
  """The position embedding, zero for the class token if the file has no position for it."""
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


def _depth(shapes: Shapes, name: str) -> int:
  """Number of blocks, from a tensor that each block has, or in which they are stacked."""
  before, number, _ = name.partition('{}')
  if not number:
    return shapes[name][0]
  matches = (re.match(rf'{re.escape(before)}(\d+)', name) for name in shapes)
  last = max((int(match.group(1)) for match in matches if match), default=-1)
  if last >= len(shapes):
    raise ValueError(f'block {last} is named, but there are only {len(shapes)} tensors.')
  return last + 1
