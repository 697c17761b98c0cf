"""The parts of a Vision Transformer: activations, drop path, attention, MLP, LayerScale, block."""

from __future__ import annotations

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Activation = Literal['gelu', 'gelu_tanh', 'quick_gelu']
Pool = Literal['token', 'gap', 'token+gap']


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
  """Computes x Phi(x), Phi the normal distribution function, in float32 or wider.

  See Hendrycks and Gimpel 2016, arXiv 1606.08415. Forward and backward take half the time of
  `nn.gelu(x, approximate=False)` on CPU: erf is cheaper than erfc, whose accuracy in the far
  negative tail only matters relative to an output that is almost zero, and one derivative is kept
  where autodiff keeps its parts.
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
  """GELU by its tanh approximation."""
  return nn.gelu(x, approximate=True)


def quick_gelu(x: jax.Array) -> jax.Array:
  """GELU by its sigmoid approximation."""
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

  On CPU the kernel's gradient of the convolution itself takes longer than all blocks of a small ViT
  together.

  Args:
    images: images, [batch, height, width, channels].
    kernel: kernel, [patch, patch, channels, out].
    strides: the patch size, not looked at.
    padding: none, not looked at.
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
    # The tokens of all examples go side by side into every dense layer: XLA's CPU backward pass
    # then transposes no large array for the kernel's gradient. `split`, whose own gradient is a
    # concatenation, spares it three padded copies of q, k and v.
    qkv = nn.Dense(3 * width, dtype=self.dtype, name='qkv')(x.reshape(-1, width))
    by_head = (batch, tokens, self.num_heads, width // self.num_heads)
    q, k, v = (  # each [batch, heads, tokens, head width]
      part.reshape(by_head).transpose(0, 2, 1, 3) for part in jnp.split(qkv, 3, axis=-1)
    )
    # Heads before tokens makes both products plain batched matrix products: on CPU, forward and
    # backward take 0.7 of the time of jax.nn.dot_product_attention, which keeps heads after tokens.
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
  """One pre-LN encoder block, in the carry form that `nn.scan` wants.

  Attributes:
    num_heads: number of attention heads.
    mlp_dim: width of the MLP's hidden layer.
    layer_scale: initial value of LayerScale; None for none.
    norm_eps: what the LayerNorms add to the variance.
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
