"""Records of a run in progress: metrics, TensorBoard events, a profiler's trace.

None of them changes a result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import pathlib
import pkgutil
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypedDict

import jax

from glora_jax import mesh as meshes
from glora_jax.checks import shown
from glora_jax.errors import UserError
from glora_jax.files import STAMP, Path, first_line, stamp_of, with_nulls, write_bytes, writing
from glora_jax.vision.files import read_lines

if TYPE_CHECKING:
  from tensorboardX.event_file_writer import EventsWriter

log = logging.getLogger(__name__)

TRACED_DISPATCHES = 3


class Line(TypedDict):
  """A line of `metrics.jsonl`, which also has the values of metrics."""

  stage: str
  step: int


METRICS = 'metrics.jsonl'


@dataclasses.dataclass
class Metrics:
  """Appends lines to `metrics.jsonl`: that of a stage's folder, and that of all stages so far.

  Lines that an interrupted run wrote after the step it resumes from are dropped first. The first
  line has kind and format. Lines hold only values that equal runs share, so no times; those are in
  TensorBoard's events and on the progress bar.

  Attributes:
    workdir: folder of the job.
    stage: name of the stage that the lines are about.
    folder: its folder, which is only read if the stage is complete.
    step: step that the stage resumes from.
    before: folders of the stages before it, whose lines come first.
    board: folder for the same values as TensorBoard events; None writes none.
    call: the config's `watch.call`, which gets each line of this stage from `step` on.
  """

  workdir: Path
  stage: str
  folder: Path
  step: int
  before: Iterable[Path]
  board: str | None = None
  call: str | None = None

  def __post_init__(self):
    if meshes.primary():
      lines = [line for line in _lines_of(self.folder) if line['step'] <= self.step]
      _write_lines(self.folder, lines)
      earlier = [line for folder in self.before for line in _lines_of(folder)]
      _write_lines(self.workdir, earlier + lines)

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes a line, and an event for each value; both are on disk when it returns.

    If there are several processes, only the primary writes, and calls the user's function.
    """
    if not meshes.primary():
      return
    line = {'stage': self.stage, 'step': step, **values}
    for folder in (self.folder, self.workdir):
      path = os.path.join(folder, METRICS)
      with writing(path), open(path, 'a', encoding='utf-8') as file:
        file.write(json.dumps(with_nulls(line)) + '\n')
    if self.board:
      from tensorboardX.proto.event_pb2 import Event
      from tensorboardX.summary import scalar

      with writing(self.board):
        for name, value in values.items():
          event = Event(step=step, wall_time=time.time(), summary=scalar(name, value))
          self._events.write_event(event)
        self._events.flush()
    if self.call is not None:
      with function_of_user(self.call) as function:
        function(self.workdir, line)

  @functools.cached_property
  def _events(self) -> EventsWriter:
    """TensorBoard's plain writer.

    SummaryWriter's thread would lose its queue in a kill, and hang on a full disk.
    """
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    assert self.board is not None
    os.makedirs(self.board, exist_ok=True)
    # TensorBoard reads files in the order of their names, and a clock may go back between starts.
    name = f'events_{len(os.listdir(self.board)):04}'
    events = EventsWriter(os.path.join(self.board, name), f'.{os.getpid()}.{self.step}')
    # As SummaryWriter's `purge_step`: TensorBoard drops the events it has read from this step on.
    start = SessionLog(status=SessionLog.START)
    events.write_event(Event(step=self.step + 1, wall_time=time.time(), session_log=start))
    return events


@contextlib.contextmanager
def function_of_user(name: str) -> Iterator[Callable[[Path, dict[str, Any]], Any]]:
  """Yields the function that `watch.call` names.

  Raises:
    UserError: it cannot be found, or the block, which calls it, fails.
  """
  try:
    yield pkgutil.resolve_name(name)
  except Exception as error:  # it may raise anything
    raise UserError(
      f'watch.call={shown(name)} fails with {type(error).__name__}: {first_line(error)}; it '
      'names a function of a workdir and a line, MODULE:FUNCTION, with MODULE on PYTHONPATH.'
    ) from error


def _write_lines(folder: Path, lines: Iterable[Line]) -> None:
  """Writes the file of lines in a folder, unless it has exactly these."""
  path = pathlib.Path(folder, METRICS)
  objects = [{STAMP: stamp_of('metrics')}, *map(with_nulls, lines)]
  content = ''.join(json.dumps(each) + '\n' for each in objects).encode()
  with writing(path):
    os.makedirs(folder, exist_ok=True)
  if not path.exists() or path.read_bytes() != content:
    write_bytes(path, content)


def _lines_of(folder: Path) -> list[Line]:
  """The lines in the folder of a stage; none if it writes no metrics."""
  path = os.path.join(folder, METRICS)
  return read_lines(path, 'metrics', Line) if os.path.exists(path) else []


@contextlib.contextmanager
def profile(folder: str, wanted: bool) -> Iterator[Callable[[], None]]:
  """Yields a function to call after every dispatch, which traces a few of them.

  The first dispatch, which compiles, is not traced.

  Args:
    folder: folder for the trace, for TensorBoard's profile plugin or xprof.
    wanted: whether to trace anything.
  """
  if not wanted:
    yield lambda: None
    return
  calls, trace = 0, contextlib.ExitStack()

  def dispatched() -> None:
    nonlocal calls
    calls += 1
    if calls == 1:
      trace.enter_context(jax.profiler.trace(folder))
    elif calls == TRACED_DISPATCHES + 1:
      trace.close()

  with trace:
    yield dispatched
  if calls > 1:
    log.info('Traced dispatches: %d, in %s', min(calls - 1, TRACED_DISPATCHES), folder)
  else:
    log.warning('Nothing was traced: the stage had no second dispatch.')
