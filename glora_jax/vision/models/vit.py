"""A plain Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929), with nothing of GLoRA.

Pre-LN blocks under `nn.scan`, a fused qkv projection, class token or global average pooling,
optional LayerScale, drop path and pre-logits; its fields cover the ViTs of vision_transformer,
big_vision, timm (DeiT, augreg, CLIP), Hugging Face and DINOv2. `glora_jax.adapt` attaches the
supports from outside, as it does for any other Flax model.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from glora_jax.vision.models.blocks import Activation, Block, Pool, patch_product
from glora_jax.vision.models.metadata import ImageSize, sides


class ViT(nn.Module):
  """The Vision Transformer: images [batch, height, width, channels] to logits [batch, classes].

  The position embedding takes its grid from the images that the model is initialized with. Drop
  path needs the rng stream 'drop_path' when `train=True`; its rate rises linearly over the blocks
  from 0 to `drop_path`, as in timm.

  Attributes:
    num_classes: size of the head; 0 returns the pooled features instead.
    patch_size: side of the square patches, in pixels.
    width: width of the encoder.
    depth: number of blocks.
    num_heads: number of attention heads, which divides the width.
    mlp_dim: width of the MLPs' hidden layer; None for four times the width.
    pool: 'token' reads the class token; 'gap' averages the patch tokens; 'token+gap' puts the two
      side by side, as DINOv2's classifiers do.
    class_token: whether there is a class token at all, which 'token' pooling needs.
    pre_norm: whether a LayerNorm stands before the first block, and the patch embedding has no
      bias, as in CLIP.
    norm_after_pool: whether the last LayerNorm stands after pooling, as in timm's average-pooled
      models.
    pre_logits: width of a tanh layer between pooling and head, as in the original in21k
      checkpoints; None for none.
    layer_scale: initial value of LayerScale; None for none.
    drop_path: probability that the last block drops a residual branch during training.
    norm_eps: what every LayerNorm adds to the variance.
    activation: activation of the MLPs, a key of `ACTIVATIONS`.
    dtype: type of the computation (parameters stay float32); None computes in the type of
      parameters and inputs.
    remat: name of a `jax.checkpoint_policies` policy to rematerialize each block with,
      'nothing_saveable' for instance; None keeps all activations.
    unroll: how many blocks a step of the scan over them has. All of them (`depth`) spare the copies
      of activations that a scan makes, for more memory and a longer compilation.

  Example:
    >>> model = ViT(num_classes=10, patch_size=4, width=16, depth=2, num_heads=2)
    >>> images = jnp.zeros((3, 8, 8, 3))
    >>> logits, variables = model.init_with_output(jax.random.key(0), images)
    >>> logits.shape, variables['params']['blocks']['attn']['qkv']['kernel'].shape
    ((3, 10), (2, 16, 48))
  """

  num_classes: int
  patch_size: int = 16
  width: int = 768
  depth: int = 12
  num_heads: int = 12
  mlp_dim: int | None = None
  pool: Pool = 'token'
  class_token: bool = True
  pre_norm: bool = False
  norm_after_pool: bool = False
  pre_logits: int | None = None
  layer_scale: float | None = None
  drop_path: float = 0.0
  norm_eps: float = 1e-6
  activation: Activation = 'gelu'
  dtype: DTypeLike | None = None
  remat: str | None = None
  unroll: int = 1

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
    """Computes logits.

    Args:
      images: normalized images, float [batch, height, width, channels].
      train: whether residual branches are dropped.

    Returns:
      Logits [batch, num_classes], or pooled features where there is no head; float32 or wider.

    Raises:
      ValueError: images or fields do not go together.
    """
    self._check(images)
    x = self._embed(images)
    if self.pre_norm:
      x = self._norm('pre_norm')(x)
    x = self._encode(x, dropping=train and self.drop_path > 0)
    if not self.norm_after_pool:
      x = self._norm('norm')(x)
    x = self._pool(x)
    if self.norm_after_pool:
      x = self._norm('norm')(x)
    if self.pre_logits is not None:
      x = nn.tanh(nn.Dense(self.pre_logits, dtype=self.dtype, name='pre_logits')(x))
    if self.num_classes:
      x = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name='head')(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))

  def _embed(self, images: jax.Array) -> jax.Array:
    """Patches as tokens after a class token, with positions, [batch, tokens, width]."""
    patch = (self.patch_size, self.patch_size)
    x = nn.Conv(
      self.width,
      patch,
      strides=patch,
      padding='VALID',
      use_bias=not self.pre_norm,
      dtype=self.dtype,
      conv_general_dilated=patch_product,
      name='embed',
    )(images)
    x = x.reshape(x.shape[0], -1, self.width)
    if self.class_token:
      cls = self.param('cls', nn.initializers.zeros, (1, 1, self.width))
      tokens = jnp.broadcast_to(cls, (x.shape[0], 1, self.width)).astype(x.dtype)
      x = jnp.concatenate([tokens, x], axis=1)
    pos_embed = self.param('pos_embed', nn.initializers.normal(0.02), (1, x.shape[1], self.width))
    return x + pos_embed.astype(x.dtype)

  def _encode(self, x: jax.Array, dropping: bool) -> jax.Array:
    """All blocks, whose parameters are stacked."""
    block = Block
    if self.remat is not None:
      policy = getattr(jax.checkpoint_policies, self.remat)
      block = nn.remat(block, policy=policy, prevent_cse=False)
    blocks = nn.scan(
      block,
      length=self.depth,
      unroll=min(self.unroll, self.depth),
      variable_axes={'params': 0, 'intermediates': 0},
      split_rngs={'params': True, 'drop_path': True},
      in_axes=0 if dropping else nn.broadcast,
    )(
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim or 4 * self.width,
      layer_scale=self.layer_scale,
      norm_eps=self.norm_eps,
      activation=self.activation,
      dtype=self.dtype,
      name='blocks',
    )
    drop_rates = jnp.linspace(0.0, self.drop_path, self.depth) if dropping else None
    x, _ = blocks(x, drop_rates)
    return x

  def _pool(self, x: jax.Array) -> jax.Array:
    """Tokens to features, [batch, width], or twice the width for 'token+gap'."""
    pooled = []
    if 'token' in self.pool:
      pooled.append(x[:, 0])
    if 'gap' in self.pool:
      pooled.append(x[:, int(self.class_token) :].mean(axis=1))
    return jnp.concatenate(pooled, axis=-1)

  def _norm(self, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name=name)

  def _check(self, images: jax.Array) -> None:
    if images.ndim != 4 or any(side % self.patch_size for side in images.shape[1:3]):
      raise ValueError(
        f'The ViT got images of shape {images.shape}; it expects [batch, height, width, channels] '
        f'with height and width multiples of patch_size={self.patch_size}.'
      )
    if self.width % self.num_heads:
      raise ValueError(
        f'width={self.width} is not a multiple of num_heads={self.num_heads}; choose another '
        'number of heads.'
      )
    if 'token' in self.pool and not self.class_token:
      raise ValueError(
        f"pool='{self.pool}' reads the class token, but class_token=False; use pool='gap' or "
        'class_token=True.'
      )


# Fields that say how a model is run, and nothing of its parameters; two are Flax's own.
RUN_TIME_FIELDS = ('parent', 'name', 'dtype', 'remat', 'unroll', 'drop_path')


def describe(model: ViT) -> dict[str, Any]:
  """The fields that a checkpoint of the model must remember, as JSON types.

  `ViT(**describe(model))` has the same parameters.
  """
  return {
    field.name: getattr(model, field.name)
    for field in dataclasses.fields(model)
    if field.name not in RUN_TIME_FIELDS
  }


def expected_params(model: ViT, image_size: ImageSize) -> dict[str, Any]:
  """Shapes and types of the model's parameters, by 'path/of/parameter'.

  Args:
    model: the ViT.
    image_size: size of its images, (height, width) where they are not square.
  """
  images = jax.ShapeDtypeStruct((1, *sides(image_size), 3), np.float32)
  # The key is made inside: a concrete one would start a device.
  variables = jax.eval_shape(lambda images: model.init(jax.random.key(0), images), images)
  return flax.traverse_util.flatten_dict(variables['params'], sep='/')
