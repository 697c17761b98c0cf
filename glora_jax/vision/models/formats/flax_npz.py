"""The npz files of vision_transformer and of big_vision, two code bases in Flax: only read."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from glora_jax.vision.models.formats.format import (
  Format,
  Reading,
  Rule,
  Shapes,
  positions,
  same,
)
from glora_jax.vision.models.vit import ViT

_ENCODER = 'Transformer/encoderblock'

# Names of position embeddings in vision_transformer, and in earlier and later big_vision.
_POSITIONS = (
  'Transformer/posembed_input/pos_embedding',
  'Transformer/pos_embedding',
  'pos_embedding',
)

# Attention, second norm and MLP of a block, which Flax numbers in the order of their construction:
# vision_transformer all modules together, big_vision those of each class.
_NUMBERED_TOGETHER = ('MultiHeadDotProductAttention_1', 'LayerNorm_2', 'MlpBlock_3')
_NUMBERED_BY_CLASS = ('MultiHeadDotProductAttention_0', 'LayerNorm_1', 'MlpBlock_0')


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlaxNpz(Format):
  """The layouts of vision_transformer and big_vision, which differ only in names.

  Attributes:
    scanned: whether the blocks are stacked in one tensor, as by `nn.scan`.
    classic: whether the modules of a block are numbered together.
    position: name of the position embedding; None if it is computed, and not in the file.
  """

  scanned: bool = False
  classic: bool = False
  position: str | None = None

  patch_kernel = 'embedding/kernel'
  output_axis = -1
  patch_axes = (0, 1)
  config_fields = frozenset({'norm_eps', 'activation'})  # heads are an axis of the tensors
  interpolation = 'linear_corners'
  tolerates_strangers = True

  @property
  def block(self) -> str:
    """Path of a block; '{}' stands for its number."""
    return _ENCODER if self.scanned else f'{_ENCODER}_{{}}'

  @property
  def block_modules(self) -> list[str]:
    """Paths of the attention, the second norm and the MLP of a block."""
    names = _NUMBERED_TOGETHER if self.classic else _NUMBERED_BY_CLASS
    return [f'{self.block}/{name}' for name in names]

  def read_shape(self, shapes: Shapes) -> Reading:
    """As `Format.read_shape`; the number of heads is an axis of the query."""
    scanned = any(name.startswith(f'{_ENCODER}/') for name in shapes)
    block = _ENCODER if scanned else f'{_ENCODER}_0'
    classic = f'{block}/{_NUMBERED_TOGETHER[0]}/query/kernel' in shapes
    position = next((name for name in _POSITIONS if name in shapes), None)
    format = dataclasses.replace(self, scanned=scanned, classic=classic, position=position)
    reading = Format.read_shape(format, shapes)
    query = shapes[f'{format.block_modules[0].format(0)}/query/kernel']
    reading.fields.update(num_heads=query[-2], activation='gelu_tanh')
    return reading

  def rules(self, model: ViT) -> list[Rule]:
    """As `Format.rules`; heads are an axis of the attention's kernels."""
    attention, norm2, mlp = self.block_modules
    computed = Rule(
      'pos_embed', (), lambda shape: sincos_2d(shape, model.class_token), lambda _: ()
    )
    lacks = model.class_token and not self.class_pos
    return [
      same('cls', 'cls'),
      positions(self.position, lacks) if self.position else computed,
      *_pair('embed', 'embedding'),
      *_pair('blocks/norm1', f'{self.block}/LayerNorm_0', 'scale'),
      *_attention(model, attention),
      *_pair('blocks/norm2', norm2, 'scale'),
      *_pair('blocks/mlp/fc1', f'{mlp}/Dense_0'),
      *_pair('blocks/mlp/fc2', f'{mlp}/Dense_1'),
      *_pair('norm', 'Transformer/encoder_norm', 'scale'),
      *_pair('pre_logits', 'pre_logits'),
      *_pair('head', 'head'),
    ]

  def resize_positions(
    self, pos_embed: np.ndarray, old: tuple[int, int], new: tuple[int, int]
  ) -> np.ndarray:
    """As `Format.resize_positions`; computed positions are computed for the new grid."""
    if self.position is not None:
      return super().resize_positions(pos_embed, old, new)
    _, tokens, width = pos_embed.shape
    class_tokens = tokens - math.prod(old)
    return sincos_2d((1, math.prod(new) + class_tokens, width), bool(class_tokens), new)


def _pair(ours: str, theirs: str, weight: str = 'kernel') -> list[Rule]:
  """A linear layer, or a norm."""
  return [same(f'{ours}/{part}', f'{theirs}/{part}') for part in (weight, 'bias')]


def _attention(model: ViT, theirs: str) -> list[Rule]:
  """Kernels of queries, keys and values are [width, heads, head width]; `out` has heads first."""
  by_head = model.num_heads, model.width // model.num_heads
  qkv = [f'{theirs}/{name}' for name in ('query', 'key', 'value')]

  def beside(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate([part.reshape(*part.shape[:-2], -1) for part in parts], axis=-1)

  def split(value: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(part.reshape(*part.shape[:-1], *by_head) for part in np.split(value, 3, axis=-1))

  return [
    *(
      Rule(f'blocks/attn/qkv/{part}', tuple(f'{name}/{part}' for name in qkv), beside, split)
      for part in ('kernel', 'bias')
    ),
    Rule(
      'blocks/attn/proj/kernel',
      (f'{theirs}/out/kernel',),
      lambda kernel: kernel.reshape(*kernel.shape[:-3], -1, kernel.shape[-1]),
      lambda kernel: (kernel.reshape(*kernel.shape[:-2], *by_head, kernel.shape[-1]),),
    ),
    same('blocks/attn/proj/bias', f'{theirs}/out/bias'),
  ]


def sincos_2d(
  shape: tuple[int, int, int], class_token: bool, grid: tuple[int, int] | None = None
) -> np.ndarray:
  """The fixed position embedding of a grid of patches (Chen et al. 2021, arXiv 2104.02057).

  big_vision's models with `posemb='sincos2d'` have no position embedding in the file: this is it.

  Args:
    shape: (1, tokens, width).
    class_token: whether the first token is a class token, whose position is zero.
    grid: (rows, columns) of the patches; None for a square.

  Returns:
    Position embedding, float32 [1, tokens, width].
  """
  _, tokens, width = shape
  side = math.isqrt(tokens - class_token)
  rows, columns = (axis.reshape(-1, 1) for axis in np.indices(grid or (side, side)))
  quarter = width // 4
  frequencies = (1 / 10_000 ** (np.arange(quarter) / (quarter - 1)))[None]
  x, y = columns * frequencies, rows * frequencies
  patches = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
  class_pos = np.zeros((int(class_token), width))
  return np.concatenate([class_pos, patches])[None].astype(np.float32)


FORMAT = FlaxNpz(name='flax_npz', signature=_ENCODER, is_written=False)
