"""The equation (GLoRA, arXiv 2306.07967, eq. 10): pure functions on the arrays of one linear layer.

    W' = W + W * A + B            (* is elementwise)
    b' = b + b * D + E + C @ W

in Flax's layout, W (in, out), b (out,). Which form each of A, B, C, D, E takes is an *allele*, an integer that may be
traced, so that one compiled program serves every subnet:

    A, B:  0 none, 1 constant, 2 vector (one number per output), 3, 4, ... LoRA of the first, second, ... rank
    C:     0 none, 1 vector (one number per input), 2, 3, ... LoRA of the first, second, ... rank
    D, E:  0 none, 1 constant, 2 vector (one number per output)

All forms of a tensor share storage (weight entanglement): see `init_supports`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import chex
import jax
import jax.numpy as jnp

Supports = dict[str, jax.Array]


def support_shapes(
  in_features: int, out_features: int, ranks: Sequence[int], bias: bool = True, tied: bool = True
) -> dict[str, tuple[int, ...]]:
  """Names and shapes of a layer's supports; see `init_supports`."""
  rank = max(ranks)
  shapes = {
    'A_down': (in_features, rank),
    'A_up': (rank, out_features),
    'B_down': (in_features, rank),
    'B_up': (rank, out_features),
  }
  if not tied:
    shapes |= {
      'A_constant': (1,),
      'A_vector': (out_features,),
      'B_constant': (1,),
      'B_vector': (out_features,),
    }
  if bias:
    shapes |= {
      'C_down': (in_features, rank),
      'C_up': (rank, 1),
      'D': (out_features,),
      'E': (out_features,),
    }
    if not tied:
      shapes |= {'C_vector': (in_features,), 'D_constant': (1,), 'E_constant': (1,)}
  return shapes


def init_supports(
  key: jax.Array,
  in_features: int,
  out_features: int,
  ranks: Sequence[int] = (4,),
  *,
  bias: bool = True,
  tied: bool = True,
  dtype: jnp.dtype = jnp.float32,
) -> Supports:
  """Supports with which every subnet is the base layer.

  Storage: LoRA of rank s of A is `A_down[:, :s] @ A_up[:s]`, its vector is `A_up[0]`, its constant `A_up[0, 0]`, likewise
  B; LoRA of C is `C_down[:, :s] @ C_up[:s]`, its vector `C_down[:, 0]`; the constant of D is `D[0]`, likewise E.
  `A_down`, `B_down` and `C_up` are Xavier-uniform, everything else is zero.

  Args:
    key: random key.
    in_features, out_features: sides of the kernel.
    ranks: the LoRA ranks on offer; the largest is the size of the storage.
    bias: whether the layer has one. Without it C, D and E have nowhere to go and are left out.
    tied: False gives constants and vectors storage of their own (`A_constant` (1,), `A_vector` (out,), ...).
    dtype: of all of them.

  Returns:
    `A_down` (in, r), `A_up` (r, out), `B_down`, `B_up` likewise, `C_down` (in, r), `C_up` (r, 1), `D` and `E` (out,).
  """
  xavier = jax.nn.initializers.glorot_uniform()
  keys = dict(zip(('A_down', 'B_down', 'C_up'), jax.random.split(key, 3), strict=True))
  return {
    name: xavier(keys[name], shape, dtype) if name in keys else jnp.zeros(shape, dtype)
    for name, shape in support_shapes(in_features, out_features, ranks, bias, tied).items()
  }


