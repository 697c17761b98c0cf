"""A stage of a job, and the walk that runs a list of them.

A `Stage` declares everything about a stage. The rest follows from the list of stages: the stages
that a start resumes, those that run again after a field was corrected, fields that no stage reads,
and the order, titles, seconds, profiles and folders of a job.

The key of a stage is 'DIGEST SHARDS': a digest of the fields that it reads, the keys of the stages
in `after`, the images that it uses and the version of this package; and the number of shards, 1 if
nothing is drawn for each. Weights and scores of other tasks are in it by content, not by path.
`stage.json` in its folder has the key that the folder was made with.

    WORKDIR/NAME/                         the folder of a stage
    WORKDIR/replaced/NAME/DIGEST-SHARDS/  folders of other keys, each restored with its key
    SHARED/NAME/DIGEST-SHARDS/            those of a stage that runs of a suite have in common: the
                                          first run makes it, under a lock, and the others read it

A complete stage needs only the same digest, whatever the number of shards. Once the test images may
have been read, a folder of another key in the workdir is an error. From then on the version in keys
is that of `test_list.json`, so that a later version of the package can read the folders.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import filelock

import glora_jax
from glora_jax import mesh as meshes
from glora_jax.compiling import Compilation, reporting_to
from glora_jax.errors import UserError
from glora_jax.files import read_json, write_json
from glora_jax.search.errors import NoGradientError, NonFiniteError
from glora_jax.training.loop import NonFiniteLossError
from glora_jax.vision.runs.fields import COMMON, is_among, values_of
from glora_jax.vision.runs.monitoring import profile
from glora_jax.vision.runs.terminal import user_errors
from glora_jax.vision.runs.workdir import (
  MARK,
  Stopped,
  has_test_list,
  names_in,
  read_test_list,
  remove_partial_files,
)

if TYPE_CHECKING:
  from glora_jax.vision.runs.context import Context

log = logging.getLogger(__name__)

_POLL = 0.5  # seconds between two looks at a lock
_LENGTH = 16  # characters of a digest in the name of a folder
# Errors of a training whose learning rate does not suit it.
DIVERGED = (NonFiniteLossError, NonFiniteError, NoGradientError)


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of a job.

  Attributes:
    name: its name, and that of its folder in the workdir. The part before a '/' is the title under
      which its seconds and its profile are kept.
    run: `(context, *results) -> result`, with the results of `after`. It resumes from the files
      that an earlier start left in the folder, and only reads them if they are complete. A file
      that was removed, as the error about a damaged one advises, is written again.
    reads: config fields that it reads besides `fields.COMMON`; 'search.' stands for a section.
    after: names of the stages whose results it uses.
    check: raises ValueError or OSError for mistakes that can be found before anything runs.
    splits: those that it trains on, in batches; the random draws for them depend on
      `context.shards`. Empty if nothing is trained.
    images: the splits that it uses besides those; None for all.
    has_folder: whether it has a folder. The list, the test and the report have none: the
      test has its frozen list, and the report comes last.
    shared: whether several runs may have its folder in common.
  """

  name: str
  run: Callable[..., Any]
  reads: tuple[str, ...] = ()
  after: tuple[str, ...] = ()
  check: Callable[[Context], Any] = lambda context: None
  splits: tuple[str, ...] = ()
  images: tuple[str, ...] | None = None
  has_folder: bool = True
  shared: bool = False

  @property
  def title(self) -> str:
    """The name under which its seconds and its profile are kept."""
    return self.name.partition('/')[0]


class Mark(TypedDict):
  """The content of `stage.json` in a stage's folder.

  Attributes:
    key: digest of everything that the stage read, and the number of shards.
    complete: whether the stage is complete.
    seconds: duration, including interrupted starts, and killed ones until they last saved a state.
    programs: compiled programs by name: seconds in total, and the memory of the largest.
  """

  key: str
  complete: bool
  seconds: float
  programs: dict[str, Compilation]


