"""Cost against size: time and bytes of a supernet step over depth and batch, and how straight.

  python -m benchmarks.step_cost [--output step_cost.png] [--repeats 5] [--quick]

A ViT of width 96 on 28 pixels, patch 7, float32: depth 6, 12 and 24 at batch 64, and batch 16, 64
and 256 at depth 12. What is run and what counts as bytes is as in `benchmarks.supernet_step`; the
sizes run in turn, and a time is the median of its repeats. Every line is a least-squares fit with
its slope and R^2. `host_share` is the time of a dispatch of `training.fit` whose steps compute next
to nothing (order of images, metrics, progress bar, the call itself), over that of one of the
embedded task, 48 steps each. `over_lora` is the time of a step of fixed structures of the embedded
ViT at batch 64 over that of a LoRA of rank 4, the median of the ratios. `--quick` takes depth 2, 4
and 6, batch 32, 64 and 128, and three repeats of longer dispatches. The last line is JSON.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import glora_jax
from benchmarks.machinery import embedded_task, training_steps
from benchmarks.machinery.measuring import (
  in_turn,
  make_parser,
  median_ratio,
  milliseconds,
  print_result,
  print_table,
  rounded,
)
from glora_jax.models.vit import ViT
from glora_jax.training import loop
from glora_jax.training.recipe import Recipe

PAUSE = 0.3  # seconds before each measurement, as in `benchmarks.supernet_step`
HOST_STEPS = 48


class Size(NamedTuple):
  """What is varied: blocks of the ViT, and images of a step."""

  depth: int
  batch: int


class Plan(NamedTuple):
  """Which sizes are measured; all depths at the middle batch, all batches at the middle depth.

  Attributes:
    depths, batches: three each.
    steps: of a dispatch.
    repeats: of each size.
  """

  depths: tuple[int, int, int]
  batches: tuple[int, int, int]
  steps: int
  repeats: int

  def sizes(self, varied: str) -> list[Size]:
    """The sizes of which only 'depth' or only 'batch' is varied."""
    if varied == 'depth':
      return [Size(depth, self.batches[1]) for depth in self.depths]
    return [Size(self.depths[1], batch) for batch in self.batches]


FULL_PLAN = Plan((6, 12, 24), (16, 64, 256), steps=4, repeats=5)
QUICK_PLAN = Plan((2, 4, 6), (32, 64, 128), steps=16, repeats=3)


class Line(NamedTuple):
  """A least-squares line through points.

  Attributes:
    x, y: the points.
    slope, intercept: of the line.
    r2: share of the variance that it explains.
  """

  x: Sequence[float]
  y: Sequence[float]
  slope: float
  intercept: float
  r2: float

  @classmethod
  def fit(cls, x: Sequence[float], y: Sequence[float]) -> 'Line':
    """The line through these points."""
    slope, intercept = np.polyfit(x, y, 1)
    residuals = np.asarray(y) - slope * np.asarray(x) - intercept
    unexplained = np.sum(residuals**2) / np.sum((y - np.mean(y)) ** 2)
    return cls(x, y, float(slope), float(intercept), float(1 - unexplained))


def measure(plan: Plan) -> dict[str, dict[Size, float]]:
  """Times all sizes in turn; 'time' and 'bytes' of a step by size."""
  rows = {}
  for size in dict.fromkeys([*plan.sizes('depth'), *plan.sizes('batch')]):
    model = ViT(training_steps.CLASSES, patch_size=7, width=96, depth=size.depth, num_heads=3)
    shape = training_steps.Shape(model, embedded_task.IMAGE_SIZE, size.batch, plan.steps)
    rows[size] = training_steps.supernet_row(training_steps.Problem.random(shape))
  times = in_turn({size: row.run for size, row in rows.items()}, plan.repeats, pause=PAUSE)
  mebibytes = {size: row.held / 2**20 for size, row in rows.items()}
  return {'time': milliseconds(times, plan.steps), 'bytes': mebibytes}


def dispatch_seconds(
  loss_fn: loop.LossFn, trainable: Any, frozen: Any, data: tuple[Any, Any], repeats: int
) -> float:
  """Median time of a dispatch of `training.fit`, from one report to the next."""
  images, labels = data
  epochs_of_dispatch = HOST_STEPS // (len(labels) // Recipe().batch_size)
  moments = []
  loop.fit(
    loss_fn,
    trainable,
    frozen,
    images,
    labels,
    Recipe(epochs=epochs_of_dispatch * (repeats + 1), warmup_epochs=0),
    jax.random.key(1),
    steps_per_dispatch=HOST_STEPS,
    on_dispatch=lambda *_: moments.append(time.perf_counter()),
  )
  return statistics.median(np.diff(moments))


def host_share(repeats: int) -> float:
  """Dispatches whose steps do next to nothing, over those of the embedded task.

  This is at most what the host adds to the latter.
  """
  backbone = embedded_task.Backbone.load()
  data = embedded_task.on_device(embedded_task.digits()['train'])
  variables = backbone.adapted.init(jax.random.key(0), backbone.params)

  def idle_loss(trainable, frozen, batch, key):
    del frozen, batch, key
    return trainable['number'] ** 2, {'loss': trainable['number']}

  idle = dispatch_seconds(idle_loss, {'number': jnp.ones(())}, {}, data, repeats)
  halves = backbone.adapted.split(variables)
  return idle / dispatch_seconds(backbone.supernet_loss(), *halves, data, repeats)


def over_lora(steps: int, repeats: int) -> dict[str, float | None]:
  """The time of a step of fixed structures over that of a LoRA of rank 4."""
  shape = training_steps.Shape(embedded_task.EMBEDDED_VIT, embedded_task.IMAGE_SIZE, 64, steps)
  problem = training_steps.Problem.random(shape)
  space = glora_jax.SearchSpace(ranks=(2, 4))
  adapted = glora_jax.adapt(shape.model, problem.images[:1], space=space)
  presets = 'lora:4', 'bitfit', 'ssf', 'scale_shift_lora:2'
  genomes = {preset: np.asarray(glora_jax.preset(adapted.spec, preset)) for preset in presets}
  layers = np.arange(len(genomes['ssf']))
  none = np.zeros_like(layers)
  vector, lora = 2 * (layers % 2), np.array([0, 3, 4])[layers % 3]
  genomes['A vectors'] = np.stack([none + 2, none, none, none, none], axis=1)
  genomes['mixed'] = np.stack([vector, lora, none, none, 2 * (layers % 3 > 0)], axis=1)
  genomes['mixed, no A'] = genomes['mixed'] * [0, 1, 1, 1, 1]
  rows = {
    name: training_steps.structure_row(problem, adapted, genome.astype(np.int8))
    for name, genome in genomes.items()
  }
  times = in_turn({name: row.run for name, row in rows.items()}, repeats)
  return {name: median_ratio(times, name, 'lora:4') for name in rows}


UNITS = {'time': 'ms a step', 'bytes': 'MiB held'}


def draw(path: str, lines: dict[tuple[str, str], Line]) -> None:
  """One panel for each of time and bytes over depth and batch: the points and the line."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 7), layout='constrained')
  axes = figure.subplots(2, 2)
  for axis, ((cost, varied), line) in zip(axes.ravel(), lines.items(), strict=True):
    ends = np.array([0, max(line.x)])
    axis.plot(ends, line.slope * ends + line.intercept, color='0.6')
    axis.plot(line.x, line.y, 'o')
    axis.set(
      xlabel=varied,
      ylabel=UNITS[cost],
      ylim=(0, None),
      title=f'{line.slope:.3g} each, R$^2$ = {line.r2:.4f}',
    )
  figure.savefig(path, dpi=120)


