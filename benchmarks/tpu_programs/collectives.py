"""What devices send each other, read off an optimized program (HLO text)."""

import math
import re
from collections import Counter

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')

_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2, 'f64': 8, 's64': 8}
_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) .*\{$')
_COLLECTIVE = re.compile(rf'= (.*?) ({"|".join(KINDS)})(-start)?\(')
_ARRAY = re.compile(r'\b([a-z]+\d+|pred)\[([\d,]*)\]')
_CALLED = re.compile(r'(?:calls|to_apply|body|condition|called_computations)=\{?%?([\w.\-]+)')
_CHANNEL = re.compile(r'channel_id=(\d+)')
_CONDITION = re.compile(r' while\(.*condition=%?([\w.\-]+)')
_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_WITH_INPUTS = ('all-gather', 'collective-permute')  # whose start lists what goes in, too
_BOUND = re.compile(r'= s32\[\]\S* constant\((\d+)\)')


def collectives(hlo: str) -> dict[str, dict[str, int]]:
  """How often each kind of collective runs, and the bytes that one device gets by it.

  A loop of known length counts as often as it goes round, any other once. What runs beside products
  stands in several of their fusions, by the same channel, and counts once.

  Args:
    hlo: text of an optimized program.

  Returns:
    {kind: {'calls': number, 'bytes': number}}, kinds that occur alone.
  """
  computations: dict[str, list[str]] = {}
  main, lines = '', []
  for line in hlo.splitlines():
    head = _HEAD.match(line)
    if head and '=' not in line.split('(')[0]:
      lines = computations.setdefault(head[2], [])
      main = head[2] if head[1] else main
    else:
      lines.append(line)
  calls: Counter[str] = Counter()
  sizes: Counter[str] = Counter()
  channels: set[str] = set()
  waiting = [(main, 1)]
  while waiting:
    name, times = waiting.pop()
    for line in computations.get(name, ()):
      found = _COLLECTIVE.search(line)
      if not found:
        again = times * _rounds(line, computations)
        waiting += [(called, again) for called in _CALLED.findall(line)]
        continue
      channel = set(_CHANNEL.findall(line))
      if channel and channel <= channels:
        continue
      channels |= channel
      shapes, kind, is_start = found.groups()
      of_arrays = [
        _BYTES.get(dtype, 4) * math.prod(int(side) for side in sides.split(',') if side)
        for dtype, sides in _ARRAY.findall(shapes)
      ]
      calls[kind] += times
      # Of a result that lists inputs beside it, the largest array.
      sizes[kind] += times * (max if is_start and kind in _WITH_INPUTS else sum)(of_arrays or [0])
  return {kind: {'calls': calls[kind], 'bytes': sizes[kind]} for kind in KINDS if calls[kind]}


def _rounds(line: str, computations: dict[str, list[str]]) -> int:
  """How often what a line calls runs: as it says, or its loop's condition; 1 where neither does."""
  if known := _KNOWN.search(line):
    return int(known[1])
  condition = _CONDITION.search(line)
  text = '\n'.join(computations.get(condition[1], [])) if condition else ''
  bounds = _BOUND.findall(text)
  return int(bounds[0]) if 'direction=LT' in text and len(bounds) == 1 else 1
