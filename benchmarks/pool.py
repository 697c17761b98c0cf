"""A batch in which every example has its own adapter: time, memory and exactness.

  python -m benchmarks.pool [--language] [--repeats 9] [--quick]

32 images of 224 pixels, ViT-Ti/16 and ViT-S/16, 16 adapters of mixed structures with LoRAs of rank
4 in a `glora_jax.Pool` of that rank, the base among the answers. Over the plain model: time
(the median of the ratios within one repeat), XLA's account of temporaries, and the largest distance
from what each adapter answers alone. Seconds of a load are those of the second. `--quick` takes the
embedded backbone's size.

`--language` takes SmolLM2-135M instead (see `benchmarks.study.language`), with `--quick` a tiny
model: eight prompts of 64 tokens, each with its own LoRA of rank 8, are read, and a token is added
to each, with a cache of 128 tokens. The last line is JSON.
"""

import itertools
import os
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

import glora_jax
from benchmarks.machinery.embedded_task import EMBEDDED_VIT, IMAGE_SIZE
from benchmarks.machinery.measuring import in_turn, make_parser, print_result, print_table, seconds
from benchmarks.machinery.vits import vit
from glora_jax import Pool
from glora_jax.method.adapted import Adapted
from glora_jax.vision.models.vit import ViT

BATCH, ADAPTERS, RANK = 32, 16, 4
PROMPTS, LORA_RANK, LENGTH, MORE = 8, 8, 64, 64  # the cache has room for `MORE` tokens
STRUCTURES = (
  'lora:4',
  'ssf',
  {'qkv': {'A': 'vector', 'B': 'lora:4'}, 'mlp': {'C': 'vector', 'B': 'lora:2'}},
  {'attn': {'B': 'lora:2', 'E': 'vector'}, 'fc': {'A': 'constant', 'D': 'vector'}},
)


def noisy(tree: Any, seed: int) -> Any:
  """A tree with normal noise on every array; a fresh head is zero, as fresh supports are."""
  key = jax.random.key(seed)
  return jax.tree.map(lambda value: value + 0.02 * jax.random.normal(key, value.shape), tree)


def load(
  pool: Pool, learners: Iterable[Adapted], params: Any, answer: Callable[[Adapted, Any], Any]
) -> tuple[list[Any], float]:
  """Loads a noisy adapter of each; returns what each answers alone, and seconds of the second."""
  alone, loads = [], []
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'adapter.safetensors')
    for number, fixed in enumerate(learners):
      variables = fixed.init(jax.random.key(number), params)
      variables['glora'] = noisy(variables['glora'], number)
      glora_jax.save_adapter(path, fixed, variables)
      loads.append(seconds(lambda name=str(number): pool.load(name, path)))
      alone.append(answer(fixed, variables))
  return alone, loads[1]


def distance(found: Any, expected: Any) -> float:
  """The largest distance over the largest value."""
  return float(np.abs(np.subtract(found, expected)).max() / np.abs(expected).max())


def measure(model: ViT, size: int, repeats: int) -> dict[str, Any]:
  """Time and temporaries over the plain model's, distance, and seconds of a load."""
  images = jax.random.normal(jax.random.key(0), (BATCH, size, size, 3))
  params = noisy(model.init(jax.random.key(1), images)['params'], 0)
  adapted = glora_jax.adapt(model, images, space=glora_jax.SearchSpace((2, 4)))
  pool = Pool(adapted, params, slots=ADAPTERS, rank=RANK)
  plain = jax.jit(lambda params, images: model.apply({'params': params}, images))
  learners = map(adapted.fix, itertools.islice(itertools.cycle(STRUCTURES), ADAPTERS))
  alone, load_seconds = load(
    pool, learners, params, lambda fixed, variables: fixed.apply(variables, images)
  )
  slots = np.arange(BATCH, dtype=np.int32) % (ADAPTERS + 1)  # the first one is the base's
  names = [str(slot - 1) if slot else None for slot in slots]
  expected = np.stack([[plain(params, images), *alone][slot][n] for n, slot in enumerate(slots)])
  temporaries = [
    lowered.compile().memory_analysis().temp_size_in_bytes
    for lowered in (
      plain.lower(params, images),
      pool._run.lower(pool._arrays, pool._params, slots, (images,), {}),
    )
  ]
  functions = {'plain': lambda: plain(params, images), 'pool': lambda: pool(images, names)}
  return {
    'time_over_plain': in_turn(functions, repeats).ratio('pool', 'plain'),
    'temporaries_over_plain': temporaries[1] / temporaries[0],
    'distance': distance(pool(images, names), expected),
    'load_seconds': load_seconds,
  }