def effective(
  kernel: jax.Array,
  bias: jax.Array | None,
  supports: Mapping[str, jax.Array],
  alleles: jax.Array,
  ranks: Sequence[int] | None = None,
) -> tuple[jax.Array, jax.Array | None]:
  """The kernel and bias of one linear layer with its supports merged in.

  Everything is computed in `promote_types(kernel.dtype, float32)` and cast once, so that a subnet is the same numbers
  whether it is trained, scored or folded.

  Args:
    kernel: W, float (in, out).
    bias: b, float (out,), or None.
    supports: see `init_supports`.
    alleles: int (5,), the forms of A, B, C, D, E; may be traced. Values beyond the last form act as the last.
    ranks: the LoRA ranks that the allele codes stand for, ascending; None for the one rank of the storage.

  Returns:
    (kernel, bias) in their own dtypes. Without bias the second is E + C @ W, in the kernel's dtype, if the supports have
    C, D, E, and None otherwise.

  Example:
    >>> supports = init_supports(jax.random.key(0), 24, 36, ranks=(2, 4))
    >>> kernel, bias = effective(jnp.ones((24, 36)), jnp.zeros(36), supports, jnp.array([0, 4, 0, 0, 2]), ranks=(2, 4))
    >>> kernel.shape, bias.shape
    ((24, 36), (36,))
  """
  chex.assert_rank([kernel, alleles], [2, 1])
  dtype = jnp.promote_types(kernel.dtype, jnp.float32)
  supports = {name: jnp.asarray(value, dtype) for name, value in supports.items()}
  ranks = tuple(ranks or (supports['A_down'].shape[-1],))
  wide = kernel.astype(dtype)
  a = weight_form(supports, 'A', alleles[0], ranks)
  b = weight_form(supports, 'B', alleles[1], ranks)
  return (wide + wide * a + b).astype(kernel.dtype), effective_bias(
    kernel, bias, supports, alleles, ranks
  )


def effective_bias(
  kernel: jax.Array,
  bias: jax.Array | None,
  supports: Mapping[str, jax.Array],
  alleles: jax.Array,
  ranks: Sequence[int],
) -> jax.Array | None:
  """The second half of `effective`: b + b * D + E + C @ W."""
  if 'E' not in supports:
    return bias
  dtype = jnp.promote_types(kernel.dtype, jnp.float32)
  supports = {name: jnp.asarray(value, dtype) for name, value in supports.items()}
  c = prompt_form(supports, alleles[2], ranks)
  d, e = bias_form(supports, 'D', alleles[3]), bias_form(supports, 'E', alleles[4])
  shift = e + jnp.matmul(c, kernel.astype(dtype), precision=jax.lax.Precision.HIGHEST)
  if bias is None:
    return shift.astype(kernel.dtype)
  old = bias.astype(dtype)
  return (old + old * d + shift).astype(bias.dtype)


def thin_output(
  inputs: jax.Array,
  product: jax.Array,
  bias: jax.Array | None,
  supports: Mapping[str, jax.Array],
  alleles: jax.Array,
  ranks: Sequence[int],
  scales: bool,
  shifts: bool,
) -> jax.Array:
  """The layer's output without its merged kernel, where A is not LoRA: x W' + b' = (x W) * (1 + A) + (x B_down) B_up + b'.

  No array has the kernel's size, and a gradient never forms one of the kernel.

  Args:
    inputs: x, [..., in].
    product: x W, [..., out]; the result has its dtype.
    bias: b' from `effective_bias`, or None.
    supports, alleles, ranks: as for `effective`; the allele of A is 0, 1 or 2.
    scales, shifts: whether A, B take part at all, known when tracing.
  """
  cast = lambda value: value.astype(product.dtype)
  output = product
  if scales:
    up = supports['A_up']
    constant, vector = supports.get('A_constant', up[0, :1]), supports.get('A_vector', up[0])
    output = output + output * cast(
      jnp.where(alleles[0] == 0, 0, jnp.where(alleles[0] == 1, constant, vector))
    )
  if shifts:
    down, up = weight_factors(supports, 'B', alleles[1], ranks)
    # Held behind a barrier in its transposed form, `down` gets its gradient as t^T x, with t [tokens, rank]. XLA's own choice x^T t
    # takes two to three times as long on CPU, with the thin side where a matrix product wants the wide one.
    down = jax.lax.optimization_barrier(cast(down).T)
    output = output + jax.lax.dot_general(
      cast(inputs), down, (((inputs.ndim - 1,), (1,)), ((), ()))
    ) @ cast(up)
  return output if bias is None else output + cast(bias)


