"""What is reported of compiled programs, and that nothing is compiled twice for it."""

import functools
import gc
import itertools
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from glora_jax.compiling import keep_last, memory_of, reported, reporting_to


class Owner:
  """An object that keeps a result."""

  def method(self):
    """Its results are kept as well."""


@keep_last
def result_of(owner, argument):
  return [owner, argument]


@pytest.fixture
def compiled():
  """Names of the functions that the compiler was given, as long as a test runs."""
  names = []

  def note(event, seconds, **values):
    if event.endswith('backend_compile_duration'):
      names.append(values['fun_name'])

  jax.monitoring.register_event_duration_secs_listener(note)
  yield names
  jax.monitoring.unregister_event_duration_listener(note)


def make_steps():
  """A function like that of a training: its state is donated, its step is a Python number."""

  @functools.partial(jax.jit, donate_argnums=0)
  def steps(state, step, images):
    return state + images.sum(0), step + len(images)

  return steps


def test_a_program_is_compiled_once_and_reported_for_each_shape(compiled):
  found = []
  steps, many = reported('steps', make_steps()), np.ones((8, 500), np.float32)
  with reporting_to(lambda *report: found.append(report)):
    state, step = jnp.zeros(500), 0
    for images in (many, many, many[:2], many[:2]):
      state, step = steps(state, step, images)
  assert_array_equal(state, np.full(500, 20))
  assert step == 20
  assert [name for name, _ in found] == ['steps', 'steps']
  arguments = [compilation['memory']['arguments'] for _, compilation in found]
  assert arguments == [4 * (500 + 1 + number * 500) for number in (8, 2)]
  assert all(compilation['memory']['outputs'] < 500 for _, compilation in found), 'donated'
  assert len([name for name in compiled if 'steps' in name]) == 2


def test_a_backend_may_not_know_the_memory(monkeypatch):
  monkeypatch.setattr(jax.stages.Compiled, 'memory_analysis', lambda self: None)
  assert memory_of(jax.jit(jnp.sin).lower(1.0).compile()) == {}


@pytest.mark.parametrize('lookup', range(1, 8))
def test_another_thread_may_replace_the_result_that_is_kept(lookup):
  owner, lookups = Owner(), itertools.count(1)

  class Interrupted:
    """Another call comes in between while this argument is looked up."""

    def __hash__(self):
      if next(lookups) == lookup:
        result_of(owner, 'another')
      return 0

  argument = Interrupted()
  for _ in range(2):
    assert result_of(owner, argument) == [owner, argument]


def test_results_for_a_method_are_freed_with_its_object():
  owner = Owner()
  assert result_of(owner.method, 1) is result_of(owner.method, 1)
  freed = weakref.ref(owner)
  del owner
  gc.collect()
  assert freed() is None
