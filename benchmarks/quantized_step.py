"""A LoRA step of a decoder on a base in nf4: bytes, time, and the loss after training.

  pip install -e '.[peers]'
  python -m benchmarks.quantized_step [--repeats 5] [--topology v5e:2x2] [--quick]

A decoder in Llama's shapes as a function, 29 million parameters, its scanned blocks in nf4 with
tiles of 64 and scales in bfloat16, or all of it in bfloat16 or float32; LoRA of rank 8 in all
layers of all blocks, AdamW. Bytes are the compiler's, of arguments (from which what is trained, its
state and the texts are taken off) and of temporaries. With `--topology` they are those of a TPU
chip, for a decoder of 0.4 billion parameters; nothing is run then, and no chip is needed. Times are
medians of ratios within one repeat.

A small decoder is trained on the bytes of this package's code, and then by LoRA on its pages, from
the base in nf4 and in float32, three times each: the loss on the last tenth. `--quick` takes a
small decoder everywhere, and tenths of the steps. The last line is JSON.
"""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix

import glora_jax
from benchmarks.machinery.measuring import in_turn, make_parser, print_result, print_table
from benchmarks.machinery.slices import mesh_of
from benchmarks.tpu_programs.decoder import Size, decoder, shapes
from glora_jax.compiling import memory_of

SMALL, MIDDLE = Size(128, 4, 4, 384, 256, 128), Size(512, 8, 8, 1408, 4096, 256)
LARGE = Size(2048, 8, 16, 5632, 4096, 512)
BASES = ('nf4', 'bfloat16', 'float32')
TEXTS, RANK, STEPS, SEEDS, TILE = 4, 8, 200, 3, 64


def random(size: Size) -> Any:
  """Random parameters in float32, as large as their number of inputs asks for."""

  def drawn(path: Any, leaf: Any) -> jax.Array:
    if 'norm' in str(path):
      return jnp.ones(leaf.shape)
    key = jax.random.key(sum(str(path).encode()))
    return jax.random.normal(key, leaf.shape) * leaf.shape[-2] ** -0.5

  return jax.tree_util.tree_map_with_path(drawn, shapes(size))


def base_of(kind: str, params: Any) -> Any:
  """Parameters as a base has them."""
  if kind != 'nf4':
    return jax.tree.map(lambda leaf: leaf.astype(kind), params)

  def packed(leaf: jax.Array) -> Any:
    if leaf.ndim < 3:
      return leaf
    return qwix.quantize(leaf, 'nf4', channelwise_axes=(0, 2), tiled_axes={1: TILE})

  return jax.tree.map(packed, base_of('bfloat16', params))


def stepping(loss: Any, optimizer: optax.GradientTransformation) -> Any:
  """A step of (trained, the optimizer's state, frozen) on texts."""

  def step(carry: Any, tokens: jax.Array) -> Any:
    trained, state, frozen = carry
    gradient = jax.grad(loss)(trained, frozen, tokens)
    updates, state = optimizer.update(gradient, state, trained)
    return optax.apply_updates(trained, updates), state, frozen

  return step


def loss_of(logits: jax.Array, tokens: jax.Array) -> jax.Array:
  """That of the next tokens."""
  losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
  return losses.mean()


def lora(size: Size, kind: str) -> Any:
  """The start of LoRAs on a base, their loss and their step."""
  adapted = glora_jax.adapt_function(
    functools.partial(decoder, heads=size.heads),
    jax.eval_shape(lambda: base_of('bfloat16' if kind == 'nf4' else kind, random(size))),
    jnp.zeros((1, size.length), int),
    structure=f'lora:{RANK}',
    select='blocks',
    heads=None,
  )
  optimizer = optax.adamw(3e-3)

  def start(params: Any, seed: int = 0) -> Any:
    trained, frozen = adapted.split(adapted.init(jax.random.key(seed), base_of(kind, params)))
    return trained, optimizer.init(trained), frozen

  def loss(trained: Any, frozen: Any, tokens: jax.Array) -> jax.Array:
    return loss_of(adapted.apply(adapted.join(trained, frozen), tokens), tokens)

  return start, loss, stepping(loss, optimizer)


