"""The programs of a run, compiled by the TPU compiler for slices that are not at hand.

  pip install 'jax[tpu]'
  python -m benchmarks.tpu_programs [--quick] [--topology v5e:2x2 ...] [--model ViT-B/16]
    [--programs supernet ...] [--base sharded] [--no-largest]

Nothing is run. Bytes are those of one chip, by the compiler's own account, for all arguments
(images of the task included), temporaries, outputs that take no argument's place, and code.
Collectives are counted in the optimized program, operations in the traced one, where a scan counts
as often as it goes round (the compiler's own analysis counts its body once). The largest batch for
a chip, or number of candidates side by side, is that of a line through this compilation and one of
half as much. Of the decoders, whose examples are texts, the two training programs are compiled.

Every compilation is kept by the program's hash in `--keep`, and not done again: what was
interrupted goes on. `--quick` takes a ViT as large as the embedded one. The last line is JSON.
"""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import sys
from typing import Any

import jax

from benchmarks.machinery.measuring import make_parser, print_result, print_table
from benchmarks.tpu_programs.cases import (
  BACKBONES,
  KINDS,
  NAMES,
  OF_DECODERS,
  Case,
  Kept,
  Record,
  compiled,
  held,
  largest,
)
from benchmarks.tpu_programs.decoder import SIZES
from glora_jax.runs.plan import chip_of, has_compiler

MEBIBYTE = 2**20
ASKED = ('supernet', 'scoring')  # how many fit, on quick settings
COLUMNS = {
  **dict.fromkeys(('', 'slice', 'at once'), ''),
  **dict.fromkeys((f'{kind}, MiB' for kind in KINDS), ',.0f'),
  **{'Gop': ',.0f', 'matmuls': '.1%', 'collectives': '', 'compile, s': '.0f', 'fits': ','},
}


def row(record: Record) -> list[Any]:
  """A line of the table."""
  case = Case(*(record[name] for name in Case._fields))
  beginning = [case.name, case.topology, case.amount]
  if 'error' in record:
    return [*beginning, record['error'], *[None] * (len(COLUMNS) - len(beginning) - 1)]
  sent = [
    f'{found["calls"]} {kind} {found["bytes"] / MEBIBYTE:.1f} MiB'
    for kind, found in record['collectives'].items()
  ]
  share = record['products'] / max(1, record['operations'])
  sizes = [record[kind] / MEBIBYTE for kind in KINDS]
  others = record['operations'] / 1e9, share, ', '.join(sent) or 'none', record['seconds']
  return [*beginning, *sizes, *others, record.get('fits')]


def main() -> None:
  """Compiles, keeps, and prints."""
  parser = make_parser(__doc__, 'a small ViT')
  parser.add_argument('--topology', nargs='+', default=['v5e:2x2'])
  parser.add_argument('--model', choices=[*BACKBONES, *SIZES], default='ViT-B/16')
  parser.add_argument('--programs', nargs='+', choices=NAMES, default=NAMES)
  parser.add_argument('--batch', type=int, default=64, help='images of a step for each chip')
  parser.add_argument('--base', choices=['replicated', 'sharded'], default='replicated')
  parser.add_argument('--chunk', type=int, default=16, help='candidates side by side')
  parser.add_argument('--no-largest', action='store_true', help='one compilation of each')
  parser.add_argument('--keep', default='.cache/tpu_programs.jsonl')
  given = parser.parse_args()
  chips = {name: chip_of(name) for name in given.topology}
  if not has_compiler():
    sys.exit("error: the TPU compiler is not there; pip install 'jax[tpu]'.")
  jax.config.update('jax_enable_compilation_cache', False)
  kept = Kept(given.keep)
  model = 'embedded' if given.quick else given.model
  cases = [
    Case(name, model, topology, given.batch, given.chunk, given.base)
    for topology in chips
    for name in given.programs
    if model not in SIZES or name in OF_DECODERS
  ]
  records = {}
  for case in cases:  # all of them first, then those that only say how much fits
    records[case] = compiled(case, kept)
    print(*row(records[case]), file=sys.stderr, flush=True)
  found = []
  for case in cases:
    is_asked = not given.no_largest and (case.name in ASKED or not given.quick)
    half = case.half() if is_asked else None
    small = None if half is None else compiled(half, kept)
    fits = largest(records[case], small, chips[case.topology].memory)
    found.append({**records[case], 'fits': fits})
  examples = f'{SIZES[model].length} tokens' if model in SIZES else f'{BACKBONES[model][1]} pixels'
  print(f'{model}, {examples}, bfloat16, base {given.base}')
  print_table(COLUMNS, map(row, found))
  total = {record['name']: held(record) for record in found if 'error' not in record}
  print_result('tpu_programs', {'quick': given.quick, 'held': total, 'programs': found})


if __name__ == '__main__':
  main()
