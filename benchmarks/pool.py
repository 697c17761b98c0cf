"""A batch in which every example has its own adapter: time, memory and exactness.

  python -m benchmarks.pool [--repeats 9] [--quick]

32 images of 224 pixels, ViT-Ti/16 and ViT-S/16, 16 adapters of mixed structures with LoRAs of rank
4 in a `glora_jax.serve.Pool` of that rank, the base among the answers. Over the plain model: time
(the median of the ratios within one repeat), XLA's account of temporaries, and the largest distance
from what each adapter answers alone. Seconds of a load are those of the second. `--quick` takes the
embedded backbone's size. The last line is JSON.
"""

import itertools
import os
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import glora_jax
from benchmarks.machinery.embedded_task import EMBEDDED_VIT, IMAGE_SIZE
from benchmarks.machinery.measuring import in_turn, make_parser, print_result, print_table, seconds
from benchmarks.machinery.vits import vit
from glora_jax.serve import Pool
from glora_jax.vision.models.vit import ViT

BATCH, ADAPTERS, RANK = 32, 16, 4
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


def measure(model: ViT, size: int, repeats: int) -> dict[str, float]:
  """Time and temporaries over the plain model's, distance, and seconds of a load."""
  images = jax.random.normal(jax.random.key(0), (BATCH, size, size, 3))
  params = noisy(model.init(jax.random.key(1), images)['params'], 0)
  adapted = glora_jax.adapt(model, images, space=glora_jax.SearchSpace((2, 4)))
  pool = Pool(adapted, params, slots=ADAPTERS, rank=RANK)
  plain = jax.jit(lambda params, images: model.apply({'params': params}, images))
  names = [None, *map(str, range(ADAPTERS))]
  names = [*itertools.islice(itertools.cycle(names), BATCH)]
  alone, loads = [plain(params, images)], []
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'adapter.safetensors')
    for number, structure in zip(range(ADAPTERS), itertools.cycle(STRUCTURES), strict=False):
      fixed = adapted.fix(structure)
      variables = fixed.init(jax.random.key(number), params)
      variables['glora'] = noisy(variables['glora'], number)
      glora_jax.save_adapter(path, fixed, variables)
      loads.append(seconds(lambda name=str(number): pool.load(name, path)))
      alone.append(fixed.apply(variables, images))
  expected = np.stack([alone[n % (ADAPTERS + 1)][n] for n in range(BATCH)])
  slots = np.arange(BATCH) % (ADAPTERS + 1)
  compiled = [
    plain.lower(params, images).compile(),
    pool._answer.lower(pool._arrays, pool._params, slots.astype(np.int32), (images,), {}).compile(),
  ]
  temporaries = [program.memory_analysis().temp_size_in_bytes for program in compiled]
  functions = {'plain': lambda: plain(params, images), 'pool': lambda: pool(images, names)}
  times = in_turn(functions, repeats)
  return {
    'time_over_plain': times.ratio('pool', 'plain'),
    'temporaries_over_plain': temporaries[1] / temporaries[0],
    'distance': float(jnp.abs(pool(images, names) - expected).max() / np.abs(expected).max()),
    'load_seconds': loads[1],
  }


def main() -> None:
  """Measures each model and prints."""
  args = make_parser(__doc__, 'a small ViT', repeats=9).parse_args()
  shapes = {'ViT-Ti/16': (vit('Ti', 10), 224), 'ViT-S/16': (vit('S', 10), 224)}
  if args.quick:
    shapes = {'embedded': (EMBEDDED_VIT, IMAGE_SIZE)}
  found = {name: measure(*shape, args.repeats) for name, shape in shapes.items()}
  columns = {'': '', 'time': '.3f', 'temporaries': '.2f', 'distance': '.1e', 'load, s': '.3f'}
  print_table(columns, [(name, *row.values()) for name, row in found.items()])
  print_result('pool', {'quick': args.quick, **found})


if __name__ == '__main__':
  main()
