"""Splitting variables in halves and joining them; objects that hold a model."""

import jax
import pytest
from comparing import assert_trees_equal, ready
from small_models import Mlp
from trees import normal

import glora_jax


@pytest.fixture(scope='module')
def small():
  """(adapted with two ranks, variables with random supports, inputs) of a small model."""
  inputs = normal(4, 6)
  return *ready(Mlp(), inputs, space=glora_jax.SearchSpace(ranks=(2, 4))), inputs


def test_split_separates_heads_and_supports_and_join_puts_them_back(small):
  adapted, variables, _ = small
  trainable, frozen = adapted.split(variables)
  assert trainable['params'].keys() == {'head'}
  assert 'head' not in frozen['params']
  assert trainable.keys() == {'params', 'glora'}
  assert_trees_equal(adapted.join(trainable, frozen), variables)
  probe, rest = adapted.split({'params': variables['params']}, supports=False)
  assert probe == {'params': trainable['params']}
  assert_trees_equal(adapted.join(probe, rest), {**variables, 'glora': {}})


class Holder:
  """What transformers gives for a Flax model: a module, its parameters, a call of its own."""

  def __init__(self, module, params):
    self.module, self.params = module, params


def test_an_object_that_holds_a_linen_model_is_adapted_as_that(small):
  adapted, variables, inputs = small
  holder = Holder(adapted.model, variables['params'])
  held = glora_jax.adapt(holder, inputs, space=glora_jax.SearchSpace(ranks=(2, 4)))
  assert held.spec == adapted.spec
  assert held.model is adapted.model
  held.init(jax.random.key(0), holder.params)
