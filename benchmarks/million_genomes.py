"""A million given genomes of 24 rows, counted and canonicalized: seconds and memory.

  python -m benchmarks.million_genomes [--quick]

Targets: together under two seconds and one GiB. Seconds of the processor, since other work on the
machine would be in those of the wall; one thread does it all, so alone on a machine the two are
equal. `--quick` takes a tenth of them. The last line is JSON.
"""

import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.machinery.output import make_parser, print_result, print_table
from glora_jax.method.genomes import canonicalize, count_params
from glora_jax.method.space import Layer, SearchSpace, Spec

ROWS = 24
NUMBER, QUICK_NUMBER = 1_000_000, 100_000
DRAWN_AT_ONCE = 10_000
REPEATS = 5


def make_spec() -> Spec:
  """24 layers of a ViT-B/16's width, every fourth without a bias, with three ranks each."""
  space = SearchSpace((2, 4, 8))
  return Spec(tuple(Layer(f'layer{i}', 768, 768, i % 4 != 2, space) for i in range(ROWS)))


def draw_genomes(spec: Spec, number: int) -> np.ndarray:
  """Uniform codes, int8 [number, 24, 5], of which many are not canonical."""
  rng = np.random.default_rng(0)
  parts = [
    rng.integers(0, spec.num_codes, (DRAWN_AT_ONCE, ROWS, 5)).astype(np.int8)
    for _ in range(number // DRAWN_AT_ONCE)
  ]
  return np.concatenate(parts)


def peak_memory() -> float:
  """Largest resident memory of the process so far, in MiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def processor_seconds(function: Callable[[], Any]) -> float:
  """Seconds of the processor that a call needs."""
  start = time.process_time()
  function()
  return time.process_time() - start


def main() -> None:
  """Measures in turn and prints."""
  quick = make_parser(__doc__, 'a hundred thousand').parse_args().quick
  spec = make_spec()
  genomes = draw_genomes(spec, QUICK_NUMBER if quick else NUMBER)
  before = peak_memory()
  count_times, canonicalize_times = [], []
  for _ in range(REPEATS):
    count_times.append(processor_seconds(lambda: count_params(spec, genomes)))
    canonicalize_times.append(processor_seconds(lambda: canonicalize(spec, genomes)))
  grown = peak_memory() - before
  count, canonical = statistics.median(count_times), statistics.median(canonicalize_times)
  print_table(
    ('genomes of 24 rows', 'counted', 'canonicalized', 'MiB given', 'MiB beside them'),
    [
      (
        f'{len(genomes):,}',
        f'{count:.2f} s',
        f'{canonical:.2f} s',
        f'{genomes.nbytes / 2**20:.0f}',
        f'{grown:.0f}',
      )
    ],
  )
  values = {
    'genomes': len(genomes),
    'count_seconds': round(count, 3),
    'canonicalize_seconds': round(canonical, 3),
    'grown_mib': round(grown),
  }
  print_result('million_genomes', values)


if __name__ == '__main__':
  main()
