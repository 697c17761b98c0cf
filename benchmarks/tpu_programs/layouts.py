"""What a TPU's tiles of 8 x 128 numbers cost: thin factors, A and B in one matmul, heads of 64.

  pip install 'jax[tpu]'
  python -m benchmarks.tpu_programs.layouts [--quick] [--topology v5e:1x1]

Nothing is run. Bytes of all arrays that instructions read and write, and operations, are counted by
the compiler; no loop is in these programs. First the merge of a layer of ViT-B/16 in bfloat16,
W + W * A + B, with A and B LoRAs of several ranks: as `equation.effective` has it, two products;
as one batched product of both; as one product with the factors side by side. Without and with the
gradient by the factors. Then a block's attention, 64 images of 197 tokens, with 12 heads of 64 and
with 6 of 128, whose matmuls are as large. `--quick`: rank 4 alone, no attention. The last line is
JSON.
"""

import os

from glora_jax.method import equation
from glora_jax.method.supports import init_supports

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.machinery.measuring import make_parser, print_result, print_table
from glora_jax.method.equation import weight_factors
from glora_jax.runs.plan import chip_of, devices_of, has_compiler

KERNEL = (768, 3072)
RANKS = (1, 4, 8, 16, 32, 128)
TOKENS = (64, 197)  # images, and tokens of each
WIDTH = 768
HEADS = (12, 6)

Supports = Mapping[str, jax.Array]


Traffic = dict[str, float]  # what the compiler counts in a program


def two_products(supports: Supports, kernel: jax.Array, alleles: jax.Array) -> jax.Array:
  """W + W * A + B as the library has it."""
  return equation.effective(kernel, None, supports, alleles)[0]


def batched(supports: Supports, kernel: jax.Array, alleles: jax.Array) -> jax.Array:
  """The same with A and B as one batched product."""
  downs, ups = zip(*_factors(supports, alleles), strict=True)
  return _summed(kernel, *_product(jnp.stack(downs), jnp.stack(ups)))


def side_by_side(supports: Supports, kernel: jax.Array, alleles: jax.Array) -> jax.Array:
  """The same with [A_down B_down] times their up factors on a diagonal."""
  downs, (up_a, up_b) = zip(*_factors(supports, alleles), strict=True)
  ups = jnp.block([[up_a, jnp.zeros_like(up_b)], [jnp.zeros_like(up_a), up_b]])
  return _summed(kernel, *jnp.split(_product(jnp.concatenate(downs, 1), ups), 2, axis=1))


MERGES = {'two products': two_products, 'batched': batched, 'side by side': side_by_side}


def _factors(supports: Supports, alleles: jax.Array) -> Iterator[tuple[jax.Array, jax.Array]]:
  ranks = (supports['A_down'].shape[-1],)
  yield weight_factors(supports, 'A', alleles[0], ranks)
  yield weight_factors(supports, 'B', alleles[1], ranks)


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
  return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def _summed(kernel: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
  wide = kernel.astype(jnp.float32)
  return (wide + wide * scale + shift).astype(kernel.dtype)


def attention(qkv: jax.Array, heads: int) -> jax.Array:
  """Softmax attention of [image, token, 3 * width] with so many heads."""
  queries, keys, values = jnp.split(qkv.reshape(*TOKENS, 3 * heads, -1), 3, axis=2)
  return jax.nn.dot_product_attention(queries, keys, values).reshape(*TOKENS, -1)


def with_gradient(
  function: Callable[..., jax.Array], argument: Any, asked: jax.Array, *others: Any
) -> Any:
  """What a function returns, and its gradient by its first argument for what is asked of that."""
  result, pull = jax.vjp(lambda found: function(found, *others), argument)
  return result, pull(asked)


def traffic(device: Any, function: Callable[..., Any], *shapes: Any) -> Traffic:
  """Compiles a function for a device."""
  place = jax.sharding.SingleDeviceSharding(device)
  arguments = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place), shapes
  )
  found = jax.jit(function).lower(*arguments).compile().cost_analysis()
  return {'bytes': found['bytes accessed'], 'operations': found['flops']}


def merges(device: Any, ranks: tuple[int, ...]) -> Iterator[tuple[str, Traffic]]:
  """All ways to merge, by rank."""
  kernel = jax.ShapeDtypeStruct(KERNEL, jnp.bfloat16)
  alleles = jax.ShapeDtypeStruct((5,), jnp.int32)
  for rank in ranks:
    key = jax.random.key(0)
    every = jax.eval_shape(functools.partial(init_supports, key, *KERNEL, (rank,)))
    supports = {name: value for name, value in every.items() if name[0] in 'AB'}
    for name, merge in MERGES.items():
      title = f'merge, rank {rank}, {name}'
      yield title, traffic(device, merge, supports, kernel, alleles)
      trained = functools.partial(with_gradient, merge)
      yield f'{title}, gradient', traffic(device, trained, supports, kernel, kernel, alleles)


def attentions(device: Any) -> Iterator[tuple[str, Traffic]]:
  """A block's attention with heads of either width, and its gradient."""
  qkv = jax.ShapeDtypeStruct((*TOKENS, 3 * WIDTH), jnp.bfloat16)
  asked = jax.ShapeDtypeStruct((*TOKENS, WIDTH), jnp.bfloat16)
  for heads in HEADS:
    attend = functools.partial(attention, heads=heads)
    title = f'attention, {heads} heads of {WIDTH // heads}'
    yield title, traffic(device, attend, qkv)
    yield (
      f'{title}, gradient',
      traffic(device, functools.partial(with_gradient, attend), qkv, asked),
    )


def main() -> None:
  """Compiles in turn and prints."""
  parser = make_parser(__doc__, 'one rank, no attention')
  parser.add_argument('--topology', default='v5e:1x1')
  given = parser.parse_args()
  chip_of(given.topology)  # refuses what is none
  if not has_compiler():
    sys.exit("error: the TPU compiler is not there; pip install 'jax[tpu]'.")
  jax.config.update('jax_enable_compilation_cache', False)
  device = devices_of(given.topology)[0]
  found = dict(merges(device, (4,) if given.quick else RANKS))
  if not given.quick:
    found |= attentions(device)
  print_table(
    {'': '', 'MiB': ',.1f', 'Mop': ',.0f'},
    [(name, one['bytes'] / 2**20, one['operations'] / 1e6) for name, one in found.items()],
  )
  print_result('tpu_layouts', {'quick': given.quick, 'programs': found})


if __name__ == '__main__':
  main()
