"""The programs of a run, compiled by the TPU compiler for slices that are not at hand.

  pip install 'jax[tpu]'
  python -m benchmarks.tpu_programs [--quick] [--topology v5e:2x2 ...] [--model ViT-B/16]
    [--programs supernet ...] [--base sharded] [--weights nf4]

Nothing is run. Bytes are those of one chip, by the compiler's own account, for all arguments
(images of the task included), temporaries, and outputs that take no argument's place. Collectives
are counted in the optimized program, with the rounds of their loops. Of the decoders, whose
examples are texts, the two training programs are compiled, also with frozen kernels that qwix
quantized (`--weights`).

Every compilation is kept by the program's hash in `--keep`, and not done again: what was
interrupted goes on. `--quick` takes a ViT as large as the embedded one. The last line is JSON.
"""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import sys
from typing import Any

import jax

from benchmarks.machinery.measuring import make_parser, print_result, print_table
from benchmarks.machinery.slices import has_compiler
from benchmarks.tpu_programs.cases import BACKBONES, OF_DECODERS, Case, Kept, Record, compiled
from benchmarks.tpu_programs.decoder import SIZES
from benchmarks.tpu_programs.programs import NAMES
from glora_jax.compiling import MEMORY

MEBIBYTE = 2**20
COLUMNS = {
  **dict.fromkeys(('', 'slice', 'at once'), ''),
  **dict.fromkeys((f'{kind}, MiB' for kind in MEMORY), ',.0f'),
  **{'collectives': '', 'compile, s': '.0f'},
}


def row(record: Record) -> list[Any]:
  """A line of the table."""
  at_once = record['chunk' if record['name'] == 'scoring' else 'batch']
  beginning = [record['name'], record['topology'], at_once]
  if 'error' in record:
    return [*beginning, record['error'], *[None] * (len(COLUMNS) - len(beginning) - 1)]
  sent = [
    f'{found["calls"]} {kind} {found["bytes"] / MEBIBYTE:.1f} MiB'
    for kind, found in record['collectives'].items()
  ]
  sizes = [record[kind] / MEBIBYTE for kind in MEMORY]
  return [*beginning, *sizes, ', '.join(sent) or 'none', record['seconds']]


def main() -> None:
  """Compiles, keeps, and prints."""
  parser = make_parser(__doc__, 'a small ViT')
  parser.add_argument('--topology', nargs='+', default=['v5e:2x2'])
  parser.add_argument('--model', choices=[*BACKBONES, *SIZES], default='ViT-B/16')
  parser.add_argument('--programs', nargs='+', choices=NAMES, default=NAMES)
  parser.add_argument('--batch', type=int, default=64, help='images of a step for each chip')
  parser.add_argument('--base', choices=['replicated', 'sharded'], default='replicated')
  parser.add_argument('--weights', choices=['bfloat16', 'int8', 'nf4'], default='bfloat16')
  parser.add_argument('--chunk', type=int, default=16, help='candidates side by side')
  parser.add_argument('--keep', default='.cache/tpu_programs.jsonl')
  given = parser.parse_args()
  if not has_compiler():
    sys.exit("error: the TPU compiler is not there; pip install 'jax[tpu]'.")
  jax.config.update('jax_enable_compilation_cache', False)
  kept = Kept(given.keep)
  model = 'embedded' if given.quick else given.model
  cases = [
    Case(name, model, topology, given.batch, given.chunk, given.base, given.weights)
    for topology in given.topology
    for name in given.programs
    if model not in SIZES or name in OF_DECODERS
  ]
  found = []
  for case in cases:
    found.append(compiled(case, kept))
    print(*row(found[-1]), file=sys.stderr, flush=True)
  examples = f'{SIZES[model].length} tokens' if model in SIZES else f'{BACKBONES[model][1]} pixels'
  print(f'{model}, {examples}, {given.weights}, base {given.base}')
  print_table(COLUMNS, map(row, found))
  print_result('tpu_programs', {'quick': given.quick, 'programs': found})


if __name__ == '__main__':
  main()
