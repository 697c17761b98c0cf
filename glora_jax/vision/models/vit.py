"""A plain Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929), without GLoRA.

Pre-LN blocks under `nn.scan`, a fused qkv projection, class token or global average pooling,
optional LayerScale, drop path and pre-logits; its fields cover the ViTs of vision_transformer,
big_vision, timm (DeiT, augreg, CLIP), Hugging Face and DINOv2. `glora_jax.adapt` adapts it like any
other Flax model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

Activation = Literal['gelu', 'gelu_tanh', 'quick_gelu']
Pool = Literal['token', 'gap', 'token+gap']
ImageSize = int | Sequence[int]


class ViT(nn.Module):
  """The Vision Transformer: images [batch, height, width, channels] to logits [batch, classes].

  The grid of the position embedding is that of the images that the model is initialized with. Drop
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
    norm_eps: epsilon of every LayerNorm.
    activation: activation of the MLPs, a key of `ACTIVATIONS`.
    dtype: type of the computation (parameters stay float32); None computes in the type of
      parameters and inputs.
    remat: name of a `jax.checkpoint_policies` policy to rematerialize each block with,
      'nothing_saveable' for instance; None keeps all activations.
    unroll: number of blocks in a step of the scan over them. With all of them (`depth`) there are
      no copies of activations, as in a scan, but more memory and a longer compilation.

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
      Logits [batch, num_classes], or pooled features if there is no head; float32 or wider.

    Raises:
      ValueError: images or fields do not fit together.
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

  @nn.nowrap
  def logits_of(self, params: Any, features: jax.Array) -> jax.Array:
    """Logits [batch, num_classes] of pooled features, with the head in the parameters."""
    return nn.Dense(self.num_classes).apply({'params': params['head']}, features)  # pyrefly: ignore

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


# Fields that change how a model runs, but not its parameters; two are Flax's.
RUN_TIME_FIELDS = ('parent', 'name', 'dtype', 'remat', 'unroll', 'drop_path')


def describe(model: ViT) -> dict[str, Any]:
  """The fields that a checkpoint of the model must have, as JSON types.

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
    image_size: size of its images, (height, width) if they are not square.
  """
  images = jax.ShapeDtypeStruct((1, *sides(image_size), 3), np.float32)
  # The key is made inside: a concrete one would start a device.
  variables = jax.eval_shape(lambda images: model.init(jax.random.key(0), images), images)
  return flax.traverse_util.flatten_dict(variables['params'], sep='/')


def sides(image_size: ImageSize) -> tuple[int, int]:
  """(height, width) of an image size."""
  if isinstance(image_size, int):
    return image_size, image_size
  height, width = image_size
  return height, width


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
  """Computes x Phi(x), Phi the normal distribution function, in float32 or wider.

  See Hendrycks and Gimpel 2016, arXiv 1606.08415. On CPU it is cheaper than
  `nn.gelu(x, approximate=False)`, since erf is cheaper than erfc, whose accuracy in the far
  negative tail only matters relative to an output that is almost zero. And one derivative is saved
  for the backward pass, while autodiff saves its parts.
  """
  return _gelu_and_derivative(x)[0]


@gelu.defjvp
def _gelu_jvp(primals, tangents):
  value, derivative = _gelu_and_derivative(*primals)
  return value, tangents[0] * derivative


def _gelu_and_derivative(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  distribution = 0.5 * (1 + jax.lax.erf(wide * math.sqrt(0.5)))
  density = jnp.exp(-0.5 * wide**2) * (1 / math.sqrt(2 * math.pi))
  return (wide * distribution).astype(x.dtype), (distribution + wide * density).astype(x.dtype)


def gelu_tanh(x: jax.Array) -> jax.Array:
  """GELU with the tanh approximation."""
  return nn.gelu(x, approximate=True)


def quick_gelu(x: jax.Array) -> jax.Array:
  """GELU with the sigmoid approximation."""
  return x * nn.sigmoid(1.702 * x)


ACTIVATIONS = {
  'gelu': gelu,  # timm, Hugging Face, DINOv2
  'gelu_tanh': gelu_tanh,  # vision_transformer and big_vision
  'quick_gelu': quick_gelu,  # OpenAI's CLIP
}


def drop_path(key: jax.Array, x: jax.Array, rate: jax.Array | float) -> jax.Array:
  """Drops the residual branch of whole examples (Huang et al. 2016, arXiv 1603.09382).

  Args:
    key: random key.
    x: output of the branch, [batch, ...].
    rate: probability of dropping, a scalar in [0, 1); may be traced.

  Returns:
    `x` with the dropped examples zero and the others divided by `1 - rate`, which keeps the mean.
  """
  keep = 1.0 - jnp.asarray(rate, x.dtype)
  mask = jax.random.bernoulli(key, keep, (x.shape[0],) + (1,) * (x.ndim - 1))
  return jnp.where(mask, x / keep, 0)


def patch_product(
  images: jax.Array,
  kernel: jax.Array,
  strides: Any,
  padding: Any,
  *,
  precision: jax.lax.PrecisionLike = None,
  **_: Any,
) -> jax.Array:
  """`jax.lax.conv_general_dilated` of patches that do not overlap, as one matrix product.

  On CPU the kernel's gradient of the convolution itself is slow.

  Args:
    images: images, [batch, height, width, channels].
    kernel: kernel, [patch, patch, channels, out].
    strides: the patch size, ignored.
    padding: none, ignored.
    precision: precision of the product.
    **_: other arguments of `jax.lax.conv_general_dilated`, at their defaults in the ViT.

  Returns:
    Patch embeddings, [batch, height / patch, width / patch, out].
  """
  batch, height, width, channels = images.shape
  patch_height, patch_width = kernel.shape[:2]
  rows = height // patch_height
  columns = width // patch_width
  patches = images.reshape(batch, rows, patch_height, columns, patch_width, channels)
  patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch * rows * columns, -1)
  flat_kernel = kernel.reshape(-1, kernel.shape[-1])
  return jnp.dot(patches, flat_kernel, precision=precision).reshape(batch, rows, columns, -1)