def sizes(size: Size, kind: str, topology: str | None) -> dict[str, float]:
  """MiB of the base and of temporaries in a step, by the compiler of this machine or of a TPU."""
  start, _, step = lora(size, kind)
  carry = jax.eval_shape(lambda: start(random(size)))
  arguments = carry, jax.ShapeDtypeStruct((TEXTS, size.length), jnp.int32)
  if topology is not None:
    sharding = jax.sharding.SingleDeviceSharding(mesh_of(topology).devices.flat[0])
    arguments = jax.tree.map(lambda leaf: leaf.update(sharding=sharding), arguments)
  trained = jax.jit(lambda *arguments: step(*arguments)[:2])
  found = memory_of(trained.lower(*arguments).compile())
  own = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((carry[:2], arguments[1])))
  base = found['arguments'] - own
  return {'base': base / 2**20, 'temporaries': found['temporaries'] / 2**20}


def texts(pattern: str, size: Size) -> np.ndarray:
  """Bytes of this project's files, uint8 [text, token]."""
  root = pathlib.Path(__file__).parents[1]
  data = b''.join(path.read_bytes() for path in sorted(root.glob(pattern)))
  data = data[: len(data) // size.length * size.length]
  return np.frombuffer(data, np.uint8).reshape(-1, size.length)


def losses(size: Size, steps: int) -> Any:
  """Losses of LoRAs on other texts than the base's, by base, and before they were trained."""

  def train(step: Any, carry: Any, data: np.ndarray, seed: int) -> Any:
    rows = np.random.default_rng(seed).integers(len(data), size=(steps, 16))
    scan = jax.jit(lambda *given: jax.lax.scan(lambda *now: (step(*now), None), *given)[0])
    return scan(carry, data[rows])

  params, optimizer = random(size), optax.adamw(1e-3)
  of_base = stepping(
    lambda params, _, tokens: loss_of(decoder(params, tokens, size.heads), tokens), optimizer
  )
  carry = params, optimizer.init(params), None
  params, *_ = train(of_base, carry, texts('glora_jax/**/*.py', size), 0)
  pages, found = texts('docs/**/*.md', size), {}
  pages, others = np.split(pages, [len(pages) * 9 // 10])
  for kind in ('nf4', 'float32'):
    start, loss, step = lora(size, kind)
    found[kind] = []
    for seed in range(SEEDS):
      trained, _, frozen = train(step, start(params, seed), pages, seed)
      found[kind].append(loss(trained, frozen, others))
  found['base'] = loss(start(params)[0], frozen, others)
  return found


def main() -> None:
  """Measures and prints."""
  parser = make_parser(__doc__, 'a small decoder, few steps', repeats=5)
  parser.add_argument('--topology')
  given = parser.parse_args()
  size = SMALL if given.quick else LARGE if given.topology else MIDDLE
  held = {kind: sizes(size, kind, given.topology) for kind in BASES}
  columns = {'base': '', 'MiB held': '.1f', 'temporaries': '.1f'}
  print_table(columns, [(kind, *row.values()) for kind, row in held.items()])
  over = held['nf4']['base'] / held['bfloat16']['base']
  found: dict[str, Any] = {'held_mib': held, 'base_over_bfloat16': over}
  if given.topology is None:
    tokens, calls = jnp.zeros((TEXTS, size.length), int), {}
    for kind in BASES:
      start, _, step = lora(size, kind)
      calls[kind] = functools.partial(jax.jit(step), start(random(size)), tokens)
    times = in_turn(calls, given.repeats)
    found['time_over'] = {kind: times.ratio('nf4', kind) for kind in BASES[1:]}
    found['losses'] = losses(SMALL, STEPS // 10 if given.quick else STEPS)
  print_result('quantized_step', {'quick': given.quick, 'topology': given.topology, **found})


if __name__ == '__main__':
  main()
