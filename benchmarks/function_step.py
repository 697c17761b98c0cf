"""One supernet step through `glora_jax.adapt_function` against the same through `glora_jax.adapt`.

  python -m benchmarks.function_step [--repeats 9] [--quick]

A ViT as large as the embedded backbone, 28 pixels, batch 64, AdamW, rank 4 in all five tensors, a
genome for every step, as one dispatch of `glora_jax.training.loop.make_steps`; and a LoRA of that
rank. `linen` finds the model's layers by their modules, and merges as `adapt` chooses; `function`
is its `apply` as a function of parameters and images, whose layers are found by use. `--quick`
takes dispatches of 12 steps, five times.

Rows take turns; the ratio is the median over the repeats of the ratios within one repeat. Below 1
is faster. Seconds of adapting are those of one call, the first. The last line is JSON.
"""

import time

import glora_jax
from benchmarks.machinery.embedded_task import EMBEDDED_VIT, IMAGE_SIZE
from benchmarks.machinery.measuring import make_parser, print_result
from benchmarks.machinery.training_steps import RANK, Problem, Shape, compare, glora_steps
from glora_jax.method.adapted import Adapted

SHAPE = Shape(EMBEDDED_VIT, IMAGE_SIZE, batch=64, steps=40)
QUICK_SHAPE, QUICK_REPEATS = SHAPE._replace(steps=12), 5
RATIOS = {
  'function_over_linen': ('function', 'linen'),
  'bytes_over_linen': ('function', 'linen'),
  'lora_over_linen': ('function, LoRA', 'linen, LoRA'),
  'lora_bytes_over_linen': ('function, LoRA', 'linen, LoRA'),
}


def by_function(problem: Problem) -> Adapted:
  """The layers of the model's `apply`, found by use."""

  def apply(params, images):
    return problem.shape.model.apply({'params': params}, images)

  space = glora_jax.SearchSpace(ranks=(RANK,))
  return glora_jax.adapt_function(apply, problem.params, problem.images[:1], space=space)


def main() -> None:
  """Measures and prints."""
  given = make_parser(__doc__, '12 steps a dispatch, five repeats', repeats=9).parse_args()
  shape = QUICK_SHAPE if given.quick else SHAPE
  problem = Problem.random(shape)
  rows, seconds = {}, {}
  for name, adapt in {'linen': Problem.adapt, 'function': by_function}.items():
    start = time.perf_counter()
    adapted = adapt(problem)
    seconds[name] = time.perf_counter() - start
    rows[name] = glora_steps(problem, None, adapted)
    rows[f'{name}, LoRA'] = glora_steps(problem, f'lora:{RANK}', adapted)
  found = compare(rows, shape.steps, QUICK_REPEATS if given.quick else given.repeats, RATIOS)
  print('Seconds to adapt: {linen:.2f} linen, {function:.2f} function'.format(**seconds))
  print_result('function_step', {'quick': given.quick, **found, 'seconds_to_adapt': seconds})


if __name__ == '__main__':
  main()
