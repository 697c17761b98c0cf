"""Adapting our ViT: parity with the official model, identity, fold, split, errors.

Other models are in test_adapt_models.py.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import ready
from trees import normal

import glora_jax
from glora_jax.vision.models.vit import ViT


@pytest.fixture(scope='module')
def small():
  """(adapted with two ranks, variables with random supports, images) of a small ViT."""
  model = ViT(5, patch_size=8, width=12, depth=1, num_heads=2)
  images = normal(4, 16, 16, 3)
  return *ready(model, images, space=glora_jax.SearchSpace(ranks=(2, 4))), images


@pytest.mark.parametrize('dtype, tolerance', [('float64', 1e-12), ('float32', 1e-5)])
def test_all_golden_genomes_give_the_official_logits_and_counts(golden_vit, dtype, tolerance):
  with jax.enable_x64(dtype == 'float64'):
    variables, images = jax.tree.map(
      lambda value: jnp.asarray(value, dtype),
      ({name: golden_vit[name] for name in ('params', 'glora')}, golden_vit['x']),
    )
    adapted = glora_jax.adapt(ViT(7, **golden_vit['shape']), images)
    apply = jax.vmap(lambda genome: adapted.apply(variables, images, genome=genome))
    logits = np.asarray(jax.jit(apply)(golden_vit['genomes']))
  assert logits.dtype == dtype
  official = golden_vit['logits']
  assert np.abs(logits - official).max() <= tolerance * np.abs(official).max()
  np.testing.assert_array_equal(
    adapted.count_params(golden_vit['genomes']), golden_vit['param_count']
  )


def test_split_separates_heads_and_supports_and_join_puts_them_back(small):
  adapted, variables, _ = small
  trainable, frozen = adapted.split(variables)
  assert trainable['params'].keys() == {'head'}
  assert 'head' not in frozen['params']
  assert trainable.keys() == {'params', 'glora'}
  chex.assert_trees_all_equal(adapted.join(trainable, frozen), variables)
  probe, rest = adapted.split({'params': variables['params']}, supports=False)
  assert probe == {'params': trainable['params']}
  chex.assert_trees_all_equal(adapted.join(probe, rest), {**variables, 'glora': {}})


class Holder:
  """What transformers gives for a Flax model: a module, its parameters, a call of its own."""

  def __init__(self, module, params):
    self.module, self.params = module, params


def test_an_object_that_holds_a_linen_model_is_adapted_as_that(small):
  adapted, variables, images = small
  holder = Holder(adapted.model, variables['params'])
  held = glora_jax.adapt(holder, images, space=glora_jax.SearchSpace(ranks=(2, 4)))
  assert held.spec == adapted.spec
  assert held.model is adapted.model
  held.init(jax.random.key(0), holder.params)
