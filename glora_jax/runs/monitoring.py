"""What one sees of a run while it goes: metrics.jsonl, TensorBoard, a profiler's trace, what is trained on what. It changes no result."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import time
from collections.abc import Callable, Iterator

import jax

from glora_jax import mesh as meshes
from glora_jax.files import whole, writing

log = logging.getLogger(__name__)

TRACED = 3  # dispatches


class Metrics:
  """Appends lines to `metrics.jsonl`; what an interrupted run wrote after the step it resumes from is dropped first.

  A line holds nothing that varies between equal runs, so no times: those are in TensorBoard's events and on the progress bar.

  Args:
    path: of the file.
    stage: that the lines are of.
    step: that the stage goes on from.
    board: folder for the same values as TensorBoard's events, in a folder for each stage; None writes none.
  """

  def __init__(self, path: str, stage: str, step: int, board: str | None = None):
    self.path, self.stage, self.step = path, stage, step
    self.board = board and os.path.join(board, stage)
    if not meshes.primary():
      return
    lines = []
    if os.path.exists(path):
      with open(path) as file:
        for line in file:
          with contextlib.suppress(ValueError):  # a line cut off by a kill
            entry = json.loads(line)
            if entry['stage'] != stage or entry['step'] <= step:
              lines.append(json.dumps(entry) + '\n')
    with whole(path) as temporary, open(temporary, 'w') as file:
      file.writelines(lines)

  def write(self, step: int, values: dict[str, float]) -> None:
    """Both are on disk when it returns. Of several processes only the primary writes."""
    if not meshes.primary():
      return
    with writing(self.path), open(self.path, 'a') as file:
      file.write(json.dumps({'stage': self.stage, 'step': step, **values}) + '\n')
    if self.board:
      from tensorboardX.proto.event_pb2 import Event
      from tensorboardX.summary import scalar

      with writing(self.board):
        for name, value in values.items():
          self._events.write_event(
            Event(step=step, wall_time=time.time(), summary=scalar(name, value))
          )
        self._events.flush()

  @functools.cached_property
  def _events(self):
    # The plain writer: SummaryWriter's thread would lose what a kill finds in its queue, and hang on a full disk.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    os.makedirs(self.board, exist_ok=True)
    events = EventsWriter(os.path.join(self.board, 'events'), f'.{os.getpid()}.{self.step}')
    # What SummaryWriter does with its `purge_step`: TensorBoard drops what it has read from this step on.
    events.write_event(
      Event(
        step=self.step + 1, wall_time=time.time(), session_log=SessionLog(status=SessionLog.START)
      )
    )
    return events


@contextlib.contextmanager
def profiled(folder: str, wanted: bool) -> Iterator[Callable[[], None]]:
  """Gives a function to be called after every dispatch: those after the first, which compiles, are traced where that is wanted.

  The trace is for TensorBoard's profile plugin, or xprof.
  """
  calls = traced = 0

  def dispatched():
    nonlocal calls, traced
    if 0 < calls <= TRACED:
      traced = calls
      if traced == TRACED:
        jax.profiler.stop_trace()
    elif not calls:
      jax.profiler.start_trace(folder)
    calls += 1

  try:
    yield dispatched if wanted else lambda: None
  finally:
    if 0 < calls <= TRACED:
      jax.profiler.stop_trace()
    if traced:
      log.info('Traced dispatches: %d, in %s', traced, folder)
    elif wanted:
      log.warning('There was nothing to trace after the first dispatch.')
