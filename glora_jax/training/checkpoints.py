"""Training states on disk (orbax): saved in the background, checked when they are read."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import re
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from glora_jax import mesh as meshes
from glora_jax.errors import UserError
from glora_jax.files import Path, first_line
from glora_jax.records import FORMAT_FILE, check_folder, stamp_folder
from glora_jax.training.loop import TrainState

log = logging.getLogger(__name__)

MOST_KEPT = 2
KIND = 'training states'
# What orbax, JSON and tensorstore raise for damaged files. Tensorstore's are all ValueErrors, also
# if the system refuses to read, which the status that they begin with tells apart.
_OF_DAMAGE = (ValueError, LookupError, AttributeError, TypeError, FileNotFoundError)
_OF_THE_SYSTEM = re.compile('(?!DATA_LOSS|NOT_FOUND|OUT_OF_RANGE)[A-Z_]+: ')
_CHECKSUM_MULTIPLIER = 0x2C1B3C6D


class TrainingCheckpoints:
  """The states of one training run, or of several side by side, in a folder.

  The newest state that can be read is where training goes on. Every state is saved with a checksum:
  orbax does not notice when the numbers in its files have changed.

  Args:
    folder: path of the folder; it is made where it is missing.

  Raises:
    OSError: the folder cannot be written.
    ValueError: a later version wrote the states in it.

  Example:
    >>> import tempfile
    >>> state = TrainState({'slope': jnp.ones(1)}, opt_state=(), step=7)
    >>> with tempfile.TemporaryDirectory() as folder, TrainingCheckpoints(folder) as checkpoints:
    ...   checkpoints.save(state)
    ...   checkpoints.wait()
    ...   restored = checkpoints.latest(template=state)
    >>> restored.step
    7
  """

  def __init__(self, folder: Path):
    self._folder = os.path.abspath(folder)
    options = ocp.CheckpointManagerOptions(
      max_to_keep=MOST_KEPT, create=True, cleanup_tmp_directories=True
    )
    check_folder(self._folder, KIND)  # of a later version orbax might read something else
    with self._explain_failures():
      # Without it nobody knows the shapes of saved states.
      handler = ocp.StandardCheckpointHandler()
      self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handler)

  def __enter__(self) -> TrainingCheckpoints:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    try:
      self.wait()
      with self._explain_failures():
        self._manager.close()
    except OSError:
      if kind is None:  # else what went wrong first is what matters
        raise

  def latest(self, template: TrainState) -> TrainState | None:
    """The newest state that is whole.

    A newer state that is damaged (a wrong checksum; a file that is missing or cannot be parsed) is
    renamed to `STEP.damaged`, with a warning. After any other error all files stay as they are.

    Args:
      template: a state with the structure, shapes and types that the result shall have.

    Returns:
      The state; None where there is no state yet.

    Raises:
      ValueError: all states are damaged; they stay where they are.
      OSError: the processes read different states.
    """
    state, read, damaged = None, -1, {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        state, read = self._restore(step, template), step
        break
      except Exception as error:
        self._require_damage(step, error)
        damaged[step] = _reason(error)
    if damaged and state is None:
      newest, reason = next(iter(damaged.items()))
      raise UserError(
        f'None of the training states in {self._folder} can be read (steps '
        f'{", ".join(map(str, damaged))}; {newest}: {reason}). Remove that folder to start this '
        'training again.'
      )
    if meshes.on_any(read != meshes.least_of_all(read)):
      raise OSError(
        f'The processes read different training states in {self._folder} (this one: step {read}); '
        'start the same command again.'
      )
    for step, reason in damaged.items():
      self._set_aside(step, reason)
    return state

  def _require_damage(self, step: int, error: Exception) -> None:
    """Raises the error, or that of reading a file of the state, unless a file is damaged."""
    # Orbax says that a file is missing if it cannot be reached, and tensorstore raises a
    # ValueError.
    for folder, _, names in os.walk(self._folder_of(step), onerror=_raise):
      for name in names:
        open(os.path.join(folder, name), 'rb').close()
    cause: BaseException = error
    while cause.__cause__ is not None:
      cause = cause.__cause__
    if not isinstance(cause, _OF_DAMAGE) or _OF_THE_SYSTEM.match(str(cause)):
      raise error

  def _set_aside(self, step: int, reason: str) -> None:
    """Renames a damaged state, and says so."""
    with meshes.primary_first('damaged'):
      if meshes.primary():
        folder = self._folder_of(step)
        names = (f'{folder}.damaged{number or ""}' for number in itertools.count())
        aside = next(name for name in names if not os.path.lexists(name))
        with self._explain_failures():
          os.rename(folder, aside)
        log.warning(
          'The training state of step %d in %s is damaged (%s); kept it as %s and continuing from '
          'the state before it.',
          step,
          self._folder,
          reason,
          os.path.basename(aside),
        )
    self._manager.reload()

  def _folder_of(self, step: int) -> str:
    return os.path.join(self._folder, str(step))

  def _restore(self, step: int, template: TrainState) -> TrainState:
    wanted = _saved(template)
    args = ocp.args.StandardRestore((wanted, _checksum(wanted)))
    restored, checksum = self._manager.restore(step, args=args)
    if int(_checksum(restored)) != int(checksum):
      raise ValueError('its numbers differ from those that were saved')
    trainable, opt_state, *steps = restored
    return TrainState(trainable, opt_state, np.asarray(steps[0]) if steps else step)

  def save(self, state: TrainState) -> None:
    """Saves a state in the background; where its step is saved already, nothing happens.

    Args:
      state: the state; its arrays may be reused as soon as this returns.

    Raises:
      OSError: this state, or the one before it, cannot be written.
    """
    step = int(np.max(state.step))
    if step == self._manager.latest_step():
      return
    # A copy, since the training loop reuses the memory of a state while this is being written.
    tree = jax.tree.map(jnp.copy, _saved(state))
    with self._explain_failures():
      if meshes.primary() and not os.path.exists(os.path.join(self._folder, FORMAT_FILE)):
        stamp_folder(self._folder, KIND)
      self._manager.save(step, args=ocp.args.StandardSave((tree, _checksum(tree))))

  def wait(self) -> None:
    """Returns when what is being saved is on disk.

    Raises:
      OSError: it cannot be written.
    """
    with self._explain_failures():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _explain_failures(self) -> Iterator[None]:
    """Makes an OSError of one sentence of whatever goes wrong while writing."""
    try:
      yield
    except Exception as error:  # from orbax's threads, of many types
      raise OSError(
        f'The training state cannot be written to {self._folder} ({_reason(error)}). What was '
        'saved before is kept; free some space or fix the permissions, and start the same command '
        'again.'
      ) from error


def _saved(state: TrainState) -> tuple[Any, ...]:
  """What is written of a state: the step of a single run is its folder's name."""
  return tuple(state) if np.ndim(state.step) else state[:2]


