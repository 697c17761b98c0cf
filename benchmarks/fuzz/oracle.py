"""What is right: a case is accepted with a result that holds, or refused in a sentence of ours."""

import ast
import dataclasses
import functools
import pathlib
import re
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

import glora_jax
from benchmarks.fuzz.place import Place
from benchmarks.fuzz.values import shown
from glora_jax.limits import printable
from glora_jax.runs.mistakes import is_mistake, sentence
from glora_jax.tree import flatten

Outcome = Literal['accepted', 'refused', 'traceback', 'hang', 'wrong', 'touched']
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
GOOD = OUTCOMES[:2]
LONGEST_SENTENCE = 2000
AGAIN = 0.5  # seconds from an alarm that was swallowed to the next
PACKAGE = str(pathlib.Path(glora_jax.__file__).parent)


class Fault(Exception):
  """What a case itself finds amiss: an outcome, and the reason."""

  def __init__(self, reason: str, outcome: Outcome = 'wrong'):
    super().__init__(reason)
    self.outcome = outcome


class RefusedByCommand(Exception):
  """A command refused; its text is the sentence that it printed."""


class Hang(BaseException):
  """The time of a case is over."""


@dataclasses.dataclass(frozen=True)
class Case:
  """Something that is tried.

  Attributes:
    shown: what it is, for whoever looks into a failure.
    attempt: does it; called twice where it is accepted.
    check: raises `Fault` where the result is not what the documentation says.
    alike: what must give the same result, by what it does otherwise.
    limit: seconds for each attempt.
  """

  shown: str
  attempt: Callable[[], Any]
  check: Callable[[Any], None] | None = None
  alike: Mapping[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)
  limit: float = 20.0


class Verdict(NamedTuple):
  """How a case ended, and why; the reason of a good one is what it was told."""

  outcome: Outcome
  reason: str


def judge(case: Case, place: Place) -> Verdict:
  """Tries a case, and says how it ended.

  Args:
    case: the case, its files written.
    place: where it runs.
  """
  outside, workdir = place.outside(), place.inside()
  try:
    verdict = _try(case)
  except Fault as fault:
    verdict = Verdict(fault.outcome, str(fault))
  except Hang:
    verdict = Verdict('hang', f'longer than {case.limit:g} s')
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
  if changed := difference(outside, place.outside()):
    return Verdict('touched', f'outside of the workdir: {changed}')
  left = difference(workdir, place.inside())
  if verdict.outcome == 'refused' and left:
    return Verdict('wrong', f'refused, and the workdir changed: {left} ({verdict.reason})')
  return verdict


def _try(case: Case) -> Verdict:
  try:
    result = _within(case.limit, case.attempt)
  except (Fault, Hang):
    raise
  except RefusedByCommand as error:
    return _refusal(str(error))
  except BaseException as error:  # whatever a user would see as a traceback
    return _verdict_on(error)
  _require_finite(result)
  others = {'the same again': case.attempt, **case.alike}
  if case.check is not None:
    _within(case.limit, functools.partial(case.check, result))
  for name, attempt in others.items():
    try:
      other = _within(case.limit, attempt)
    except Exception as error:
      raise Fault(f'{name} is not accepted: {describe(error)}') from error
    if not same(result, other):
      raise Fault(f'{name} gives another result: {shown(result)}, then {shown(other)}')
  return Verdict('accepted', shown(result))


def _within(limit: float, function: Callable[[], Any]) -> Any:
  """Calls a function that gets `Hang` after its time, and again where that is swallowed."""
  signal.signal(signal.SIGALRM, _raise_hang)
  signal.setitimer(signal.ITIMER_REAL, limit, AGAIN)
  try:
    return function()
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)


def _raise_hang(*_: Any) -> None:
  raise Hang


def _verdict_on(error: BaseException) -> Verdict:
  """The verdict on what an attempt raised."""
  if not is_mistake(error):
    return Verdict('traceback', describe(error))
  if not isinstance(error, MemoryError | OSError) and not raised_by_us(error):
    return Verdict('traceback', f'no sentence of ours: {describe(error)}')
  return _refusal(sentence(error))


def _refusal(text: str) -> Verdict:
  """The verdict on a sentence."""
  if flaw := flaw_of(text):
    return Verdict('wrong', f'its sentence {flaw}: {text[:300]!r}')
  return Verdict('refused', text)


def flaw_of(text: str) -> str:
  """What is wrong with a sentence for the user; empty where nothing is."""
  if 'Traceback' in text:
    return 'has a traceback'
  if text != printable(text):
    return 'has line ends or what no terminal can show'
  if len(text) > LONGEST_SENTENCE:
    return f'has {len(text)} characters'
  if not re.search(r'[.?)]$', text) or len(text) < 10:
    return 'is no sentence'
  return ''


def raised_by_us(error: BaseException) -> bool:
  """Whether a `raise` of the package raised an error, and not something that it called."""
  frames = traceback.extract_tb(error.__traceback__)
  if not frames or not frames[-1].filename.startswith(PACKAGE):
    return False
  return frames[-1].lineno in _lines_that_raise(frames[-1].filename)


@functools.cache
def _lines_that_raise(path: str) -> frozenset[int]:
  tree = ast.parse(pathlib.Path(path).read_text())
  raises = [node for node in ast.walk(tree) if isinstance(node, ast.Raise)]
  return frozenset(
    line for node in raises for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
  )


def describe(error: BaseException) -> str:
  """An error with the lines of the package that it came through."""
  frames = traceback.extract_tb(error.__traceback__)
  ours = [
    f'{pathlib.Path(frame.filename).name}:{frame.lineno}'
    for frame in frames
    if frame.filename.startswith(PACKAGE)
  ]
  return f'{type(error).__name__}: {str(error)[:300]} [{" ".join(ours[-4:])}]'


def same(value: Any, other: Any) -> bool:
  """Whether two results are equal to the last bit, dtypes and shapes included."""
  if type(value) is not type(other):
    return False
  if isinstance(value, Mapping):
    return value.keys() == other.keys() and all(same(value[key], other[key]) for key in value)
  if isinstance(value, list | tuple):
    return len(value) == len(other) and all(map(same, value, other))
  if hasattr(value, 'dtype'):
    arrays = [np.asarray(array) for array in (value, other)]
    first, second = [(array.dtype, array.shape, array.tobytes()) for array in arrays]
    return first == second
  return bool(value == other)


def _require_finite(result: Any) -> None:
  """Raises `Fault` where a result has numbers that are not finite."""
  for number in _leaves(result):
    array = np.asarray(number)
    if array.dtype.kind == 'f' and not np.isfinite(array).all():
      raise Fault(f'accepted, and the result is not finite: {shown(result)}')


def _leaves(value: Any) -> Iterator[Any]:
  if isinstance(value, Mapping):
    value = list(flatten(value).values())
  if isinstance(value, list | tuple):
    for item in value:
      yield from _leaves(item)
  elif isinstance(value, float) or hasattr(value, 'dtype'):
    yield value


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
  """The first names that are not the same in two snapshots; empty where all are."""
  names: Sequence[str] = sorted(
    name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
  )
  return printable(', '.join(names[:3]))
