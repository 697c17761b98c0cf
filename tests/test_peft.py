"""Adapters of HF PEFT without PEFT, which `tests/peers` has, for kinds, experts and rows."""

import functools
import json
import re
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_close, assert_refused, random_params, trained_variables
from numpy.testing import assert_array_equal
from peft_files import contents, numbers, write
from places import ROOT
from small_models import Decoder, Image, Mlp

import glora_jax
from glora_jax import SearchSpace, adapt, adapt_function, hub

INPUTS = jnp.zeros((1, 4))


class Stacked(nn.Module):
  """Two scanned layers, fused ones and a head."""

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
    return nn.Dense(4, name='both')(query * value), None


STACKED_NAMES = {
  'layers/(query|value)': r'model.layers.{}.\1',
  'layers/both': ['model.layers.{}.left', 'model.layers.{}.right'],
  re.compile('(HEAD|norm)', re.IGNORECASE): r'model.\1',
}


@functools.cache
def stacked():
  """A scanned model, adapted, its adapter and heads random; jitted fold."""
  params = random_params(Stacked(), INPUTS)
  heads = ['^head$', '^norm$']
  space = SearchSpace((1, 2, 3), scale=2.0)
  adapted = adapt(Stacked(), INPUTS, space=space, heads=heads)
  variables = trained_variables(adapted, params)
  return types.SimpleNamespace(
    adapted=adapted, params=params, variables=variables, fold=jax.jit(adapted.fold)
  )


@pytest.mark.parametrize(
  'structure, kind',
  [
    ('lora:2', 'lora'),
    ({'': {'B': 'lora:2', 'C': 'lora:1', 'D': 'constant'}}, 'lora'),
    ({'': {'B': 'vector', 'C': 'vector', 'D': 'constant'}}, 'lora'),
    ({'query': {'A': 'constant'}, 'both': {'A': 'lora:2'}}, 'hira'),
    ({'': {'A': 'constant', 'E': 'vector'}}, 'dora'),
    ({'': {'A': 'constant', 'B': 'lora:1', 'E': 'vector'}}, 'dora'),
    ({'both': {'A': 'vector', 'B': 'vector'}}, 'dora'),
    ({'query': {'A': 'lora:1', 'B': 'lora:2', 'C': 'vector', 'E': 'constant'}}, 'glora'),
  ],
)
def test_a_structure_of_layers_in_a_stack_comes_back(structure, kind, tmp_path):
  case = stacked()
  adapted = case.adapted.fix(structure)
  written = glora_jax.peft.save(tmp_path, adapted, case.variables, STACKED_NAMES)
  assert written == kind
  fixed, read = glora_jax.peft.load(tmp_path, case.adapted, case.params, STACKED_NAMES)
  expected = case.fold(case.variables, genome=adapted.genome)
  jax.tree.map(assert_close, case.fold(read, genome=fixed.genome), expected)


def test_a_lora_comes_back_as_it_was_also_into_its_own_structure(tmp_path):
  case = stacked()
  lora = case.adapted.fix('lora')
  glora_jax.peft.save(tmp_path, lora, case.variables, STACKED_NAMES, base='hf:me/base@v1')
  config, tensors = contents(tmp_path)
  assert (config['base_model_name_or_path'], config['revision']) == ('me/base', 'v1')
  modules = ('query', 'value', 'left', 'right')
  layers = {f'model.layers.{n}.{name}' for n in (0, 1) for name in modules}
  assert set(config['target_modules']) == layers
  assert config['modules_to_save'] == ['model.head', 'model.norm']
  head = case.variables['params']['head']['kernel']
  assert_array_equal(tensors['model.head.weight'], head.T)
  expected = case.fold(case.variables, genome=lora.genome)
  mesh = jax.make_mesh((1,), ('fsdp',), axis_types=(jax.sharding.AxisType.Auto,))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  base = jax.device_put(case.params, whole)
  # What it leaves zero fits any form of a fixed structure.
  for structure in (None, 'lora', 'scale_shift_lora'):
    adapted = case.adapted.fix(structure)
    again, read = glora_jax.peft.load(tmp_path, adapted, base, STACKED_NAMES)
    assert {array.sharding for array in jax.tree.leaves((read['glora'], read['params']))} == {whole}
    assert_array_equal(again.genome, lora.genome if structure is None else adapted.genome)
    jax.tree.map(assert_close, jax.jit(again.fold)(read), expected)
  other = case.adapted.fix({'both': 'lora:2'})
  assert_refused(
    'adapted.fix(None)', glora_jax.peft.load, tmp_path, other, case.params, STACKED_NAMES
  )


