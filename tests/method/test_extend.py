"""New words: rows of a table, and of its head."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import (
  assert_close,
  assert_refused,
  assert_trees_equal,
  random_params,
  random_variables,
)
from flax import nnx
from small_models import Decoder, LiveDecoder
from trees import normal

import glora_jax
from glora_jax import Pool

V, D = 10, 6
TOKENS = jnp.array([[1, 2], [9, 1]])


STARTS = [[], np.array([3]), [1, 9, 9]]


def extended(params, new=((), (2, 3)), **options):
  """A tree or model with more words, in its table and in its head if that is another."""
  tables = {'embed': 0, 'head': -1} if 'head' in params else {'embed': 0}
  return glora_jax.extend(params, tables, new, **options)


def with_linen(tied):
  params = random_params(Decoder(V, tied), TOKENS)
  models = (V, params), (16, extended(params, STARTS, multiple=8))
  return (Decoder(words, tied).apply({'params': p}, TOKENS) for words, p in models)


def with_nnx():
  model, other = LiveDecoder(V), LiveDecoder(16)
  larger = extended(nnx.state(model), STARTS, multiple=8)
  nnx.update(other, larger)
  again = glora_jax.extend(model, {'embed': 0}, STARTS, multiple=8)
  assert_trees_equal(nnx.state(again), larger)
  return model(TOKENS), other(TOKENS)


@pytest.mark.parametrize('logits', [lambda: with_linen(True), lambda: with_linen(False), with_nnx])
def test_old_words_keep_their_logits_and_new_ones_have_the_mean_of_those_they_start_as(logits):
  """Of all words for the first, and for three that make the vocabulary a multiple of 8."""
  old, larger = logits()
  mean = old.mean(-1)
  expected = [mean, old[..., 3], old[..., [1, 9, 9]].mean(-1), mean, mean, mean]
  assert_close(larger, jnp.concatenate([old, jnp.stack(expected, -1)], -1))


def test_dtypes_boxes_and_shardings_stay_and_shapes_are_extended_as_arrays_are():
  mesh = jax.make_mesh((1, 1), ('data', 'x'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
  table = jax.device_put(jnp.ones((V, D), jnp.bfloat16), split)
  params = {'embed': nn.Partitioned(table, ('words', None))}
  box = extended(params)['embed']
  assert isinstance(box, nn.Partitioned)
  assert box.names == ('words', None)
  assert box.value.dtype == jnp.bfloat16
  assert box.value.sharding.is_equivalent_to(split, 2)
  assert jax.eval_shape(extended, params)['embed'].value.shape == (V + 2, D)


PARAMS = {'embed': normal(V, D), 'head': {'kernel': normal(D, V), 'bias': normal(V)}}
BAD = [
  ({'tables': {'emd': 0}}, "'emd' in tables matches none of embed, head/bias"),
  ({'tables': {}}, 'one vocabulary'),
  ({'tables': {'embed': 2}}, 'tables=2 must be 0 or -1'),
  ({'tables': {'embed': 0, 'head': 0}}, ['one vocabulary', "'embed': 10", "'head/kernel': 6"]),
  ({'new': 'word'}, "new='word' must be an integer or a list"),
  ({'new': [[V]]}, 'new=10 must be at most 9'),
]


@pytest.mark.parametrize('arguments, named', BAD, ids=str)
def test_bad_arguments_are_named_in_one_line(arguments, named):
  arguments = {'params': PARAMS, 'tables': {'embed': 0}, 'new': 2, **arguments}
  assert_refused(named, glora_jax.extend, **arguments)


FILES = {
  'LoRA of the table': (True, {'embeddings': True}),
  'chosen rows': (True, {'embeddings': [1, V - 1]}),
  'table in full': (True, {'heads': 'embed'}),
  'head in full': (False, {}),
  'LoRA of the head': (False, {'heads': None}),
  'LoRA elsewhere, own head': (False, {'heads': None, 'select': 'mlp'}),
  'LoRA elsewhere, tied head': (True, {}),
}


@pytest.mark.parametrize('tied, options', FILES.values(), ids=FILES)
def test_an_adapter_of_a_larger_vocabulary_says_that_the_base_is_to_be_extended(
  tmp_path, tied, options
):
  path, params = tmp_path / 'a.safetensors', random_params(Decoder(V, tied), TOKENS)
  larger = extended(params)
  options = {'structure': 'lora:1', **options}
  here, there = (glora_jax.adapt(Decoder(words, tied), TOKENS, **options) for words in (V, V + 2))
  variables = random_variables(there, larger)
  glora_jax.save_adapter(path, there, variables)
  advice = 'if words were added there, extend the base first: glora_jax.extend'
  assert_refused(advice, glora_jax.load_adapter, path, here, params)
  assert_refused(advice, Pool(here, params).load, 'a', path)
  adapted, loaded = glora_jax.load_adapter(path, there, extended(params))
  assert_close(adapted.apply(loaded, TOKENS), there.apply(variables, TOKENS))
