"""What input costs: resident images against training, streaming against Pillow alone, a million.

  python -m benchmarks.input_pipeline [--quick] [--only million] [--folder FOLDER]

`resident_share`: time for taking batches and normalizing them, over the time of the quickstart's
supernet steps that do it, plus reading the training images once, spread over the quickstart's
steps. `stream_over_pillow`: JPEG files of 500 x 375 per second through `Stream`, resized to 224,
over what as many processes as there are cores do that only call Pillow (decode, resize) on the same
files, in turn, median of the ratios. `workers`: images per second by the number of processes that
decode, 0 for threads. `growth_mib`: how much resident memory grows between the 2,000th and the last
of 20,000 streamed images.

`cores`: those that decode as fast as one v5e chip takes images, by the seconds of the processor
that an image takes here and the plan's arithmetic for training ViT-B/16 at 45% and 20% of the peak.

`million`: a TFDS data set of a million JPEG images of 32 x 32 (0.8 GB), made, opened, checked and
streamed once. `--quick` takes fewer of everything. The last line is JSON.
"""

import argparse
import math
import os
import tempfile
from typing import Any, NamedTuple

from benchmarks.input_pipeline import chip, million, photographs, resident
from benchmarks.machinery.output import make_parser, print_result, print_table, rounded
from glora_jax.data import pipeline
from glora_jax.runs.planning.machine import images_per_core

PARTS = ('resident', 'photographs', 'million')


class Amount(NamedTuple):
  """How much is measured.

  Attributes:
    repeats: of everything that is compared.
    steps: training steps of a repeat.
    files: JPEG files of a repeat.
    streamed: images over which memory is watched.
  """

  repeats: int
  steps: int
  files: int
  streamed: int


FULL = Amount(repeats=5, steps=48, files=512, streamed=20_000)
QUICK = Amount(repeats=3, steps=24, files=256, streamed=2_000)


def of_resident(amount: Amount) -> dict[str, Any]:
  """Measures and prints what resident images cost."""
  found = resident.measure(amount.steps, amount.repeats)
  print(
    f"resident input            {100 * found.share():6.2f}% of the quickstart's training "
    f'({1000 * found.step_seconds:.0f} ms a step, {found.reading_seconds:.2f} s of reading)'
  )
  return {'resident_share': rounded(found.share(), 4)}


def of_photographs(amount: Amount) -> dict[str, Any]:
  """Measures and prints what streamed photographs cost, and the cores that a chip needs."""
  with tempfile.TemporaryDirectory() as folder:
    files = photographs.write(folder, amount.files)
    over_pillow = photographs.measure_over_pillow(files, amount.repeats)
    workers = photographs.measure_workers(files, amount.repeats)
    stream = pipeline.Stream(files, photographs.SIZE)
    order = photographs.cycled(amount.files, amount.streamed // photographs.BATCH)
    growth = photographs.watched(stream.batches(order), order.size)
    per_core = images_per_core(files, photographs.SIZE, 'squash')
  print(
    f'streaming                 {over_pillow.ours:6.0f} images a second; Pillow alone on '
    f'{os.cpu_count()} cores {over_pillow.pillow:.0f}; ratio {over_pillow.ratio:.2f}'
  )
  for number, found in workers.items():
    name = f'{number} processes' if number else 'threads'
    print(
      f'  {name:23} {found.rate:6.0f} images a second, the first batch after {found.first:.1f} s'
    )
  print(f'memory over {order.size:,} images  {growth:+.0f} MiB')
  print(f'a core decodes            {per_core:6.0f} images a second')
  cores = {}
  for name, rates in chip.rates().items():
    cores[name] = [math.ceil(rate / per_core) for rate in rates]
    print(
      f'one {chip.CHIP} on ViT-B/16, {name:8} takes {rates[1]:,.0f} to {rates[0]:,.0f} images a '
      f'second: {cores[name][1]} to {cores[name][0]} cores'
    )
  return {
    'stream_over_pillow': rounded(over_pillow.ratio),
    'workers': {number: rounded(found.rate, 1) for number, found in workers.items()},
    'growth_mib': rounded(growth, 1),
    'images_per_core': rounded(per_core, 1),
    'cores': cores,
  }


def of_million(quick: bool, folder: str | None) -> dict[str, Any]:
  """Measures and prints what a data set of a million records takes."""
  with tempfile.TemporaryDirectory() as temporary:
    found = million.measure(folder or temporary, quick)
  print_table(
    (f'{found.number:,} records', 'seconds', 'of processor', 'memory'),
    [
      (title, f'{cost.wall:.1f}', f'{cost.processor:.1f}', f'{cost.memory:,.0f} MiB')
      for title, cost in found.costs.items()
    ],
  )
  print(f'streamed at {found.rate:,.0f} images a second; memory {found.growth:+.0f} MiB')
  seconds = {title: rounded(cost.wall, 1) for title, cost in found.costs.items()}
  rate, growth = rounded(found.rate, 0), rounded(found.growth, 1)
  return {'million': {'seconds': seconds, 'images_a_second': rate, 'growth_mib': growth}}


def parse_arguments() -> argparse.Namespace:
  """The command line."""
  parser = make_parser(__doc__, 'fewer images, records and repeats')
  parser.add_argument('--only', choices=PARTS, help='a part of it')
  parser.add_argument('--folder', help='for the million records, kept; a temporary one by default')
  return parser.parse_args()


def main() -> None:
  """Measures and prints."""
  arguments = parse_arguments()
  amount = QUICK if arguments.quick else FULL
  parts = {
    'resident': lambda: of_resident(amount),
    'photographs': lambda: of_photographs(amount),
    'million': lambda: of_million(arguments.quick, arguments.folder),
  }
  values = {}
  for name in [arguments.only] if arguments.only else PARTS:
    values |= parts[name]()
  print_result('input_pipeline', {'quick': arguments.quick, **values})


if __name__ == '__main__':
  main()
