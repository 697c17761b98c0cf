"""What is done with an attached model: fixed, scored, searched, allocated, saved and loaded."""

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from comparing import assert_trees_equal
from flax import nnx
from live_models import X, call, fresh, randomize
from numpy.testing import assert_allclose, assert_array_equal
from small_models import LiveMlp

import glora_jax
from glora_jax import nnx as glora_nnx
from glora_jax.nnx import AdapterParam, Trained, live


@pytest.fixture
def attached():
  """A small classifier with an adapter that is not zero."""
  model = fresh()
  randomize(model)
  return model


def test_a_fixed_subnet_holds_and_trains_what_its_genome_uses_and_no_more(attached):
  genome = glora_jax.preset(live.spec(attached), 'lora:1')
  glora_nnx.set_genome(attached, genome)
  fixed = glora_nnx.fix(attached, genome)
  assert_allclose(call(fixed, X), call(attached, X), atol=1e-5)
  shapes = {name: leaf.shape for name, leaf in fixed.fc.glora_kernel.variables.items()}
  assert shapes == {'B_down': (6, 1), 'B_up': (1, 8)}
  count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(fixed, AdapterParam)))
  assert count == glora_nnx.as_adapted(fixed)[0].count_params() == 14
  assert len(jax.tree.leaves(nnx.state(fixed, Trained))) == 4


def test_adapters_go_to_and_fro_between_live_models_and_functions(attached, tmp_path):
  attached.norm.mean[...] += 0.5
  attached.head.bias[...] += 0.5
  glora_nnx.set_genome(attached, glora_jax.preset(live.spec(attached), 'full'))
  expected = call(attached, X)
  path = tmp_path / 'live.safetensors'
  glora_nnx.save_adapter(path, attached)
  other = fresh()
  adapted, values = glora_nnx.as_adapted(other)
  fixed, values = glora_jax.load_adapter(path, adapted, values['params'])
  assert_allclose(fixed.apply(values, X), expected, atol=1e-6)
  lora = glora_nnx.fix(other, glora_jax.preset(adapted.spec, 'lora'))
  glora_nnx.load_adapter(path, other)
  assert_allclose(call(other, X), expected, atol=1e-6)

  before = nnx.to_pure_dict(nnx.state(lora, nnx.Not(nnx.RngKey)))
  with pytest.raises(ValueError, match=r'stores none; attach with a space that has it'):
    glora_nnx.load_adapter(path, lora)
  assert_trees_equal(nnx.to_pure_dict(nnx.state(lora, nnx.Not(nnx.RngKey))), before)


def test_variables_of_a_smaller_subnet_go_into_a_model_that_is_fixed_to_it_and_no_other(attached):
  adapted, values = glora_nnx.as_adapted(attached)
  genome = glora_jax.preset(adapted.spec, 'lora:1')
  subnet = adapted.fix(genome)
  cut = subnet.join(*subnet.split(values))
  with pytest.raises(ValueError, match=r'a LoRA of rank 2 for A in fc, but .* rank 1: they we'):
    glora_nnx.set_variables(attached, cut)
  jax.tree.map(assert_array_equal, glora_nnx.as_adapted(attached)[1], values)
  fixed = glora_nnx.fix(attached, genome)
  expected = call(fixed, X)
  randomize(fixed)
  glora_nnx.set_variables(fixed, cut)
  assert_array_equal(call(fixed, X), expected)


within_transforms = pytest.mark.parametrize('within', [nnx.jit, nnx.remat, lambda call: call])


class Noisy(nnx.Module):
  """Noise of its own random stream, without `nnx.Dropout`."""

  def __init__(self):
    self.linear = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
    self.stream, self.deterministic = nnx.Rngs(noise=1).noise, False

  def __call__(self, x):
    x = self.linear(x)
    return x if self.deterministic else x + self.stream.normal(x.shape)


@within_transforms
def test_a_pure_function_warns_once_of_random_streams_that_do_not_move_on(within, caplog):
  class Model(Noisy):
    __call__ = within(Noisy.__call__)

  model = glora_nnx.attach(Model(), X, structure='lora:1')
  for mode, told in ((model.eval, 0), (model.train, 1)):
    mode()
    adapted, values = glora_nnx.as_adapted(model)
    apply = jax.jit(adapted.apply)
    assert_array_equal(apply(values, X), adapted.apply(values, X))
    assert len(caplog.messages) == told
  assert 'the same mask in every call' in caplog.text
  assert ': stream/count. Call model.eval()' in caplog.text


@within_transforms
def test_a_pure_function_refuses_a_call_whose_batch_statistics_would_be_lost(within, tmp_path):
  class Model(LiveMlp):
    __call__ = within(LiveMlp.__call__)

  model = glora_nnx.attach(Model(), X, structure='lora:1')
  model.train()
  glora_nnx.save_adapter(tmp_path / 'adapter.safetensors', model)
  adapted, values = glora_nnx.as_adapted(model)
  data, recipe = (X, np.zeros(10, int)), glora_jax.Recipe(epochs=1, batch_size=5, warmup=0.0)
  with pytest.raises(ValueError, match=r'statistics norm/(mean|var), and a model from as_adapted'):
    glora_jax.fit(adapted, values, glora_jax.classification(), data, recipe, key=jax.random.key(0))
  model.eval()
  adapted, values = glora_nnx.as_adapted(model)
  assert_allclose(adapted.apply(values, X), call(model, X), rtol=1e-5)


def test_statistics_that_are_left_out_stay_as_they_are(attached):
  _, values = glora_nnx.as_adapted(attached)
  glora_nnx.set_variables(attached, {**values, 'batch_stats': {'norm': {'mean': np.ones(8)}}})
  assert attached.norm.mean.tolist() == [1] * 8
  assert attached.norm.var.tolist() == values['batch_stats']['norm']['var'].tolist()


def test_an_orbax_checkpoint_brings_it_back(attached, tmp_path):
  attached.train()
  call(attached, X)  # the random stream moves on
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'state', nnx.state(attached))
    checkpointer.wait_until_finished()
    other = fresh()
    restored = checkpointer.restore(tmp_path / 'state', nnx.state(other))
  other.train()
  nnx.update(other, restored)
  assert_array_equal(call(other, X), call(attached, X))


@pytest.mark.parametrize('wrt, is_told', [(Trained, False), (nnx.Param, True)])
def test_a_base_that_was_trained_by_mistake_is_told_when_it_is_saved_and_folded(
  wrt, is_told, tmp_path, caplog
):
  model = nnx.Sequential(*(nnx.Linear(6, 6, rngs=nnx.Rngs(seed)) for seed in range(3)))
  model = glora_nnx.attach(model, X, heads='layers/2')
  optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=wrt)

  @nnx.jit(donate_argnums=(0, 1))
  def step(model, optimizer):
    gradient = nnx.grad(lambda model: (model(X) ** 2).mean(), argnums=nnx.DiffState(0, wrt))
    optimizer.update(model, gradient(model))

  step(model, optimizer)
  glora_nnx.save_adapter(tmp_path / 'adapter.safetensors', model)
  glora_nnx.fold(nnx.clone(model))
  nnx.jit(glora_nnx.fold)(model)
  told = [text for text in caplog.messages if 'The base of this Sequential is not the one' in text]
  assert len(told) == 2 * is_told
