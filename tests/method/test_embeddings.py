"""Tables that are looked up: a row of the genome each, with `embeddings=True`."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import (
  assert_close,
  assert_folds,
  assert_refused,
  assert_trees_close,
  random_params,
  trained_variables,
)
from decoders import KEY, PARAMS, TOKENS, D, Decoder, Live, V, decoded, tied
from flax import nnx
from trees import randomized

import glora_jax

STRUCTURES = ('scale_shift_lora:2', {'': {'A': 'constant', 'B': 'vector'}}, 'full')


def turned(params, tokens):
  """Along its second axis, merged where it is used; after a product with it."""
  seen = params['table'] @ jnp.sin(jnp.arange(D) * tokens.sum())
  rows = jax.lax.map(lambda token: params['w'] @ params['table'].T[:, token], tokens.ravel())
  return rows + seen.sum()


def adapt(function, structure='scale_shift_lora:2'):
  options = {'structure': structure, 'embeddings': True}
  return glora_jax.adapt_function(function, PARAMS, TOKENS, **options)


@pytest.mark.parametrize('structure', STRUCTURES)
@pytest.mark.parametrize('function', [tied, decoded, turned])
def test_a_function_with_supports_is_the_folded_one(function, structure):
  adapted = adapt(function, structure)
  start = adapted.init(KEY, PARAMS)
  assert_close(jax.jit(adapted.apply)(start, TOKENS), jax.jit(function)(PARAMS, TOKENS))
  variables = trained_variables(adapted, PARAMS)
  assert_folds(adapted, variables, TOKENS)
  nothing = TOKENS[:0]
  outputs = jax.eval_shape(adapted.apply, variables, nothing)
  assert outputs.shape == jax.eval_shape(function, PARAMS, nothing).shape
  assert glora_jax.Layer('table', V, D, False, adapted.spec.layers[0].space) in adapted.spec.layers


@pytest.mark.parametrize('structure', ['scale_shift_lora:2', 'full'])
def test_linen_and_nnx_models_with_supports_are_the_folded_ones(structure):
  options = {'structure': structure, 'embeddings': True}
  adapted, params = glora_jax.adapt(Decoder(), TOKENS, **options), random_params(Decoder(), TOKENS)
  assert [layer.name for layer in adapted.spec] == ['embed/embedding', 'mlp']
  assert_folds(adapted, trained_variables(adapted, params), TOKENS)
  live = Live()
  model = glora_jax.nnx.attach(live, TOKENS, **options)
  assert_close(model(TOKENS), live(TOKENS))
  nnx.update(model, randomized(nnx.state(model, glora_jax.nnx.AdapterParam)))
  assert_close(nnx.jit(lambda model: model(TOKENS))(model), glora_jax.nnx.fold(model)(TOKENS))


@pytest.mark.parametrize('function', [tied, decoded])
def test_gradients_are_those_of_the_merged_table_and_never_have_its_size(function):
  adapted = adapt(function)
  trainable, frozen = adapted.split(trained_variables(adapted, PARAMS))
  model = glora_jax.nnx.attach(Live(), TOKENS, structure='lora:2', embeddings=True)
  graph, adapter, rest = nnx.split(model, glora_jax.nnx.AdapterParam, ...)

  def gradient(run):
    return jax.grad(lambda part: jnp.sin(run(part)).sum())

  def makes_a_table(run, part):
    return re.search(rf':f32\[({V},{D}|{D},{V})\] =', str(jax.make_jaxpr(run)(part)))

  ours = gradient(lambda part: adapted.apply(adapted.join(part, frozen), TOKENS))
  merged = gradient(lambda part: function(adapted.fold(adapted.join(part, frozen)), TOKENS))
  live = gradient(lambda part: nnx.merge(graph, part, rest)(TOKENS))
  assert_trees_close(jax.jit(ours)(trainable), jax.jit(merged)(trainable), 1e-4)
  assert makes_a_table(merged, trainable)
  assert not makes_a_table(ours, trainable)
  assert not makes_a_table(live, adapter)


@pytest.mark.parametrize('options', [{}, {'fill_value': 0.0}, {'mode': 'clip'}])
def test_a_token_beyond_the_table_is_what_it_was_and_harms_no_gradient(options):
  def function(params, tokens):
    rows = jnp.take(params['table'], tokens + V - 2, axis=0, **{'mode': 'fill', **options})
    return jnp.where(jnp.isnan(rows), 7.0, rows) @ params['w']

  adapted = adapt(function)
  variables = trained_variables(adapted, PARAMS)
  assert_folds(adapted, variables, TOKENS)
  trainable, frozen = adapted.split(variables)
  found = jax.grad(lambda part: adapted.apply(adapted.join(part, frozen), TOKENS).sum())
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(found)(trainable)))


def test_what_is_done_with_layers_is_done_with_a_table(tmp_path):
  adapted = glora_jax.adapt(Decoder(), TOKENS, embeddings=True, scale=3.0)
  params = random_params(Decoder(), TOKENS)
  fixed = adapted.fix({'embed': 'lora', 'mlp': 'bitfit'})
  assert fixed.count_params() == 4 * (V + D) + D
  variables, path = trained_variables(fixed, params), tmp_path / 'adapter.safetensors'
  glora_jax.save_adapter(path, fixed, variables)
  loaded, again = glora_jax.load_adapter(path, adapted, params)
  assert_trees_close(loaded.apply(again, TOKENS), fixed.apply(variables, TOKENS))

  def loss(forward, batch, key):
    return (forward(batch)[1] ** 2).mean()

  start, batches = adapted.init(KEY, params), [TOKENS, TOKENS[::-1]]
  assert glora_jax.check(adapted, start, TOKENS).ok
  assert glora_jax.allocate(adapted, start, loss, batches, budget=99, key=KEY).genome[0].any()
  as_head = glora_jax.adapt(Decoder(), TOKENS, embeddings=True, heads='embed')
  assert [layer.name for layer in as_head.spec] == ['mlp', 'head']


def test_a_table_without_a_lookup_is_refused():
  inputs = jnp.ones((1, 4))
  assert_refused('no embedding lookup', glora_jax.adapt, nn.Dense(3), inputs, embeddings=True)
