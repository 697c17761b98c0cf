"""One call from an adapter file and a plain model to the adapted one."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from comparing import assert_refused, random_variables
from flax import nnx
from numpy.testing import assert_array_equal
from small_models import Transformer
from trees import normal

import glora_jax

IMAGES, TOKENS = normal(2, 4, 4, 3), jnp.array([[1, 4, 2]])
KEY = jax.random.key(0)


class Words(nn.Module):
  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(6, 8, name='table')(tokens)
    x = nn.Conv(8, (2,), name='conv')(x)
    return nn.Dense(3, name='out')(nn.gelu(nn.Dense(8, name='hidden')(x)))


def function(params, tokens):
  return Words().apply({'params': params}, tokens)


CHOICES = [
  {'structure': 'lora:2', 'select': 'hidden', 'heads': 'out'},
  {'structure': 'ssf', 'heads': ['out/bias', 'conv'], 'scale': 3.0},
  {'structure': 'lora:1', 'convs': True, 'embeddings': True, 'heads': None},
  {'structure': 'bitfit', 'embeddings': {'table': [1, 4]}, 'heads': 'hidden'},
]


@pytest.mark.parametrize('choices', CHOICES)
@pytest.mark.parametrize('model', [Words(), function])
def test_a_file_knows_its_layers_heads_and_structure(model, choices, tmp_path, monkeypatch):
  params = Words().init(KEY, TOKENS)['params']
  given = () if isinstance(model, nn.Module) else (params,)
  adapt = glora_jax.adapt_function if given else glora_jax.adapt
  adapted = adapt(model, *given, TOKENS, **choices)
  variables = random_variables(adapted, params)
  monkeypatch.chdir(tmp_path)
  path = 'lora'  # a name like that of a preset
  glora_jax.save_adapter(path, adapted, variables)
  again, loaded = glora_jax.load(path, model, TOKENS, params=params)
  assert [layer.name for layer in again.spec] == [layer.name for layer in adapted.spec]
  assert again.places.head_paths == adapted.places.head_paths
  assert again.count_params() == adapted.count_params()
  assert_array_equal(again.genome, adapted.genome)
  assert_array_equal(again.apply(loaded, TOKENS), adapted.apply(variables, TOKENS))


def test_stacked_layers_and_another_base_which_is_named(tmp_path):
  model, path = Transformer(3), tmp_path / 'a'
  params = model.init(KEY, IMAGES)['params']
  adapted = glora_jax.adapt(model, IMAGES, structure='lora:2@attn')
  variables = random_variables(adapted, params)
  glora_jax.save_adapter(path, adapted, variables)
  again, loaded = glora_jax.load(path, model, IMAGES, params=params)
  assert_array_equal(again.apply(loaded, IMAGES), adapted.apply(variables, IMAGES))
  others = jax.tree.map(lambda value: value + 1, params)
  load = functools.partial(glora_jax.load, params=others)
  assert_refused('other base weights', load, path, model, IMAGES)
  other = Transformer(2)
  load = functools.partial(glora_jax.load, params=other.init(KEY, IMAGES)['params'])
  assert_refused('has the heads of another model', load, path, other, IMAGES)


class Net(nnx.Module):
  def __init__(self, seed):
    rngs = nnx.Rngs(seed)
    self.table = nnx.Embed(6, 8, rngs=rngs)
    self.fc, self.out = nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

  def __call__(self, tokens):
    return self.out(nnx.relu(self.fc(self.table(tokens))))


def test_a_plain_nnx_model_gets_what_a_file_has(tmp_path):
  model, path = Net(0), tmp_path / 'a'
  attached = glora_jax.nnx.attach(
    model, TOKENS, structure='bitfit', embeddings=[2, 4], heads='out', select='fc'
  )
  adapted, variables = glora_jax.nnx.as_adapted(attached)
  glora_jax.nnx.set_variables(attached, random_variables(adapted, variables['params']))
  glora_jax.nnx.save_adapter(path, attached)
  again = glora_jax.nnx.load(path, model, TOKENS)
  assert_array_equal(again(TOKENS), attached(TOKENS))
  assert_refused('other base weights', glora_jax.nnx.load, path, Net(1), TOKENS)


def test_a_model_of_another_type_is_refused_with_the_call_for_it(tmp_path):
  model = nn.Dense(3)
  adapted = glora_jax.adapt(model, jnp.ones((1, 4)))
  for given, named in [
    (adapted, 'load_adapter'),
    (Net(0), 'glora_jax.nnx.load'),
    (model, 'params='),
  ]:
    with pytest.raises(TypeError, match=named):
      glora_jax.load(tmp_path / 'never', given, TOKENS)
