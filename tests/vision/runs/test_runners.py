"""Runners: what this process does with jobs, and command lines that no runner can do."""

import contextlib
import importlib.util

import pytest

from glora_jax.vision.runs import runners
from glora_jax.vision.runs.context import never
from glora_jax.vision.runs.workdir import Stopped


def test_this_process_does_jobs_in_order_each_when_its_outcome_is_asked_for():
  done = []
  jobs = {name: lambda stop, name=name: done.append(name) or 1 / (name != 'a') for name in 'cab'}
  for name, outcome in runners.in_this_process(jobs, 'runs', never):
    assert name not in done
    with pytest.raises(ZeroDivisionError) if name == 'a' else contextlib.nullcontext():
      outcome()
  assert done == ['c', 'a', 'b']


def test_a_stop_comes_between_jobs_and_reaches_the_one_that_runs():
  asked = []
  jobs = {'first': lambda stop: asked.append(1) or stop(), 'second': lambda stop: None}
  outcomes = runners.in_this_process(jobs, 'runs/x', lambda: bool(asked))
  assert next(outcomes)[1]() is True
  with pytest.raises(Stopped, match=r'Stopped before second\. Everything is saved in runs/x'):
    next(outcomes)


def test_without_ray_the_sentence_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ImportError, match='pip install'):
    runners.named('ray')
