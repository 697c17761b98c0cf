"""Adapters of HF PEFT by a map of names; `tests/peers/test_peft_peers.py` has PEFT itself."""

import functools
import json
import re
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_refused, random_params, trained_variables
from numpy.testing import assert_array_equal
from peft_files import contents, numbers, write
from small_models import Mlp

from glora_jax import SearchSpace, adapt, hub, preset
from glora_jax.method.genomes import canonicalize
from glora_jax.peft import load_peft, save_peft

INPUTS = jnp.zeros((1, 4))


class Stacked(nn.Module):
  """Two scanned layers, a tie and a head."""

  @nn.compact
  def __call__(self, x):
    layer = nn.scan(Block, variable_axes={'params': 0}, split_rngs={'params': True}, length=2)(
      name='layers'
    )
    x, _ = layer(x, None)
    return nn.Dense(2, name='head')(nn.LayerNorm(name='norm')(x))


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    query, value = nn.Dense(4, name='query')(x), nn.Dense(4, name='value')(x)
    return nn.Dense(4, use_bias=False, name='both')(query * value), None


def test_any_model_is_written_and_read_by_a_map_of_names(tmp_path):
  params = random_params(Stacked(), INPUTS)
  heads = ['^head$', '^norm$']
  adapted = adapt(
    Stacked(), INPUTS, space=SearchSpace((2,), scale=2.0), heads=heads, ties=[('query', 'value')]
  )
  variables = trained_variables(adapted, params)
  genome = canonicalize(adapted.spec, preset(adapted.spec, 'lora:2'))
  names = {
    'layers/(query|value)': r'model.layers.{}.\1',
    'layers/both': ['model.layers.{}.left', 'model.layers.{}.right'],
    re.compile('(HEAD|norm)', re.IGNORECASE): r'model.\1',
  }
  save_peft(tmp_path, adapted, variables, names, genome, base='hf:me/base@v1')
  config, tensors = contents(tmp_path)
  assert (config['base_model_name_or_path'], config['revision']) == ('me/base', 'v1')
  modules = ('query', 'value', 'left', 'right')
  layers = {f'model.layers.{n}.{name}' for n in (0, 1) for name in modules}
  assert set(config['target_modules']) == layers
  assert config['modules_to_save'] == ['model.head', 'model.norm']
  head = variables['params']['head']['kernel']
  assert_array_equal(tensors['model.head.weight'], head.T)
  fixed, read = load_peft(tmp_path, adapted, params, names)
  assert_array_equal(fixed.genome, genome)
  fold = jax.jit(adapted.fold)
  jax.tree.map(assert_array_equal, fold(read, fixed.genome), fold(variables, genome))
  again, cut = load_peft(tmp_path, fixed, params, names)
  jax.tree.map(assert_array_equal, jax.jit(again.fold)(cut), fold(variables, genome))
  other = adapted.fix({'both': 'lora:2'})
  assert_refused('adapted.fix(None)', load_peft, tmp_path, other, params, names)


NAMES = {'fc': 'model.fc', 'head': 'classifier'}


@functools.cache
def trained():
  """A model of one layer and a head, adapted, its adapter and head random."""
  params = random_params(Mlp(), INPUTS)
  adapted = adapt(Mlp(), INPUTS, space=SearchSpace((1, 3)), heads='head')
  variables = trained_variables(adapted, params)
  return types.SimpleNamespace(adapted=adapted, params=params, variables=variables)


