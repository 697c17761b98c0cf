"""Values that are wrong somewhere, and bytes that have been damaged."""

import math
import random
from typing import Any

NASTY: tuple[Any, ...] = (
  None,
  True,
  False,
  0,
  1,
  -1,
  2,
  7,
  2**31 - 1,
  2**31,
  2**63,
  10**400,
  10**5000,
  0.5,
  -0.0,
  1.0,
  1e-320,
  1e308,
  math.nan,
  math.inf,
  -math.inf,
  '',
  'a',
  ' ',
  '\0',
  'ü\n',
  '\ud800',
  '1',
  'x' * 100_000,
  (),
  [],
  (1,),
  ('a',),
  (None,),
  (math.nan,),
  [[1]],
  {},
  {'a': 1},
  {'a': math.nan},
  {1: 2},
  b'x',
  1 + 2j,
  ...,
)
JSON_VALUES: tuple[Any, ...] = (
  *(value for value in NASTY if isinstance(value, bool | float | str | list | None.__class__)),
  *(0, 1, -1, 2, 2**31, 2**63, 10**400),
  *({}, {'a': 1}, [{}], [[]], ['a'], [1, 2, 3]),
)


def shown(value: Any) -> str:
  """A value for whoever looks into a failure; some have no `repr`, or an endless one."""
  try:
    return f'{value!r:.400}'
  except ValueError as error:
    return f'a {type(value).__name__} ({error})'


def damaged(rng: random.Random, content: bytes, most: int = 5) -> bytes:
  """Bytes after one to a few mutations: cut off, bits flipped, parts put in, copied, repeated."""
  changed = bytearray(content)
  for _ in range(rng.randint(1, most)):
    if not changed:
      break
    at = rng.randrange(min(len(changed), rng.choice([20, 200, 10**9])))
    rng.choice(MUTATIONS)(rng, changed, at)
  return bytes(changed)


def _cut(rng: random.Random, content: bytearray, at: int) -> None:
  del content[at:]


def _flip(rng: random.Random, content: bytearray, at: int) -> None:
  content[at] ^= 1 << rng.randrange(8)


def _extreme(rng: random.Random, content: bytearray, at: int) -> None:
  content[at : at + 4] = rng.choice([b'\xff' * 4, b'\0' * 4, b'\x7f\xff\xff\xff', b'\0\0\0\1'])


def _insert(rng: random.Random, content: bytearray, at: int) -> None:
  content[at:at] = rng.randbytes(rng.randrange(20))


def _copy(rng: random.Random, content: bytearray, at: int) -> None:
  start = rng.randrange(len(content))
  content[at : at + 8] = content[start : start + 8]


def _replace(rng: random.Random, content: bytearray, at: int) -> None:
  content[at] = rng.randrange(256)


def _remove(rng: random.Random, content: bytearray, at: int) -> None:
  del content[at : at + rng.choice([1, 2, 10])]


MUTATIONS = (_cut, _flip, _extreme, _insert, _copy, _replace, _remove)


def changed_json(rng: random.Random, content: Any, values: tuple[Any, ...] = JSON_VALUES) -> Any:
  """JSON with one node of it replaced, removed, doubled or renamed."""
  if isinstance(content, dict) and content and rng.random() < 0.85:
    return _changed_object(rng, content, values)
  if isinstance(content, list) and content and rng.random() < 0.85:
    return _changed_list(rng, content, values)
  return rng.choice(values)


def _changed_object(rng: random.Random, content: dict, values: tuple[Any, ...]) -> dict:
  name = rng.choice(list(content))
  action = rng.random()
  if action < 0.1:
    return {key: value for key, value in content.items() if key != name}
  if action < 0.15:
    return {**content, rng.choice(['', 'x', 'ü', 'format', 'glora_jax']): rng.choice(values)}
  return {**content, name: changed_json(rng, content[name], values)}


def _changed_list(rng: random.Random, content: list, values: tuple[Any, ...]) -> list:
  at = rng.randrange(len(content))
  action = rng.random()
  if action < 0.1:
    return content[:at] + content[at + 1 :]
  if action < 0.2:
    return [*content, content[at]]
  return [*content[:at], changed_json(rng, content[at], values), *content[at + 1 :]]