TORCH_PATHS = {'layer': {'weight': numbers(6, 4), 'bias': numbers(6)}}
EXPERTS = {
  'gate': {'weight': numbers(3, 4)},
  'experts': {'up': numbers(3, 6, 4), 'down': numbers(3, 4, 6)},  # [expert, out, in]
}


def routed(params, x):
  weights = x @ params['gate']['weight'].T
  _, expert = jax.lax.top_k(weights, 1)
  hidden = jnp.tanh(jnp.einsum('bi,boi->bo', x, params['experts']['up'][expert[:, 0]]))
  outputs = jnp.einsum('bi,boi->bo', hidden, params['experts']['down'][expert[:, 0]])
  return outputs * jnp.take_along_axis(weights, expert, 1)


@functools.cache
def trained_experts():
  space = SearchSpace((1, 2), scale=2.0)
  adapted = adapt_function(routed, EXPERTS, INPUTS, space=space, heads=None)
  return adapted, trained_variables(adapted, EXPERTS)


def linear(params, x):
  return x @ params['layer']['weight'].T + params['layer']['bias']


def dora():
  """(A layer with a DoRA, its variables)."""
  structure = {'': {'A': 'vector', 'B': 'lora:2'}}
  adapted = adapt_function(linear, TORCH_PATHS, INPUTS, structure=structure, heads=None)
  return adapted, trained_variables(adapted, TORCH_PATHS)


def test_a_layer_without_a_norm_has_no_dora(tmp_path):
  adapted, variables = dora()
  zero = {'layer': {**TORCH_PATHS['layer'], 'weight': np.zeros((6, 4), np.float32)}}
  start = adapted.init(jax.random.key(0), zero)
  as_dora = functools.partial(glora_jax.peft.save, kind='dora')
  assert_refused('norm', as_dora, tmp_path, adapted, start)
  assert glora_jax.peft.save(tmp_path, adapted, start) == 'glora'
  arrays = variables['glora']['layer']
  arrays['A_up'] = jnp.asarray(arrays['A_up']).at[0, 0].set(-1)
  assert_refused('A of -1 (layer)', as_dora, tmp_path, adapted, variables)


def quantized(params):
  qwix = pytest.importorskip('qwix')
  return jax.tree.map(lambda x: qwix.quantize(x, 'int8') if x.ndim > 1 else x, params)


def in_bfloat16(params):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)


@pytest.mark.parametrize('convert', [quantized, in_bfloat16])
def test_dora_is_of_the_weights_that_a_quantized_or_narrow_base_stands_for(convert, tmp_path):
  base = convert(TORCH_PATHS)
  adapted, variables = dora()
  variables['params'] = base
  assert glora_jax.peft.save(tmp_path, adapted, variables) == 'dora'
  fixed, read = glora_jax.peft.load(tmp_path, adapted, base)
  assert_close(read['glora']['layer']['A_up'], variables['glora']['layer']['A_up'])
  x = numbers(3, 4)
  assert_close(
    fixed.apply(read, x).astype(np.float32), adapted.apply(variables, x).astype(np.float32)
  )


