"""What a plan estimates without a compiler, against the host compiler's own account.

  python -m benchmarks.plan_estimates [--quick]

Temporaries of the supernet's training step (50 steps in one program at most), float32, merged up
front, of ViT-S/16, B/16 and L/16 on 224 pixels at three batches, by `runs.footprint` from the
traced program and by XLA's `memory_analysis()` for this machine's CPU. Nothing is run. And the
seconds, of all cores, that a whole plan of each model takes. Targets: within 30%, below 20 s.
`--quick` takes the embedded ViT. The last line is JSON.
"""

import time

import jax

from benchmarks.machinery.embedded_task import EMBEDDED_VIT, IMAGE_SIZE
from benchmarks.machinery.measuring import make_parser, print_result, print_table
from glora_jax.models.vit import ViT, vit
from glora_jax.runs.config import RunSettings
from glora_jax.runs.context import Context
from glora_jax.runs.planning.costs import cost_of
from glora_jax.runs.planning.machine import Machine
from glora_jax.runs.planning.plan import plan_of
from glora_jax.runs.programs import program, shape_of_run
from glora_jax.runs.sections import SpaceSettings
from glora_jax.training.recipe import Recipe

BATCHES = (8, 16, 32)
COUNTS = {'train': 800, 'val': 200, 'test': 1000, 'train+val': 1000}
HOST = Machine('host', 1, 1, 2**45, 1e12, True, 'cpu')


def shape_of(model: ViT, size: int, batch: int) -> Context:
  """A search with the gradient's structure beside it, by batches of a size."""
  recipe = Recipe(batch_size=batch)
  space = SpaceSettings(ranks=(8,))
  settings = RunSettings(presets=('gradient',), training=recipe, space=space)
  return shape_of_run(settings, model, size, COUNTS)


def main() -> None:
  """Compares in turn and prints."""
  quick = make_parser(__doc__, 'a small ViT').parse_args().quick
  jax.config.update('jax_enable_compilation_cache', False)
  models = {f'ViT-{size}/16': (vit(size, 100, drop_path=0.1), 224) for size in ('S', 'B', 'L')}
  if quick:
    models = {'embedded ViT': (EMBEDDED_VIT, IMAGE_SIZE)}
  rows, seconds, ratios = [], {}, {}
  for name, (model, size) in models.items():
    jax.clear_caches()
    start = time.process_time()
    plan_of(shape_of(model, size, BATCHES[0]), '', HOST)
    seconds[name] = time.process_time() - start
    for batch in BATCHES:
      run = shape_of(model, size, batch)
      estimated = cost_of('supernet', run).temporaries
      compiled = program('supernet', run).lowered().compile()
      jax.clear_caches()
      found = compiled.memory_analysis().temp_size_in_bytes
      ratios[f'{name}, {batch}'] = ratio = estimated / found
      rows.append((name, batch, estimated / 2**20, found / 2**20, ratio))
  sizes = {'estimated, MiB': ',.0f', 'compiled, MiB': ',.0f'}
  print_table({'': '', 'batch': '', **sizes, 'ratio': '.2f'}, rows)
  print_result('plan_estimates', {'quick': quick, 'ratios': ratios, 'seconds_of_plan': seconds})


if __name__ == '__main__':
  main()
