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
from live_models import SPACE, TOKENS, Classifier, call, randomize
from numpy.testing import assert_allclose, assert_array_equal

import glora_jax
from glora_jax import nnx as glora_nnx
from glora_jax.nnx import Head, Trained, live


@pytest.fixture(scope='module')
def pair():
  """A model, and the same attached, in evaluation mode, with an adapter that is not zero."""
  model = Classifier()
  attached = glora_nnx.attach(model, TOKENS, space=SPACE)
  model.eval()
  attached.eval()
  randomize(attached)
  return model, attached


def fresh(**options):
  return glora_nnx.attach(Classifier(), TOKENS, space=SPACE, **options)


def test_it_its_submodules_and_other_methods_are_merged(pair):
  model, attached = pair
  folded = glora_nnx.fold(attached)
  assert_allclose(attached(TOKENS), folded(TOKENS), atol=1e-5)
  assert np.abs(attached(TOKENS) - model(TOKENS)).max() > 1e-3
  assert_allclose(attached.features(TOKENS), folded.features(TOKENS), atol=1e-5)
  assert_allclose(attached.block(TOKENS), folded.block(TOKENS), atol=1e-5)
  assert_allclose(attached.block.fc1.kernel[...], folded.block.fc1.kernel[...], atol=1e-6)
  part = glora_nnx.fold(attached.block)
  assert_allclose(part(TOKENS), folded.block(TOKENS), atol=1e-5)


def test_dropout_draws_new_masks_and_eval_ends_it():
  attached = fresh()
  for mode, is_random in ((attached.train, True), (attached.eval, False), (attached.train, True)):
    mode()
    assert np.any(call(attached, TOKENS) != call(attached, TOKENS)) == is_random


def test_batch_statistics_move_as_in_the_model_and_stay_moved_when_folded():
  model, attached = Classifier(), fresh()
  start = np.array(model.norm.mean[...])
  for _ in range(3):
    call(model, TOKENS)
    call(attached, TOKENS)
  moved = np.array(attached.norm.mean[...])
  assert np.abs(moved - start).max() > 1e-2
  assert_allclose(moved, model.norm.mean[...], atol=1e-5)
  folded = glora_nnx.fold(attached)
  assert_array_equal(folded.norm.mean[...], moved)
  call(folded, TOKENS)
  assert np.abs(folded.norm.mean[...] - moved).max() > 1e-3


class Decoder(nnx.Module):
  def __init__(self, rngs):
    self.attention = nnx.MultiHeadAttention(num_heads=2, in_features=8, decode=True, rngs=rngs)
    self.out = nnx.Linear(8, 8, rngs=rngs)

  def __call__(self, x):
    return self.out(self.attention(x))


def test_a_decoding_cache_is_filled_step_by_step():
  model = Decoder(nnx.Rngs(0))
  model.attention.init_cache((4, 3, 8))
  attached = glora_nnx.attach(model, TOKENS[:, :1], space=SPACE)
  for step in range(2):
    x = TOKENS[:, step : step + 1]
    assert_allclose(call(attached, x), call(model, x), atol=1e-5)
  randomize(attached)
  folded = glora_nnx.fold(attached)  # with the cache as it stands
  x = TOKENS[:, 2:]
  assert_allclose(call(attached, x), call(folded, x), atol=1e-5)
  assert folded.attention.cache_index[...] == 3


def loss(model, x):
  return (model(x) ** 2).mean()


def test_an_optimizer_trains_the_adapter_and_heads_and_compiles_once():
  attached = fresh(select='fc')
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
  losses = [step(attached, optimizer, TOKENS, jax.random.key(seed)) for seed in range(6)]
  assert len(traces) == 1
  assert losses[-1] < losses[0]
  moved = {name for name, new in params().items() if np.any(old[name] != new)}
  assert {'head/kernel', 'head/bias', 'block/fc1/glora_kernel/B_up'} <= moved
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
    assert_array_equal(other(TOKENS), attached(TOKENS))
    assert nnx.graphdef(other) == nnx.graphdef(attached)


class Scale(nnx.Param):
  """A parameter of a type of its own."""


class OwnTypes(nnx.Module):
  def __init__(self):
    self.w, self.head = Scale(jnp.ones((8, 4))), Scale(jnp.ones((4, 3)))

  def __call__(self, x):
    return x @ self.w[...] @ self.head[...]


def test_heads_of_other_types_stay_instances_of_them_and_are_pickled():
  attached = glora_nnx.attach(OwnTypes(), TOKENS, space=SPACE)
  randomize(attached)
  other = pickle.loads(pickle.dumps(attached))
  assert type(other.head) is type(attached.head)
  assert {Head, Scale, nnx.LoRAParam} <= {*type(other.head).mro()}
  assert type(glora_nnx.fold(other).head) is Scale
  assert nnx.graphdef(other) == nnx.graphdef(attached)
  assert_array_equal(other(TOKENS), attached(TOKENS))