def test_only_adapted_layers_need_be_modules_of_torch(tmp_path):
  params = {'first': {'weight': numbers(4, 4)}, 'rest': {'weight': numbers(4, 2, 6)}}

  def apply(params, x):
    return jnp.einsum('bi,ieo->beo', x @ params['first']['weight'].T, params['rest']['weight'])

  adapted = adapt_function(apply, params, INPUTS, structure={'first': 'lora'}, heads=None)
  variables = trained_variables(adapted, params)
  glora_jax.peft.save(tmp_path, adapted, variables)
  fixed, read = glora_jax.peft.load(tmp_path, adapted.fix(None), params)
  jax.tree.map(assert_close, fixed.fold(read), adapted.fold(variables))


def test_experts_that_are_not_those_of_the_model_are_one_sentence(tmp_path):
  adapted, variables = trained_experts()
  glora_jax.peft.save(tmp_path, adapted.fix('lora:2'), variables)
  other = adapt_function(routed, EXPERTS, INPUTS, structure='lora:2', select='down', heads=None)
  assert_refused(
    ['experts.base_layer', 'adapt the layer'], glora_jax.peft.load, tmp_path, other, EXPERTS
  )
  config, _ = contents(tmp_path)
  config['target_parameters'] = ['down']
  for rank, named in (8, 'experts.down[0]'), (12, ['the rank 2', '4 for each of 3 experts']):
    wider = {'lora_A': numbers(rank, 6), 'lora_B': numbers(4, rank)}
    tensors = {f'experts.{side}.weight': value for side, value in wider.items()}
    write(tmp_path, tensors, **config)
    assert_refused(named, glora_jax.peft.load, tmp_path, adapted, EXPERTS)
  hira = adapted.fix(np.array([[3, 0, 0, 0, 0]] * 7))
  named = ['HiRA cannot hold Parameter (experts.down[0]', 'GLoRA']
  assert_refused(named, glora_jax.peft.save, tmp_path, hira, variables)


def test_a_layer_may_be_an_expert_by_name(tmp_path):
  model = nn.vmap(nn.Dense, variable_axes={'params': 0}, split_rngs={'params': True})(5)
  x = jnp.zeros((3, 2, 4))
  params = random_params(model, x)
  adapted = adapt(model, x, structure='lora:2', scale=0.5)
  variables = trained_variables(adapted, params)
  names = {'.*': 'mlp.experts.up[{}]'}
  glora_jax.peft.save(tmp_path, adapted, variables, names)
  config, tensors = contents(tmp_path)
  assert config['target_parameters'] == ['mlp.experts.up']
  assert {name: value.shape for name, value in tensors.items()} == {
    'mlp.experts.lora_A.weight': (6, 4),
    'mlp.experts.lora_B.weight': (5, 6),
  }
  again, read = glora_jax.peft.load(tmp_path, adapted, params, names)
  jax.tree.map(assert_close, again.fold(read), adapted.fold(variables))


NAMES, LORA_OF_B = {'fc': 'model.fc', 'head': 'classifier'}, [0, 4, 0, 0, 0]


@functools.cache
def trained():
  """A model of one layer and a head, adapted, its adapter and head random."""
  params = random_params(Mlp(), INPUTS)
  adapted = adapt(Mlp(), INPUTS, space=SearchSpace((1, 3)), heads='head')
  variables = trained_variables(adapted, params)
  return types.SimpleNamespace(adapted=adapted, params=params, variables=variables)


