"""An attached model is the model: its class, its calls, its state; it trains as NNX models do."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hand_count import by_name
from live_models import SPACE, X, call, fresh, randomize
from numpy.testing import assert_allclose, assert_array_equal
from small_models import LiveMlp

import glora_jax
from glora_jax import nnx as glora_nnx
from glora_jax.nnx import Head, Trained, live


@pytest.fixture(scope='module')
def pair():
  """A model, and the same attached, in evaluation mode, with an adapter that is not zero."""
  model, attached = LiveMlp(), fresh()
  model.eval()
  randomize(attached)
  return model, attached


def test_it_its_submodules_and_other_methods_are_merged(pair):
  model, attached = pair
  folded = glora_nnx.fold(attached)
  assert_allclose(attached(X), folded(X), atol=1e-5)
  assert np.abs(attached(X) - model(X)).max() > 1e-3
  assert_allclose(attached.features(X), folded.features(X), atol=1e-5)
  assert_allclose(attached.fc.kernel[...], folded.fc.kernel[...], atol=1e-6)
  for part in (attached.fc, glora_nnx.fold(attached.fc)):
    assert_allclose(part(X), folded.fc(X), atol=1e-5)


def test_dropout_draws_new_masks_and_eval_ends_it():
  attached = fresh()
  for mode, is_random in ((attached.train, True), (attached.eval, False), (attached.train, True)):
    mode()
    assert np.any(call(attached, X) != call(attached, X)) == is_random


def test_batch_statistics_move_as_in_the_model_and_stay_moved_when_folded():
  model, attached = LiveMlp(), fresh()
  attached.train()
  start = np.array(model.norm.mean[...])
  for _ in range(3):
    call(model, X)
    call(attached, X)
  moved = np.array(attached.norm.mean[...])
  assert np.abs(moved - start).max() > 1e-2
  assert_allclose(moved, model.norm.mean[...], atol=1e-5)
  folded = glora_nnx.fold(attached)
  assert_array_equal(folded.norm.mean[...], moved)
  call(folded, X)
  assert np.abs(folded.norm.mean[...] - moved).max() > 1e-3


def loss(model, x):
  return (model(x) ** 2).mean()


def test_an_optimizer_trains_the_adapter_and_heads_and_compiles_once():
  attached = fresh()
  optimizer = nnx.Optimizer(attached, optax.adam(1e-2), wrt=Trained)
  layers, traces = live.spec(attached), []

  @nnx.jit
  def step(model, optimizer, x, key):
    traces.append(1)
    glora_nnx.set_genome(model, glora_jax.sample_genome(key, layers))
    value, gradients = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, Trained))(model, x)
    optimizer.update(model, gradients)
    return value

  def params():
    return by_name(nnx.to_pure_dict(nnx.state(attached, nnx.Param)))

  old = params()
  losses = [step(attached, optimizer, X, jax.random.key(seed)) for seed in range(6)]
  assert len(traces) == 1
  assert losses[-1] < losses[0]
  moved = {name for name, new in params().items() if np.any(old[name] != new)}
  assert {'head/kernel', 'head/bias', 'fc/glora_kernel/B_up'} <= moved
  trained = nnx.state(attached, Trained)
  assert moved <= by_name(nnx.to_pure_dict(trained)).keys()
  assert trained == nnx.state(attached, nnx.LoRAParam)  # what tunix trains


def test_split_and_merge_clone_and_deepcopy_keep_it_whole(pair):
  _, attached = pair
  for other in (
    nnx.merge(*nnx.split(attached)),
    nnx.clone(attached),
    copy.deepcopy(attached),
    jax.tree.unflatten(jax.tree.structure(attached), jax.tree.leaves(attached)),
  ):
    assert_array_equal(other(X), attached(X))
    assert nnx.graphdef(other) == nnx.graphdef(attached)


class Scale(nnx.Param):
  """A parameter of a type of its own."""


class OwnTypes(nnx.Module):
  def __init__(self):
    self.w, self.head = Scale(jnp.ones((6, 4))), Scale(jnp.ones((4, 3)))

  def __call__(self, x):
    return x @ self.w[...] @ self.head[...]


def test_heads_of_other_types_stay_instances_of_them_and_are_pickled():
  attached = glora_nnx.attach(OwnTypes(), X, space=SPACE)
  randomize(attached)
  other = pickle.loads(pickle.dumps(attached))
  assert type(other.head) is type(attached.head)
  assert {Head, Scale, nnx.LoRAParam} <= {*type(other.head).mro()}
  assert type(glora_nnx.fold(other).head) is Scale
  assert nnx.graphdef(other) == nnx.graphdef(attached)
  assert_array_equal(other(X), attached(X))
