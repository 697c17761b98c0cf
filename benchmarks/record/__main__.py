"""The numbers that training, runs and TPU programs gave when they were recorded, and give now.

  python -m benchmarks.record [PART ...] [--write]

The record lies in `tests/golden/record`, one file for each part:

  training  losses of twenty steps of each kind of training; scores; an allocation
  runs      results, metrics and archives of runs, also of those of a suite
  programs  bytes, temporaries and collectives of TPU programs (pip install 'jax[tpu]')
  times     ratios of `supernet_step`, `score_population`, `nnx_step` and `function_step`; only
            if it is named, with nothing else running, and never a reason to fail

What single models compute is not here: golden files and the tests' zoos hold it. Numbers are the
same to nine digits, close (within 1e-5 of the largest of their list, as when arithmetic is done in
another order), or differ, which is listed, and the command ends with 1. `--write` writes the record
anew: for a change that is meant, and whose commit says why. Other processors and versions of JAX
round otherwise; the record names those that it was made with. The last line is JSON.
"""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Most of the time is the compiler's.
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_backend_optimization_level=0'

import collections
import importlib
import json
import pathlib
import sys
from typing import Any

from tqdm import tqdm

from benchmarks.machinery.measuring import machine, make_parser, print_result, print_table
from benchmarks.record.comparing import compare, plain, to_text

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / 'tests' / 'golden' / 'record'
PARTS = ('training', 'runs', 'programs')
TIMES = 'times'
MOST_LISTED, LONGEST = 40, 70
VERDICTS = ('same', 'close', 'differs', 'missing', 'new')


def found(part: str) -> dict[str, Any]:
  """What the code gives now, as JSON keeps it; empty where what a part takes is not installed."""
  entries = importlib.import_module(f'benchmarks.record.{part}').record()
  bar = tqdm(entries, desc=part, unit=' entries')
  return {name: plain(values) for name, values in bar}


def main() -> None:
  """Computes, then writes or compares."""
  parser = make_parser(__doc__)
  names = [*PARTS, TIMES, []]  # argparse holds the empty default against the choices, too
  parser.add_argument('parts', nargs='*', metavar='PART', choices=names, default=[])
  parser.add_argument('--write', action='store_true', help='the record anew')
  given = parser.parse_args()
  sys.path.insert(0, str(ROOT / 'tests'))
  FOLDER.mkdir(parents=True, exist_ok=True)
  counts, failed = {}, False
  for part in given.parts or PARTS:
    path, entries = FOLDER / f'{part}.json', found(part)
    if given.write and entries:
      path.write_text(to_text({'made with': machine(), **entries}))
      continue
    recorded = json.loads(path.read_text())
    made_with = recorded.pop('made with')
    if not entries:
      print(f'{part}: left out, since what it takes is not installed')
      continue
    if made_with != machine():
      print(f'{part}: recorded with {made_with}')
    compared = list(compare(recorded, entries))
    different = [held for held in compared if held.verdict not in ('same', 'close')]
    for path, verdict, *values in different[:MOST_LISTED]:
      texts = (json.dumps(value) for value in values)
      cut = [text if len(text) <= LONGEST else f'{text[: LONGEST - 3]}...' for text in texts]
      print(f'{verdict:8} {path}: {" -> ".join(cut)}')
    if len(different) > MOST_LISTED:
      print(f'and {len(different) - MOST_LISTED} more')
    counts[part] = collections.Counter(held.verdict for held in compared)
    failed |= part != TIMES and bool(counts[part].keys() - {'same', 'close'})
  print_table(
    {'part': '', **dict.fromkeys(VERDICTS, ',')},
    [(part, *(count[verdict] for verdict in VERDICTS)) for part, count in counts.items()],
  )
  print_result('record', {'counts': counts})
  sys.exit(failed)


if __name__ == '__main__':
  main()
