"""Training states on disk: what comes back, whatever happened to the files."""

import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from disks import small_disk
from trees import randomized

from glora_jax.training.checkpoints import TrainingCheckpoints
from glora_jax.training.loop import TrainState, fit, initial_state
from glora_jax.training.recipe import Recipe


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
    np.testing.assert_array_equal, restored, state._replace(step=9, trainable=randomized(trainable))
  )


def test_states_of_runs_side_by_side_round_trip_each_with_its_step(tmp_path):
  starts = {'a': jnp.arange(6.0).reshape(2, 3)}
  state = initial_state(starts, optax.adamw(0.1), runs=2)
  with TrainingCheckpoints(tmp_path) as checkpoints:
    for steps in ([5, 5], [5, 9]):  # the first has stopped
      checkpoints.save(state._replace(step=np.array(steps)))
    checkpoints.wait()
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


@pytest.mark.parametrize(
  'damage',
  [garbled, lambda content: content[: len(content) // 2], None],
  ids=['garbled', 'cut off', 'gone'],
)
def test_whatever_file_is_damaged_a_state_that_was_saved_comes_back(
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
    with TrainingCheckpoints(folder) as checkpoints:
      state = checkpoints.latest(a_state(0))
      chex.assert_trees_all_equal(state, a_state(state.step))
      if state.step == 9:  # orbax has some things twice
        continue
      fallen_back += 1
      assert state.step == 5
      assert f'step 9 in {folder} is damaged' in caplog.text
      checkpoints.save(a_state(9))  # training comes there again
    with TrainingCheckpoints(folder) as checkpoints:
      chex.assert_trees_all_equal(checkpoints.latest(a_state(0)), a_state(9))
  assert fallen_back >= 2  # the numbers themselves, and what says where they are


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
      match=r'None of the training states in .*states can be read '
      r'\(steps 9, 5; 9: .*Remove that folder',
    ),
  ):
    checkpoints.latest(a_state(0))
  assert sorted(folder.rglob('*')) == before


RECIPE = Recipe(epochs=6, batch_size=8, warmup_epochs=1)
INPUTS = jax.random.normal(jax.random.key(0), (32, 5))


def noisy_loss(w, frozen, batch, key):
  x, y = batch
  noise = jnp.mean(w * jax.random.normal(key, w.shape))
  return jnp.mean((x @ w - y) ** 2) + noise, {}


def train(**options):
  return fit(
    noisy_loss,
    jnp.zeros(5),
    {},
    INPUTS,
    jnp.arange(32),
    RECIPE,
    jax.random.key(1),
    steps_per_dispatch=4,
    progress=False,
    **options,
  )


def test_training_goes_on_from_the_state_before_a_damaged_one_to_the_same_bits(tmp_path):
  """Every dispatch is saved; the newest state is damaged after a break."""
  template = TrainState(jnp.zeros(5), RECIPE.optimizer(32).init(jnp.zeros(5)), 0)
  whole = train()
  with TrainingCheckpoints(tmp_path) as checkpoints:
    train(stop_epoch=3, on_dispatch=lambda state, _: checkpoints.save(state))
  for path in (tmp_path / '12').rglob('d/*'):
    path.write_bytes(garbled(path.read_bytes()))
  with TrainingCheckpoints(tmp_path) as checkpoints:
    state = checkpoints.latest(template)
    assert state.step == 8
    resumed = train(state=state, on_dispatch=lambda state, _: checkpoints.save(state))
  chex.assert_trees_all_equal(resumed, whole)
  with TrainingCheckpoints(tmp_path) as checkpoints:
    chex.assert_trees_all_equal(checkpoints.latest(template), whole)


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
        r'\(No space left on device\)\. .*make room',
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
      jax.tree.map(
        np.testing.assert_array_equal, checkpoints.latest(large_state(0)), large_state(9)
      )


def test_states_of_a_later_version_are_refused(tmp_path):
  state = a_state(7)
  with TrainingCheckpoints(tmp_path) as checkpoints:
    checkpoints.save(state)
  later = {'glora_jax': {'kind': 'training states', 'format': 2}}
  (tmp_path / 'format.json').write_text(json.dumps(later))
  with pytest.raises(ValueError, match=r'format.json was written by a later version .*format 2 of'):
    TrainingCheckpoints(tmp_path)
