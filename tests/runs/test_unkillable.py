"""A run that is stopped, killed or corrected ends in the very result of the undisturbed one."""

import logging
import os
import re
import signal
import sys

import pytest
from tiny_runs import all_fields, changed, contents, overrides, start_command, wait_for

from glora_jax.runs import command_line, experiment
from glora_jax.runs.config import check_config
from glora_jax.runs.workdir import Stopped


@pytest.fixture(scope='module')
def undisturbed(finished_run):
  """What the undisturbed run has left."""
  workdir, _ = finished_run
  return contents(workdir)


def start(config, workdir):
  """The command, with the config's fields as flags."""
  return start_command('configs/quickstart.py', workdir, overrides(all_fields(config)))


@pytest.mark.slow
def test_a_command_that_is_stopped_and_killed_resumes_to_the_undisturbed_result(
  run_config, undisturbed, tmp_path
):
  """SIGTERM as soon as the supernet has begun, kill -9 when the search has; a third start ends."""
  workdir = tmp_path / 'run'
  process = start(run_config, workdir)
  wait_for(process, workdir / 'supernet')
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate()
  assert process.returncode == command_line.STOPPED == 75, errors
  assert re.search(r'Stopped supernet at step (50|100|150)\. Everything is saved in', errors)
  assert 'Traceback' not in errors
  process = start(run_config, workdir)
  wait_for(process, workdir / 'search/archive.npz')
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  process = start(run_config, workdir)
  printed, errors = process.communicate()
  assert process.returncode == 0, errors
  assert 'searched, finetuned' in printed
  assert contents(workdir) == undisturbed


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
  assert 'search.mutations was 1 and is now 2.' in caplog.text
  assert contents(workdir) == undisturbed


def test_events_without_their_package_are_explained(run_config, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  without = [path for path in sys.path if not os.path.isdir(os.path.join(path, 'tensorboardX'))]
  monkeypatch.setattr(sys, 'path', without)
  with pytest.raises(ImportError, match='pip install tensorboardX'):
    check_config(changed(run_config, watch__tensorboard=True))