@pytest.mark.parametrize(
  'names, forms, named, kind',
  [
    (NAMES, [3, 2, 0, 0, 0], 'A=lora:1, B=vector', ValueError),
    (NAMES, [0, 0, 0, 0, 0], 'adapted.fold', ValueError),
    (5, (), 'names', TypeError),
    ('timm', (), 'tunix_llama3', ValueError),
    ({'fc': 5}, (), "names['fc']=5", TypeError),
    ({'head': 'classifier'}, (), "'fc'", ValueError),
    ({'fc': ['a', 'a'], 'head': 'b'}, (), ' a stands', ValueError),
    ({'fc': ['a', 'b', 'c', 'd'], 'head': 'b'}, (), 'a, b, c, d', ValueError),
    ({'fc': 'a.{}', 'head': 'b'}, (), "'a.{}'", ValueError),
    ({'f.*': r'\9'}, (), "'f.*'", ValueError),
    ({**NAMES, 'head': ['a', 'b']}, (), 'one torch module', ValueError),
  ],
)
def test_an_adapter_that_cannot_be_written_is_one_sentence(names, forms, named, kind, tmp_path):
  case, genome = trained(), np.array([forms or [0, 4, 0, 0, 0]], np.int8)
  given = tmp_path / 'a', case.adapted, case.variables, names, genome
  assert_refused(named, save_peft, *given, kind=kind)
  assert not list(tmp_path.iterdir())


def test_a_base_that_is_no_name_is_refused_before_anything_is_written(tmp_path):
  case, genome = trained(), np.array([[0, 4, 0, 0, 0]], np.int8)
  given = tmp_path / 'a', case.adapted, case.variables, NAMES, genome
  assert_refused('hf:owner/name', save_peft, *given, base='hf:me')
  assert_refused('base', save_peft, *given, base=tmp_path, kind=TypeError)
  assert not list(tmp_path.iterdir())


def test_the_adapter_of_a_training_that_diverged_is_named():
  case, genome = trained(), np.array([[0, 4, 0, 0, 0]], np.int8)
  adapter = jax.tree.map(lambda x: x * np.nan, case.variables['glora'])
  variables = {**case.variables, 'glora': adapter}
  assert_refused('model.fc.lora', save_peft, 'never', case.adapted, variables, NAMES, genome)


