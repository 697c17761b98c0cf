"""GLoRA on NNX models, unmodified, and across the bridge."""

import jax
import jax.numpy as jnp
import nnx_zoo
import pytest
from flax import nnx
from hand_count import expected, found
from numpy.testing import assert_allclose
from trees import randomized

import glora_jax
from glora_jax.method import presets
from glora_jax.nnx import functional as glora_nnx

VIT = nnx_zoo.EXAMPLES['vit_with_its_convolutions']()
(IMAGES,) = VIT.inputs


@pytest.fixture(scope='module')
def problem():
  """(a ViT, the same adapted by the classes of its modules, variables)."""
  model = VIT.make()
  adapted = glora_nnx.adapt(model, space=glora_jax.SearchSpace((2, 4)))
  variables = adapted.init(jax.random.key(1), glora_nnx.params(model))
  return model, adapted, {**variables, 'glora': randomized(variables['glora'])}


def test_linear_layers_are_found_by_class_as_with_sample_inputs_and_the_head_is_not_one(problem):
  model, adapted, variables = problem
  kernels = {name: kernel for name, kernel in VIT.kernels.items() if 'blocks' in name}
  assert found(adapted) == expected(kernels)
  assert adapted.split(variables)[0]['params'].keys() == {'classifier'}
  by_use = glora_nnx.adapt(model, IMAGES, space=glora_jax.SearchSpace((2, 4)))
  assert by_use.spec == adapted.spec
  assert by_use.head_paths == adapted.head_paths


def test_an_nnx_model_can_be_bridged_into_linen_after_folding_or_before_adapting(problem):
  model, adapted, variables = problem
  genome = presets.preset(adapted.spec, 'lora')
  folded = glora_nnx.with_params(model, adapted.fold(variables, genome))
  linen = nnx.bridge.ToLinen(lambda rngs: glora_nnx.with_params(folded, glora_nnx.params(folded)))
  start = linen.init(jax.random.key(0), IMAGES)
  assert_allclose(linen.apply(start, IMAGES), folded(IMAGES), atol=1e-5)
  again = glora_jax.adapt(linen, IMAGES)
  assert {layer.name for layer in again.spec} == {layer.name for layer in adapted.spec}
  start |= again.init(jax.random.key(0), start['params'])
  outputs = again.apply(start, IMAGES, genome=presets.preset(again.spec, 'full'))
  assert_allclose(outputs, folded(IMAGES), atol=1e-5)


class Twice(nnx.Module):
  """Two layers with one kernel, or with one bias."""

  def __init__(self, shared):
    self.first, self.second = (nnx.Linear(4, 4, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    setattr(self.second, shared, getattr(self.first, shared))

  def __call__(self, x):
    return self.second(jnp.tanh(self.first(x)))


@pytest.mark.parametrize('shared, rows', [('kernel', [True]), ('bias', [True, False])])
def test_a_parameter_of_two_modules_is_adapted_once_without_sample_inputs(shared, rows):
  model, x = Twice(shared), jnp.linspace(-1, 1, 8).reshape(2, 4)
  adapted = glora_nnx.adapt(model)
  assert [layer.bias for layer in adapted.spec] == rows
  variables = adapted.init(jax.random.key(0), glora_nnx.params(model))
  variables['glora'] = jax.tree.map(lambda leaf: leaf + 0.1, variables['glora'])
  genome = glora_jax.preset(adapted.spec, 'full')
  folded = glora_nnx.with_params(model, adapted.fold(variables, genome))
  assert_allclose(adapted.apply(variables, x, genome=genome), folded(x), atol=1e-5)
