"""Runners: what this process does with jobs, and command lines that no runner can do."""

import importlib.util

import pytest

from glora_jax import main
from glora_jax.runs import runners
from glora_jax.runs.config import default_config
from glora_jax.runs.lifecycle import never
from glora_jax.runs.workdir import Stopped


def test_this_process_does_jobs_in_order_and_none_before_its_outcome_is_asked_for():
  done = []
  jobs = {name: lambda stop, name=name: done.append(name) or name.upper() for name in 'cab'}
  for name, outcome in runners.ThisProcess().outcomes(jobs, 'runs', never):
    assert name not in done
    assert outcome() == name.upper()
  assert done == ['c', 'a', 'b']


def test_a_failing_job_raises_its_own_error_and_the_others_go_on():
  jobs = {'bad': lambda stop: 1 / 0, 'good': lambda stop: 2}
  outcomes = dict(runners.ThisProcess().outcomes(jobs, 'runs', never))
  with pytest.raises(ZeroDivisionError):
    outcomes['bad']()
  assert outcomes['good']() == 2


def test_a_stop_comes_between_jobs_and_reaches_the_one_that_runs():
  asked = []
  jobs = {'first': lambda stop: asked.append(1) or stop(), 'second': lambda stop: None}
  outcomes = runners.ThisProcess().outcomes(jobs, 'runs/x', lambda: bool(asked))
  assert next(outcomes)[1]() is True
  with pytest.raises(Stopped, match=r'Stopped before second\. Everything is saved in runs/x'):
    next(outcomes)


@pytest.mark.parametrize(
  'name, resources, error, message',
  [
    ('slurm', None, ValueError, r"--runner='slurm' is unknown; it is process, or ray\[:ADDRESS\]"),
    ('process:8', None, ValueError, "--runner='process:8' is unknown"),
    ('process', 'GPU=1', ValueError, r'--runner\.resources=GPU=1 is for --runner ray; give that'),
    ('ray', 'GPU', ValueError, r"--runner\.resources='GPU': 'GPU' is no NAME=NUMBER above 0"),
    ('ray', '', ValueError, "'' is no NAME=NUMBER above 0"),
    ('ray', 'CPU=1,GPU=0', ValueError, "'GPU=0' is no NAME=NUMBER above 0"),
    ('ray', 'CPU=nan', ValueError, "'CPU=nan' is no NAME=NUMBER above 0"),
    ('ray', None, ImportError, r'--runner=ray needs Ray, which is not there; pip install'),
  ],
)
def test_what_no_runner_can_be_is_one_sentence(monkeypatch, name, resources, error, message):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(error, match=message) as caught:
    runners.named(name, resources)
  assert '\n' not in str(caught.value)


def test_a_single_run_needs_no_other_runner(tmp_path):
  with pytest.raises(ValueError, match='for suites and comparisons, and this is a single run'):
    main.dispatch(default_config(), str(tmp_path / 'run'), never, 'ray')
  with pytest.raises(ValueError, match=r'--runner\.resources=GPU=1 is for suites and comparisons'):
    main.dispatch(default_config(), str(tmp_path / 'run'), never, resources='GPU=1')
  assert not list(tmp_path.iterdir())


def test_several_processes_of_one_run_and_ray_are_not_both_possible():
  config = default_config()
  config.distributed.num_processes = 2
  with pytest.raises(ValueError, match=r'config\.distributed makes several processes one run'):
    main.chosen_runner(config, 'ray', None)
