"""Adapters of HF PEFT, and what is in their files; `tests/peers/test_peft_peers.py` has PEFT."""

import functools
import json
import re
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from comparing import assert_refused, mixed_loras, trained_variables
from numpy.testing import assert_allclose, assert_array_equal
from places import FIXTURES

from glora_jax import SearchSpace, adapt, hub, preset
from glora_jax.files import read_json
from glora_jax.method.genomes import canonicalize
from glora_jax.peft import load_peft, save_peft
from glora_jax.vision.models import weights

ROOT = 'base_model.model.'
IMAGES = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)


@functools.cache
def trained(name):
  """A fixture, adapted, its supports and head random."""
  model, params, _ = weights.load(FIXTURES / name)
  adapted = adapt(model, IMAGES, space=SearchSpace((1, 3)))
  return types.SimpleNamespace(
    model=model,
    params=params,
    adapted=adapted,
    variables=trained_variables(adapted, params),
    genome=mixed_loras(adapted.spec),
  )


def contents(folder):
  """(config, tensors by full name of the torch model)."""
  tensors = safetensors.numpy.load_file(folder / 'adapter_model.safetensors')
  assert all(name.startswith(ROOT) for name in tensors)
  named = {name.removeprefix(ROOT): value for name, value in tensors.items()}
  return read_json(folder / 'adapter_config.json'), named


def write(folder, tensors, **config):
  """An adapter as PEFT writes one."""
  folder.mkdir(exist_ok=True)
  tensors = {f'{ROOT}{name}': np.asarray(value, np.float32) for name, value in tensors.items()}
  safetensors.numpy.save_file(tensors, folder / 'adapter_model.safetensors')
  (folder / 'adapter_config.json').write_text(json.dumps({'peft_type': 'LORA', **config}))
  return folder


def numbers(*shape, seed=0):
  return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)


@pytest.mark.parametrize('pool', ['token', 'gap'])
def test_a_head_of_half_of_what_dinov2_reads_is_zero_for_the_other(pool, tmp_path):
  case = trained('hf_dinov2')
  wide, width = case.params['head'], case.model.width
  half = slice(width) if pool == 'token' else slice(width, None)
  params = {**case.params, 'head': {**wide, 'kernel': wide['kernel'][half]}}
  adapted = adapt(case.model.clone(pool=pool), IMAGES, space=SearchSpace((1, 3)))
  variables = trained_variables(adapted, params)
  save_peft(tmp_path, adapted, variables, 'hf_dinov2', case.genome)
  expected = np.zeros_like(wide['kernel'])
  expected[half] = variables['params']['head']['kernel']
  assert_array_equal(contents(tmp_path)[1]['classifier.weight'].T, expected)
  _, read = load_peft(tmp_path, adapted, params)
  jax.tree.map(assert_array_equal, read['params']['head'], variables['params']['head'])


class Stacked(nn.Module):
  """Two scanned layers, a tie and a head."""

  @nn.compact
  def __call__(self, x):
    layer = nn.scan(Layer, variable_axes={'params': 0}, split_rngs={'params': True}, length=2)(
      name='layers'
    )
    x, _ = layer(x, None)
    return nn.Dense(2, name='head')(nn.LayerNorm(name='norm')(x))


