"""Cost against size: time and bytes of a supernet step over depth and batch, and how straight.

  python -m benchmarks.step_cost [--repeats 5] [--quick]

A ViT of width 96 on 28 pixels, patch 7, float32: depth 6, 12 and 24 at batch 64, and batch 16, 64
and 256 at depth 12. What is run and what counts as bytes is as in `benchmarks.supernet_step`; the
sizes run in turn, and a time is the median of its repeats. Every line is a least-squares fit with
its slope and R^2. `over_lora` is the time of a step of fixed structures of the embedded
ViT at batch 64 over that of a LoRA of rank 4, the median of the ratios. `--quick` takes depth 1, 2
and 3, batch 8, 16 and 32, and two repeats. The last line is JSON.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy import stats

import glora_jax
from benchmarks.machinery.embedded_task import EMBEDDED_VIT, IMAGE_SIZE
from benchmarks.machinery.measuring import in_turn, make_parser, print_result, print_table
from benchmarks.machinery.training_steps import MEBIBYTE, Problem, Shape, glora_steps

PAUSE = 0.3  # seconds before each measurement, as in `benchmarks.supernet_step`
REPEATS, QUICK_REPEATS = 5, 2
UNITS = {'time': 'ms a step', 'bytes': 'MiB held'}


# Depths, all at the middle batch; batches, all at the middle depth; and steps of a dispatch.
FULL_PLAN = (6, 12, 24), (16, 64, 256), 4
QUICK_PLAN = (1, 2, 3), (8, 16, 32), 4


def measure(
  sizes: Iterable[tuple[int, int]], steps: int, repeats: int
) -> dict[str, dict[tuple[int, int], float]]:
  """Times all sizes, depth and batch, in turn; 'time' and 'bytes' of a step by size."""
  rows = {}
  for depth, batch in sizes:
    shape = Shape(EMBEDDED_VIT.clone(depth=depth), IMAGE_SIZE, batch, steps)
    rows[depth, batch] = glora_steps(Problem.random(shape))
  times = in_turn(rows, repeats, pause=PAUSE)
  return {
    'time': {size: 1e3 * times.median(size) / steps for size in rows},
    'bytes': {size: row.bytes['bytes_held'] / MEBIBYTE for size, row in rows.items()},
  }


def over_lora(batch: int, steps: int, repeats: int) -> dict[str, float | None]:
  """The time of a step of fixed structures over that of a LoRA of rank 4."""
  problem = Problem.random(Shape(EMBEDDED_VIT, IMAGE_SIZE, batch, steps))
  adapted = problem.adapt((2, 4))
  presets = 'lora:4', 'dora:4', 'bitfit', 'ssf', 'scale_shift_lora:2'
  genomes = {preset: np.asarray(glora_jax.preset(adapted.spec, preset)) for preset in presets}
  layers = np.arange(len(adapted.spec))
  none = np.zeros_like(layers)
  vector, lora = 2 * (layers % 2), np.array([0, 3, 4])[layers % 3]
  genomes['A vectors'] = np.stack([none + 2, none, none, none, none], axis=1)
  genomes['mixed'] = np.stack([vector, lora, none, none, 2 * (layers % 3 > 0)], axis=1)
  genomes['mixed, no A'] = genomes['mixed'] * [0, 1, 1, 1, 1]
  rows = {
    name: glora_steps(problem, genome.astype(np.int8), adapted) for name, genome in genomes.items()
  }
  rows['lora:4, dropout'] = glora_steps(problem, genomes['lora:4'], adapted, lora_dropout=0.1)
  times = in_turn(rows, repeats)
  return {name: times.ratio(name, 'lora:4') for name in rows}


def main() -> None:
  """Measures and prints."""
  given = make_parser(__doc__, 'small sizes, two repeats', REPEATS).parse_args()
  plan, repeats = (QUICK_PLAN, QUICK_REPEATS) if given.quick else (FULL_PLAN, given.repeats)
  depths, batches, steps = plan
  sizes = {
    'depth': [(depth, batches[1]) for depth in depths],
    'batch': [(depths[1], batch) for batch in batches],
  }
  costs = measure(dict.fromkeys(sizes['depth'] + sizes['batch']), steps, repeats)
  print_table(
    {'depth': '', 'batch': '', **dict.fromkeys(UNITS.values(), '.1f')},
    [(str(size[0]), size[1], *(costs[cost][size] for cost in UNITS)) for size in costs['time']],
  )
  values: dict[str, Any] = {'quick': given.quick}
  for (varied, own), x in zip(sizes.items(), plan, strict=False):
    for cost, unit in UNITS.items():
      line = stats.linregress(x, [costs[cost][size] for size in own])
      slope, intercept, r2 = line.slope, line.intercept, line.rvalue**2
      print(f'{unit} over {varied}: {slope:.3f} each, {intercept:.1f} at zero, R^2 {r2:.5f}')
      values[f'{cost}_over_{varied}'] = {'slope': slope, 'intercept': intercept, 'r2': r2}
  values['over_lora'] = over_lora(batches[1], steps, 4 * repeats)
  print_table({'structure': '', "over a LoRA's": '.2f'}, values['over_lora'].items())
  print_result('step_cost', values)


if __name__ == '__main__':
  main()
