"""A plain Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929), with nothing of GLoRA in it.

Pre-LN blocks under `nn.scan`, a fused qkv projection, class token or global average pooling, optional LayerScale, drop
path and pre-logits; its fields cover the ViTs of vision_transformer, big_vision, timm (DeiT, augreg, CLIP), Hugging Face and
DINOv2. `glora_jax.adapt` attaches the supports from outside, as it does for any other Flax model.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Width, depth, heads of the published sizes (Steiner et al. 2022, arXiv 2106.10270, table 2).
SIZES = {
  'Ti': {'width': 192, 'depth': 12, 'num_heads': 3},
  'S': {'width': 384, 'depth': 12, 'num_heads': 6},
  'B': {'width': 768, 'depth': 12, 'num_heads': 12},
  'L': {'width': 1024, 'depth': 24, 'num_heads': 16},
  'H': {'width': 1280, 'depth': 32, 'num_heads': 16},
}


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
  """x Phi(x), Phi the normal distribution function (Hendrycks and Gimpel 2016, arXiv 1606.08415), computed in float32 or wider.

  Forward and backward take half the time of `nn.gelu(x, approximate=False)` on CPU: erf is cheaper than erfc, whose accuracy in the
  far negative tail only matters relative to an output that is almost zero, and one derivative is kept where autodiff keeps its parts.
  """
  return _gelu_and_derivative(x)[0]


@gelu.defjvp
def _gelu_jvp(primals, tangents):
  value, derivative = _gelu_and_derivative(*primals)
  return value, tangents[0] * derivative


def _gelu_and_derivative(x):
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  distribution = 0.5 * (1 + jax.lax.erf(wide * math.sqrt(0.5)))
  density = jnp.exp(-0.5 * wide**2) * (1 / math.sqrt(2 * math.pi))
  return (wide * distribution).astype(x.dtype), (distribution + wide * density).astype(x.dtype)


ACTIVATIONS = {
  'gelu': gelu,  # timm, Hugging Face, DINOv2
  'gelu_tanh': lambda x: nn.gelu(x, approximate=True),  # vision_transformer and big_vision
  'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),  # OpenAI's CLIP
}
POOLS = ('token', 'gap', 'token+gap')


def drop_path(key: jax.Array, x: jax.Array, rate: jax.Array | float) -> jax.Array:
  """Drops the whole residual branch of an example with probability `rate` (Huang et al. 2016, arXiv 1603.09382).

  Args:
    key: random key.
    x: branch output, [batch, ...].
    rate: scalar in [0, 1), may be traced.

  Returns:
    `x` with the dropped examples zero and the others divided by `1 - rate`, so that the mean is kept.
  """
  keep = 1.0 - jnp.asarray(rate, x.dtype)
  mask = jax.random.bernoulli(key, keep, (x.shape[0],) + (1,) * (x.ndim - 1))
  return jnp.where(mask, x / keep, 0)


def patch_product(
  images: jax.Array, kernel: jax.Array, strides, padding, *, precision=None, **_
) -> jax.Array:
  """`jax.lax.conv_general_dilated` of patches that do not overlap, as one matrix product.

  On CPU the kernel's gradient of the convolution itself takes longer than all blocks of a small ViT together.

  Args:
    images: [batch, height, width, channels].
    kernel: [patch, patch, channels, out].

  Returns:
    [batch, height / patch, width / patch, out].
  """
  batch, height, width, channels = images.shape
  rows, columns = kernel.shape[:2]
  patches = images.reshape(
    batch, height // rows, rows, width // columns, columns, channels
  ).transpose(0, 1, 3, 2, 4, 5)
  patches = patches.reshape(batch * (height // rows) * (width // columns), -1)
  return jnp.dot(patches, kernel.reshape(-1, kernel.shape[-1]), precision=precision).reshape(
    batch, height // rows, width // columns, -1
  )


class Attention(nn.Module):
  """Multi-head self-attention with one fused projection: q, k, v stand side by side in `qkv`'s outputs."""

  num_heads: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    batch, tokens, width = x.shape
    # The tokens of all examples go side by side into every dense layer: XLA's CPU backward pass then transposes no large array for
    # the kernel's gradient. `split`, whose own gradient is a concatenation, spares it three padded copies of q, k and v.
    qkv = nn.Dense(3 * width, dtype=self.dtype, name='qkv')(x.reshape(-1, width))
    heads = (batch, tokens, self.num_heads, width // self.num_heads)
    q, k, v = (
      part.reshape(heads).transpose(0, 2, 1, 3) for part in jnp.split(qkv, 3, axis=-1)
    )  # [batch, heads, tokens, head width]
    # Heads before tokens makes both products plain batched matrix products: on CPU, forward and backward take 0.7 of the
    # time of jax.nn.dot_product_attention, which keeps heads after tokens.
    logits = jnp.einsum('bhqd,bhkd->bhqk', q * q.shape[-1] ** -0.5, k)
    weights = nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32))).astype(
      v.dtype
    )
    y = (weights @ v).transpose(0, 2, 1, 3)  # [batch, tokens, heads, head width]
    return nn.Dense(width, dtype=self.dtype, name='proj')(y.reshape(-1, width)).reshape(x.shape)


