"""Folded models with torch's names; `tests/peers/test_tunix_peers.py` has transformers itself."""

import functools
import json
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from comparing import assert_refused, random_params, trained_variables
from numpy.testing import assert_array_equal
from small_models import Image

import glora_jax
from glora_jax import files, save_folded

TOKENS = jnp.array([[1, 2, 0]])
NAMES = {
  'embed/embedding': 'embed_tokens',
  'layers/qkv': [f'layers.{{}}.{x}_proj' for x in 'qkv'],
  r'layers/(\w+)': r'layers.{}.\1',
  'head': 'lm_head',
}


class Decoder(nn.Module):
  """A table, two scanned layers with a fused kernel, and a head."""

  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(5, 4, name='embed')(tokens)
    layer = nn.scan(Block, variable_axes={'params': 0}, split_rngs={'params': True}, length=2)
    x, _ = layer(name='layers')(x, None)
    return nn.Dense(5, name='head')(x)


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    q, k, v = jnp.split(nn.Dense(12, name='qkv')(nn.RMSNorm(name='norm')(x)), 3, axis=-1)
    return nn.Dense(4, use_bias=False, name='out')(q * k + v), None


@functools.cache
def trained():
  """The decoder, adapted but for one layer, its adapter and head random; and its folded params."""
  adapted = glora_jax.adapt(
    Decoder(),
    TOKENS,
    structure={'qkv': 'lora:2', 'embed': 'lora:2'},
    select='qkv|embed',
    embeddings=True,
  )
  variables = trained_variables(adapted, random_params(Decoder(), TOKENS))
  return types.SimpleNamespace(adapted=adapted, variables=variables, folded=adapted.fold(variables))


def read(folder):
  """(The tensors of all shards, the shards' sizes in bytes) by the index."""
  index = json.loads((folder / 'model.safetensors.index.json').read_text())
  shards = {
    name: safetensors.numpy.load_file(folder / name) for name in {*index['weight_map'].values()}
  }
  tensors = {name: shards[shard][name] for name, shard in index['weight_map'].items()}
  sizes = [sum(value.nbytes for value in shard.values()) for _, shard in sorted(shards.items())]
  assert index['metadata']['total_size'] == sum(sizes)
  assert len(tensors) == sum(map(len, shards.values()))
  return tensors, sizes


def test_every_parameter_is_written_as_torch_has_it(tmp_path):
  case = trained()
  save_folded(tmp_path, case.adapted, case.variables, NAMES)
  tensors, _ = read(tmp_path)
  layers, expected = case.folded['layers'], {}
  for i in range(2):
    for number, name in enumerate('qkv'):
      outputs = slice(4 * number, 4 * number + 4)
      expected[f'layers.{i}.{name}_proj.weight'] = layers['qkv']['kernel'][i][:, outputs].T
      expected[f'layers.{i}.{name}_proj.bias'] = layers['qkv']['bias'][i][outputs]
    expected[f'layers.{i}.out.weight'] = layers['out']['kernel'][i].T
    expected[f'layers.{i}.norm.weight'] = layers['norm']['scale'][i]
  expected['lm_head.weight'] = case.folded['head']['kernel'].T
  expected['lm_head.bias'] = case.folded['head']['bias']
  expected['embed_tokens.weight'] = case.folded['embed']['embedding']
  assert tensors.keys() == expected.keys()
  jax.tree.map(assert_array_equal, tensors, expected)


def test_a_shard_exceeds_its_size_only_by_one_parameter_that_is_larger(tmp_path):
  case, found = trained(), []
  for most in (10**6, 200):
    folder = tmp_path / str(most)
    save_folded(folder, case.adapted, case.variables, NAMES, max_shard_bytes=most)
    found.append(read(folder))
  (whole, one), (tensors, sizes) = found
  assert len(one) == 1
  jax.tree.map(assert_array_equal, tensors, whole)
  assert sizes.count(384) == 1  # qkv's kernels
  assert all(size <= 200 for size in sizes if size != 384)
  assert len(sizes) < len(jax.tree.leaves(case.folded))