def weight_factors(
  supports: Mapping[str, jax.Array], tensor: str, allele: jax.Array, ranks: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
  """A or B in the form of its allele as two factors, (in, r) and (r, out)."""
  down, up = supports[f'{tensor}_down'], supports[f'{tensor}_up']
  columns = jnp.arange(down.shape[-1])
  used = columns < jnp.asarray((0, 0, 0, *ranks))[allele]
  # None, constant, vector and LoRA of any rank are all one product of two thin matrices: ones times a row for the flat
  # forms, the masked factors for LoRA.
  flat, first = (allele == 1) | (allele == 2), columns == 0
  constant, vector = (
    supports.get(f'{tensor}_constant', up[0, :1]),
    supports.get(f'{tensor}_vector', up[0]),
  )
  row = jnp.where(allele == 1, constant, vector)
  down = jnp.where(flat, first.astype(down.dtype), jnp.where(used, down, 0))
  up = jnp.where(flat, jnp.where(first[:, None], row, 0), jnp.where(used[:, None], up, 0))
  return down, up


def weight_form(
  supports: Mapping[str, jax.Array], tensor: str, allele: jax.Array, ranks: Sequence[int]
) -> jax.Array:
  """A or B in the form of its allele, (in, out)."""
  return jnp.matmul(
    *weight_factors(supports, tensor, allele, ranks), precision=jax.lax.Precision.HIGHEST
  )


def prompt_form(
  supports: Mapping[str, jax.Array], allele: jax.Array, ranks: Sequence[int]
) -> jax.Array:
  """C in the form of its allele, (in,)."""
  down, up = supports['C_down'], supports['C_up']
  used = jnp.arange(down.shape[-1]) < jnp.asarray((0, 0, *ranks))[allele]
  lora = jnp.matmul(
    jnp.where(used, down, 0), jnp.where(used, up[:, 0], 0), precision=jax.lax.Precision.HIGHEST
  )
  return jnp.where(allele == 1, supports.get('C_vector', down[:, 0]), lora)


def bias_form(supports: Mapping[str, jax.Array], tensor: str, allele: jax.Array) -> jax.Array:
  """D or E in the form of its allele, (out,)."""
  vector = supports[tensor]
  constant = supports.get(f'{tensor}_constant', vector[:1])
  return jnp.where(allele == 0, 0, jnp.where(allele == 1, constant, vector))


def used_parts(
  alleles: Sequence[int], ranks: Sequence[int], bias: bool = True, tied: bool = True
) -> dict[str, tuple[slice, ...]]:
  """Which part of which support the forms of a layer read: names and slices, together as many numbers as are trained.

  Args:
    alleles: five integers, concrete.
    ranks, bias, tied: as in `init_supports`.
  """
  parts: dict[str, tuple[slice, ...]] = {}
  everything, first = slice(None), slice(0, 1)
  for tensor, allele in zip('AB', alleles[:2], strict=True):
    if allele == 1:
      parts |= {f'{tensor}_up': (first, first)} if tied else {f'{tensor}_constant': (everything,)}
    elif allele == 2:
      parts |= (
        {f'{tensor}_up': (first, everything)} if tied else {f'{tensor}_vector': (everything,)}
      )
    elif allele > 2:
      used = slice(0, ranks[allele - 3])
      parts |= {f'{tensor}_down': (everything, used), f'{tensor}_up': (used, everything)}
  if not bias:
    return parts
  if alleles[2] == 1:
    parts |= {'C_down': (everything, first)} if tied else {'C_vector': (everything,)}
  elif alleles[2] > 1:
    used = slice(0, ranks[alleles[2] - 2])
    parts |= {'C_down': (everything, used), 'C_up': (used, everything)}
  for tensor, allele in zip('DE', alleles[3:], strict=True):
    if allele == 1:
      parts |= {tensor: (first,)} if tied else {f'{tensor}_constant': (everything,)}
    elif allele == 2:
      parts |= {tensor: (everything,)}
  return parts