class Image(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(2, name='fc')(nn.Conv(3, (2, 2), name='conv')(x))


def test_convolutions_and_heads_that_are_no_single_linear_layer_or_norm_are_refused():
  for model, inputs, options, named in (
    (Image(), jnp.zeros((1, 4, 4, 3)), {'convs': True}, 'conv is a convolution'),
    (Image(), jnp.zeros((1, 4, 4, 3)), {'heads': 'conv'}, 'conv/'),
    (Stacked(), INPUTS, {'heads': 'query'}, 'layers/query/'),
  ):
    adapted = adapt(model, inputs, **options)
    variables = trained_variables(adapted, random_params(model, inputs))
    names = {'layers/(.*)': r'{}.\1', '(.*)': r'\1'}
    genome = preset(adapted.spec, 'lora')
    assert_refused(named, save_peft, 'never', adapted, variables, names, genome)


def test_two_heads_or_places_of_a_stack_with_one_name_are_refused():
  adapted = adapt(Stacked(), INPUTS, heads=['^head$', '^norm$'], structure={'both': 'lora'})
  variables = trained_variables(adapted, random_params(Stacked(), INPUTS))
  for both, named in (('{}.both', 'no other head same'), ('both', "'{}' 1 times")):
    names = {'layers/both': both, '.*': 'same'}
    assert_refused(named, save_peft, 'never', adapted, variables, names)


A, B = 'model.fc.lora_A.weight', 'model.fc.lora_B.weight'
LORA = {A: numbers(3, 4), B: numbers(6, 3)}


@pytest.mark.parametrize(
  'tensors, config, named',
  [
    (LORA, {'peft_type': 'IA3'}, "peft_type='IA3'"),
    (LORA, {'use_dora': True}, 'use_dora=True'),
    (LORA, {'init_lora_weights': 'pissa_niter_4'}, "init_lora_weights='pissa_niter_4'"),
    (LORA, {'alpha_pattern': {'(': 2}}, 'model.fc'),
    (LORA, {'lora_alpha': 1e308}, '1e+308'),
    ({**LORA, A: numbers(3, 4, 1, 1)}, {}, '(3, 4, 1, 1)'),
    ({A: LORA[A]}, {}, "{'lora_A': (3, 4)}"),
    ({**LORA, B: np.full((6, 3), np.nan)}, {}, B),
    (LORA, {'rank_pattern': {'fc': 4}}, 'rank 4'),
    ({'x.lora_A.weight': numbers(3, 4), 'x.lora_B.weight': numbers(6, 3)}, {}, 'adapts x,'),
    ({A: numbers(2, 4), B: numbers(6, 2)}, {'r': 2}, 'rank 2'),
    ({A: numbers(3, 5), B: numbers(6, 3)}, {}, '(5, 6)'),
    ({**LORA, 'classifier.weight': numbers(7, 6)}, {}, '(6, 7)'),
    ({**LORA, 'norm.weight': numbers(6)}, {}, 'norm.weight'),
    ({'classifier.weight': numbers(3, 6)}, {}, 'no module'),
  ],
)
def test_an_adapter_that_cannot_be_read_is_one_sentence(tensors, config, named, tmp_path):
  case = trained()
  write(tmp_path, tensors, **{'r': 3, 'lora_alpha': 3, **config})
  given = tmp_path, case.adapted, case.params, NAMES
  assert_refused([str(tmp_path), named], load_peft, *given)
  (tmp_path / 'adapter_model.safetensors').write_bytes(b'x')
  (tmp_path / 'adapter_config.json').write_text(json.dumps({'peft_type': 'LORA'}))
  assert_refused('adapter_model.safetensors is damaged', load_peft, *given)
  (tmp_path / 'adapter_config.json').write_text('null')
  assert_refused('not the config of a PEFT adapter', load_peft, *given)
  (tmp_path / 'adapter_config.json').unlink()
  assert_refused('adapter_config.json', load_peft, *given, kind=FileNotFoundError)


def test_an_adapter_is_read_from_the_hub(tmp_path, monkeypatch):
  case = trained()
  write(tmp_path, LORA, r=3, lora_alpha=3)

  def snapshot(name, files):
    assert name == 'hf:me/adapter@main'
    assert files == ('adapter_model.safetensors', 'adapter_config.json')
    return str(tmp_path)

  monkeypatch.setattr(hub, 'snapshot', snapshot)
  fixed, variables = load_peft('hf:me/adapter@main', case.adapted, case.params, NAMES)
  assert fixed.genome.tolist() == [[0, 4, 0, 0, 0]]
  assert_array_equal(variables['glora']['fc']['B_down'], LORA[A].T)


def test_a_lora_without_heads_has_what_vllm_reads_and_nothing_else(tmp_path):
  adapted = adapt(Stacked(), INPUTS, space=SearchSpace((1, 3), scale=0.5), heads=None)
  variables = trained_variables(adapted, random_params(Stacked(), INPUTS))
  genome = np.zeros((len(adapted.spec), 5), np.int8)
  genome[:, 1] = np.resize([3, 4], len(genome))  # both ranks
  names = {'layers/(.*)': r'model.layers.{}.\1', 'head': 'lm_head'}
  save_peft(tmp_path, adapted, variables, names, genome)
  config, tensors = contents(tmp_path)
  assert config['peft_type'] == 'LORA'
  assert not config['modules_to_save']
  assert config.get('bias', 'none') == 'none'
  assert not any(config.get(field) for field in ('use_dora', 'use_rslora', 'lora_bias'))
  modules = {name.rpartition('.lora_')[0] for name in tensors}
  sides = [f'{module}.lora_{side}.weight' for module in modules for side in 'AB']
  assert sorted(tensors) == sorted(sides)
  assert sorted(config['target_modules']) == sorted(modules)
  ranks = {module: len(tensors[f'{module}.lora_A.weight']) for module in modules}
  assert {*ranks.values()} == {1, 3}
  assert config['r'] == 3
  for module, rank in ranks.items():  # it scales all modules by alpha / r, and reads no patterns
    assert config['alpha_pattern'][module] / rank == config['lora_alpha'] / config['r'] == 0.5
