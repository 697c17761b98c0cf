"""The equation (GLoRA, arXiv 2306.07967, eq. 10): pure functions on the arrays of one linear layer.

    W' = W + W * A + B            (* is elementwise)
    b' = b + b * D + E + C @ W

in Flax's layout, W [in, out] and b [out]. A, B, C, D, E are the paper's support tensors. The form
of each is an integer, its *code*. It may be traced, so one compiled program serves every structure:

    A, B:  0 none, 1 constant, 2 vector (one number per output), 3, 4, ... LoRA of rank ranks[0],
           ranks[1], ...
    C:     0 none, 1 vector (one number per input), 2, 3, ... LoRA of rank ranks[0], ranks[1], ...
    D, E:  0 none, 1 constant, 2 vector (one number per output)

None, constant and vector are the *flat* forms. The layer's adapter (`glora_jax.method.adapter`)
holds the arrays of all forms. Those that no form of the search space reads may be missing, and a
tensor without arrays is none.

If B changes chosen rows of a table, `B_ids` has their numbers and `B_up` their change: a LoRA whose
B_down is known, and one-hot. A layer with chosen rows has one form (`space.Layer`), so `forms` are
not used.

There are two ways to compute a layer:

    effective_kernel,    W' and b' themselves, for any structure; also to fold a model
    effective_bias
    layer_output         x W' = (x W) * (1 + A) + (x B_down) B_up, if A is not a LoRA
    (transposed_output)

The second is for structures in which A is not a LoRA. With a merged kernel, the backward pass
computes the gradient of all of W' to get those of the two factors. In the second way only the
factors and rows get one. It merges the kernel in one case: on CPU, `_merged_product` does so in the
forward pass if there are many tokens, which is faster, and leaves the gradients thin.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from glora_jax.method.adapter import ADAPTER, names_of
from glora_jax.method.quantized import is_quantized
from glora_jax.method.space import FLAT_FORMS, WEIGHT_TENSORS, Tensor

LOW_RANK = 8  # the highest rank for which `low_rank_product` sums outer products
NEAR_ZERO = 0.25  # `_merged_product_jvp` divides by 1 + A, but by nothing smaller than this

Product = Callable[[jax.Array, jax.Array], jax.Array]  # of two matrices


def effective_kernel(
  kernel: jax.Array,
  adapter: Mapping[str, jax.Array],
  forms: jax.Array,
  ranks: Sequence[int],
  lora_product: Product | None = None,
) -> jax.Array:
  """The kernel of one linear layer with its adapter merged in: W' = W + W * A + B.

  Everything is computed in `promote_types(kernel.dtype, float32)` and cast once. So a structure
  gives the same numbers, up to rounding, whether it is trained, scored or folded.

  Args:
    kernel: W, float [in, out].
    adapter: the adapter's arrays of the layer (`adapter.adapter_shapes`).
    forms: forms of A, B, C, D, E, int [5]; may be traced. Codes beyond the last act as the last.
    ranks: LoRA ranks that the codes stand for, ascending.
    lora_product: multiplies the two factors of a LoRA, like `low_rank_product`; None for a matrix
      product, which is better if the merged layer runs right away.

  Returns:
    [in, out] in the kernel's dtype.

  Example:
    >>> adapter = {'B_down': jnp.ones((3, 1)), 'B_up': jnp.ones((1, 2)), 'E': jnp.ones(2)}
    >>> forms = jnp.array([0, 3, 0, 0, 2])  # LoRA for B, a vector for E
    >>> kernel = jnp.zeros((3, 2))
    >>> effective_kernel(kernel, adapter, forms, ranks=(1,)).tolist()
    [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    >>> effective_bias(kernel, jnp.zeros(2), adapter, forms, ranks=(1,)).tolist()
    [1.0, 1.0]
  """
  dtype = jnp.promote_types(kernel.dtype, jnp.float32)
  merged = kernel.astype(dtype)
  if 'B_ids' in adapter:
    return merged.at[adapter['B_ids']].add(adapter['B_up'].astype(dtype)).astype(kernel.dtype)
  adapter = {name: jnp.asarray(value, dtype) for name, value in adapter.items()}
  stored = stored_tensors(adapter)
  if 'A' in stored:
    a = weight_tensor(adapter, 'A', forms[0], ranks, lora_product)
    merged = merged + _with_wide_kernel(jnp.multiply, kernel, a)
  if 'B' in stored:
    merged = merged + weight_tensor(adapter, 'B', forms[1], ranks, lora_product)
  return merged.astype(kernel.dtype)


def effective_bias(
  kernel: jax.Array,
  bias: jax.Array,
  adapter: Mapping[str, jax.Array],
  forms: jax.Array,
  ranks: Sequence[int],
) -> jax.Array:
  """The bias of one linear layer with its adapter merged in: b' = b + b * D + E + C @ W.

  It is computed in float32, or in the type of the kernel or the bias if that is wider.

  Args:
    kernel: W, float [in, out].
    bias: b, float [out].
    adapter: see `effective_kernel`.
    forms: forms of A, B, C, D, E.
    ranks: LoRA ranks.

  Returns:
    [out] in the bias's dtype.
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
    c = _input_tensor(adapter, forms, ranks)
    shift = shift + _with_wide_kernel(lambda kernel, c: matrix_product(c, kernel), kernel, c)
  wide = bias.astype(dtype)
  d = flat_tensor(adapter, 'D', forms[3]) if 'D' in stored else 0
  return (wide + wide * d + shift).astype(bias.dtype)


def layer_output(
  product: Product,
  inputs: jax.Array,
  kernel: jax.Array,
  adapter: Mapping[str, jax.Array],
  forms: jax.Array,
  ranks: Sequence[int],
  precision: Any = None,
  dropped: jax.Array | None = None,
) -> jax.Array:
  """The output x W' of a layer whose A is not a LoRA, without bias.

      x W' = (x W) * (1 + A) + (x B_down) B_up

  Args:
    product: x W of inputs [..., in] and a kernel [in, out].
    inputs: x, float [..., in].
    kernel: W, float [in, out].
    adapter: the layer's arrays of A and B; if a tensor is known to be none, they may be missing.
    forms: forms of A, B, C, D, E, int [5]; that of A is 0, 1 or 2, or is not read because
      `adapter` has no arrays of A (with dropout, `product` may merge a LoRA of A).
    ranks: LoRA ranks that the codes stand for.
    precision: that of the layer's own product; see `jax.lax.dot_general`.
    dropped: x after dropout (`method.dropout`), for the LoRA of B alone; None without dropout.

  Returns:
    float [..., out], in the product's dtype.
  """
  stored = stored_tensors(adapter)
  # Merging needs B's factors. Without storage for a LoRA, B is one row instead, cheap as it is.
  can_merge = 'B_down' in adapter if 'B' in stored else 'A' in stored
  if can_merge and dropped is None and _prefers_merged(product, inputs, kernel):
    fan_in, fan_out = kernel.shape
    # Without A the scale is one, without B the factors have rank zero.
    scale, down, up = jnp.ones(fan_out), jnp.zeros((fan_in, 0)), jnp.zeros((0, fan_out))
    if 'A' in stored:
      scale = 1 + flat_tensor(adapter, 'A', forms[0]).astype(kernel.dtype)
    if 'B' in stored:
      down, up = weight_factors(adapter, 'B', forms[1], ranks)
    terms = (term.astype(kernel.dtype) for term in (scale, down, up))
    return _merged_product(product, precision, inputs, kernel, *terms)

  output = product(inputs, kernel)
  dtype = output.dtype
  if 'A' in stored:
    a = flat_tensor(adapter, 'A', forms[0])
    output = output + output * _broadcast_like(a, output)
  if 'B_ids' in adapter:
    chosen, up = inputs[..., adapter['B_ids']], adapter['B_up'].astype(dtype)
    output = output + jnp.matmul(chosen.astype(dtype), up, precision=precision)
  elif 'B_down' in adapter:
    down, up = weight_factors(adapter, 'B', forms[1], ranks)
    factors = down.astype(dtype), up.astype(dtype)
    of_factors = inputs if dropped is None else dropped
    output = output + _through_factors(of_factors.astype(dtype), *factors, precision)
  elif 'B' in stored:  # all rows of B are the same: x B is the sum of x, times that row
    row = _broadcast_like(flat_tensor(adapter, 'B', forms[1]), output)
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
  """The output y W'^T of a tied head, which multiplies by the transposed kernel.

      y W'^T = (y * (1 + A)) W^T + (y B_up^T) B_down^T

  Arguments are those of `layer_output`, but `product` is y W^T, `inputs` are y [..., out] and the
  result is [..., in].
  """
  stored, scaled = stored_tensors(adapter), inputs
  if 'A' in stored:
    a = flat_tensor(adapter, 'A', forms[0])
    scaled = scaled + scaled * _broadcast_like(a, scaled)
  output = product(scaled, kernel)
  if 'B_ids' in adapter:
    up = adapter['B_up'].astype(output.dtype)
    chosen = jnp.matmul(inputs.astype(output.dtype), up.T, precision=precision)
    output = output.at[..., adapter['B_ids']].add(chosen)
  elif 'B_down' in adapter:
    down, up = weight_factors(adapter, 'B', forms[1], ranks)
    factors = up.T.astype(output.dtype), down.T.astype(output.dtype)
    output = output + _through_factors(inputs.astype(output.dtype), *factors, precision)
  elif 'B' in stored:
    row = _broadcast_like(flat_tensor(adapter, 'B', forms[1]), inputs)
    output = output + (inputs * row).sum(-1, keepdims=True).astype(output.dtype)
  return output


# The tensors in their forms. A form may be traced, so `jnp.where` selects it.


def stored_tensors(adapter: Mapping[str, jax.Array]) -> set[str]:
  """The tensors that an adapter has arrays of."""
  return {ADAPTER[name].tensor for name in adapter}


def flat_tensor(adapter: Mapping[str, jax.Array], tensor: Tensor, form: jax.Array) -> jax.Array:
  """A tensor in its flat form, [out] (C: [in]) or [1]; a LoRA acts as the last flat form."""
  value: Any = 0
  for code, name in enumerate(FLAT_FORMS[tensor][1:], 1):
    value = jnp.where(form < code, value, _read(adapter, tensor, name))
  return value


def _read(adapter: Mapping[str, jax.Array], tensor: Tensor, form: str) -> jax.Array:
  """The constant or vector of a tensor, from its own array or from a shared one.

  Args:
    adapter: arrays of a layer, or of a stack of layers with the stack's axes first.
    tensor: the tensor.
    form: 'constant' or 'vector'.

  Returns:
    [stack..., 1] for a constant, [stack..., out] (C: in) for a vector; zero if neither array is
    stored, since then the search space does not have the form.
  """
  (name,) = names_of(tensor, form)
  storage = ADAPTER[name].within
  if name in adapter:
    return adapter[name]
  if storage is None or storage.name not in adapter:
    return jnp.zeros(())
  axes = ADAPTER[storage.name].axes
  part = adapter[storage.name][(..., *storage.index)]
  return part.squeeze(axes.index('rank') - len(axes)) if 'rank' in axes else part


def weight_tensor(
  adapter: Mapping[str, jax.Array],
  tensor: Tensor,
  form: jax.Array,
  ranks: Sequence[int],
  lora_product: Product | None = None,
) -> jax.Array:
  """A or B in its form, [in, out]; [1, out] or [1, 1] without storage for a LoRA."""
  if f'{tensor}_down' not in adapter:
    return jnp.atleast_2d(flat_tensor(adapter, tensor, form))
  factors = weight_factors(adapter, tensor, form, ranks)
  return _product_of_factors(lora_product or matrix_product, *factors)


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


def _input_tensor(
  adapter: Mapping[str, jax.Array], forms: jax.Array, ranks: Sequence[int]
) -> jax.Array:
  """C in its form, [in]."""
  lora = 0
  if 'C_up' in adapter:
    down, up = adapter['C_down'], adapter['C_up']
    used = jnp.arange(down.shape[-1]) < _rank('C', forms[2], ranks)
    lora = matrix_product(jnp.where(used, down, 0), jnp.where(used, up[:, 0], 0))
  is_flat = forms[2] < len(FLAT_FORMS['C'])
  return jnp.where(is_flat, flat_tensor(adapter, 'C', forms[2]), lora)


def _rank(tensor: Tensor, form: jax.Array, ranks: Sequence[int]) -> jax.Array:
  """The rank of a form; 0 for a flat form."""
  return jnp.asarray((0,) * len(FLAT_FORMS[tensor]) + tuple(ranks))[form]


# Products. They give the same numbers as plain expressions would, in less memory or time.


def matrix_product(left: jax.Array, right: jax.Array) -> jax.Array:
  """The product of two factors in the full precision of their type, on every device."""
  return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def low_rank_product(down: jax.Array, up: jax.Array) -> jax.Array:
  """The product of two thin factors [in, r] and [r, out]: a sum of outer products for a low rank.

  The sum is elementwise, so XLA fuses it with its addition to a kernel: one pass, and no second
  array of the kernel's size. In a layer that merges as it runs, the TPU compiler needs less memory
  for a matrix product (`benchmarks/RESULTS.md`).
  """
  if up.shape[0] > LOW_RANK:
    return matrix_product(down, up)
  outer = (down[:, column, None] * up[None, column] for column in range(up.shape[0]))
  return functools.reduce(jnp.add, outer)


# `jax.checkpoint` with a policy that saves the results of matrix products (the usual one for
# transformers) would save this one: an array of the kernel's size in every layer, made of two thin
# ones. A policy does not look inside a `custom_jvp`, so this is one (`no_policy_keeps_it` in
# tests/method/test_program.py). A sum of outer products gets the derivative of a matrix product,
# too: its own would be reductions over the whole kernel, two for each outer product.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product_of_factors(product: Product, down: jax.Array, up: jax.Array) -> jax.Array:
  """The product of a LoRA's factors, which `jax.checkpoint` never saves."""
  return product(down, up)


@_product_of_factors.defjvp
def _product_of_factors_jvp(
  product: Product, primals: Any, tangents: Any
) -> tuple[jax.Array, jax.Array]:
  (down, up), (d_down, d_up) = primals, tangents
  tangent = matrix_product(d_down, up) + matrix_product(down, d_up)
  return _product_of_factors(product, down, up), tangent


def _with_wide_kernel(
  function: Callable[[jax.Array, jax.Array], jax.Array], kernel: jax.Array, array: jax.Array
) -> jax.Array:
  """Returns `function(kernel, array)` with the kernel cast to the array's wider type.

  The gradient of the array needs the kernel. Without the checkpoint, the wide copy would be saved
  for it, in a scan those of all layers: twice the bytes of a base in bfloat16
  (`test_a_gradient_keeps_no_wide_copy_of_a_narrow_kernel`).
  """
  if kernel.dtype == array.dtype:
    return function(kernel, array)
  cast = jax.checkpoint(
    lambda kernel, array: function(kernel.astype(array.dtype), array), prevent_cse=False
  )
  return cast(kernel, array)


def _through_factors(
  inputs: jax.Array, down: jax.Array, up: jax.Array, precision: Any
) -> jax.Array:
  """(x B_down) B_up, [..., out].

  The barrier is for the gradient of `down`. If t [tokens, r] is that of x B_down, it is x^T t or,
  transposed, t^T x. XLA would choose x^T t, whose last axis is the thin one: two to three times as
  long on CPU. Behind the barrier `down` is an array [r, in], and its gradient is t^T x.

  In the second product tokens have one axis, for the gradient of `up`. With several XLA would first
  transpose that of the output, which takes a third of a ViT-S's step
  (`test_gradients_of_factors_transpose_no_tokens`). x keeps its axes: layers with the same x then
  have one copy of it for the way back.
  """
  down = jax.lax.optimization_barrier(down.T)
  contracted = ((inputs.ndim - 1,), (1,))
  narrow = jax.lax.dot_general(inputs, down, (contracted, ((), ())), precision=precision)
  tokens = math.prod(inputs.shape[:-1])
  outputs = jnp.matmul(narrow.reshape(tokens, len(down)), up, precision=precision)
  return outputs.reshape(*inputs.shape[:-1], up.shape[-1])


def _broadcast_like(row: jax.Array, output: jax.Array) -> jax.Array:
  """A row [out] broadcast to an output, explicitly: users may set `jax_numpy_rank_promotion`."""
  return jnp.broadcast_to(row.astype(output.dtype), output.shape)


def _prefers_merged(product: Product, inputs: jax.Array, kernel: jax.Array) -> bool:
  """Whether `_merged_product` is cheaper, and as exact.

  Without it, x B is added to all outputs and its gradient to all inputs, tokens * (in + out)
  numbers. With it both passes go over the kernel, 2 * in * out numbers. In less than float32 a
  merged kernel would lose small changes. A quantized kernel is dequantized inside the product only,
  and a symbolic batch size (`jax.export`) cannot be compared.
  """
  if is_quantized(kernel):
    return False
  dtype = jax.eval_shape(product, inputs, kernel).dtype
  fan_in, fan_out = kernel.shape
  tokens = math.prod(inputs.shape[:-1])
  is_exact = dtype == kernel.dtype and jnp.finfo(dtype).bits >= 32
  return is_exact and isinstance(tokens, int) and tokens * (fan_in + fan_out) > 2 * fan_in * fan_out


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _merged_product(
  product: Product,
  precision: Any,
  inputs: jax.Array,
  kernel: jax.Array,
  scale: jax.Array,
  down: jax.Array,
  up: jax.Array,
) -> jax.Array:
  """The output y = x (W * s + B_down B_up), [..., out]; the scale s is 1 + A, [out].

  On CPU it merges the kernel. TPUs and GPUs round the operands of a product, and would lose small
  changes of the kernel, so there it does not. The choice is made when the program is lowered, so
  that a program exported on one platform is right on another.
  """

  def merged(inputs, kernel, scale, down, up):
    return product(inputs, kernel * _broadcast_like(scale, kernel) + matrix_product(down, up))

  def unmerged(inputs, kernel, scale, down, up):
    output = product(inputs, kernel)
    return output * _broadcast_like(scale, output) + _through_factors(inputs, down, up, precision)

  arguments = inputs, kernel, scale, down, up
  return jax.lax.platform_dependent(*arguments, cpu=merged, default=unmerged)


# The derivative avoids that of a merged kernel (s is `scale`, ds its tangent):
#
#     dy = dx (W * s + B_down B_up) + x (dW * s) + (x W) * ds + (x dB_down) B_up + (x B_down) dB_up
#
# Three things are not obvious (tests/method/test_by_output.py compares all with autodiff):
#
# - The first term merges the kernel again, in a checkpoint. Otherwise a scan over layers would save
#   the merged kernels of all layers.
# - (x W) * ds needs x W, but only y was computed. Since y = (x W) * s + (x B_down) B_up,
#       (x W) * ds = y * ratio - (x B_down) (B_up * ratio)    with ratio = ds / s
#   The second part is subtracted from dB_up, and no product with W is needed. One cannot divide by
#   s = 0: if any s is near 0, `ratio` is 0 and x W is computed after all, which is decided at run
#   time (the test has a vector that takes the kernel away).
# - With `symbolic_zeros`, arguments without a tangent (W is frozen) cost nothing.
@functools.partial(_merged_product.defjvp, symbolic_zeros=True)
def _merged_product_jvp(
  product: Product, precision: Any, primals: Any, tangents: Any
) -> tuple[Any, Any]:
  inputs, kernel, scale, down, up = primals
  d_inputs, d_kernel, d_scale, d_down, d_up = tangents
  run = functools.partial(_merged_product, product, precision)
  output = run(*primals)
  terms = []
  if not isinstance(d_scale, SymbolicZero):
    is_near_zero = (jnp.abs(scale) < NEAR_ZERO).any()
    ratio = jnp.where(is_near_zero, 0, d_scale / jnp.where(is_near_zero, 1, scale))
    d_up = (0 if isinstance(d_up, SymbolicZero) else d_up) - _broadcast_like(ratio, up) * up
    scale_term = jax.checkpoint(functools.partial(_scale_term, product, precision))
    terms.append(scale_term(is_near_zero, inputs, kernel, output, d_scale, ratio))
  if not isinstance(d_inputs, SymbolicZero):
    terms.append(jax.checkpoint(run)(d_inputs, kernel, scale, down, up))
  if not isinstance(d_kernel, SymbolicZero):
    terms.append(product(inputs, d_kernel * _broadcast_like(scale, d_kernel)))
  if not isinstance(d_down, SymbolicZero):
    terms.append(_through_factors(inputs, d_down, up, precision))
  if not isinstance(d_up, SymbolicZero):
    terms.append(_through_factors(inputs, down, d_up, precision))
  return output, sum(terms)


def _scale_term(
  product: Product,
  precision: Any,
  is_near_zero: jax.Array,
  inputs: jax.Array,
  kernel: jax.Array,
  output: jax.Array,
  d_scale: jax.Array,
  ratio: jax.Array,
) -> jax.Array:
  """The scale's term: y * ratio, or (x W) * ds if any scale is near zero.

  A row [out] is repeated for all tokens by a product with ones, not by broadcasting. Then the
  backward pass sums over tokens by a product, too, which takes about half as long on CPU.
  """
  ones = jnp.ones((*output.shape[:-1], 1), output.dtype)
  repeat = functools.partial(jnp.matmul, ones, precision=precision)
  return jax.lax.cond(
    is_near_zero,
    lambda: product(inputs, kernel) * repeat(d_scale[None]),
    lambda: output * repeat(ratio[None]),
  )