class Mlp(nn.Module):
  hidden: int
  activation: str = 'gelu'
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = ACTIVATIONS[self.activation](
      nn.Dense(self.hidden, dtype=self.dtype, name='fc1')(x.reshape(-1, x.shape[-1]))
    )
    return nn.Dense(x.shape[-1], dtype=self.dtype, name='fc2')(y).reshape(x.shape)


class LayerScale(nn.Module):
  """A learned factor per channel on a residual branch (Touvron et al. 2021, arXiv 2103.17239)."""

  initial: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    gamma = self.param('gamma', nn.initializers.constant(self.initial), (x.shape[-1],))
    return x * gamma.astype(x.dtype)


class Block(nn.Module):
  """One pre-LN encoder block, in the carry form that `nn.scan` wants: returns (x, None)."""

  num_heads: int
  mlp_dim: int
  layer_scale: float | None = None
  norm_eps: float = 1e-6
  activation: str = 'gelu'
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, drop_rate: jax.Array | None):
    def residual(x, branch, name):
      if self.layer_scale is not None:
        branch = LayerScale(self.layer_scale, name=name)(branch)
      if drop_rate is not None:
        branch = drop_path(self.make_rng('drop_path'), branch, drop_rate)
      return x + branch

    norm = lambda name: nn.LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name=name)
    x = residual(
      x, Attention(self.num_heads, dtype=self.dtype, name='attn')(norm('norm1')(x)), 'scale1'
    )
    x = residual(
      x,
      Mlp(self.mlp_dim, self.activation, dtype=self.dtype, name='mlp')(norm('norm2')(x)),
      'scale2',
    )
    return x, None