def walk(context: Context, stages: Sequence[Stage], until: str | None = None) -> Any:
  """Runs the stages of a job in order; complete stages do not run again.

  Args:
    context: the context that they share.
    stages: all stages of the job.
    until: name of the last stage to run, after those that it needs; None for all of them.

  Returns:
    The result of the last one.

  Raises:
    UserError: a loss or a gradient is not finite, or a file is damaged.
    Stopped: the job was asked to stop.
  """
  keys = keys_of(context, stages)
  folders = {x.name: _place(context, x, keys[x.name]) for x in stages if is_shared(context, x)}
  context = dataclasses.replace(context, folders=folders)
  wanted = list(stages) if until is None else prerequisites(stages, until)
  results: dict[str, Any] = {}
  marks: dict[str, Mark] = {}
  for number, stage in enumerate(wanted, 1):
    if context.stop():
      raise Stopped(f'before the stage {stage.name}', context.workdir)
    log.info('%s: stage %d of %d', stage.name, number, len(wanted))
    is_profiled = stage.title == context.settings.watch.profile and stage.has_folder
    with (
      _hold(context, stage),
      user_errors(*DIVERGED),
      profile(context.path('profile'), is_profiled) as dispatched,
      _record(context, stage, keys[stage.name]) as (mark, saved),
    ):
      given = dataclasses.replace(context, before=dict(marks), dispatched=dispatched, saved=saved)
      when = 'before, in' if mark['complete'] else 'in'
      inputs = [results[name] for name in stage.after]
      results[stage.name] = stage.run(given, *inputs)
    marks[stage.name] = mark
    log.info('%s: done %s %.1f s', stage.name, when, mark['seconds'])
  return results[wanted[-1].name]


@contextlib.contextmanager
def _record(context: Context, stage: Stage, key: str) -> Iterator[tuple[Mark, Callable[[], None]]]:
  """Gives a stage a folder of the right key, and records in it how the stage went.

  Yields the record, and a function that writes it with the seconds so far. Interrupted starts count
  as seconds; reading a complete folder does not.
  """
  folder = context.path(stage.name) if stage.has_folder else None
  if folder:
    _make_ready(context, stage, key)
  mark = (folder and read_mark(folder)) or new_mark(key)
  was_complete, before, start = mark['complete'], mark['seconds'], time.perf_counter()

  def write() -> None:
    if was_complete:
      return
    mark['seconds'] = round(before + time.perf_counter() - start, 2)
    if folder and meshes.primary():
      write_json(os.path.join(folder, MARK), mark, 'stage')

  try:
    with reporting_to(functools.partial(_note_program, stage.name, mark)):
      yield mark, write
    mark['complete'] = True
  finally:
    try:
      write()
    except OSError:
      if mark['complete']:  # else the error before this one is the one that matters
        raise


def _make_ready(context: Context, stage: Stage, key: str) -> None:
  """Puts the folder of a key into place; one of another key is moved to `replaced/`."""
  name, folder, place = stage.name, context.path(stage.name), _place(context, stage, key)
  with meshes.primary_first(name):
    if not meshes.primary():
      return
    found = read_mark(folder)
    if found is None and names_in(folder):
      raise UserError(
        f'{folder} has no {MARK}, so its origin is unknown; remove it, or choose another --workdir.'
      )
    if found is not None:
      if found['key'] == key:
        return
      replaced = _place(context, stage, found['key'])
      _move(folder, replaced)
      log.info('%s: its earlier files are kept in %s.', name, replaced)
    if read_mark(place) is not None:  # a correction was undone
      _move(place, folder)
    else:
      os.makedirs(folder, exist_ok=True)
      write_json(os.path.join(folder, MARK), new_mark(key), 'stage')


def _move(folder: str, place: str) -> None:
  os.makedirs(os.path.dirname(place), exist_ok=True)
  os.rename(folder, place)


def _note_program(stage: str, mark: Mark, name: str, found: Compilation) -> None:
  """Logs a compilation, and adds it to the record of its stage unless that is complete."""
  size = sum(found['memory'].values()) / 2**20
  held = f'; a device holds {size:.1f} MiB' if size else ''
  log.info('%s: compiled "%s" in %.1f s%s', stage, name, found['seconds'], held)
  if mark['complete']:
    return
  earlier = mark['programs'].get(name, Compilation(seconds=0.0, memory={}))
  mark['programs'][name] = Compilation(
    seconds=round(earlier['seconds'] + found['seconds'], 2),
    memory=max(earlier['memory'], found['memory'], key=lambda memory: sum(memory.values())),
  )


def new_mark(key: str) -> Mark:
  """The content of `stage.json` before a stage has begun."""
  return Mark(key=key, complete=False, seconds=0.0, programs={})


def read_mark(folder: str) -> Mark | None:
  """The content of `stage.json` in a folder; None if there is none."""
  path = os.path.join(folder, MARK)
  try:
    return read_json(path, 'stage', Mark, f'remove {folder} to run the stage again')
  except (FileNotFoundError, NotADirectoryError):  # a lock, or moved by the primary process
    return None


def is_complete(folder: str) -> bool:
  """Whether the stage of a folder is complete."""
  mark = read_mark(folder)
  return mark is not None and mark['complete']


def prerequisites(stages: Sequence[Stage], until: str) -> list[Stage]:
  """A stage and all that it needs, in order."""
  names = {until}
  for stage in reversed(stages):
    if stage.name in names:
      names.update(stage.after)
  return [stage for stage in stages if stage.name in names]


