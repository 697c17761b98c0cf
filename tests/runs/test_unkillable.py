"""A run that is stopped, killed or starved of disk ends in the very result of the undisturbed one.

What happened is said in a sentence.
"""

import contextlib
import logging
import os
import re
import signal
import sys
import time

import pytest
from disks import mounting_is_allowed, small_disk
from label_lists import write_images
from tiny_runs import all_fields, changed, contents, overrides, stages_of, start_command, wait_for

from glora_jax.runs import command_line, experiment, stage
from glora_jax.runs.config import check_config
from glora_jax.runs.workdir import Stopped, claim


@pytest.fixture(scope='module')
def undisturbed(finished_run):
  """What the undisturbed run has left."""
  workdir, _ = finished_run
  return contents(workdir)


def start(config, workdir, before=()):
  """The command, with the config's fields as flags."""
  return start_command('configs/quickstart.py', workdir, overrides(all_fields(config)), before)


@pytest.mark.slow
def test_a_killed_command_resumes_to_the_undisturbed_result(run_config, undisturbed, tmp_path):
  """kill -9 as soon as each stage has begun to write; the last start runs through."""
  workdir = tmp_path / 'killed'
  for trace in ('supernet', 'search/archive.npz'):
    process = start(run_config, workdir)
    wait_for(process, workdir / trace)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
  process = start(run_config, workdir)
  printed, errors = process.communicate()
  assert process.returncode == 0, errors
  assert 'searched, finetuned' in printed
  assert contents(workdir) == undisturbed


@pytest.mark.slow
def test_sigterm_saves_and_ends_a_command_with_its_own_exit_code(run_config, undisturbed, tmp_path):
  workdir = tmp_path / 'run'
  process = start(run_config, workdir)
  wait_for(process, workdir / 'supernet')
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate()
  assert process.returncode == command_line.STOPPED == 75, errors
  assert re.search(r'Stopped supernet at step (50|100|150)\. Everything is saved in', errors)
  assert 'Traceback' not in errors
  experiment.run(run_config, str(workdir))
  assert contents(workdir) == undisturbed


@pytest.mark.full
def test_a_full_disk_ends_a_command_in_a_sentence_and_more_room_goes_on(
  run_config, undisturbed, tmp_path
):
  """It is found by the background thread that saves training states.

  Without leave to mount, files that may not grow stand for it.
  """
  mounting = mounting_is_allowed()
  # 60 blocks of 512 bytes.
  limit = () if mounting else ('sh', '-c', 'ulimit -f 60; exec "$@"', 'sh')
  reason = 'No space left on device' if mounting else 'File too large'
  workdir = tmp_path / 'run'
  with small_disk(tmp_path, '300k') if mounting else contextlib.nullcontext() as remount:
    process = start(run_config, workdir, limit)
    _, errors = process.communicate()
    assert process.returncode == 1, errors
    assert 'Traceback' not in errors
    assert re.search(rf'error: The training state cannot be written to .* \({reason}\)', errors)
    if mounting:
      remount('size=64m', 'ro')
      with pytest.raises(OSError, match=r'cannot be written \(Read-only file system\)'):
        experiment.run(run_config, str(workdir))
      remount('size=64m', 'rw')
    experiment.run(run_config, str(workdir))
    assert contents(workdir) == undisturbed
    if mounting:
      remount('size=64m', 'ro')
      assert experiment.run(run_config, str(workdir))  # a finished run can still be read


@pytest.mark.full
def test_a_command_that_is_stopped_for_a_while_holds_its_workdir_and_goes_on(
  run_config, undisturbed, tmp_path
):
  """kill -STOP, which no process can hear; its clock goes on without it."""
  workdir = tmp_path / 'run'
  process = start(run_config, workdir)
  wait_for(process, workdir / 'supernet')
  process.send_signal(signal.SIGSTOP)
  with pytest.raises(ValueError, match=f'in use by process {process.pid} on '):
    experiment.run(run_config, str(workdir))
  time.sleep(2)
  process.send_signal(signal.SIGCONT)
  _, errors = process.communicate()
  assert process.returncode == 0, errors
  assert contents(workdir) == undisturbed


@pytest.mark.full
def test_a_disk_that_fills_at_any_stage_is_a_sentence_and_loses_nothing(
  run_config, finished_run, undisturbed, tmp_path, monkeypatch
):
  stages, timed, full = stages_of(run_config), stage._timed, set()

  @contextlib.contextmanager
  def filled(context, one, key):
    with timed(context, one, key):
      if one.name in full:
        fill(tmp_path / 'filler')
      yield

  monkeypatch.setattr(stage, '_timed', filled)
  with small_disk(tmp_path, '64m'):
    for one in stages:
      full.add(one.name)
      with pytest.raises(OSError, match='No space left on device'):
        experiment.run(run_config, str(tmp_path / 'run'))
      os.remove(tmp_path / 'filler')
      full.clear()
    experiment.run(run_config, str(tmp_path / 'run'))
    assert contents(tmp_path / 'run') == undisturbed


def fill(path):
  """Writes a file until the disk is full."""
  with contextlib.suppress(OSError), open(path, 'wb', buffering=0) as file:
    for size in (2**16, 1):
      with contextlib.suppress(OSError):
        while True:
          file.write(bytes(size))


@pytest.mark.full
def test_images_that_vanish_from_a_stream_are_named_and_once_they_are_back_the_run_goes_on(
  run_config, tmp_path
):
  photos, away, workdir = tmp_path / 'photos', tmp_path / 'away', tmp_path / 'run'
  write_images(photos, [f'{"ab"[n % 2]}/{n}.png' for n in range(48)])
  config = changed(run_config, task=f'folder:{photos}', data__max_resident=0, presets=())

  def take_away():
    if (workdir / 'supernet').exists() and photos.exists():
      photos.rename(away)
    return False

  with pytest.raises(OSError, match=r'images cannot be decoded: .*\.png: .*No such file'):
    experiment.run(config, str(workdir), stop=take_away)
  away.rename(photos)
  experiment.run(config, str(workdir))
  experiment.run(config, str(tmp_path / 'undisturbed'))
  assert contents(workdir) == contents(tmp_path / 'undisturbed')


@pytest.mark.full
def test_a_field_that_is_corrected_on_the_way_ends_as_if_it_had_been_so_from_the_start(
  run_config, undisturbed, tmp_path, caplog
):
  caplog.set_level(logging.INFO)
  workdir = tmp_path / 'run'
  wrong = changed(run_config, finetune__learning_rate=0.5, search__mutations=1)
  with pytest.raises(Stopped, match='Stopped training/lora at step'):
    experiment.run(wrong, str(workdir), stop=(workdir / 'training' / 'lora').exists)
  experiment.run(run_config, str(workdir))
  assert 'search.mutations was 1 and is now 2; run again: search, finetune, test, ' in caplog.text
  assert contents(workdir) == undisturbed


def test_a_second_run_in_the_same_workdir_is_refused(run_config, tmp_path):
  with (
    claim(tmp_path / 'run'),
    pytest.raises(ValueError, match=rf'in use by process {os.getpid()} on '),
  ):
    experiment.run(run_config, str(tmp_path / 'run'))
  assert os.listdir(tmp_path / 'run') == ['lock']


def test_events_without_their_package_are_explained(run_config, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  without = [path for path in sys.path if not os.path.isdir(os.path.join(path, 'tensorboardX'))]
  monkeypatch.setattr(sys, 'path', without)
  with pytest.raises(ImportError, match='pip install tensorboardX'):
    check_config(changed(run_config, watch__tensorboard=True))