@pytest.mark.parametrize(
  'names, forms, options, named',
  [
    (NAMES, [3, 0, 0, 0, 0], {'kind': 'lora'}, 'LoRAs of A (model.fc)'),
    (NAMES, [2, 0, 0, 0, 0], {'kind': 'lora'}, 'LoRA cannot hold A (model.fc)'),
    (NAMES, [3, 0, 0, 0, 1], {'kind': 'hira'}, 'C, D or E'),
    (NAMES, [3, 0, 0, 0, 0], {'kind': 'dora'}, 'LoRAs of A'),
    (NAMES, LORA_OF_B, {'kind': 'ia3'}, "kind='ia3'"),
    (NAMES, [0, 0, 0, 0, 0], {}, 'adapted.fold'),
    (NAMES, LORA_OF_B, {'base': 'hf:me'}, 'hf:owner/name'),
    (NAMES, LORA_OF_B, {'base': ROOT}, 'base'),
    (None, LORA_OF_B, {}, ['fc is not the weight', 'names=']),
    ('timm', LORA_OF_B, {}, "names='timm'"),
    (5, LORA_OF_B, {}, 'names'),
    ({'fc': 5}, LORA_OF_B, {}, "names['fc']=5"),
    ({'head': 'classifier'}, LORA_OF_B, {}, "'fc'"),
    ({'fc': ['a', 'a'], 'head': 'b'}, LORA_OF_B, {}, ' a stands'),
    ({'fc': ['a', 'b', 'c', 'd'], 'head': 'b'}, LORA_OF_B, {}, 'a, b, c, d'),
    ({**NAMES, 'head': ['a', 'b']}, LORA_OF_B, {}, 'one torch module'),
    ({'fc': 'first_out', 'head': 'out'}, LORA_OF_B, {}, ['first_out', 'head out']),
  ],
)
def test_an_adapter_that_cannot_be_written_is_one_sentence(names, forms, options, named, tmp_path):
  case = trained()
  given = tmp_path / 'a', case.adapted.fix(np.array([forms])), case.variables, names
  assert_refused(named, functools.partial(glora_jax.peft.save, **options), *given)
  assert not list(tmp_path.iterdir())


def test_the_adapter_of_a_training_that_diverged_is_named():
  case = trained()
  fixed = case.adapted.fix(np.array([LORA_OF_B]))
  adapter = jax.tree.map(lambda x: x * np.nan, case.variables['glora'])
  variables = {**case.variables, 'glora': adapter}
  assert_refused('model.fc.lora', glora_jax.peft.save, 'never', fixed, variables, NAMES)


TOKENS = jnp.array([[1, 2]])


@pytest.mark.parametrize(
  'model, inputs, options, kind, named',
  [
    (Image(), jnp.zeros((1, 4, 4, 4)), {'convs': True}, 'glora', 'Conv (.conv)'),
    (Image(2), jnp.zeros((1, 4, 4, 4)), {'convs': True}, None, 'grouped Conv (.conv)'),
    (Decoder(5), TOKENS, {'embeddings': True}, None, 'tied Embedding (.embed/embedding)'),
    (Decoder(5), TOKENS, {'embeddings': [0]}, 'hira', 'chosen rows (.embed/embedding)'),
    (Image(), jnp.zeros((1, 4, 4, 4)), {'heads': 'conv'}, None, 'conv/'),
    (Stacked(), INPUTS, {'heads': 'query'}, None, 'layers/query/'),
  ],
)
def test_what_is_no_module_or_head_of_peft_is_refused(model, inputs, options, kind, named):
  adapted = adapt(model, inputs, structure='lora', **options)
  variables = trained_variables(adapted, random_params(model, inputs))
  names = {'layers/(.*)': r'{}.\1', '(.*)': r'.\1'}
  assert_refused(
    named, functools.partial(glora_jax.peft.save, kind=kind), 'never', adapted, variables, names
  )


def test_a_grouped_convolution_and_a_tied_table_are_also_found_by_use():
  kernel = numbers(4, 2, 2, 2)  # torch's: out, in of a group, height, width

  def apply(params, tokens, images):
    images = jax.lax.conv_general_dilated(
      images, params['conv']['weight'], (1, 1), 'VALID', feature_group_count=2
    )
    return images, params['table']['weight'][tokens] @ params['table']['weight'].T

  params = {'conv': {'weight': kernel}, 'table': {'weight': numbers(5, 4)}}
  adapted = adapt_function(
    apply, params, TOKENS, jnp.zeros((1, 4, 3, 3)), structure='lora', convs=True, embeddings=True
  )
  variables = trained_variables(adapted, params)
  assert_refused(
    ['grouped Conv (conv)', 'tied Embedding (table)'],
    glora_jax.peft.save,
    'never',
    adapted,
    variables,
  )


