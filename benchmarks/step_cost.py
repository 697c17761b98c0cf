"""Cost against size: time and bytes of a supernet step over depth and batch, and how straight the lines are.

  python -m benchmarks.step_cost [--output step_cost.png] [--repeats 5] [--quick]

A ViT of width 96 on 28 pixels, patch 7, float32: depth 6, 12 and 24 at batch 64, and batch 16, 64 and 256 at depth 12. What is run and what
counts as bytes is as in `benchmarks.supernet_step`; the sizes run in turn, and a time is the median of its repeats. Every line is a
least-squares fit with its slope and R^2. `host_share` is the time of a dispatch of `training.fit` whose steps compute next to nothing (order of
images, metrics, progress bar, the call itself), over that of one of the embedded task, 48 steps each. `--quick` takes depth 1, 2 and 4,
batch 4, 8 and 16. The last line is JSON.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine, search_efficiency
from benchmarks.supernet_step import CLASSES, Shape, in_turn, supernet_step
from glora_jax.method import genomes
from glora_jax.models.vit import ViT
from glora_jax.reports import drawing
from glora_jax.training import loop, losses, recipe

SIZE, STEPS, HOST_STEPS = 28, 4, 48


def fit(x, y) -> dict[str, float]:
  """Least-squares line through points, and the share of the variance that it explains."""
  slope, intercept = np.polyfit(x, y, 1)
  rest = np.sum((np.asarray(y) - slope * np.asarray(x) - intercept) ** 2)
  return {
    'slope': float(slope),
    'intercept': float(intercept),
    'r2': float(1 - rest / np.sum((y - np.mean(y)) ** 2)),
  }


def host_share(repeats: int) -> float:
  """Seconds of a dispatch whose steps do next to nothing, over those of a dispatch of the embedded task: at most what the host adds."""
  adapted, params, preprocess = search_efficiency.embedded()
  images, labels = map(jnp.asarray, search_efficiency.digits()['train'])
  trainable, frozen = adapted.split(adapted.init(jax.random.key(0), params))
  task = losses.supernet_loss(
    adapted,
    lambda _, x: preprocess(x),
    lambda key: genomes.sample_genome(key, adapted.spec),
    train=True,
  )

  def nothing(trainable, frozen, images, labels, key):
    return trainable['number'] ** 2, {'loss': trainable['number']}

  medians = []
  for loss, *parts in ((nothing, {'number': jnp.ones(())}, {}), (task, trainable, frozen)):
    times, epochs = [], HOST_STEPS // (len(labels) // recipe.Recipe().batch_size) * (repeats + 1)
    loop.fit(
      loss,
      *parts,
      images,
      labels,
      recipe.Recipe(epochs=epochs),
      jax.random.key(1),
      steps_per_dispatch=HOST_STEPS,
      on_dispatch=lambda *_, times=times: times.append(time.perf_counter()),
    )
    medians.append(statistics.median(np.diff(times)))
  return medians[0] / medians[1]


def draw(path, lines):
  """One panel for each of time and bytes against depth and batch: the points and the fitted line."""
  figure, axes = drawing.panels(2, 2, figsize=(9, 7))
  for axis, ((size, cost), (x, y, line)) in zip(axes.ravel(), lines.items(), strict=True):
    ends = np.array([0, max(x)])
    axis.plot(ends, line['slope'] * ends + line['intercept'], color='0.6')
    axis.plot(x, y, 'o')
    axis.set(
      xlabel=size,
      ylabel=cost,
      ylim=(0, None),
      title=f'{line["slope"]:.3g} each, R$^2$ = {line["r2"]:.4f}',
    )
  drawing.save(figure, path, dpi=120)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--output', help='where to draw the lines, .png')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--quick', action='store_true', help='small sizes, two repeats')
  arguments = parser.parse_args()
  depths, batches = ((1, 2, 4), (4, 8, 16)) if arguments.quick else ((6, 12, 24), (16, 64, 256))
  depth, batch = depths[1], batches[1]
  sizes = {**{(d, batch): None for d in depths}, **{(depth, b): None for b in batches}}
  for d, b in sizes:
    shape = Shape(ViT(CLASSES, patch_size=7, width=96, depth=d, num_heads=3), SIZE, b, STEPS)
    images = jax.random.normal(jax.random.key(0), (b * STEPS, SIZE, SIZE, 3))
    params = jax.jit(shape.model.init)(jax.random.key(1), images[:1])['params']
    sizes[d, b] = supernet_step(
      shape, params, images, jnp.arange(len(images), dtype=jnp.int32) % CLASSES
    )
  seconds = in_turn(sizes, 2 if arguments.quick else arguments.repeats)
  milliseconds = {size: 1e3 * statistics.median(values) / STEPS for size, values in seconds.items()}
  mebibytes = {size: row.held / 2**20 for size, row in sizes.items()}

  print(f'{"depth":>6s} {"batch":>6s} {"ms a step":>10s} {"MiB held":>9s}')
  for d, b in sizes:
    print(f'{d:6d} {b:6d} {milliseconds[d, b]:10.1f} {mebibytes[d, b]:9.1f}')
  lines = {}
  for name, x, cut in (
    ('depth', depths, [(d, batch) for d in depths]),
    ('batch', batches, [(depth, b) for b in batches]),
  ):
    for cost, values in (('ms a step', milliseconds), ('MiB held', mebibytes)):
      y = [values[size] for size in cut]
      lines[name, cost] = x, y, fit(x, y)
      print(
        '{} over {}: {slope:.3f} each, {intercept:.1f} at zero, R^2 {r2:.5f}'.format(
          cost, name, **lines[name, cost][2]
        )
      )
  if arguments.output:
    draw(arguments.output, lines)
  share = host_share(2 if arguments.quick else arguments.repeats)
  print(
    f'Host: at most {100 * share:.2f}% of a dispatch of {HOST_STEPS} steps of the embedded task.'
  )
  rounded = lambda line: {name: round(value, 5) for name, value in line.items()}
  print(
    json.dumps(
      {
        'benchmark': 'step_cost',
        'machine': machine.describe(),
        'quick': arguments.quick,
        'host_share': round(share, 5),
        **{
          f'{"time" if cost.startswith("ms") else "bytes"}_over_{size}': rounded(line)
          for (size, cost), (*_, line) in lines.items()
        },
      }
    )
  )


if __name__ == '__main__':
  main()
