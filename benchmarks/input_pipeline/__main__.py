"""What input costs: streaming against Pillow alone, and a million images.

  python -m benchmarks.input_pipeline [--quick] [--only million] [--folder FOLDER]

`stream_over_pillow`: JPEG files of 500 x 375 per second through `Stream`, resized to 224,
over what as many processes as there are cores do that only call Pillow (decode, resize) on the same
files, in turn, median of the ratios. `workers`: images per second by the number of processes that
decode, 0 for threads. `growth_mib`: how much resident memory grows between the 2,000th and the last
of 20,000 streamed images.

`images_per_core`: images that a core decodes in a second, by the seconds of the processor.

`million`: a TFDS data set of a million JPEG images of 32 x 32 (0.8 GB), made, opened, checked and
streamed once. `--quick` takes fewer of everything. The last line is JSON.
"""

import os
import tempfile
from typing import Any, NamedTuple

from benchmarks.input_pipeline import million, photographs
from benchmarks.machinery.measuring import make_parser, print_result, print_table
from glora_jax.vision.data import pipeline


class Amount(NamedTuple):
  """How much is measured.

  Attributes:
    repeats: of everything that is compared.
    files: JPEG files of a repeat.
    streamed: images over which memory is watched.
    records: of the data set of a million.
  """

  repeats: int
  files: int
  streamed: int
  records: int


FULL = Amount(repeats=5, files=512, streamed=20_000, records=10**6)
QUICK = Amount(repeats=3, files=256, streamed=2_000, records=20_000)


def of_photographs(amount: Amount, folder: str) -> dict[str, Any]:
  """What streaming photographs costs, beside Pillow alone and in memory."""
  files = photographs.write(folder, amount.files)
  ours, pillow, ratio = photographs.measure_over_pillow(files, amount.repeats)
  workers = photographs.measure_workers(files, amount.repeats)
  stream = pipeline.Stream(files, photographs.SIZE)
  order = photographs.cycled(amount.files, amount.streamed // photographs.BATCH)
  growth = photographs.watched(stream.batches(order), order.size)
  per_core = photographs.images_per_core(files)
  print(
    f'streaming                 {ours:6.0f} images a second; Pillow alone on '
    f'{os.cpu_count()} cores {pillow:.0f}; ratio {ratio:.2f}'
  )
  for number, (first, rate) in workers.items():
    name = f'{number} processes' if number else 'threads'
    print(f'  {name:23} {rate:6.0f} images a second, the first batch after {first:.1f} s')
  print(f'memory over {order.size:,} images  {growth:+.0f} MiB')
  print(f'a core decodes            {per_core:6.0f} images a second')
  return {
    'stream_over_pillow': ratio,
    'workers': {number: rate for number, (_, rate) in workers.items()},
    'growth_mib': growth,
    'images_per_core': per_core,
  }


def of_million(amount: Amount, folder: str) -> dict[str, Any]:
  """What a data set of a million records takes."""
  number, costs, rate, growth = million.measure(folder, amount.records)
  print_table(
    {f'{number:,} records': '', 'seconds': '.1f', 'of processor': '.1f', 'MiB': ',.0f'},
    [(title, *cost) for title, cost in costs.items()],
  )
  print(f'streamed at {rate:,.0f} images a second; memory {growth:+.0f} MiB')
  seconds = {title: wall for title, (wall, _, _) in costs.items()}
  return {'million': {'seconds': seconds, 'images_a_second': rate, 'growth_mib': growth}}


PARTS = {'photographs': of_photographs, 'million': of_million}


def main() -> None:
  """Measures and prints."""
  parser = make_parser(__doc__, 'fewer images, records and repeats')
  parser.add_argument('--only', nargs=1, choices=PARTS, default=PARTS, help='a part of it')
  parser.add_argument('--folder', help='for the million records, kept; a temporary one by default')
  given = parser.parse_args()
  values = {}
  for name in given.only:
    with tempfile.TemporaryDirectory() as temporary:
      folder = given.folder if given.folder and name == 'million' else temporary
      values |= PARTS[name](QUICK if given.quick else FULL, folder)
  print_result('input_pipeline', {'quick': given.quick, **values})


if __name__ == '__main__':
  main()