def fields_of(stages: Iterable[Stage]) -> tuple[str, ...]:
  """The fields and sections that some stages read."""
  return COMMON + tuple(dict.fromkeys(name for stage in stages for name in stage.reads))


def keys_of(context: Context, stages: Sequence[Stage]) -> dict[str, str]:
  """The key of every stage, by name: equal keys mean equal results."""
  values = {**values_of(context.settings), **context.contents}
  frozen = read_test_list(context.workdir)
  keys: dict[str, str] = {}
  for stage in stages:
    content = {
      'stage': stage.name,
      'fields': {name: x for name, x in values.items() if is_among(name, COMMON + stage.reads)},
      'before': [keys[name] for name in stage.after],
      'facts': _facts_for(context, stage),
      'version': frozen['version'] if frozen else glora_jax.__version__,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    shards = context.shards if stage.splits else 1
    keys[stage.name] = _key_of_complete(context, stage, digest) or f'{digest} {shards}'
  return keys


def _facts_for(context: Context, stage: Stage) -> dict[str, Any]:
  """The context's facts without the images that a stage does not use."""
  facts = dict(context.facts)
  if stage.images is not None and 'images' in facts:
    used = '+'.join((*stage.splits, *stage.images)).split('+')
    facts['images'] = {split: x for split, x in facts['images'].items() if split in used}
  return facts


def _key_of_complete(context: Context, stage: Stage, digest: str) -> str | None:
  """The key of a complete folder with a digest, for any number of shards; None if there is none."""
  folders = [] if is_shared(context, stage) else [context.path(stage.name)]
  folders += sorted(glob.glob(f'{glob.escape(_parent(context, stage))}/{digest[:_LENGTH]}-*'))
  for mark in map(read_mark, folders):
    if mark is not None and mark['complete'] and mark['key'].startswith(f'{digest} '):
      return mark['key']
  return None


def stages_to_repeat(context: Context, stages: Sequence[Stage]) -> list[str]:
  """Names of the stages that run again, since their folder has another key.

  Raises:
    ValueError: the test images were read since. Fields that differ have been named before.
  """
  keys = keys_of(context, stages)
  # Shared folders have one key each: another run's is no reason to repeat anything.
  others = [
    stage
    for stage in stages
    if not is_shared(context, stage)
    and (mark := read_mark(context.path(stage.name))) is not None
    and mark['key'] != keys[stage.name]
  ]
  if others and has_test_list(context.workdir):
    raise ValueError(
      f'{context.path(others[0].name)} was made with other fields, images, weights, scores or '
      'devices, and the test images were read since. Start with the same ones as before, or choose '
      'another --workdir.'
    )
  # If a correction is undone, the complete folder is restored.
  return [x.name for x in others if not is_complete(_place(context, x, keys[x.name]))]


def is_shared(context: Context, stage: Stage) -> bool:
  """Whether the folder of a stage is not in the workdir, but in one that several runs share."""
  return stage.shared and context.shared is not None


def _parent(context: Context, stage: Stage) -> str:
  """The parent of a stage's folders for each key: all keys if it is shared, else those replaced."""
  shared = context.shared if stage.shared else None
  return os.path.join(shared or context.path('replaced'), stage.name)


def _place(context: Context, stage: Stage, key: str) -> str:
  """The folder of a key within `_parent`."""
  digest, _, shards = key.partition(' ')
  return os.path.join(_parent(context, stage), f'{digest[:_LENGTH]}-{shards}')


@contextlib.contextmanager
def _hold(context: Context, stage: Stage) -> Iterator[None]:
  """Holds the folder of a shared stage for this process only, unless it is complete.

  Waits while another process holds it. The system releases it when that process ends, even if it is
  killed; this one then resumes the stage.
  """
  if not is_shared(context, stage):
    yield
    return
  folder, is_waiting = context.folders[stage.name], False
  os.makedirs(os.path.dirname(folder), exist_ok=True)
  lock = filelock.FileLock(f'{folder}.lock')

  def is_ready() -> bool:
    if not meshes.primary():
      return False
    if is_complete(folder):
      return True
    try:
      lock.acquire(timeout=0)
    except filelock.Timeout:
      return False
    remove_partial_files(folder)
    return True

  try:
    while not meshes.on_any(is_ready()):
      if not is_waiting:
        log.info('%s: waiting for another process, which makes %s.', stage.name, folder)
      if context.stop():
        raise Stopped(f'before the stage {stage.name}', context.workdir)
      is_waiting = True
      time.sleep(_POLL)
    yield
  finally:
    lock.release()