class Layer(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    query, value = nn.Dense(4, name='query')(x), nn.Dense(4, name='value')(x)
    return nn.Dense(4, use_bias=False, name='both')(query * value), None


def test_any_model_is_written_and_read_by_a_map_of_names(tmp_path):
  inputs = jnp.zeros((1, 4))
  params = jax.jit(Stacked().init)(jax.random.key(0), inputs)['params']
  heads = ['^head$', '^norm$']
  adapted = adapt(
    Stacked(), inputs, space=SearchSpace((2,)), heads=heads, ties=[('query', 'value')]
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


FC1 = 'vit.layers.0.mlp.fc1'
A, B = f'{FC1}.lora_A.weight', f'{FC1}.lora_B.weight'
LORA = {A: numbers(3, 16), B: numbers(48, 3)}
CLASSES = 5
SIDES = ('A', A, 3), ('B', B, CLASSES)


@pytest.mark.parametrize(
  'name, names, alleles, named',
  [
    ('hf_vit', 'hf_vit', [3, 2, 0, 0, 0], 'A=lora:1, B=vector'),
    ('hf_vit', 'hf_vit', None, 'adapted.fold'),  # no LoRA at all
    ('hf_vit', ['timm'], (), "names=['timm']"),
    ('timm_deit3', 'hf_vit', (), 'LayerScale'),
    ('hf_vit', {'head': 'classifier'}, (), "'blocks/attn/qkv'"),
    ('hf_vit', {'blocks/.*': 'a.{}', 'head': 'b'}, (), 'a.0, a.1'),
    ('hf_vit', {'bl.*': r'\9'}, (), "'bl.*'"),
  ],
)
def test_what_cannot_be_written_is_named(name, names, alleles, named, tmp_path):
  case = trained(name)
  genome = case.genome * (alleles is not None)
  if alleles:
    genome[0] = alleles
  assert_refused(named, save_peft, tmp_path / 'a', case.adapted, case.variables, names, genome)
  assert not list(tmp_path.iterdir())


def test_supports_of_a_training_that_diverged_are_named():
  case = trained('hf_vit')
  supports = jax.tree.map(lambda x: x * np.nan, case.variables['glora'])
  variables = {**case.variables, 'glora': supports}
  assert_refused('q_proj.lora', save_peft, 'never', case.adapted, variables, 'hf_vit', case.genome)


def test_convolutions_and_heads_that_are_no_single_linear_layer_or_norm_are_refused():
  model, inputs = nn.Conv(4, (2, 2)), jnp.zeros((1, 4, 4, 3))
  conv = adapt(model, inputs, convs=True)
  of_conv = jax.jit(model.init)(jax.random.key(0), inputs)['params']
  case = trained('timm_deit3')
  for adapted, params, names, named in (
    (conv, of_conv, {'Conv': 'conv'}, 'Conv'),
    (conv, of_conv, 'timm', 'Conv'),
    (adapt(case.model, IMAGES, heads='embed'), case.params, 'timm', 'embed/'),
    (adapt(case.model, IMAGES, heads='norm1'), case.params, 'timm', 'norm1/'),
  ):
    variables, genome = trained_variables(adapted, params), preset(adapted.spec, 'lora')
    assert_refused(named, save_peft, 'never', adapted, variables, names, genome)


@pytest.mark.parametrize(
  'tensors, config, named',
  [
    (LORA, {'peft_type': 'IA3'}, "peft_type='IA3'"),
    (LORA, {'alpha_pattern': {'(': 2}}, FC1),
    (LORA, {'lora_alpha': 1e308}, '1e+308'),
    ({**LORA, A: numbers(3, 16, 1, 1)}, {}, '(3, 16, 1, 1)'),
    ({**LORA, B: np.full((48, 3), np.nan)}, {}, B),
    (LORA, {'rank_pattern': {'fc1': 4}}, 'rank 4'),
    ({'x.lora_A.weight': numbers(3, 16), 'x.lora_B.weight': numbers(4, 3)}, {}, '(x)'),
    ({A: numbers(2, 16), B: numbers(48, 2)}, {'r': 2}, 'rank 2'),
    ({**LORA, 'classifier.weight': numbers(7, 16)}, {}, '(16, 7)'),
  ],
)
def test_an_adapter_that_cannot_be_read_is_one_sentence(tensors, config, named, tmp_path):
  case = trained('hf_vit')
  write(tmp_path, tensors, **{'r': 3, 'lora_alpha': 3, **config})
  assert_refused(named, load_peft, tmp_path, case.adapted, case.params)
  (tmp_path / 'adapter_config.json').write_text('null')
  assert_refused('not the config of a PEFT adapter', load_peft, tmp_path, case.adapted, case.params)


@pytest.mark.parametrize('module', [FC1, 'vit.encoder.layer.0.intermediate.dense'])
def test_an_adapter_of_all_linear_layers_has_one_for_the_classifier_too(module, tmp_path):
  """With the names of transformers 5 and 4."""
  case = trained('hf_vit')
  of_head = {f'classifier.lora_{side}.weight': LORA[name][:n] for side, name, n in SIDES}
  of_layer = {name.replace(FC1, module): value for name, value in LORA.items()}
  adapted = adapt(case.model, IMAGES, space=SearchSpace(3), heads=None)
  write(tmp_path, {**of_head, **of_layer}, r=3, lora_alpha=3)
  fixed, variables = load_peft(tmp_path, adapted, case.params)
  own = variables['glora']['head']
  change = own['B_down'] @ own['B_up']
  assert_allclose(change, (numbers(48, 3)[:CLASSES] @ numbers(3, 16)).T, atol=1e-6)
  assert np.flatnonzero(fixed.genome[:, 1]).size == 2
  first = variables['glora']['blocks']['mlp']['fc1']['B_down'][0]
  assert_array_equal(first, LORA[A].T)


def test_an_adapter_is_read_from_the_hub(tmp_path, monkeypatch):
  case = trained('hf_vit')
  folder = write(tmp_path, LORA, r=3, lora_alpha=3)

  def snapshot(name, files):
    assert name == 'hf:me/adapter@main'
    assert files == ('adapter_model.safetensors', ('adapter_config.json',))
    return hub.Snapshot(str(folder), str(folder / files.tensors), '1' * 40)

  monkeypatch.setattr(hub, 'snapshot', snapshot)
  fixed, _ = load_peft('hf:me/adapter@main', case.adapted, case.params)
  assert fixed.genome.any()
