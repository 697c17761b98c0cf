"""What training leaves: its states (orbax), and adapters (safetensors)."""

from __future__ import annotations

import contextlib
import errno
import logging
import os

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from glora_jax.files import Path
from glora_jax.training.loop import TrainState

log = logging.getLogger(__name__)


class TrainingCheckpoints:
  """The states of one training run in a folder; the newest that can be read is where it goes on.

  Every state is saved with a checksum: orbax does not notice when the numbers in its files have changed.

  Example:
    >>> with TrainingCheckpoints(folder) as checkpoints:   # doctest: +SKIP
    ...   state = fit(..., state=checkpoints.latest(template), on_dispatch=lambda state, _: checkpoints.save(state))
  """

  def __init__(self, folder: Path):
    self._folder = os.path.abspath(folder)
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True, cleanup_tmp_directories=True)
    with self._writing():
      self._manager = ocp.CheckpointManager(self._folder, options=options)

  def __enter__(self) -> TrainingCheckpoints:
    return self

  def __exit__(self, kind, *exception) -> None:
    try:
      self.wait()
      with self._writing():
        self._manager.close()
    except OSError:
      if kind is None:  # else what went wrong first is what matters
        raise

  @property
  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def latest(self, template: TrainState) -> TrainState | None:
    """The newest state that is whole, with the structure, shapes and types of the template; None where there is none yet.

    Newer ones that are damaged are named in a warning and removed, since training goes over their steps again.

    Raises:
      ValueError: there are some, and all are damaged.
    """
    damaged = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        tree = self._restore(step, (template.trainable, template.opt_state))
      except Exception as error:  # whatever orbax, tensorstore and JSON make of damaged files
        damaged[step] = _reason(error)
        continue
      for other, reason in damaged.items():
        log.warning(
          'The training state of step %d in %s is damaged (%s); going on from step %d.',
          other,
          self._folder,
          reason,
          step,
        )
        with self._writing():
          self._manager.delete(other)
      return TrainState(*tree, step)
    if damaged:
      step, reason = next(iter(damaged.items()))
      raise ValueError(
        f'None of the training states in {self._folder} can be read (steps {", ".join(map(str, damaged))}; {step}: {reason}). '
        'Remove that folder, and this training starts again from its beginning.'
      )
    return None

  def _restore(self, step, tree):
    tree, saved = self._manager.restore(
      step, args=ocp.args.StandardRestore((tree, _checksum(tree)))
    )
    if int(_checksum(tree)) != int(saved):
      raise ValueError('its numbers are not those that were saved')
    return tree

  def save(self, state: TrainState) -> None:
    """Saves in the background; an equal step that is there already is left alone.

    Raises:
      OSError: this state, or the one before it, cannot be written.
    """
    if state.step != self._manager.latest_step():
      # A copy: the training loop donates the state's own buffers to its next step, while this is still being written.
      copied = jax.tree.map(jnp.copy, (state.trainable, state.opt_state))
      with self._writing():
        self._manager.save(state.step, args=ocp.args.StandardSave((copied, _checksum(copied))))

  def wait(self) -> None:
    """Returns when what is being saved is on disk.

    Raises:
      OSError: it cannot be written.
    """
    with self._writing():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _writing(self):
    try:
      yield
    except Exception as error:  # from orbax's threads, of many types
      raise OSError(
        f'The training state cannot be written to {self._folder} ({_reason(error)}). What was saved before is kept; make '
        'room or give permission, and start the same command again.'
      ) from error


@jax.jit
def _checksum(tree):
  """A number, uint32, that depends on every bit of a tree of arrays; a sum that wraps around, so the same however they are sharded."""
  total = jnp.uint32(0)
  for number, leaf in enumerate(jax.tree.leaves(tree)):
    width = 8 * min(leaf.dtype.itemsize, 4)
    bits = (
      leaf.astype(jnp.uint8)
      if leaf.dtype == bool
      else jax.lax.bitcast_convert_type(leaf, f'uint{width}')
    )
    bits = bits.astype(jnp.uint32)
    bits = (bits ^ bits >> 15) * jnp.uint32(
      0x2C1B3C6D
    )  # or changes of two numbers could cancel out
    total += jnp.uint32(2 * number + 1) * jnp.sum(bits ^ bits >> 12, dtype=jnp.uint32)
  return total


def _reason(error):
  """The system's own words where it is the system that refused, else the beginning of a library's many."""
  text = str(error).strip() or type(error).__name__
  refusals = (
    os.strerror(number)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG)
  )
  return next((words for words in refusals if words in text), text.splitlines()[0][:160])
