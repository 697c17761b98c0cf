"""Training states of a run in its middle, some of whose files are damaged."""

import functools
import os
import random
import re
import shutil
import stat
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.fuzz.oracle import Case, Fault, same
from benchmarks.fuzz.place import Place
from benchmarks.fuzz.spoiling import spoil_bytes, spoil_json
from glora_jax.training.checkpoints import TrainingCheckpoints
from glora_jax.training.loop import TrainState

STEPS = (5, 9)
# What lies in the place of a file: a FIFO, or a link to a device, to nowhere or to another file.
TARGETS = {'fifo': '', 'device': '/dev/zero', 'nowhere': '/no/file', 'other': '/etc/hostname'}


def training_states(rng: random.Random, place: Place) -> Case:
  """The newest state that is whole, from which training goes on."""
  damaged = place.path('given', 'states')
  shutil.copytree(_saved(place.path('shared')), damaged)
  done = [_spoil(rng, damaged) for _ in range(rng.choice([0, 1, 1, 1, 2, 5]))]
  folder = os.path.join(place.workdir, 'states')
  _copy_tree(damaged, folder)

  def attempt() -> list:
    shutil.rmtree(folder)
    _copy_tree(damaged, folder)
    with TrainingCheckpoints(folder) as checkpoints:
      state = checkpoints.latest(_state(0))
      if state is None:
        raise Fault('all states were overlooked')
      checkpoints.save(_state(STEPS[-1] + 1))
    return [state.step, state.trainable, state.opt_state]

  def check(result: Any) -> None:
    expected = _state(result[0])
    if result[0] not in STEPS or not same(result[1:], [expected.trainable, expected.opt_state]):
      raise Fault(f'what was read of step {result[0]} is not what was saved')
    with TrainingCheckpoints(folder) as checkpoints:
      gone_on = checkpoints.latest(_state(0))
    if gone_on is None or gone_on.step != STEPS[-1] + 1:
      raise Fault('a state that was saved afterwards is not the newest')

  return Case(f'states {done}', attempt, check, limit=60)


def _copy_tree(source: str, target: str) -> None:
  """Copies a folder with the links and FIFOs in it."""
  shutil.copytree(source, target, symlinks=True, copy_function=_copy)


def _copy(source: str, target: str) -> str:
  if stat.S_ISFIFO(os.lstat(source).st_mode):
    os.mkfifo(target)
    return target
  return shutil.copy2(source, target, follow_symlinks=False)


@functools.cache
def _saved(shared: str) -> str:
  """The folder of states as a run leaves them, written once."""
  folder = os.path.join(shared, 'states')
  with TrainingCheckpoints(folder) as checkpoints:
    for step in STEPS:
      checkpoints.save(_state(step))
  return folder


def _state(step: int) -> TrainState:
  numbers = np.random.default_rng(step).normal(size=(4, 3)).astype(np.float32)
  trainable = {'head': {'kernel': jnp.asarray(numbers), 'bias': jnp.arange(3) + step}}
  return TrainState(trainable, {'trace': jnp.asarray(numbers[0])}, step)


def _spoil(rng: random.Random, folder: str) -> str:
  """Damages or removes a file, or puts something that is none in its place; what was done."""
  files = [os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names]
  files = [file for file in files if not os.path.islink(file) and os.path.isfile(file)]
  # Names that orbax draws at random decide nothing.
  places = {file: re.sub('[0-9a-f]{32}', '*', os.path.relpath(file, folder)) for file in files}
  path = rng.choice(sorted(files, key=lambda file: (places[file], os.path.getsize(file))))
  if rng.random() < 0.15 and len(files) > 1:
    os.remove(path)
    return f'without {places[path]}'
  if rng.random() < 0.15:
    os.remove(path)
    kind = rng.choice(list(TARGETS))
    if kind == 'fifo':
      os.mkfifo(path)
    else:
      os.symlink(TARGETS[kind], path)
    return f'{kind} in place of {places[path]}'
  spoil = spoil_json if path.endswith('format.json') and rng.random() < 0.5 else spoil_bytes
  spoil(rng, path)
  return places[path]
