"""The equation (GLoRA, arXiv 2306.07967, eq. 10): pure functions on the arrays of one linear layer.

    W' = W + W * A + B            (* is elementwise)
    b' = b + b * D + E + C @ W

in Flax's layout, W [in, out] and b [out]. Which form each of A, B, C, D, E takes is an *form*, an
integer that may be traced, so that one compiled program serves every structure:

    A, B:  0 none, 1 constant, 2 vector (one number per output), 3, 4, ... LoRA of the first,
           second, ... rank
    C:     0 none, 1 vector (one number per input), 2, 3, ... LoRA of the first, second, ... rank
    D, E:  0 none, 1 constant, 2 vector (one number per output)

The arrays that the forms are made of are the layer's supports: see `glora_jax.method.adapter`.
Those that no form on offer reads may be left out: a tensor without any is none.

Training a layer with a merged kernel would compute the gradient of the whole kernel first and then
that of its factors. Where A is not a LoRA, `layer_output` gives the same output as
x W' + b' = (x W) * (1 + A) + (x B_down) B_up + b', in which all that is trained has thin gradients.
Where a merged kernel is cheaper nevertheless, `_large_product` has these gradients as its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from glora_jax.method.adapter import ADAPTER, read
from glora_jax.method.quantized import is_quantized
from glora_jax.method.space import FLAT_FORMS, WEIGHT_TENSORS, Tensor

LOW_RANK = 8  # up to which `low_rank_product` is a sum of outer products
NEAR_ZERO = 0.25  # less than this, 1 + A is nothing to divide by

Product = Callable[[jax.Array, jax.Array], jax.Array]


def effective_kernel(
  kernel: jax.Array,
  adapter: Mapping[str, jax.Array],
  forms: jax.Array,
  ranks: Sequence[int],
  product: Product | None = None,
) -> jax.Array:
  """The kernel of one linear layer with its supports merged in: W' = W + W * A + B.

  Everything is computed in `promote_types(kernel.dtype, float32)` and cast once, so that a
  structure is the same numbers, within their rounding, whether it is trained, scored or folded.

  Args:
    kernel: W, float [in, out].
    adapter: supports of the layer (`adapter.adapter_shapes`).
    forms: forms of A, B, C, D, E, int [5]; may be traced. Values beyond the last form act as the
      last.
    ranks: LoRA ranks that the codes stand for, ascending.
    product: of the two factors of a LoRA, `low_rank_product` for instance; None for a matrix
      product, which is the better one where the layer runs at once.

  Returns:
    [in, out] in the kernel's dtype.

  Example:
    >>> supports = {'B_down': jnp.ones((3, 1)), 'B_up': jnp.ones((1, 2)), 'E': jnp.ones(2)}
    >>> forms = jnp.array([0, 3, 0, 0, 2])  # LoRA for B, a vector for E
    >>> kernel = jnp.zeros((3, 2))
    >>> effective_kernel(kernel, supports, forms, ranks=(1,)).tolist()
    [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    >>> effective_bias(kernel, jnp.zeros(2), supports, forms, ranks=(1,)).tolist()
    [1.0, 1.0]
  """
  dtype = jnp.promote_types(kernel.dtype, jnp.float32)
  adapter = {name: jnp.asarray(value, dtype) for name, value in adapter.items()}
  stored = stored_tensors(adapter)
  merged = kernel.astype(dtype)
  if 'A' in stored:
    form = weight_tensor(adapter, 'A', forms[0], ranks, product)
    merged = merged + _with_wide(jnp.multiply, kernel, form)
  if 'B' in stored:
    merged = merged + weight_tensor(adapter, 'B', forms[1], ranks, product)
  return merged.astype(kernel.dtype)


def effective_bias(
  kernel: jax.Array,
  bias: jax.Array,
  adapter: Mapping[str, jax.Array],
  forms: jax.Array,
  ranks: Sequence[int],
) -> jax.Array:
  """The bias of such a layer: b' = b + b * D + E + C @ W, computed in a wider type if b is wider.

  Args:
    kernel: W, float [in, out].
    bias: b, float [out].
    adapter: as of `effective_kernel`, like the others.
    forms: forms of A, B, C, D, E.
    ranks: LoRA ranks.

  Returns:
    [out] in the bias' dtype.
  """
  stored = stored_tensors(adapter) - set(WEIGHT_TENSORS)
  if not stored:
    return bias
  dtype = jnp.result_type(kernel.dtype, bias.dtype, jnp.float32)
  adapter = {name: jnp.asarray(value, dtype) for name, value in adapter.items()}
  shift = jnp.zeros(kernel.shape[-1], dtype)
  if 'E' in stored:
    shift = shift + flat_tensor(adapter, 'E', forms[4])
  if 'C' in stored:
    lora = 0
    if 'C_up' in adapter:
      down, up = adapter['C_down'], adapter['C_up']
      used = jnp.arange(down.shape[-1]) < _rank('C', forms[2], ranks)
      lora = matrix_product(jnp.where(used, down, 0), jnp.where(used, up[:, 0], 0))
    is_flat = forms[2] < len(FLAT_FORMS['C'])
    c = jnp.where(is_flat, flat_tensor(adapter, 'C', forms[2]), lora)
    shift = shift + _with_wide(lambda wide, c: matrix_product(c, wide), kernel, c)
  wide = bias.astype(dtype)
  d = flat_tensor(adapter, 'D', forms[3]) if 'D' in stored else 0
  return (wide + wide * d + shift).astype(bias.dtype)


def stored_tensors(adapter: Mapping[str, jax.Array]) -> set[str]:
  """The tensors that supports store something of."""
  return {ADAPTER[name].tensor for name in adapter}


def weight_factors(
  adapter: Mapping[str, jax.Array], tensor: Tensor, form: jax.Array, ranks: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
  """A or B in its form as two factors, [in, r] and [r, out].

  None, constant, vector and LoRA of any rank are all one product of two thin matrices: ones times
  a row for the flat forms, the masked factors for LoRA.
  """
  down, up = adapter[f'{tensor}_down'], adapter[f'{tensor}_up']
  columns = jnp.arange(down.shape[-1])
  used = columns < _rank(tensor, form, ranks)
  flat = (form > 0) & (form < len(FLAT_FORMS[tensor]))
  first, row = columns == 0, flat_tensor(adapter, tensor, form)
  down = jnp.where(flat, first.astype(down.dtype), jnp.where(used, down, 0))
  up = jnp.where(flat, jnp.where(first[:, None], row, 0), jnp.where(used[:, None], up, 0))
  return down, up


def weight_tensor(
  adapter: Mapping[str, jax.Array],
  tensor: Tensor,
  form: jax.Array,
  ranks: Sequence[int],
  product: Product | None = None,
) -> jax.Array:
  """A or B in its form, [in, out]; [1, out] or [1, 1] without storage for a LoRA."""
  if f'{tensor}_down' not in adapter:
    return jnp.atleast_2d(flat_tensor(adapter, tensor, form))
  factors = weight_factors(adapter, tensor, form, ranks)
  return _product_of_factors(product or matrix_product, *factors)


def low_rank_product(down: jax.Array, up: jax.Array) -> jax.Array:
  """The product of two thin factors [in, r] and [r, out]: a sum of outer products for a low rank.

  Such a sum is elementwise: what is done with it is one pass over a kernel, with no array of its
  size besides, and folding a model takes a fifth of the time on CPU. For a layer that is merged as
  it runs the TPU compiler holds less with a matrix product (`benchmarks/RESULTS.md`).
  """
  if up.shape[0] > LOW_RANK:
    return matrix_product(down, up)
  outer = (down[:, column, None] * up[None, column] for column in range(up.shape[0]))
  return functools.reduce(jnp.add, outer)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product_of_factors(product: Product, down: jax.Array, up: jax.Array) -> jax.Array:
  """A product that `jax.checkpoint` makes again, whatever its policy, as it does for the others.

  It does not look into functions with a derivative of their own: a policy that keeps the results of
  matrix products would otherwise keep one of the kernel's size, in every layer.
  """
  return product(down, up)


@_product_of_factors.defjvp
def _product_of_factors_jvp(
  product: Product, primals: Any, tangents: Any
) -> tuple[jax.Array, jax.Array]:
  """The derivative as matrix products, whose transposes are the gradients' natural form."""
  (down, up), (of_down, of_up) = primals, tangents
  change = matrix_product(of_down, up) + matrix_product(down, of_up)
  return _product_of_factors(product, down, up), change


def flat_tensor(adapter: Mapping[str, jax.Array], tensor: Tensor, form: jax.Array) -> jax.Array:
  """A tensor in its form, [out] or of C [in]; a LoRA acts as the last flat form."""
  value: Any = 0
  for code, name in enumerate(FLAT_FORMS[tensor][1:], 1):
    value = jnp.where(form < code, value, read(adapter, tensor, name))
  return value


def _rank(tensor: Tensor, form: jax.Array, ranks: Sequence[int]) -> jax.Array:
  """The rank of a form's LoRA; 0 where the form is a flat form."""
  return jnp.asarray((0,) * len(FLAT_FORMS[tensor]) + tuple(ranks))[form]


def _with_wide(
  function: Callable[[jax.Array, jax.Array], jax.Array], kernel: jax.Array, form: jax.Array
) -> jax.Array:
  """A function of the kernel in the type of a form, and of the form.

  For the gradient by the form a narrower kernel is cast again: a scan over layers would keep a wide
  copy of all of them, twice the bytes of a base in bfloat16.
  """
  if kernel.dtype == form.dtype:
    return function(kernel, form)
  cast = jax.checkpoint(
    lambda kernel, form: function(kernel.astype(form.dtype), form), prevent_cse=False
  )
  return cast(kernel, form)


def matrix_product(left: jax.Array, right: jax.Array) -> jax.Array:
  """The product of two factors, as exact as their type is on every device."""
  return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def layer_output(
  product: Product,
  inputs: jax.Array,
  kernel: jax.Array,
  adapter: Mapping[str, jax.Array],
  forms: jax.Array,
  ranks: Sequence[int],
  precision: Any = None,
) -> jax.Array:
  """The layer's output without bias, of a layer whose A is not a LoRA.

  Args:
    product: x W of inputs [..., in] and a kernel [in, out].
    inputs: x, float [..., in].
    kernel: W, float [in, out].
    adapter: supports of the layer, of the tensors that take part.
    forms: forms of A, B, C, D, E, int [5]; that of A is 0, 1 or 2.
    ranks: LoRA ranks that the codes stand for.
    precision: that of the layer's own product, as `jax.lax.dot_general` has it.

  Returns:
    float [..., out], in the product's dtype.
  """
  stored = stored_tensors(adapter)
  can_merge = 'B_down' in adapter if 'B' in stored else 'A' in stored
  if can_merge and _is_large(product, inputs, kernel):
    into, out = kernel.shape
    scale, down, up = jnp.ones(out), jnp.zeros((into, 0)), jnp.zeros((0, out))
    if 'A' in stored:
      scale = 1 + flat_tensor(adapter, 'A', forms[0]).astype(kernel.dtype)
    if 'B' in stored:
      down, up = weight_factors(adapter, 'B', forms[1], ranks)
    terms = (term.astype(kernel.dtype) for term in (scale, down, up))
    return _large_product(product, precision, inputs, kernel, *terms)
  output = product(inputs, kernel)
  dtype = output.dtype
  if 'A' in stored:
    output = output + output * _beside(output, flat_tensor(adapter, 'A', forms[0]))
  if 'B_down' in adapter:
    down, up = weight_factors(adapter, 'B', forms[1], ranks)
    factors = down.astype(dtype), up.astype(dtype)
    output = output + _through_factors(inputs.astype(dtype), *factors, precision)
  elif 'B' in stored:
    row = _beside(output, flat_tensor(adapter, 'B', forms[1]))
    output = output + inputs.astype(dtype).sum(-1, keepdims=True) * row
  return output


def transposed_output(
  product: Product,
  inputs: jax.Array,
  kernel: jax.Array,
  adapter: Mapping[str, jax.Array],
  forms: jax.Array,
  ranks: Sequence[int],
  precision: Any = None,
) -> jax.Array:
  """The product with the transposed kernel, that of a tied head: no array has the kernel's size.

  y W'^T = (y * (1 + A)) W^T + (y B_up^T) B_down^T; arguments as of `layer_output`, but `inputs`
  [..., out] and the result [..., in].
  """
  stored, scaled = stored_tensors(adapter), inputs
  if 'A' in stored:
    scaled = scaled + scaled * _beside(scaled, flat_tensor(adapter, 'A', forms[0]))
  output = product(scaled, kernel)
  if 'B_down' in adapter:
    down, up = weight_factors(adapter, 'B', forms[1], ranks)
    factors = up.T.astype(output.dtype), down.T.astype(output.dtype)
    output = output + _through_factors(inputs.astype(output.dtype), *factors, precision)
  elif 'B' in stored:
    row = _beside(inputs, flat_tensor(adapter, 'B', forms[1]))
    output = output + (inputs * row).sum(-1, keepdims=True).astype(output.dtype)
  return output


def _beside(output: jax.Array, row: jax.Array) -> jax.Array:
  """Numbers [out] as often as a layer's output has them; JAX may be told to repeat none itself."""
  return jnp.broadcast_to(row.astype(output.dtype), output.shape)


def _through_factors(
  inputs: jax.Array, down: jax.Array, up: jax.Array, precision: Any
) -> jax.Array:
  """(x B_down) B_up, [..., out].

  Held behind a barrier in its transposed form, `down` gets its gradient as t^T x, with
  t [tokens, rank]. XLA's own choice x^T t takes two to three times as long on CPU, with the thin
  side where a matrix product wants the wide one.
  """
  down = jax.lax.optimization_barrier(down.T)
  last_axes = ((inputs.ndim - 1,), (1,))
  narrow = jax.lax.dot_general(inputs, down, (last_axes, ((), ())), precision=precision)
  return jnp.matmul(narrow, up, precision=precision)


def _is_large(product: Product, inputs: jax.Array, kernel: jax.Array) -> bool:
  """Whether `_large_product` is cheaper, and as exact.

  With the factors apart, x B is added to all outputs, and its gradient to all inputs; merged, both
  passes go over the kernel. A sum that is rounded to less than float32 would lose small changes of
  the kernel. A quantized kernel is dequantized in the product only, and how a batch of unknown size
  compares is not known.
  """
  if is_quantized(kernel):
    return False
  dtype = jax.eval_shape(product, inputs, kernel).dtype
  into, out = kernel.shape
  tokens = math.prod(inputs.shape[:-1])
  is_exact = dtype == kernel.dtype and jnp.finfo(dtype).bits >= 32
  return is_exact and isinstance(tokens, int) and tokens * (into + out) > 2 * into * out


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _large_product(
  product: Product,
  precision: Any,
  inputs: jax.Array,
  kernel: jax.Array,
  scale: jax.Array,
  down: jax.Array,
  up: jax.Array,
) -> jax.Array:
  """X (W * scale + B_down B_up), [..., out]; scale is 1 + A, [out].

  On CPU it is the product with the merged kernel. TPUs and GPUs round what they multiply, and would
  lose small changes of the kernel. Which of the two runs is decided when the program is lowered, so
  that a program exported on one platform is right on another.
  """

  def merged(inputs, kernel, scale, down, up):
    return product(inputs, kernel * _beside(kernel, scale) + matrix_product(down, up))

  def apart(inputs, kernel, scale, down, up):
    output = product(inputs, kernel)
    return output * _beside(output, scale) + _through_factors(inputs, down, up, precision)

  arguments = inputs, kernel, scale, down, up
  return jax.lax.platform_dependent(*arguments, cpu=merged, default=apart)


@functools.partial(_large_product.defjvp, symbolic_zeros=True)
def _large_product_jvp(
  product: Product, precision: Any, primals: Any, tangents: Any
) -> tuple[Any, Any]:
  """The derivative by each argument that has one; those by the factors are thin products.

  A merged kernel is made again for the gradient by the inputs: a scan over layers would keep all.
  The derivative by the scale is x W. With y the output, that is (y - x B_down B_up) / scale, and
  its second term joins the derivative by B_up: x W need be neither kept nor made.
  """
  inputs, kernel, scale, down, up = primals
  *others, of_scale, of_down, of_up = tangents
  run = functools.partial(_large_product, product, precision)
  output = run(*primals)
  terms = []
  if not isinstance(of_scale, SymbolicZero):
    is_near = (jnp.abs(scale) < NEAR_ZERO).any()
    share = jnp.where(is_near, 0, of_scale / jnp.where(is_near, 1, scale))
    of_up = (0 if isinstance(of_up, SymbolicZero) else of_up) - _beside(up, share) * up
    by_scale = jax.checkpoint(functools.partial(_by_scale, product, precision))
    terms.append(by_scale(is_near, inputs, kernel, output, of_scale, share))
  by_argument = (
    lambda change: jax.checkpoint(run)(change, kernel, scale, down, up),
    lambda change: product(inputs, change * _beside(change, scale)),
    lambda change: _through_factors(inputs, change, up, precision),
    lambda change: _through_factors(inputs, down, change, precision),
  )
  terms += [
    derivative(change)
    for derivative, change in zip(by_argument, (*others, of_down, of_up), strict=True)
    if not isinstance(change, SymbolicZero)
  ]
  return output, sum(terms)


def _by_scale(
  product: Product,
  precision: Any,
  is_near: jax.Array,
  inputs: jax.Array,
  kernel: jax.Array,
  output: jax.Array,
  change: jax.Array,
  share: jax.Array,
) -> jax.Array:
  """The output times a share of it; x W, made again, times the change where a scale is near 0.

  Numbers [out] are repeated by a product with ones, for the sake of the sum over tokens on the way
  back: on CPU that takes about half as long as a product.
  """
  ones = jnp.ones((*output.shape[:-1], 1), output.dtype)
  repeated = functools.partial(jnp.matmul, ones, precision=precision)
  return jax.lax.cond(
    is_near,
    lambda: product(inputs, kernel) * repeated(change[None]),
    lambda: output * repeated(share[None]),
  )
