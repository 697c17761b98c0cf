"""A run that is stopped, killed or corrected ends in the very result of the undisturbed one."""

import re
import signal

import pytest
from tiny_runs import contents, start_command, wait_for

from glora_jax import main


@pytest.fixture(scope='module')
def undisturbed(finished_run):
  """What the undisturbed run has left."""
  workdir, _ = finished_run
  return contents(workdir)


@pytest.mark.full
def test_a_command_that_is_stopped_and_killed_resumes_to_the_undisturbed_result(
  run_config, undisturbed, tmp_path
):
  """SIGTERM as soon as the supernet has begun, kill -9 when the search has; a third start ends."""
  workdir = tmp_path / 'run'
  process = start_command(run_config, workdir)
  wait_for(process, workdir / 'supernet')
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate()
  assert process.returncode == main.STOPPED == 75, errors
  assert re.search(r'Stopped supernet at step (50|100|150)\. Everything is saved in', errors)
  assert 'Traceback' not in errors
  process = start_command(run_config, workdir)
  wait_for(process, workdir / 'search/archive.safetensors')
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  process = start_command(run_config, workdir)
  printed, errors = process.communicate()
  assert process.returncode == 0, errors
  assert 'searched, finetuned' in printed
  assert contents(workdir) == undisturbed
