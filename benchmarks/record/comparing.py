"""Numbers of a record: made few, and compared."""

import functools
import json
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from benchmarks.machinery import measuring

DIGITS = 9  # of a number: float32 has 7 or 8
plain = functools.partial(measuring.plain, digits=DIGITS)
FREQUENCIES = (0.0, 0.7, 1.9, 3.1)
TOLERANCE = 1e-5

Values = dict[str, Any]  # of an entry of a record
Verdict = Literal['same', 'close', 'differs', 'missing', 'new']


class Entry(NamedTuple):
  """A value of a record, held against today's.

  Attributes:
    path: where it stands in the record.
    verdict: 'same' to the last digit kept, 'close' within 1e-5 of the largest number of its list;
      'missing' is what the code no longer gives, 'new' what the record does not have.
    recorded: the value in the record.
    found: today's value.
  """

  path: str
  verdict: Verdict
  recorded: Any = None
  found: Any = None


def digest(tree: Any) -> list[float]:
  """A tree of arrays in five numbers: its norm, and its products with four cosines."""
  leaves = [np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)]
  values = np.concatenate([*leaves, np.zeros(1)])
  cosines = (np.cos(frequency * np.arange(len(values))) for frequency in FREQUENCIES)
  return [float(np.linalg.norm(values)), *(float(values @ cosine) for cosine in cosines)]


def to_text(record: dict[str, Any]) -> str:
  """A record as JSON, a line for each of its entries."""
  lines = [
    f'{json.dumps(name)}: {json.dumps(value, separators=(",", ":"))}'
    for name, value in record.items()
  ]
  return '{\n' + ',\n'.join(lines) + '\n}\n'


def compare(recorded: Any, found: Any, path: str = '') -> Iterator[Entry]:
  """Every value of two records, in the order of the first.

  A list of numbers is one value: its differences count against its largest number, since sums
  cross zero.
  """
  if isinstance(recorded, dict) and isinstance(found, dict):
    for name in recorded | found:
      place = f'{path}/{name}' if path else name
      if name not in found:
        yield Entry(place, 'missing', recorded[name])
      elif name not in recorded:
        yield Entry(place, 'new', found=found[name])
      else:
        yield from compare(recorded[name], found[name], place)
  elif recorded == found:
    yield Entry(path, 'same')
  else:
    yield Entry(path, 'close' if _are_close(recorded, found) else 'differs', recorded, found)


def _are_close(recorded: Any, found: Any) -> bool:
  try:
    old, new = np.asarray(recorded), np.asarray(found)
  except ValueError:  # lists of unlike lengths
    return False
  kinds = {old.dtype.kind, new.dtype.kind}
  if old.shape != new.shape or 'f' not in kinds or kinds - {'f', 'i'}:  # texts, counts
    return False
  return bool(np.abs(old - new).max(initial=0) <= TOLERANCE * np.abs(old).max(initial=0))
