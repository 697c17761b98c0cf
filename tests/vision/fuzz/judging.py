"""The judge of wrong and hostile inputs: each ends in a right result, or is refused in one line."""

import contextlib
import hashlib
import os
import pathlib
import signal
import stat
import tempfile
import traceback
from typing import NamedTuple

import hypothesis
import jax
import numpy as np

import glora_jax
from glora_jax.checks import printable
from glora_jax.vision.runs.terminal import is_mistake, sentence

REFUSED = object()
PACKAGE = str(pathlib.Path(glora_jax.__file__).parent)
SECONDS = 30
LONGEST_LINE = 2000
ARRAY = np.ndarray | np.generic | jax.Array


class Place(NamedTuple):
  """Folders of a case: what is given, where it is tried, and a workdir that is not there yet."""

  given: pathlib.Path
  current: pathlib.Path
  work: pathlib.Path


class Hang(BaseException):
  """The time of an attempt is over."""


def cases(weight):
  """Settings for so many hundreds of cases, 25 times as many with HYPOTHESIS_PROFILE=full."""
  return hypothesis.settings(
    max_examples=round(weight * hypothesis.settings.default.max_examples),
    suppress_health_check=list(hypothesis.HealthCheck),
  )


@contextlib.contextmanager
def new_place():
  """An empty place, in whose folder `current` the process is."""
  with tempfile.TemporaryDirectory(prefix='fuzz_', ignore_cleanup_errors=True) as root:
    place = Place(*(pathlib.Path(root, name) for name in Place._fields))
    place.given.mkdir()
    place.current.mkdir()
    with contextlib.chdir(place.current):
      yield place


def contents(*folders):
  """Digests of files, targets of links and types of all else below folders."""
  found = {}
  for path in (path for folder in folders for path in (folder, *folder.rglob('*'))):
    if path.is_symlink():
      found[path] = os.readlink(path)
    elif path.is_file():
      found[path] = hashlib.sha256(path.read_bytes()).digest()
    elif path.exists():
      found[path] = stat.S_IFMT(path.stat().st_mode)
  return found


def judged(attempt, place):
  """What an attempt gives, or REFUSED; raises AssertionError where it is neither right nor well.

  A result must be finite and the same when it is made again, and all files must be as they were.
  """
  before = contents(*place)
  try:
    result = _within_time(attempt)
  except Exception as error:
    if not is_line_of_ours(error):
      raise
    result = again = REFUSED
  else:
    for leaf in jax.tree.leaves(result):
      is_float = isinstance(leaf, float | ARRAY) and np.asarray(leaf).dtype.kind == 'f'
      assert not is_float or np.isfinite(leaf).all(), f'accepted, and not finite: {result!r:.400}'
    again = _within_time(attempt)
  assert same(result, again), f'once {result!r:.400}, then {again!r:.400}'
  assert contents(*place) == before, 'files have changed'
  return result


def _within_time(function):
  """Calls a function, which gets `Hang` after its time and again where it swallows that."""

  def ring(*_):
    raise Hang

  before = signal.signal(signal.SIGALRM, ring)
  signal.setitimer(signal.ITIMER_REAL, SECONDS, 0.5)
  try:
    return function()
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def is_line_of_ours(error):
  """Whether a `raise` of the package, or the system, says in a line what a user can change."""
  frame = traceback.extract_tb(error.__traceback__)[-1]
  is_ours = frame.filename.startswith(PACKAGE) and frame.line.startswith('raise')
  lines = [sentence(error)]
  if frame.filename.endswith(('config.py', 'checks.py')):  # a line for each mistake
    lines = lines[0].split('\n')
  return (
    (is_mistake(error) or isinstance(error, ValueError | TypeError))
    and (is_ours or isinstance(error, MemoryError | OSError))
    and all(map(is_sentence, lines))
  )


def is_sentence(text):
  """Whether a terminal can show a line, which is short, has no traceback and ends as one does."""
  is_shown = text == printable(text) and 'Traceback' not in text
  return is_shown and 10 <= len(text) <= LONGEST_LINE and text[-1] in '.?)'


def same(value, other):
  """Whether two results are equal to the last bit, types and shapes included."""
  alike = jax.tree.structure(value) == jax.tree.structure(other)
  return alike and all(map(_same_leaf, jax.tree.leaves(value), jax.tree.leaves(other)))


def _same_leaf(value, other):
  if type(value) is not type(other) or not isinstance(value, ARRAY):
    return type(value) is type(other) and bool(value == other)
  alike = (value.dtype, value.shape) == (other.dtype, other.shape)
  return alike and np.asarray(value).tobytes() == np.asarray(other).tobytes()