def _checksum(tree: Any) -> np.ndarray:
  """A number, uint32 [], that depends on every bit of a tree of arrays.

  It is a sum that wraps around, so the same however the arrays are sharded.
  """
  sums = np.asarray([_mixed_sum(leaf) for leaf in jax.tree.leaves(tree)], np.uint32)
  factors = 2 * np.arange(len(sums), dtype=np.uint32) + 1
  return np.asarray(np.sum(factors * sums, dtype=np.uint32))


@jax.jit  # of a leaf, since states of different structures have many shapes in common
def _mixed_sum(leaf: jax.Array) -> jax.Array:
  if leaf.dtype == bool:
    bits = leaf.astype(jnp.uint32)
  else:  # numbers of more bits become several
    width = 8 * min(leaf.dtype.itemsize, 4)
    bits = jax.lax.bitcast_convert_type(leaf, f'uint{width}').astype(jnp.uint32)
  # Mixed, or changes of two numbers could cancel out.
  mixed = (bits ^ bits >> 15) * jnp.uint32(_CHECKSUM_MULTIPLIER)
  mixed ^= mixed >> 12
  return jnp.sum(mixed, dtype=jnp.uint32)


def _raise(error: OSError) -> None:
  raise error


def _reason(error: Exception) -> str:
  """The system's words if it refused, else the first of a library's."""
  refusals = map(os.strerror, errno.errorcode)
  return next((refusal for refusal in refusals if refusal in str(error)), first_line(error))
