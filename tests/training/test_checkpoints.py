"""Training states on disk: what comes back, whatever happened to the files."""

import contextlib
import errno
import os
import resource
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from disks import small_disk
from numpy.testing import assert_array_equal
from trees import randomized

from glora_jax.training.checkpoints import TrainingCheckpoints
from glora_jax.training.loop import TrainState, initial_state


def test_training_states_round_trip_and_the_newest_counts(tmp_path):
  trainable = {'a': jnp.arange(3.0), 'b': {'c': jnp.ones((2, 2), jnp.int32)}}
  optimizer = optax.adamw(0.1)
  state = TrainState(trainable, optimizer.init(trainable), 5)
  with TrainingCheckpoints(tmp_path / 'states') as checkpoints:
    assert checkpoints.latest(state) is None
    checkpoints.save(state)
    checkpoints.save(state._replace(step=9, trainable=randomized(trainable)))
    checkpoints.save(state._replace(step=9))  # an equal step is left alone
  with TrainingCheckpoints(tmp_path / 'states') as checkpoints:
    restored = checkpoints.latest(state)
  assert restored.step == 9
  jax.tree.map(
    assert_array_equal, restored, state._replace(step=9, trainable=randomized(trainable))
  )


def test_states_of_runs_side_by_side_round_trip_each_with_its_step(tmp_path):
  starts = {'a': jnp.arange(6.0).reshape(2, 3)}
  state = initial_state(starts, optax.adamw(0.1), runs=2)
  with TrainingCheckpoints(tmp_path) as checkpoints:
    for steps in ([5, 5], [5, 9]):  # the first has stopped
      checkpoints.save(state._replace(step=np.array(steps)))
  with TrainingCheckpoints(tmp_path) as checkpoints:
    restored = checkpoints.latest(state)
  chex.assert_trees_all_equal(restored, state._replace(step=np.array([5, 9])))


def a_state(step):
  trainable = {
    'a': jax.random.normal(jax.random.key(step), (16, 12)),
    'b': {'c': jnp.arange(7.0) + step},
  }
  return TrainState(trainable, optax.adamw(0.1).init(trainable), step)


@pytest.fixture(scope='module')
def saved_states(tmp_path_factory):
  """A folder with the states 5 and 9."""
  folder = tmp_path_factory.mktemp('states') / 'states'
  with TrainingCheckpoints(folder) as checkpoints:
    for step in (5, 9):
      checkpoints.save(a_state(step))
  return folder


def garbled(content):
  middle = len(content) // 2
  return (
    content[:middle]
    + bytes(byte ^ 0x5A for byte in content[middle : middle + 3])
    + content[middle + 3 :]
  )


