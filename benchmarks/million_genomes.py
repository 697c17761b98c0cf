"""A million given genomes of 24 rows, counted and canonicalized: seconds and memory.

  python -m benchmarks.million_genomes [--quick]

Targets: together under two seconds and one GiB. Seconds of the processor, since other work on the machine would be in those of the wall; one
thread does it all, so alone on a machine the two are equal. `--quick` takes a tenth of them. The last line
is JSON.
"""

import argparse
import json
import resource
import statistics
import time

import numpy as np

from benchmarks import machine
from glora_jax.method import genomes as genomes_lib
from glora_jax.method.space import Layer, SearchSpace, Spec


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--quick', action='store_true', help='a hundred thousand')
  number = 100_000 if parser.parse_args().quick else 1_000_000
  spec = Spec(
    tuple(Layer(f'layer{i}', 768, 768, i % 4 != 2, SearchSpace((2, 4, 8))) for i in range(24))
  )
  rng = np.random.default_rng(0)
  genomes = np.concatenate(
    [
      rng.integers(0, spec.num_codes, (10_000, 24, 5)).astype(np.int8)
      for _ in range(number // 10_000)
    ]
  )
  peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  before, times = peak(), []
  for _ in range(5):
    start = time.process_time()
    genomes_lib.count_params(spec, genomes)
    counted = time.process_time()
    genomes_lib.canonicalize(spec, genomes)
    times.append((counted - start, time.process_time() - counted))
  count, canonicalize = (statistics.median(column) for column in zip(*times, strict=True))
  grown = peak() - before
  print(
    f'{number:,} genomes of 24 rows: counted in {count:.2f} s, canonicalized in {canonicalize:.2f} s, {grown:.0f} MiB beside the '
    f'{genomes.nbytes / 2**20:.0f} MiB given'
  )
  print(
    json.dumps(
      {
        'benchmark': 'million_genomes',
        'machine': machine.describe(),
        'genomes': number,
        'count_seconds': round(count, 3),
        'canonicalize_seconds': round(canonicalize, 3),
        'grown_mib': round(grown),
      }
    )
  )


if __name__ == '__main__':
  main()