def measure_language(quick: bool, repeats: int) -> dict[str, dict[str, Any]]:
  """The same for reading prompts and for one more token of each."""
  import transformers

  from benchmarks.study import language

  module = language.tiny() if quick else language.load()
  shape = PROMPTS, LENGTH
  tokens = np.random.default_rng(0).integers(1, module.config.vocab_size, shape, dtype=np.int32)
  mask = np.ones((PROMPTS, LENGTH + MORE), np.int32)
  positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), shape)
  layer = transformers.cache_utils.StaticLayer
  layers = [layer(LENGTH + MORE) for _ in range(module.config.num_hidden_layers)]
  read = tokens, mask, positions, transformers.Cache(layers=layers)
  adapted, params = glora_jax.torch.adapt(
    module, tokens[:1], structure=f'lora:{LORA_RANK}', heads=None, release=True
  )
  pool = Pool(adapted, params, slots=PROMPTS, rank=LORA_RANK)
  apply, plain = jax.jit(adapted.apply), jax.jit(adapted.model.apply)
  alone, load_seconds = load(
    pool, [adapted] * PROMPTS, params, lambda _, variables: apply(variables, *read).logits
  )
  expected, names = np.stack([alone[n][n] for n in range(PROMPTS)]), [*map(str, range(PROMPTS))]
  forwards = {
    'plain': lambda *inputs: plain({'params': params}, *inputs),
    'pool': lambda *inputs: pool(inputs, names),
  }
  outputs = {name: forward(*read) for name, forward in forwards.items()}
  more = {
    name: (tokens[:, -1:], mask, positions[:, -1:] + 1, found[1]) for name, found in outputs.items()
  }
  found = {}
  for part, inputs in {'prompts': dict.fromkeys(forwards, read), 'one more token': more}.items():
    calls = {
      name: lambda forward=forward, given=inputs[name]: forward(*given)
      for name, forward in forwards.items()
    }
    found[part] = {
      'time_over_plain': in_turn(calls, repeats).ratio('pool', 'plain'),
      'temporaries_over_plain': None,
      'distance': distance(outputs['pool'].logits, expected),
      'load_seconds': load_seconds,
    }
  return found


def main() -> None:
  """Measures and prints."""
  parser = make_parser(__doc__, 'a small model', repeats=9)
  parser.add_argument('--language', action='store_true', help='SmolLM2-135M')
  given = parser.parse_args()
  shapes = {'ViT-Ti/16': (vit('Ti', 10), 224), 'ViT-S/16': (vit('S', 10), 224)}
  if given.quick:
    shapes = {'embedded': (EMBEDDED_VIT, IMAGE_SIZE)}
  if given.language:
    found = measure_language(given.quick, given.repeats)
  else:
    found = {name: measure(*shape, given.repeats) for name, shape in shapes.items()}
  columns = {'': '', 'time': '.3f', 'temporaries': '.2f', 'distance': '.1e', 'load, s': '.3f'}
  print_table(columns, [(name, *row.values()) for name, row in found.items()])
  print_result('pool', {'quick': given.quick, **found})


if __name__ == '__main__':
  main()
