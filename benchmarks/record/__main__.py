"""The numbers that training, runs and TPU programs gave when they were recorded, and give now.

  python -m benchmarks.record [PART ...] [--write]

The record lies in `tests/golden/record`, one file for each part:

  training  losses of twenty steps of each kind of training; scores; an allocation
  runs      results, metrics and archives of runs, also of those of a suite
  programs  bytes, temporaries and collectives of TPU programs (pip install 'jax[tpu]')

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
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.machinery.measuring import machine, make_parser, plain, print_result

ROOT = pathlib.Path(__file__).parents[2]
PARTS = ('training', 'runs', 'programs')
DIGITS = 9  # of a number: float32 has 7 or 8
TOLERANCE = 1e-5
MOST_LISTED, LONGEST = 40, 70


def values_of(record: Any, path: str = '') -> Iterator[tuple[str, Any]]:
  """Every value of a record with its place; a list is one value."""
  if not isinstance(record, dict):
    yield path, record
    return
  for name, value in record.items():
    yield from values_of(value, f'{path}/{name}' if path else name)


def verdict_of(recorded: Any, found: Any) -> str:
  """'same' to the last digit kept, 'close' within 1e-5 of a list's largest number, or 'differs'.

  Differences count against the largest number, since sums cross zero.
  """
  if recorded == found:
    return 'same'
  try:
    old, new = np.asarray(recorded), np.asarray(found)
  except ValueError:  # lists of unlike lengths
    return 'differs'
  kinds = {old.dtype.kind, new.dtype.kind}
  if old.shape != new.shape or 'f' not in kinds or kinds - {'f', 'i'}:  # texts, counts
    return 'differs'
  gap = np.abs(old - new).max(initial=0)
  return 'close' if gap <= TOLERANCE * np.abs(old).max(initial=0) else 'differs'


def to_text(record: dict[str, Any]) -> str:
  """A record as JSON, a line for each of its entries."""
  lines = [
    f'{json.dumps(name)}: {json.dumps(value, separators=(",", ":"))}'
    for name, value in record.items()
  ]
  return '{\n' + ',\n'.join(lines) + '\n}\n'


def main() -> None:
  """Computes, then writes or compares."""
  parser = make_parser(__doc__)
  names = [*PARTS, []]  # argparse holds the empty default against the choices, too
  parser.add_argument('parts', nargs='*', metavar='PART', choices=names, default=[])
  parser.add_argument('--write', action='store_true', help='the record anew')
  given = parser.parse_args()
  sys.path.insert(0, str(ROOT / 'tests'))
  counts, different = {}, []
  for part in given.parts or PARTS:
    path = ROOT / 'tests' / 'golden' / 'record' / f'{part}.json'
    entries = importlib.import_module(f'benchmarks.record.{part}').record()
    bar = tqdm(entries, desc=part, unit=' entries')
    today = {name: plain(values, DIGITS) for name, values in bar}
    if not today:
      print(f'{part}: left out, since what it takes is not installed')
      continue
    if given.write:
      path.write_text(to_text({'made with': machine(), **today}))
      continue
    recorded = json.loads(path.read_text())
    print(f'{part}: recorded with {recorded.pop("made with")}')
    old, new = dict(values_of(recorded)), dict(values_of(today))
    verdicts = {
      place: verdict_of(old[place], new[place]) if place in old and place in new else 'differs'
      for place in old | new
    }
    counts[part] = collections.Counter(verdicts.values())
    different += [
      (place, old.get(place), new.get(place))
      for place, verdict in verdicts.items()
      if verdict == 'differs'
    ]
  for place, *values in different[:MOST_LISTED]:
    print(f'differs: {place}:', *(json.dumps(value)[:LONGEST] for value in values))
  print_result('record', {'counts': counts})
  sys.exit(bool(different))


if __name__ == '__main__':
  main()
