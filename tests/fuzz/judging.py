"""The judge of wrong and hostile inputs: each ends in a right result, or is refused in one line."""

import contextlib
import functools
import hashlib
import itertools
import os
import pathlib
import re
import shutil
import signal
import stat
import tempfile
import traceback
from collections.abc import Mapping
from typing import NamedTuple

import hypothesis
import jax
import numpy as np

import glora_jax
from glora_jax.limits import printable
from glora_jax.runs.terminal import is_mistake, sentence

REFUSED = object()
PACKAGE = str(pathlib.Path(glora_jax.__file__).parent)
LONGEST_LINE = 2000
_NUMBERS = itertools.count()


class Place(NamedTuple):
  """Folders of a case: what is given, where it is tried, and a workdir that is not there yet."""

  given: pathlib.Path
  current: pathlib.Path
  work: pathlib.Path


class Hang(BaseException):
  """The time of an attempt is over."""


def cases(weight, shrinks=True):
  """Settings for so many hundreds of cases, twenty times as many with HYPOTHESIS_PROFILE=full."""
  default = hypothesis.settings.default
  return hypothesis.settings(
    max_examples=max(1, round(weight * default.max_examples)),
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=default.phases if shrinks else [hypothesis.Phase.generate],
  )


@contextlib.contextmanager
def new_place():
  """An empty place, in whose folder `current` the process is.

  Names are of one length, since they are in files, and none comes again: Orbax keeps what it knows
  of a path.
  """
  root = pathlib.Path(_root().name, f'{next(_NUMBERS):06}')
  place = Place(*(root / name for name in Place._fields))
  place.given.mkdir(parents=True)
  place.current.mkdir()
  try:
    with contextlib.chdir(place.current):
      yield place
  finally:
    shutil.rmtree(root, ignore_errors=True)


@functools.cache
def _root():
  return tempfile.TemporaryDirectory(prefix='fuzz_', ignore_cleanup_errors=True)


def contents(*folders):
  """Digests of files, targets of links and types of all else below folders."""
  found = {str(folder): os.path.lexists(folder) for folder in folders}
  for parent, below, files in (step for folder in folders for step in os.walk(folder)):
    for path in (os.path.join(parent, name) for name in (*below, *files)):
      status = os.lstat(path)
      if stat.S_ISREG(status.st_mode):
        with open(path, 'rb') as file:
          found[path] = hashlib.sha256(file.read()).hexdigest()
      else:
        is_link = stat.S_ISLNK(status.st_mode)
        found[path] = os.readlink(path) if is_link else stat.S_IFMT(status.st_mode)
  return found


def judged(attempt, place=None, limit=30.0):
  """What an attempt gives, or REFUSED; raises AssertionError where it is neither right nor well.

  A result must be finite and the same when it is made again. What is given must be as it was, and
  so must the workdir of what was refused.
  """
  outside = contents(*place[:2]) if place else {}
  work = contents(place.work) if place else {}
  try:
    result = _within(limit, attempt)
  except (Hang, AssertionError):
    raise
  except Exception as error:
    if not is_line_of_ours(error):
      raise AssertionError(_described(error)) from error
    result, again = REFUSED, REFUSED
    if place and contents(place.work) != work:
      raise AssertionError(f'refused, and it left files: {error}') from error
  else:
    for leaf in jax.tree.leaves(result):
      is_float = isinstance(leaf, float) or getattr(leaf, 'dtype', np.dtype('O')).kind == 'f'
      assert not is_float or np.isfinite(leaf).all(), f'accepted, and not finite: {result!r:.400}'
    again = _within(limit, attempt)
  assert same(result, again), f'once {result!r:.400}, then {again!r:.400}'
  assert not place or contents(*place[:2]) == outside, 'files that were given have changed'
  return result


def _within(seconds, function):
  """Calls a function, which gets `Hang` after its time and again where it swallows that."""

  def ring(*_):
    raise Hang(f'longer than {seconds:g} s')

  before = signal.signal(signal.SIGALRM, ring)
  signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
  try:
    return function()
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def is_line_of_ours(error):
  """Whether a `raise` of the package, or the system, says in one line what a user can change."""
  if not is_mistake(error) and not isinstance(error, TypeError):
    return False
  frame = traceback.extract_tb(error.__traceback__)[-1]
  is_ours = frame.filename.startswith(PACKAGE) and frame.line.startswith('raise')
  if not is_ours and not isinstance(error, MemoryError | OSError):
    return False
  return not flaw_of(sentence(error))


def flaw_of(text):
  """What is wrong with a line for the user; empty where nothing is."""
  if text != printable(text):
    return 'it has line ends or what no terminal can show'
  if 'Traceback' in text or len(text) > LONGEST_LINE:
    return 'it has a traceback, or is too long'
  return '' if re.search(r'[.?)]$', text) and len(text) >= 10 else 'it is no sentence'


def _described(error):
  """An error with the lines of the package that it came through."""
  frames = [frame for frame in traceback.extract_tb(error.__traceback__) if PACKAGE in frame[0]]
  lines = ' '.join(f'{os.path.basename(name)}:{line}' for name, line, *_ in frames[-4:])
  return f'{type(error).__name__}: {str(error)[:300]} [{lines}]'


def same(value, other):
  """Whether two results are equal to the last bit, types and shapes included."""
  if type(value) is not type(other):
    return False
  if isinstance(value, Mapping):
    return value.keys() == other.keys() and all(same(value[key], other[key]) for key in value)
  if isinstance(value, list | tuple):
    return len(value) == len(other) and all(map(same, value, other))
  if hasattr(value, 'dtype'):
    first, second = np.asarray(value), np.asarray(other)
    alike = (first.dtype, first.shape) == (second.dtype, second.shape)
    return alike and first.tobytes() == second.tobytes()
  return bool(value == other)