class Attention(nn.Module):
  """Multi-head self-attention with one fused projection.

  Queries, keys and values stand side by side in the outputs of `qkv`.

  Attributes:
    num_heads: number of heads, which divides the width.
    dtype: type of the computation.
  """

  num_heads: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Mixes the tokens of `x`, [batch, tokens, width]."""
    batch, tokens, width = x.shape
    # The tokens of all examples go side by side into every dense layer, so that XLA's CPU backward
    # pass does not transpose a large array for the kernel's gradient. The gradient of `split` is a
    # concatenation, which avoids three padded copies of q, k and v.
    qkv = nn.Dense(3 * width, dtype=self.dtype, name='qkv')(x.reshape(-1, width))
    by_head = (batch, tokens, self.num_heads, width // self.num_heads)
    q, k, v = (  # each [batch, heads, tokens, head width]
      part.reshape(by_head).transpose(0, 2, 1, 3) for part in jnp.split(qkv, 3, axis=-1)
    )
    # With heads before tokens, both products are plain batched matrix products. On CPU, forward and
    # backward need 0.7 of the time of jax.nn.dot_product_attention, which has heads after tokens.
    logits = jnp.einsum('bhqd,bhkd->bhqk', q * q.shape[-1] ** -0.5, k)
    weights = nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    y = (weights.astype(v.dtype) @ v).transpose(0, 2, 1, 3)  # [batch, tokens, heads, head width]
    return nn.Dense(width, dtype=self.dtype, name='proj')(y.reshape(-1, width)).reshape(x.shape)


class Mlp(nn.Module):
  """The MLP of a block, the same for each token.

  Attributes:
    hidden: width of the hidden layer.
    activation: key of `ACTIVATIONS`.
    dtype: type of the computation.
  """

  hidden: int
  activation: Activation = 'gelu'
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps the tokens of `x`, [batch, tokens, width]."""
    width = x.shape[-1]
    y = nn.Dense(self.hidden, dtype=self.dtype, name='fc1')(x.reshape(-1, width))
    y = ACTIVATIONS[self.activation](y)
    return nn.Dense(width, dtype=self.dtype, name='fc2')(y).reshape(x.shape)


class LayerScale(nn.Module):
  """A learned factor per channel on a residual branch (Touvron et al. 2021, arXiv 2103.17239).

  Attributes:
    initial: value that all factors start at.
  """

  initial: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Scales the last axis of `x`."""
    gamma = self.param('gamma', nn.initializers.constant(self.initial), (x.shape[-1],))
    return x * jnp.broadcast_to(gamma.astype(x.dtype), x.shape)


class Block(nn.Module):
  """One pre-LN encoder block, in the carry form that `nn.scan` needs.

  Attributes:
    num_heads: number of attention heads.
    mlp_dim: width of the MLP's hidden layer.
    layer_scale: initial value of LayerScale; None for none.
    norm_eps: epsilon of the LayerNorms.
    activation: activation of the MLP.
    dtype: type of the computation.
  """

  num_heads: int
  mlp_dim: int
  layer_scale: float | None = None
  norm_eps: float = 1e-6
  activation: Activation = 'gelu'
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, x: jax.Array, drop_rate: jax.Array | None) -> tuple[jax.Array, None]:
    """Maps the tokens of `x`, [batch, tokens, width].

    Args:
      x: tokens.
      drop_rate: probability of dropping each residual branch; None drops none, and needs no key.

    Returns:
      (tokens, None).
    """
    y = self._norm('norm1')(x)
    y = Attention(self.num_heads, dtype=self.dtype, name='attn')(y)
    x = x + self._branch(y, drop_rate, 'scale1')
    y = self._norm('norm2')(x)
    y = Mlp(self.mlp_dim, self.activation, dtype=self.dtype, name='mlp')(y)
    x = x + self._branch(y, drop_rate, 'scale2')
    return x, None

  def _norm(self, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name=name)

  def _branch(self, y: jax.Array, drop_rate: jax.Array | None, scale: str) -> jax.Array:
    if self.layer_scale is not None:
      y = LayerScale(self.layer_scale, name=scale)(y)
    if drop_rate is not None:
      y = drop_path(self.make_rng('drop_path'), y, drop_rate)
    return y