class ViT(nn.Module):
  """Images [batch, height, width, channels] to logits [batch, num_classes], float32.

  The position embedding takes its grid from the images that the model is initialized with. Drop path needs the rng stream
  'drop_path' when `train=True`; its rate rises linearly over the blocks from 0 to `drop_path`, as in timm.

  Attributes:
    num_classes: size of the head; 0 returns the pooled features instead.
    patch_size: side of the square patches, in pixels.
    width, depth, num_heads, mlp_dim: the encoder's shape; `mlp_dim=None` is four times the width. See `vit` for the names.
    pool: 'token' reads the class token; 'gap' averages the patch tokens; 'token+gap' puts the two side by side, as DINOv2's
      classifiers do.
    class_token: whether a class token is there at all ('token' pooling needs one).
    pre_norm: a LayerNorm before the first block and no bias in the patch embedding, as in CLIP.
    norm_after_pool: where the last LayerNorm stands; timm's average-pooled models have it after pooling.
    pre_logits: width of a tanh layer between pooling and head, as in the original in21k checkpoints; None for none.
    layer_scale: initial value of LayerScale, None for none.
    drop_path: the last block's probability of dropping a residual branch during training.
    norm_eps: of every LayerNorm.
    activation: of the MLPs, one of `ACTIVATIONS`.
    dtype: of the computation (parameters stay float32); None computes in the type of parameters and inputs.
    remat: name of a `jax.checkpoint_policies` policy to rematerialize each block with, 'nothing_saveable' for instance; None
      keeps all activations.
  """

  num_classes: int
  patch_size: int = 16
  width: int = 768
  depth: int = 12
  num_heads: int = 12
  mlp_dim: int | None = None
  pool: str = 'token'
  class_token: bool = True
  pre_norm: bool = False
  norm_after_pool: bool = False
  pre_logits: int | None = None
  layer_scale: float | None = None
  drop_path: float = 0.0
  norm_eps: float = 1e-6
  activation: str = 'gelu'
  dtype: Any = None
  remat: str | None = None

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
    self._check(images)
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
    x = x.reshape(x.shape[0], -1, self.width)  # [batch, patches, width]
    if self.class_token:
      cls = self.param('cls', nn.initializers.zeros, (1, 1, self.width))
      x = jnp.concatenate(
        [jnp.broadcast_to(cls, (x.shape[0], 1, self.width)).astype(x.dtype), x], axis=1
      )
    pos_embed = self.param('pos_embed', nn.initializers.normal(0.02), (1, x.shape[1], self.width))
    x = x + pos_embed.astype(x.dtype)
    norm = lambda name: nn.LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name=name)
    if self.pre_norm:
      x = norm('pre_norm')(x)

    block = Block
    if self.remat is not None:
      block = nn.remat(
        block, policy=getattr(jax.checkpoint_policies, self.remat), prevent_cse=False
      )
    dropping = train and self.drop_path > 0
    blocks = nn.scan(
      block,
      length=self.depth,
      variable_axes={'params': 0, 'intermediates': 0},
      split_rngs={'params': True, 'drop_path': True},
      in_axes=0 if dropping else nn.broadcast,
    )(
      self.num_heads,
      self.mlp_dim or 4 * self.width,
      self.layer_scale,
      self.norm_eps,
      self.activation,
      self.dtype,
      name='blocks',
    )
    x, _ = blocks(x, jnp.linspace(0.0, self.drop_path, self.depth) if dropping else None)

    if not self.norm_after_pool:
      x = norm('norm')(x)
    pooled = [x[:, 0]] if 'token' in self.pool else []
    if 'gap' in self.pool:
      pooled.append(x[:, int(self.class_token) :].mean(axis=1))
    x = jnp.concatenate(pooled, axis=-1)
    if self.norm_after_pool:
      x = norm('norm')(x)
    if self.pre_logits is not None:
      x = nn.tanh(nn.Dense(self.pre_logits, dtype=self.dtype, name='pre_logits')(x))
    if self.num_classes:
      x = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name='head')(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))

  def _check(self, images):
    if images.ndim != 4 or any(side % self.patch_size for side in images.shape[1:3]):
      raise ValueError(
        f'The ViT got images of shape {images.shape}; it expects [batch, height, width, channels] with height and width '
        f'multiples of patch_size={self.patch_size}.'
      )
    if self.width % self.num_heads:
      raise ValueError(
        f'width={self.width} is not a multiple of num_heads={self.num_heads}; choose another number of heads.'
      )
    if self.pool not in POOLS:
      raise ValueError(f"pool='{self.pool}' is unknown; it is one of {', '.join(POOLS)}.")
    if 'token' in self.pool and not self.class_token:
      raise ValueError(
        f"pool='{self.pool}' reads the class token, but class_token=False; use pool='gap' or class_token=True."
      )
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f"activation='{self.activation}' is unknown; it is one of {', '.join(ACTIVATIONS)}."
      )


def vit(size: str, num_classes: int, **fields) -> ViT:
  """The ViT of a published size: `vit('B', 10, patch_size=16)`; fields given override the size's."""
  if size not in SIZES:
    raise ValueError(
      f"ViT size '{size}' is unknown; the sizes are {', '.join(SIZES)}, or give width, depth and num_heads to ViT."
    )
  return ViT(num_classes, **{**SIZES[size], **fields})


def describe(model: ViT) -> dict[str, Any]:
  """The fields that a checkpoint of the model must remember, as JSON types; `ViT(**describe(model))` has the same parameters."""
  run_time = ('parent', 'name', 'dtype', 'remat', 'drop_path')
  return {
    f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in run_time
  }
