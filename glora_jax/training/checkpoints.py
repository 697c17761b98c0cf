"""Training states on disk (orbax): saved in the background, verified when they are read."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import pathlib
import shutil
import time
import types
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from glora_jax import mesh as meshes
from glora_jax.checks import shown
from glora_jax.errors import UserError
from glora_jax.files import Path, first_line, read_json, write_json
from glora_jax.training.loop import TrainState
from glora_jax.tree import by_name, differences, flatten

log = logging.getLogger(__name__)

KIND = 'training states'
# Errors of orbax, JSON and tensorstore for damaged files. A ValueError of tensorstore is not about
# damage if it holds an error code of the operating system.
_OF_DAMAGE = (ValueError, LookupError, AttributeError, TypeError, FileNotFoundError)
_OF_THE_SYSTEM = 'os_error_code'


class _OtherArraysError(ValueError):
  """A state has other arrays than the training that would resume from it."""


class TrainingCheckpoints(contextlib.AbstractContextManager):
  """The states of one training run, or of several side by side, in a folder.

  Training resumes from the newest state that can be read. When the block of a `with` ends, all
  states are on disk. Every state is saved with a checksum, because orbax does not notice if the
  numbers in its files have changed.

  Args:
    folder: path of the folder, which is created if it is missing.
    about: what the training is, beyond its arrays; JSON's types.

  Raises:
    OSError: the folder cannot be written.
    ValueError: a later version wrote the states in it, or they are of another training by `about`.

  Example:
    >>> import tempfile
    >>> state = TrainState({'slope': jnp.ones(1)}, opt_state=(), step=7)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   with TrainingCheckpoints(folder) as checkpoints:
    ...     checkpoints.save(state)
    ...   with TrainingCheckpoints(folder) as checkpoints:
    ...     restored = checkpoints.latest(template=state)
    >>> restored.step
    7
  """

  def __init__(self, folder: Path, about: Mapping[str, Any] = types.MappingProxyType({})):
    self._folder = os.path.abspath(folder)
    self._about = dict(about)
    self._format = os.path.join(self._folder, 'format.json')  # of the states: kind, format, about
    if os.path.exists(self._format):  # orbax might misread the states of a later version
      self._require_same_training(read_json(self._format, KIND, remedy='remove it'))
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with self._explain_failures():
      # Orbax's own removal goes on after `close`, while the next manager writes to the same folder.
      if meshes.primary():
        for partial in pathlib.Path(self._folder).glob(f'*{ocp.utils.TMP_DIR_SUFFIX}*'):
          _remove(partial)
      # Without a handler orbax does not know the shapes of saved states.
      handler = ocp.StandardCheckpointHandler()
      self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handler)

  def _require_same_training(self, saved: Mapping[str, Any]) -> None:
    changed = [
      f'{name}={shown(saved.get(name))}, here {shown(value)}'
      for name, value in self._about.items()
      if saved.get(name) != value
    ]
    if changed:
      raise UserError(
        f'The training states in {self._folder} are of another training ({"; ".join(changed)}). '
        'Continue with what it was trained with, or pass another folder.'
      )

  def __exit__(self, *exception: object) -> None:
    with self._explain_failures():
      self._manager.close()

  def latest(self, template: TrainState) -> TrainState | None:
    """The newest state that is not damaged.

    A newer state that is damaged (a wrong checksum; a file that is missing or cannot be parsed) is
    renamed to `STEP.damaged`, with a warning. Any other error is raised, and no file changes.

    Args:
      template: a state with the structure, shapes and types of the result, and with the frozen
        arrays, which are not saved.

    Returns:
      The state; None if there is no state yet.

    Raises:
      ValueError: the states are of another training, or all are damaged; they are not renamed.
      OSError: a state cannot be read, or the processes read different states.
    """
    state, read, damaged = None, -1, {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        state, read = self._restore(step, template), step
        break
      except Exception as error:
        self._require_damage(step, error)
        damaged[step] = error
    if damaged and state is None:
      newest = damaged[max(damaged)]
      if isinstance(newest, _OtherArraysError):
        raise UserError(
          f'The training states in {self._folder} are of another training ({newest}). Continue '
          'with the structure and optimizer that they were trained with, or move that folder away '
          'to start anew.'
        )
      reasons = {step: first_line(error) for step, error in damaged.items()}
      raise UserError(
        f'All training states in {self._folder} are damaged ({reasons}); remove that folder to '
        'start this training again.'
      )
    if meshes.on_any(read != meshes.least_of_all(read)):
      raise OSError(
        f'The processes read different states in {self._folder}; start the same command again.'
      )
    for step, error in damaged.items():
      with meshes.primary_first('damaged'):
        if meshes.primary():
          self._set_aside(step, first_line(error))
      self._manager.reload()
    return state

  def _require_damage(self, step: int, error: Exception) -> None:
    """Raises the error unless it means that the state is damaged.

    Orbax reports a file as missing if it cannot be opened, because a permission is missing or too
    many files are open. So all files are opened first, and an error of that is raised instead.
    """
    for folder, _, names in os.walk(f'{self._folder}/{step}', onerror=_raise):
      for name in names:
        open(os.path.join(folder, name), 'rb').close()
    reason = error.__cause__ or error  # orbax raises an `Exception` of an array with its own file
    if not isinstance(reason, _OF_DAMAGE) or _OF_THE_SYSTEM in f'{error} {reason}':
      raise error

  def _set_aside(self, step: int, reason: str) -> None:
    """Renames a damaged state, with a warning."""
    folder = f'{self._folder}/{step}'
    names = (f'{folder}.damaged{number or ""}' for number in itertools.count())
    aside = next(name for name in names if not os.path.lexists(name))
    with self._explain_failures():
      os.rename(folder, aside)
    log.warning(
      'The training state %s is damaged (%s); kept as %s, continuing from the one before it.',
      folder,
      reason,
      aside,
    )

  def _restore(self, step: int, template: TrainState) -> TrainState:
    saved = template._replace(frozen=None)
    self._require_same_arrays(step, saved)
    args = ocp.args.StandardRestore((saved, np.zeros((), np.uint32)))
    restored, checksum = self._manager.restore(step, args=args)
    state = TrainState(*restored)._replace(frozen=template.frozen)
    if _checksum(state) != checksum:
      raise ValueError('its numbers differ from those that were saved')
    return state

  def _require_same_arrays(self, step: int, template: TrainState) -> None:
    """Raises _OtherArraysError if a state has other arrays than the template by its metadata."""
    try:
      saved, _ = self._manager.item_metadata(step).tree
      found, expected = (
        by_name(flatten({field: each[field] for field in ('trainable', 'opt_state')}))
        for each in (saved, jax.eval_shape(TrainState._asdict, template))
      )
    except Exception:  # the metadata are damaged, of which `restore` says more
      return
    problems = differences(found, expected) or [
      f'{name} is {found[name].dtype} and should be {array.dtype}'
      for name, array in expected.items()
      if found[name].dtype != array.dtype
    ]
    if problems:
      raise _OtherArraysError('; '.join(problems))

  def save(self, state: TrainState) -> None:
    """Saves a state in the background, unless its step is saved already.

    Args:
      state: the state; the memory of its arrays may be reused as soon as this returns.

    Raises:
      OSError: this state, or the one before it, cannot be written.
    """
    # A copy, since the training loop reuses the memory of a state while this is being written.
    trainable, opt_state = jax.tree.map(jnp.copy, (state.trainable, state.opt_state))
    copied = TrainState(trainable, opt_state, state.step)
    with self._explain_failures():
      if meshes.primary():
        write_json(self._format, self._about, KIND)
      self._manager.save(
        int(np.max(state.step)), args=ocp.args.StandardSave((copied, _checksum(state)))
      )

  @contextlib.contextmanager
  def _explain_failures(self) -> Iterator[None]:
    """Turns any error of writing into an OSError that says what to do."""
    try:
      yield
    except Exception as error:  # from orbax's threads, of many types
      of_the_system = map(os.strerror, errno.errorcode)
      reason = next((words for words in of_the_system if words in str(error)), first_line(error))
      raise OSError(
        f'The training state cannot be written to {self._folder} ({reason}). What was saved before '
        'is kept; free some space or fix the permissions, and start the same command again.'
      ) from error


def _checksum(state: TrainState) -> np.ndarray:
  """The CRC-32 of a state's arrays, uint32 []."""
  checksum = 0
  for leaf in jax.tree.leaves(state[:2]):
    checksum = zlib.crc32(np.asarray(leaf).tobytes(), checksum)
  return np.asarray(checksum, np.uint32)


def _remove(folder: pathlib.Path) -> None:
  """Removes a folder, while the threads of a save that has failed may still add files to it."""
  for _ in range(20):
    try:
      return shutil.rmtree(folder)
    except OSError as error:
      if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
        raise
    time.sleep(0.05)
  shutil.rmtree(folder)


def _raise(error: OSError) -> None:
  raise error
