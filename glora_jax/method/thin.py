"""The output of a layer whose A is no LoRA, without a gradient of the kernel's size.

Training a layer with a merged kernel would compute the gradient of the whole kernel first and then
that of its factors. In x W' + b' = (x W) * (1 + A) + (x B_down) B_up + b' all that is trained has
thin gradients.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from glora_jax.method.equation import (
  Product,
  flat_form,
  matrix_product,
  stored_tensors,
  weight_factors,
)

_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar('platform', default=None)


@contextlib.contextmanager
def made_for(platform: str) -> Iterator[None]:
  """Programs that are traced within are those of a platform, 'cpu', 'gpu' or 'tpu', not JAX's own.

  Example:
    >>> with made_for('tpu'):  # on a machine that plans for one
    ...   program = jax.make_jaxpr(jnp.sin)(1.0)
  """
  token = _platform.set(platform)
  try:
    yield
  finally:
    _platform.reset(token)


def thin_layer(  # noqa: PLR0913
  product: Product,
  inputs: jax.Array,
  kernel: jax.Array,
  bias: jax.Array | None,
  supports: Mapping[str, jax.Array],
  alleles: jax.Array,
  ranks: Sequence[int],
  precision: Any = None,
) -> jax.Array:
  """The layer's output; a LoRA for B goes into the kernel where that is the cheaper way.

  Args:
    product: x W of inputs [..., in] and a kernel [in, out].
    inputs: x, float [..., in].
    kernel: W, float [in, out].
    bias: b' from `equation.effective_bias`, float [out], or None.
    supports: supports of the layer, of the tensors that take part.
    alleles: forms of A, B, C, D, E, int [5]; that of A is 0, 1 or 2.
    ranks: LoRA ranks that the codes stand for.
    precision: that of the layer's own product, as `jax.lax.dot_general` has it.

  Returns:
    float [..., out], in the product's dtype.
  """
  is_lora = 'B_down' in supports and 'A' not in stored_tensors(supports)
  if is_lora and _merging_pays(product, inputs, kernel):
    down, up = weight_factors(supports, 'B', alleles[1], ranks)
    factors = down.astype(kernel.dtype), up.astype(kernel.dtype)
    output = _merged_product(product, precision, inputs, kernel, *factors)
  else:
    output = thin_output(inputs, product(inputs, kernel), supports, alleles, ranks, precision)
  return output if bias is None else output + _beside(output, bias)


def thin_output(
  inputs: jax.Array,
  product: jax.Array,
  supports: Mapping[str, jax.Array],
  alleles: jax.Array,
  ranks: Sequence[int],
  precision: Any = None,
) -> jax.Array:
  """The layer's output without bias from its kernel's alone: no array has the kernel's size.

  Args:
    inputs: x, float [..., in].
    product: x W, float [..., out]; the result has its dtype.
    supports: as of `thin_layer`, and so are the others.
    alleles: forms of A, B, C, D, E.
    ranks: LoRA ranks.
    precision: as of `thin_layer`.

  Returns:
    float [..., out].
  """
  dtype, output = product.dtype, product
  stored = stored_tensors(supports)
  if 'A' in stored:
    output = output + output * _beside(output, flat_form(supports, 'A', alleles[0]))
  if 'B_down' in supports:
    down, up = weight_factors(supports, 'B', alleles[1], ranks)
    factors = down.astype(dtype), up.astype(dtype)
    output = output + _thin_product(inputs.astype(dtype), *factors, precision)
  elif 'B' in stored:
    row = _beside(output, flat_form(supports, 'B', alleles[1]))
    output = output + inputs.astype(dtype).sum(-1, keepdims=True) * row
  return output


def _beside(output: jax.Array, row: jax.Array) -> jax.Array:
  """Numbers [out] as often as a layer's output has them; JAX may be told to repeat none itself."""
  return jnp.broadcast_to(row.astype(output.dtype), output.shape)


def _thin_product(inputs: jax.Array, down: jax.Array, up: jax.Array, precision: Any) -> jax.Array:
  """(x B_down) B_up, [..., out].

  Held behind a barrier in its transposed form, `down` gets its gradient as t^T x, with
  t [tokens, rank]. XLA's own choice x^T t takes two to three times as long on CPU, with the thin
  side where a matrix product wants the wide one.
  """
  down = jax.lax.optimization_barrier(down.T)
  last_axes = ((inputs.ndim - 1,), (1,))
  narrow = jax.lax.dot_general(inputs, down, (last_axes, ((), ())), precision=precision)
  return jnp.matmul(narrow, up, precision=precision)


def _merging_pays(product: Product, inputs: jax.Array, kernel: jax.Array) -> bool:
  """Whether x (W + B) is cheaper than x W + x B, and as exact.

  With the factors apart, x B is added to all outputs, and its gradient to all inputs; merged, both
  passes go over the kernel. A sum that is rounded to less than float32 would lose small changes of
  the kernel, and TPUs and GPUs round what they multiply in float32.
  """
  dtype = jax.eval_shape(product, inputs, kernel).dtype
  is_exact = (_platform.get() or jax.default_backend()) == 'cpu' and dtype == kernel.dtype
  if not is_exact or jnp.finfo(dtype).bits < 32:
    return False
  into, out = kernel.shape
  tokens = math.prod(inputs.shape[:-1])
  return tokens * (into + out) > 2 * into * out


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _merged_product(
  product: Product,
  precision: Any,
  inputs: jax.Array,
  kernel: jax.Array,
  down: jax.Array,
  up: jax.Array,
) -> jax.Array:
  """X (W + B_down B_up), [..., out]."""
  return product(inputs, kernel + matrix_product(down, up))


@functools.partial(_merged_product.defjvp, symbolic_zeros=True)
def _merged_product_jvp(
  product: Product, precision: Any, primals: Any, tangents: Any
) -> tuple[Any, Any]:
  """The derivative by each argument that has one; those by the factors are thin products.

  Merged kernels are made again for the gradient by the inputs: a scan over layers would keep all.
  """
  inputs, kernel, down, up = primals
  merged = functools.partial(_merged_product, product, precision)
  by_argument = (
    lambda change: jax.checkpoint(merged)(change, kernel, down, up),
    lambda change: product(inputs, change),
    lambda change: _thin_product(inputs, change, up, precision),
    lambda change: _thin_product(inputs, down, change, precision),
  )
  terms = [
    derivative(change)
    for derivative, change in zip(by_argument, tangents, strict=True)
    if not isinstance(change, SymbolicZero)
  ]
  return merged(*primals), sum(terms)
