"""One supernet step through `glora_jax.adapt_function` against the same through `glora_jax.adapt`.

  python -m benchmarks.function_step [--repeats 9] [--quick]

A ViT as large as the embedded backbone, 28 pixels, batch 64, AdamW, rank 4 in all five tensors, a
genome for every step, as one dispatch of `glora_jax.training.make_steps`. `linen` finds the model's
layers by their modules, and merges as `adapt` chooses; `function` is its `apply` as a function of
parameters and images, whose layers are found by use. `--quick` takes dispatches of 12 steps, five
times.

Rows take turns; the ratio is the median over the repeats of the ratios within one repeat. Below 1
is faster. Seconds of adapting are those of one call, the first. The last line is JSON.
"""

import argparse
import time
from collections.abc import Callable

import jax

import glora_jax
from benchmarks.machinery.embedded_task import EMBEDDED_VIT, IMAGE_SIZE
from benchmarks.machinery.output import make_parser, print_result, print_table, rounded
from benchmarks.machinery.timing import in_turn, median_ratio, medians
from benchmarks.machinery.training_steps import RANK, CompiledSteps, Problem, Row, Shape
from glora_jax.method.adapted import Adapted
from glora_jax.training import losses

SHAPE = Shape(EMBEDDED_VIT, IMAGE_SIZE, batch=64, steps=40)
QUICK_SHAPE, QUICK_REPEATS = SHAPE._replace(steps=12), 5
LINEN, FUNCTION = 'linen', 'function'
Adapt = Callable[[Problem], Adapted]


def by_function(problem: Problem) -> Adapted:
  """The layers of the model's `apply`, found by use."""

  def apply(params, images):
    return problem.shape.model.apply({'params': params}, images)

  space = glora_jax.SearchSpace(ranks=(RANK,))
  return glora_jax.adapt_function(apply, problem.params, problem.images[:1], space=space)


ADAPT: dict[str, Adapt] = {LINEN: Problem.adapt, FUNCTION: by_function}


def supernet_row(problem: Problem, adapted: Adapted) -> Row:
  """A random genome for every step."""
  trainable, frozen = adapted.split(adapted.init(jax.random.key(2), problem.params))
  loss_fn = losses.supernet_loss(
    adapted,
    lambda key, images: images,
    lambda key: glora_jax.sample_genome(key, adapted.spec),
  )
  return CompiledSteps(loss_fn, trainable, frozen, problem).row()


def parse_arguments() -> argparse.Namespace:
  """The command line."""
  parser = make_parser(__doc__, '12 steps a dispatch, five repeats')
  parser.add_argument('--repeats', type=int, default=9)
  return parser.parse_args()


def main() -> None:
  """Measures and prints."""
  arguments = parse_arguments()
  shape = QUICK_SHAPE if arguments.quick else SHAPE
  repeats = QUICK_REPEATS if arguments.quick else arguments.repeats
  problem = Problem.random(shape)
  rows, adapting = {}, {}
  for name, adapt in ADAPT.items():
    start = time.perf_counter()
    adapted = adapt(problem)
    adapting[name] = time.perf_counter() - start
    rows[name] = supernet_row(problem, adapted)
  times = in_turn({name: row.run for name, row in rows.items()}, repeats)
  milliseconds = {name: 1e3 * median / shape.steps for name, median in medians(times).items()}
  titles = ('', 'ms a step', 'MiB held', 's to adapt')
  lines = [
    (name, f'{milliseconds[name]:.2f}', f'{row.held / 2**20:.1f}', f'{adapting[name]:.2f}')
    for name, row in rows.items()
  ]
  print_table(titles, lines)
  values = {
    'milliseconds': {name: round(value, 2) for name, value in milliseconds.items()},
    'function_over_linen': rounded(median_ratio(times, FUNCTION, LINEN)),
    'bytes_over_linen': rounded(rows[FUNCTION].held / rows[LINEN].held),
    'seconds_to_adapt': {name: round(value, 3) for name, value in adapting.items()},
  }
  print_result('function_step', {'quick': arguments.quick, 'repeats': repeats, **values})


if __name__ == '__main__':
  main()