def main() -> None:
  """Measures, prints and draws."""
  parser = make_parser(__doc__, 'small sizes, three repeats', FULL_PLAN.repeats)
  parser.add_argument('--output', help='where to draw the lines, .png')
  arguments = parser.parse_args()
  plan = QUICK_PLAN if arguments.quick else FULL_PLAN._replace(repeats=arguments.repeats)
  costs = measure(plan)
  lines = {  # over each of what is varied, time and bytes
    (cost, varied): Line.fit(x, [values[size] for size in plan.sizes(varied)])
    for varied, x in (('depth', plan.depths), ('batch', plan.batches))
    for cost, values in costs.items()
  }
  rows = [
    (str(size.depth), str(size.batch), *(f'{costs[cost][size]:.1f}' for cost in UNITS))
    for size in costs['time']
  ]
  print_table(('depth', 'batch', *UNITS.values()), rows)
  for (cost, varied), line in lines.items():
    print(
      f'{UNITS[cost]} over {varied}: {line.slope:.3f} each, {line.intercept:.1f} at zero, '
      f'R^2 {line.r2:.5f}'
    )
  if arguments.output:
    draw(arguments.output, lines)
  ratios = over_lora(plan.steps, 4 * plan.repeats)
  print_table(('structure', "over a LoRA's"), [(name, f'{r:.2f}') for name, r in ratios.items()])
  share = host_share(plan.repeats)
  print(
    f'Host: at most {100 * share:.2f}% of a dispatch of {HOST_STEPS} steps of the embedded task.'
  )
  values: dict[str, Any] = {'quick': arguments.quick, 'host_share': round(share, 5)}
  values['over_lora'] = rounded(ratios)
  for (cost, varied), line in lines.items():
    fields = {'slope': line.slope, 'intercept': line.intercept, 'r2': line.r2}
    values[f'{cost}_over_{varied}'] = rounded(fields, 5)
  print_result('step_cost', values)


if __name__ == '__main__':
  main()