def test_two_heads_or_places_of_a_stack_with_one_name_are_refused():
  case = stacked()
  fixed = case.adapted.fix({'both': 'lora:2'})
  for both, named in (('{}.both', 'no other head same'), ('both', "'{}' 1 times")):
    names = {'layers/both': both, '.*': 'same'}
    assert_refused(named, glora_jax.peft.save, 'never', fixed, case.variables, names)


A, B = 'model.fc.lora_A.weight', 'model.fc.lora_B.weight'
LORA = {A: numbers(3, 4), B: numbers(6, 3)}
DORA = {**LORA, 'model.fc.lora_magnitude_vector': numbers(6)}


@pytest.mark.parametrize(
  'tensors, config, named',
  [
    (LORA, {'peft_type': 'VERA'}, ["peft_type='VERA'", 'merge_and_unload']),
    (LORA, {'peft_type': ['LORA']}, 'peft_type'),
    (LORA, {'target_parameters': True}, 'target_parameters=True, which must be a list'),
    (LORA, {'target_parameters': [3]}, 'target_parameters=[3], which must be a list'),
    ({'x.lora_A.weight': LORA[A]}, {}, 'adapts x,'),
    (DORA, {}, 'lora_magnitude_vector'),
    ({**LORA, 'experts.lora_A.weight': numbers(3, 4)}, {'target_parameters': ['x']}, 'experts,'),
    (LORA, {'init_lora_weights': 'pissa_niter_4'}, ['pissa_niter_4', 'path_initial_model']),
    (LORA, {'alpha_pattern': {'(': 2}}, 'model.fc'),
    (LORA, {'rank_pattern': [3]}, 'model.fc cannot be read'),
    (LORA, {'lora_alpha': 'x'}, 'model.fc cannot be read'),
    ({A: numbers(0, 4), B: numbers(6, 0)}, {'r': 0}, 'model.fc cannot be read'),
    (LORA, {'lora_alpha': 1e308}, 'not finite'),
    ({**LORA, A: numbers(3, 4, 2, 1)}, {}, '(3, 4, 2, 1)'),
    ({A: LORA[A]}, {}, 'no lora_B.weight'),
    ({**LORA, B: np.full((6, 3), np.nan)}, {}, B),
    (LORA, {'rank_pattern': {'fc': 4}}, 'rank 4'),
    ({A: numbers(2, 4), B: numbers(6, 2)}, {'r': 2}, 'SearchSpace(ranks=(2,))'),
    ({'model.fc.ia3_l': numbers(4, 1)}, {'peft_type': 'IA3'}, '(4, 1) as ia3_l'),
    ({**LORA, 'classifier.weight': numbers(7, 6)}, {}, '(6, 7)'),
    ({**LORA, 'norm.weight': numbers(6)}, {}, 'norm.weight'),
    ({'classifier.weight': numbers(3, 6)}, {}, 'no module'),
  ],
)
def test_an_adapter_that_cannot_be_read_is_one_sentence(tensors, config, named, tmp_path):
  case = trained()
  write(tmp_path, tensors, **{'r': 3, 'lora_alpha': 3, **config})
  given = tmp_path, case.adapted, case.params, NAMES
  assert_refused(named, glora_jax.peft.load, *given)
  assert_refused(str(tmp_path), glora_jax.peft.load, *given)


def test_files_that_are_damaged_or_missing_are_one_sentence(tmp_path):
  case = trained()
  given = tmp_path, case.adapted, case.params, NAMES
  write(tmp_path, LORA, r=3)
  (tmp_path / 'adapter_model.safetensors').write_bytes(b'x')
  assert_refused('adapter_model.safetensors is damaged', glora_jax.peft.load, *given)
  (tmp_path / 'adapter_config.json').write_text(json.dumps(None))
  assert_refused('not the config of a PEFT adapter', glora_jax.peft.load, *given)
  (tmp_path / 'adapter_config.json').unlink()
  assert_refused('adapter_config.json', glora_jax.peft.load, *given, kind=FileNotFoundError)


