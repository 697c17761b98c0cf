"""Training states on disk: what comes back, whatever happened to the files."""

import contextlib
import errno
import itertools
import os
import resource
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from comparing import assert_trees_equal
from limiting import limited
from places import digests

from glora_jax import files
from glora_jax.errors import UserError
from glora_jax.training.checkpoints import KIND, TrainingCheckpoints
from glora_jax.training.loop import TrainState


def a_state(step, side=100):
  trainable = {
    'a': jax.random.normal(jax.random.key(np.max(step)), (side, side)),
    'b': {'c': jnp.arange(7) + step},
  }
  return TrainState(trainable, optax.adamw(0.1).init(trainable), step)


def save(folder, *states):
  with TrainingCheckpoints(folder) as checkpoints:
    for state in states:
      checkpoints.save(state)


def latest(folder, template):
  with TrainingCheckpoints(folder) as checkpoints:
    return checkpoints.latest(template)


def test_training_states_round_trip_and_the_newest_counts(tmp_path):
  assert latest(tmp_path, a_state(0)) is None
  save(tmp_path, a_state(5), a_state(9), a_state(5)._replace(step=9))  # which is there already
  restored = latest(tmp_path, a_state(0))
  assert_trees_equal(restored, a_state(9))
  assert restored.step == 9
  together = a_state(np.array([12, 12, 12, 12, 12, 12, 12]))._replace(step=np.array([12, 10]))
  save(tmp_path, together)  # of runs side by side, of which one has stopped
  assert_trees_equal(latest(tmp_path, together), together)


def test_states_of_a_later_version_are_refused(tmp_path, monkeypatch):
  with monkeypatch.context() as later:
    later.setattr(files, 'FORMATS', {KIND: 2})
    save(tmp_path, a_state(5))
  with pytest.raises(files.LaterVersionError, match=r'by a later version .*format 2 of'):
    latest(tmp_path, a_state(0))


@pytest.fixture(scope='module')
def saved_states(tmp_path_factory):
  """A folder with the states 5 and 9."""
  folder = tmp_path_factory.mktemp('states') / 'states'
  save(folder, a_state(5), a_state(9))
  return folder


def garbled(content):
  middle = len(content) // 2
  return content[:middle] + bytes([content[middle] ^ 0x5A]) + content[middle + 1 :]


@pytest.mark.parametrize('damage', [garbled, None], ids=['garbled', 'gone'])
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
    before = digests(folder / '9')
    with TrainingCheckpoints(folder) as checkpoints:
      state = checkpoints.latest(a_state(0))
      assert_trees_equal(state, a_state(state.step))
      if state.step == 9:  # orbax has some things twice
        continue
      fallen_back += 1
      assert state.step == 5
      assert f'{folder}/9 is damaged' in caplog.text
      checkpoints.save(a_state(9))  # training comes there again
    assert_trees_equal(latest(folder, a_state(0)), a_state(9))
    assert digests(folder / '9.damaged') == before
  assert fallen_back >= 2  # the numbers themselves, and what says where they are


def test_a_state_that_is_damaged_again_takes_no_other_ones_place(saved_states, tmp_path):
  folder = shutil.copytree(saved_states, tmp_path / 'states')
  for _ in range(2):
    (folder / '9/default/manifest.ocdbt').write_bytes(b'')
    assert latest(folder, a_state(0)).step == 5
    save(folder, a_state(9))
  assert len([*folder.glob('9.damaged*')]) == 2


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
    lambda state: limited(resource.RLIMIT_NOFILE, 3),
    lambda state: endless_link(state / 'default/_METADATA'),  # read in Python
    lambda state: endless_link(state / 'default/manifest.ocdbt'),  # read by tensorstore
    lambda state: endless_link(state / 'default'),  # missing, says orbax
  ],
)
def test_a_state_that_the_system_does_not_let_read_is_not_damaged(saved_states, tmp_path, refusing):
  folder = shutil.copytree(saved_states, tmp_path / 'states')
  before = digests(folder)
  with TrainingCheckpoints(folder) as checkpoints:
    with refusing(folder / '9'), pytest.raises(OSError) as caught:
      checkpoints.latest(a_state(0))
    assert any(os.strerror(n) in str(caught.value) for n in (errno.EMFILE, errno.ELOOP))
    assert 'damaged' not in str(caught.value)
    assert digests(folder) == before
    assert_trees_equal(checkpoints.latest(a_state(0)), a_state(9))


def test_states_that_are_all_damaged_are_one_sentence_and_stay_where_they_are(
  saved_states, tmp_path
):
  folder = shutil.copytree(saved_states, tmp_path / 'states')
  for path in folder.rglob('manifest.ocdbt'):
    path.write_bytes(b'')
  before = sorted(folder.rglob('*'))
  sentence = r'All training states in .*states are damaged \(\{9: .* 5: .*remove that folder'
  with pytest.raises(ValueError, match=sentence):
    latest(folder, a_state(0))
  assert sorted(folder.rglob('*')) == before


TRAINABLE = a_state(0).trainable


@pytest.mark.parametrize(
  'template, difference',
  [
    (
      a_state(0)._replace(opt_state=optax.sgd(0.1, momentum=0.9).init(TRAINABLE)),
      r'missing: opt_state/0/trace/a, opt_state/0/trace/b/c; unexpected: opt_state/0/count, ',
    ),
    (a_state(0, side=13), r'trainable/a is \(100, 100\) and should be \(13, 13\)'),
    (
      a_state(0)._replace(trainable={**TRAINABLE, 'a': TRAINABLE['a'].astype(jnp.bfloat16)}),
      'trainable/a is float32 and should be bfloat16',
    ),
  ],
  ids=['optimizer', 'shape', 'type'],
)
def test_states_of_another_training_are_not_called_damaged(saved_states, template, difference):
  before = digests(saved_states)
  sentence = rf'of another training \(.*{difference}.*move that folder away'
  with pytest.raises(UserError, match=sentence) as caught:
    latest(saved_states, template)
  assert 'damaged' not in str(caught.value)
  assert digests(saved_states) == before


def test_what_an_interrupted_save_left_is_removed_while_its_threads_still_write(tmp_path):
  partial = tmp_path / f'9{ocp.utils.TMP_DIR_SUFFIX}' / 'default'
  partial.mkdir(parents=True)
  end = time.monotonic() + 0.3

  def write():
    with contextlib.suppress(FileNotFoundError):
      for number in itertools.takewhile(lambda _: time.monotonic() < end, itertools.count()):
        (partial / str(number)).touch()

  writer = threading.Thread(target=write)
  writer.start()
  with TrainingCheckpoints(tmp_path):
    assert not partial.parent.exists()
  writer.join()


def test_a_state_that_cannot_be_written_is_a_sentence_and_older_states_stay(tmp_path):
  folder = tmp_path / 'states'
  save(folder, a_state(5))
  large = a_state(9, side=400)
  sentence = r'cannot be written to .*states \(File too large\)\. .*free some space'
  with limited(resource.RLIMIT_FSIZE, 100_000), pytest.raises(OSError, match=sentence):
    save(folder, large)
  assert_trees_equal(latest(folder, a_state(0)), a_state(5))
  save(folder, a_state(9))
  assert_trees_equal(latest(folder, a_state(0)), a_state(9))