def truncated(content):
  return content[: len(content) // 2]


def files_in(folder):
  """The bytes of every file, by its path in the folder."""
  return {
    path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()
  }


@pytest.mark.parametrize(
  'damage',
  [garbled, truncated, None],
  ids=['garbled', 'truncated', 'gone'],
)
def test_whatever_file_is_damaged_a_state_that_was_saved_comes_back_and_all_is_kept(
  saved_states, tmp_path, damage, caplog
):
  """Every file of the newest state in turn; what comes back is the same to the bit."""
  fallen_back = 0
  for number, original in enumerate(
    sorted(path for path in (saved_states / '9').rglob('*') if path.is_file())
  ):
    folder = shutil.copytree(saved_states, tmp_path / str(number))
    path = folder / original.relative_to(saved_states)
    path.unlink() if damage is None else path.write_bytes(damage(original.read_bytes()))
    caplog.clear()
    before = files_in(folder / '9')
    with TrainingCheckpoints(folder) as checkpoints:
      state = checkpoints.latest(a_state(0))
      chex.assert_trees_all_equal(state, a_state(state.step))
      if state.step == 9:  # orbax has some things twice
        continue
      fallen_back += 1
      assert state.step == 5
      assert f'{folder}/9 is damaged' in caplog.text
      checkpoints.save(a_state(9))  # training comes there again
    with TrainingCheckpoints(folder) as checkpoints:
      chex.assert_trees_all_equal(checkpoints.latest(a_state(0)), a_state(9))
    assert files_in(folder / '9.damaged') == before
  assert fallen_back >= 2  # the numbers themselves, and what says where they are


def test_a_state_that_is_damaged_again_takes_no_other_ones_place(saved_states, tmp_path):
  folder = shutil.copytree(saved_states, tmp_path / 'states')
  for _ in range(2):
    (folder / '9/default/manifest.ocdbt').write_bytes(b'')
    with TrainingCheckpoints(folder) as checkpoints:
      assert checkpoints.latest(a_state(0)).step == 5
      checkpoints.save(a_state(9))
  assert len([*folder.glob('9.damaged*')]) == 2


@contextlib.contextmanager
def no_more_files():
  """No file can be opened."""
  limits = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@contextlib.contextmanager
def endless_link(path):
  """A link to itself in the place of a file or folder: neither damaged nor missing."""
  aside = path.rename(path.with_name('aside'))
  path.symlink_to(path)
  yield
  path.unlink()
  aside.rename(path)


@pytest.mark.parametrize(
  'refusing',
  [
    lambda state: no_more_files(),
    lambda state: endless_link(state / 'default/_METADATA'),  # read in Python
    lambda state: endless_link(state / 'default/manifest.ocdbt'),  # read by tensorstore
    lambda state: endless_link(state / 'default'),  # missing, says orbax
    lambda state: endless_link(state),
  ],
)
def test_a_state_that_the_system_does_not_let_read_is_not_damaged(saved_states, tmp_path, refusing):
  folder = shutil.copytree(saved_states, tmp_path / 'states')
  before = files_in(folder)
  with TrainingCheckpoints(folder) as checkpoints:
    with refusing(folder / '9'), pytest.raises(OSError) as caught:
      checkpoints.latest(a_state(0))
    assert any(os.strerror(n) in str(caught.value) for n in (errno.EMFILE, errno.ELOOP))
    assert 'damaged' not in str(caught.value)
    assert files_in(folder) == before
    chex.assert_trees_all_equal(checkpoints.latest(a_state(0)), a_state(9))


def test_states_that_are_all_damaged_are_one_sentence_and_stay_where_they_are(
  saved_states, tmp_path
):
  folder = shutil.copytree(saved_states, tmp_path / 'states')
  for path in folder.rglob('manifest.ocdbt'):
    path.write_bytes(b'')
  before = sorted(folder.rglob('*'))
  with (
    TrainingCheckpoints(folder) as checkpoints,
    pytest.raises(
      ValueError,
      match=r'All training states in .*states are damaged \(\{9: .* 5: .*remove that folder',
    ),
  ):
    checkpoints.latest(a_state(0))
  assert sorted(folder.rglob('*')) == before


def large_state(step):
  return TrainState(jax.random.normal(jax.random.key(step), (400, 400)), (), step)


def test_a_full_disk_is_a_sentence_that_comes_from_the_background_and_older_states_stay(tmp_path):
  with small_disk(tmp_path, '200k') as remount:
    with TrainingCheckpoints(tmp_path / 'states') as checkpoints:
      checkpoints.save(a_state(5))
    with (
      pytest.raises(
        OSError,
        match=r'The training state cannot be written to .*states '
        r'\(No space left on device\)\. .*free some space',
      ),
      TrainingCheckpoints(tmp_path / 'states') as checkpoints,
    ):
      checkpoints.save(large_state(9))
    with TrainingCheckpoints(tmp_path / 'states') as checkpoints:
      chex.assert_trees_all_equal(checkpoints.latest(a_state(0)), a_state(5))
    remount('size=8m')
    with TrainingCheckpoints(tmp_path / 'states') as checkpoints:
      checkpoints.save(large_state(9))
    with TrainingCheckpoints(tmp_path / 'states') as checkpoints:
      jax.tree.map(assert_array_equal, checkpoints.latest(large_state(0)), large_state(9))