def test_the_table_that_peft_saves_with_its_lora_must_be_that_of_the_base(tmp_path):
  def apply(params, tokens):
    return params['table']['weight'][tokens]

  params = {'table': {'weight': numbers(5, 4)}}
  adapted = adapt_function(apply, params, TOKENS, structure='lora:2', embeddings=True)
  lora = {'table.lora_embedding_A': numbers(2, 5), 'table.lora_embedding_B': numbers(4, 2)}
  write(tmp_path, {**lora, 'table.base_layer.weight': params['table']['weight']}, r=2, lora_alpha=2)
  _, variables = glora_jax.peft.load(tmp_path, adapted, params)
  assert_array_equal(variables['glora']['table']['B_down'], numbers(2, 5).T)
  write(tmp_path, {**lora, 'table.base_layer.weight': numbers(5, 4) + 1}, r=2, lora_alpha=2)
  assert_refused('base weights', glora_jax.peft.load, tmp_path, adapted, params)


def test_a_bias_needs_one_in_the_model(tmp_path):
  model = nn.Dense(6, use_bias=False)
  adapted = adapt(model, INPUTS, structure='lora:3')
  params = random_params(model, INPUTS)
  write(tmp_path, {**LORA, 'model.fc.base_layer.bias': numbers(6)}, r=3, bias='lora_only')
  assert_refused(
    'has a bias', glora_jax.peft.load, tmp_path, adapted, params, {'Dense': 'model.fc'}
  )


def test_an_adapter_is_read_from_the_hub(tmp_path, monkeypatch):
  case = trained()
  write(tmp_path, LORA, r=3, lora_alpha=3)

  def snapshot(name, files):
    assert name == 'hf:me/adapter@main'
    assert files == ('adapter_model.safetensors', 'adapter_config.json')
    return str(tmp_path)

  monkeypatch.setattr(hub, 'snapshot', snapshot)
  fixed, variables = glora_jax.peft.load('hf:me/adapter@main', case.adapted, case.params, NAMES)
  assert fixed.genome.tolist() == [[0, 4, 0, 0, 0]]
  assert_array_equal(variables['glora']['fc']['B_down'], LORA[A].T)


def test_a_lora_without_heads_has_what_vllm_reads_and_nothing_else(tmp_path):
  adapted = adapt(Stacked(), INPUTS, space=SearchSpace((1, 3), scale=0.5), heads=None)
  variables = trained_variables(adapted, random_params(Stacked(), INPUTS))
  genome = np.zeros((len(adapted.spec), 5), np.int8)
  genome[:, 1] = np.resize([3, 4], len(genome))  # both ranks
  names = {'layers/(.*)': r'model.layers.{}.\1', 'head': 'lm_head'}
  glora_jax.peft.save(tmp_path, adapted.fix(genome), variables, names)
  config, tensors = contents(tmp_path)
  assert config['peft_type'] == 'LORA'
  assert config.get('bias', 'none') == 'none'
  others = ('modules_to_save', 'use_dora', 'use_rslora', 'lora_bias')
  assert not any(config.get(field) for field in others)
  modules = sorted(config['target_modules'])
  assert sorted(tensors) == [f'{name}.lora_{side}.weight' for name in modules for side in 'AB']
  ranks = {name: len(tensors[f'{name}.lora_A.weight']) for name in modules}
  assert {*ranks.values()} == {1, 3}
  assert config['r'] == 3
  for module, rank in ranks.items():  # it scales all modules by alpha / r, and reads no patterns
    assert config['alpha_pattern'][module] / rank == config['lora_alpha'] / config['r'] == 0.5
