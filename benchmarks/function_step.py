"""One supernet step through `glora_jax.adapt_function` against the same through `glora_jax.adapt`.

  python -m benchmarks.function_step [--repeats 9] [--quick]

A ViT as large as the embedded backbone, 28 pixels, batch 64, AdamW, rank 4 in all five tensors, a
genome for every step, as one dispatch of `glora_jax.training.make_steps`; and a LoRA of that rank.
`linen` finds the model's layers by their modules, and merges as `adapt` chooses; `function` is its
`apply` as a function of parameters and images, whose layers are found by use. `--quick` takes
dispatches of 12 steps, five times.

Rows take turns; the ratio is the median over the repeats of the ratios within one repeat. Below 1
is faster. Seconds of adapting are those of one call, the first. The last line is JSON.
"""

import time
from collections.abc import Callable

import glora_jax
from benchmarks.machinery.embedded_task import EMBEDDED_VIT, IMAGE_SIZE
from benchmarks.machinery.measuring import (
  in_turn,
  make_parser,
  median_ratio,
  milliseconds,
  print_result,
  print_table,
  rounded,
)
from benchmarks.machinery.training_steps import RANK, Problem, Shape, preset_row, supernet_row
from glora_jax.method.adapted import Adapted

SHAPE = Shape(EMBEDDED_VIT, IMAGE_SIZE, batch=64, steps=40)
QUICK_SHAPE, QUICK_REPEATS = SHAPE._replace(steps=12), 5
LINEN, FUNCTION = 'linen', 'function'
LORA = ', LoRA'
Adapt = Callable[[Problem], Adapted]


def by_function(problem: Problem) -> Adapted:
  """The layers of the model's `apply`, found by use."""

  def apply(params, images):
    return problem.shape.model.apply({'params': params}, images)

  space = glora_jax.SearchSpace(ranks=(RANK,))
  return glora_jax.adapt_function(apply, problem.params, problem.images[:1], space=space)


ADAPT: dict[str, Adapt] = {LINEN: Problem.adapt, FUNCTION: by_function}


def main() -> None:
  """Measures and prints."""
  parser = make_parser(__doc__, '12 steps a dispatch, five repeats', repeats=9)
  arguments = parser.parse_args()
  shape = QUICK_SHAPE if arguments.quick else SHAPE
  repeats = QUICK_REPEATS if arguments.quick else arguments.repeats
  problem = Problem.random(shape)
  rows, adapting = {}, {}
  for name, adapt in ADAPT.items():
    start = time.perf_counter()
    adapted = adapt(problem)
    adapting[name] = time.perf_counter() - start
    rows[name] = supernet_row(problem, adapted)
    rows[name + LORA] = preset_row(problem, f'lora:{RANK}', adapted)
  times = in_turn({name: row.run for name, row in rows.items()}, repeats)
  step = milliseconds(times, shape.steps)
  titles = ('', 'ms a step', 'MiB held', 's to adapt')
  lines = [
    (name, f'{step[name]:.2f}', f'{row.held / 2**20:.1f}', f'{adapting.get(name, 0):.2f}')
    for name, row in rows.items()
  ]
  print_table(titles, lines)
  values = {
    'milliseconds': rounded(step, 2),
    'function_over_linen': rounded(median_ratio(times, FUNCTION, LINEN)),
    'bytes_over_linen': rounded(rows[FUNCTION].held / rows[LINEN].held),
    'lora_over_linen': rounded(median_ratio(times, FUNCTION + LORA, LINEN + LORA)),
    'lora_bytes_over_linen': rounded(rows[FUNCTION + LORA].held / rows[LINEN + LORA].held),
    'seconds_to_adapt': rounded(adapting),
  }
  print_result('function_step', {'quick': arguments.quick, 'repeats': repeats, **values})


if __name__ == '__main__':
  main()