def test_config_and_tokenizer_of_the_base_are_copied_and_no_file_is_replaced(tmp_path):
  case, base, folder = trained(), tmp_path / 'base', tmp_path / 'folded'
  (base / 'runs').mkdir(parents=True)
  folder.mkdir()
  weights = 'model.safetensors', 'model.safetensors.index.json'
  for name in ('config.json', 'tokenizer.model', *weights):
    (base / name).write_text('base')
  (folder / 'tokenizer.model').write_text('mine')
  save_folded(folder, case.adapted, case.variables, NAMES, base=base)
  assert (folder / 'config.json').read_text() == 'base'
  assert (folder / 'tokenizer.model').read_text() == 'mine'
  assert not (folder / 'model.safetensors').exists()
  read(folder)


def test_a_folder_whose_writing_stopped_has_no_index(tmp_path, monkeypatch):
  case, written = trained(), []

  def write(path, *args):
    written.append(path)
    if len(written) == 2:
      raise OSError('no space')
    files.write_safetensors(path, *args)

  monkeypatch.setattr('glora_jax.torch_files.write_safetensors', write)
  given = tmp_path, case.adapted, case.variables, NAMES
  assert_refused('no space', save_folded, *given, max_shard_bytes=1, kind=OSError)
  assert [path.suffix for path in tmp_path.iterdir()] == ['.safetensors']
  assert_refused('has weights', save_folded, *given, kind=FileExistsError)


@pytest.mark.parametrize(
  'names, named',
  [
    (NAMES | {'head': 'embed_tokens'}, 'embed_tokens.weight stands'),
    (NAMES | {'head': ['a', 'b']}, '5 outputs of head'),
    (NAMES | {r'layers/(\w+)': r'layers.\1'}, "'{}' 1 times"),
    (NAMES | {'head': ''}, "''"),
    ({'never': 'never'}, 'embed/embedding'),
  ],
)
def test_names_that_do_not_fit_are_refused_before_anything_is_written(names, named, tmp_path):
  case, folder = trained(), tmp_path / 'folded'
  assert_refused(named, save_folded, folder, case.adapted, case.variables, names)
  assert not folder.exists()


def test_a_training_that_diverged_and_a_free_structure_are_refused(tmp_path):
  case = trained()
  diverged = jax.tree.map(lambda x: x * np.nan, case.variables)
  for named, adapted, variables in (
    ('embed_tokens.weight', case.adapted, diverged),
    ('needs a fixed structure', case.adapted.fix(None), case.variables),
  ):
    assert_refused(named, save_folded, tmp_path, adapted, variables, NAMES)


@pytest.mark.parametrize('convs', [False, True])
def test_a_kernel_whose_axes_are_not_those_of_a_linear_layer_is_refused(convs, tmp_path):
  inputs = jnp.zeros((1, 4, 4, 4))
  adapted = glora_jax.adapt(Image(), inputs, structure='lora:2', convs=convs, heads=None)
  variables = trained_variables(adapted, random_params(Image(), inputs))
  assert_refused('conv', save_folded, tmp_path / 'a', adapted, variables, {'(.*)': r'\1'})


def test_leaves_of_a_function_that_are_no_arrays_are_left_out(tmp_path):
  params = {'w': jnp.ones((4, 3)), 'activation': jnp.tanh}
  adapted = glora_jax.adapt_function(
    lambda params, x: params['activation'](x @ params['w']),
    params,
    jnp.ones((1, 4)),
    structure='ssf',
  )
  variables = adapted.init(jax.random.key(0), params)
  save_folded(tmp_path, adapted, variables, {'w': 'fc'})
  assert_array_equal(read(tmp_path)[0]['fc.weight'], params['w'].T)
