"""Adapter files: what they hold, what they give back, on which base they are refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from comparing import assert_trees_close, random_variables, ready
from numpy.testing import assert_array_equal
from small_models import Mlp, Transformer
from trees import normal

import glora_jax
from glora_jax.files import read_tensors, write_tensors
from glora_jax.method import adapter_file
from glora_jax.method.draws import random_genomes
from glora_jax.method.genomes import canonicalize

IMAGES, ONE = normal(2, 4, 4, 3), jnp.ones((1, 4))


@pytest.fixture(scope='module')
def subnet():
  """(adapted, variables) of scanned blocks, some of whose forms share storage."""
  split, shared = (glora_jax.SearchSpace((2, 4), shared=own) for own in (False, True))
  return ready(Transformer(3), IMAGES, space={'qkv': split, '': shared})


def test_an_adapter_holds_the_trained_numbers_and_heads_and_gives_the_same_logits(subnet, tmp_path):
  adapted, variables = subnet
  path, heads = tmp_path / 'a.safetensors', ('params/head/kernel', 'params/head/bias')
  base = {**variables['params'], 'head': jax.tree.map(jnp.zeros_like, variables['params']['head'])}
  apply = jax.jit(lambda v, g: adapted.apply(v, IMAGES, genome=g))
  for seed in range(3):
    genome = random_genomes(np.random.default_rng(seed), adapted.spec, 1)[0]
    adapter_file.save_adapter(path, adapted.fix(genome), variables, task='x')
    fixed, loaded = adapter_file.load_adapter(path, adapted, base)
    assert_array_equal(fixed.genome, canonicalize(adapted.spec, genome))
    assert_array_equal(apply(loaded, fixed.genome), apply(variables, genome))
    tensors = safetensors.numpy.load_file(path)
    adapter = {name for name in tensors if name.startswith('glora/')}
    assert tensors.keys() - adapter == set(heads)
    assert sum(tensors[name].size for name in adapter) == fixed.count_params()


@pytest.mark.parametrize('is_committed', [True, False])
def test_what_is_loaded_lies_where_the_base_lies(written, tmp_path, is_committed):
  adapted, params, tensors, metadata = written
  write_tensors(tmp_path / 'a', tensors, 'adapter', metadata)
  device = jax.devices()[0]
  base = jax.device_put(params, device) if is_committed else jax.tree.map(np.asarray, params)
  _, loaded = adapter_file.load_adapter(tmp_path / 'a', adapted, base)
  for array in jax.tree.leaves((loaded['glora'], loaded['params']['head'])):
    assert isinstance(array, jax.Array)
    assert array.committed == is_committed
    assert array.sharding == jax.sharding.SingleDeviceSharding(device)


FORMS = {
  'qkv': {'A': 'vector', 'B': 'lora:2', 'C': 'vector', 'D': 'constant', 'E': 'vector'},
  'proj': {'A': 'constant', 'B': 'constant', 'C': 'lora:2', 'E': 'constant'},
  'fc1': {'A': 'lora:2', 'B': 'vector'},
}


@pytest.mark.parametrize('tied', [(True, False), (False, True)])
def test_an_adapter_loads_whichever_forms_share_storage_and_scale_there_and_here(
  subnet, tied, tmp_path
):
  """Storage is shared for the sake of a search; an adapter has one structure."""
  free, variables = subnet
  qkv, others = (glora_jax.SearchSpace((2, 4), shared=own, scale=3.0) for own in tied)
  space = {'qkv': qkv, '': others}
  adapted = glora_jax.adapt(free.model, IMAGES, space=space, structure=FORMS)
  trained = random_variables(adapted, variables['params'])
  path, params = tmp_path / 'a.safetensors', trained['params']
  adapter_file.save_adapter(path, adapted, trained)
  for here in (glora_jax.adapt(free.model, IMAGES, structure=path), free):
    fixed, loaded = adapter_file.load_adapter(path, here, params)
    assert_trees_close(fixed.fold(loaded), adapted.fold(trained))


@pytest.mark.parametrize('kind', [jnp.bfloat16, jnp.float16])
def test_an_adapter_goes_onto_its_base_in_fewer_bits_and_from_there_onto_the_longer_one(
  subnet, tmp_path, kind
):
  adapted, variables = subnet
  path, longer = tmp_path / 'a', variables['params']
  shorter = jax.tree.map(lambda value: value.astype(kind), longer)
  other = {**shorter, 'cls': (shorter['cls'] * 1.02).astype(kind)}
  load = functools.partial(adapter_file.load_adapter, path, adapted)
  for trained_on, loaded_onto in ((longer, shorter), (shorter, longer), (shorter, shorter)):
    trained = {**variables, 'params': trained_on}
    adapter_file.save_adapter(path, adapted.fix('full'), trained)
    (_, own), (_, loaded) = load(trained_on), load(loaded_onto)
    jax.tree.map(assert_array_equal, loaded['glora'], own['glora'])
    assert loaded['params']['cls'] is loaded_onto['cls']
    with pytest.raises(ValueError, match=r'other base weights; .* pass strict=False'):
      load(other)
    _, loaded = load(other, strict=False)  # where that is meant
    jax.tree.map(assert_array_equal, loaded['glora'], own['glora'])
    assert loaded['params']['cls'] is other['cls']


@pytest.mark.parametrize(
  'classes, options, sentence',
  [
    (3, {'space': glora_jax.SearchSpace(2)}, r'space \(The structure has lora:4 for A of fc'),
    (3, {'structure': 'bitfit'}, 'another structure than this model is fixed to'),
    (5, {'space': glora_jax.SearchSpace()}, 'has the heads'),
  ],
)
def test_an_adapter_goes_onto_no_model_with_another_space_structure_or_head(
  written, tmp_path, classes, options, sentence
):
  _, _, tensors, metadata = written
  write_tensors(tmp_path / 'a', tensors, 'adapter', metadata)
  adapted, variables = ready(Mlp(classes=classes), ONE, **options)
  with pytest.raises(ValueError, match=sentence):
    adapter_file.load_adapter(tmp_path / 'a', adapted, variables['params'], strict=False)


SPACE = glora_jax.SearchSpace((1, 2), C='none', D='none', E='none')
SQUARES = {name: {'w': jnp.eye(4) + number} for number, name in enumerate('ab')}


def chain(*names, transposed=False):
  """Two linear layers, as they run; adapted."""

  def function(params, x):
    for name in names:
      w = params[name]['w']
      x = x @ (w.T if transposed else w)
    return x

  return glora_jax.adapt_function(function, SQUARES, jnp.ones((1, 4)), space=SPACE)


def test_rows_are_known_by_their_parameters_and_not_by_their_order(tmp_path):
  adapted, other, path = chain('a', 'b'), chain('b', 'a'), tmp_path / 'a.safetensors'
  variables = random_variables(adapted, SQUARES)
  genome = np.array([[2, 4, 0, 0, 0], [3, 0, 0, 0, 0]])
  adapter_file.save_adapter(path, adapted.fix(genome), variables)
  other, loaded = adapter_file.load_adapter(path, other, SQUARES)
  assert_array_equal(other.genome, genome[::-1])
  assert_trees_close(other.fold(loaded), adapted.fold(variables, genome))


def test_a_kernel_with_its_axes_the_other_way_round_is_refused(tmp_path):
  adapted, path = chain('a', 'b'), tmp_path / 'a.safetensors'
  none = adapted.fix(np.zeros((2, 5), int))
  adapter_file.save_adapter(path, none, random_variables(adapted, SQUARES))
  with pytest.raises(ValueError, match=r"'a/w', .*'in': \[0\].* there, .*'in': \[1\].* here"):
    adapter_file.load_adapter(path, chain('a', 'b', transposed=True), SQUARES)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """A small adapter in the parts of its file: (adapted, params, tensors, metadata)."""
  adapted, variables = ready(Mlp(), ONE, space=glora_jax.SearchSpace())
  path = tmp_path_factory.mktemp('adapter') / 'a.safetensors'
  adapter_file.save_adapter(path, adapted.fix('full'), variables)
  return adapted, variables['params'], *read_tensors(path, 'adapter')


ROW = {'name': 'body', 'in_features': 4, 'out_features': 3, 'bias': True, 'kernel': {}}
SPOILT = [
  ({'glora/fc/E': np.full(6, np.nan, np.float32)}, {}, 'fc/E is not finite'),
  ({'glora/fc/E': np.zeros((1, 1), np.float32)}, {}, r'glora/fc/E is \(1, 1\) and should be'),
  ({'glora/fc/E': None}, {}, 'missing: glora/fc/E'),
  ({'glora/fc/E': np.zeros(6, np.int32)}, {}, 'glora/fc/E is int32'),
  ({'params': np.zeros(3)}, {}, 'is not the name of a tensor in a collection'),
  ({}, {'spec': None}, 'spec is missing'),
  ({}, {'genome': [[0, 0, 0, 0, 0]] * 2}, 'are of .* layers'),
  ({}, {'scale': [-0.0]}, r'scale=\[-0.0\] are not all'),
  ({}, {'spec': [ROW]}, 'belongs to another model'),
]


@pytest.mark.parametrize('tensors, metadata, sentence', SPOILT)
def test_a_file_in_which_something_is_not_an_adapters_is_refused(
  written, tmp_path, tensors, metadata, sentence
):
  adapted, params, *parts = written
  tensors, metadata = (
    {name: value for name, value in (part | changes).items() if value is not None}
    for part, changes in zip(parts, (tensors, metadata), strict=True)
  )
  write_tensors(tmp_path / 'a', tensors, 'adapter', metadata)
  with pytest.raises(ValueError, match=sentence):
    adapter_file.load_adapter(tmp_path / 'a', adapted, params)


UNSAVED = [
  (lambda variables: {'note': np.ones(2) * 1j}, 'Metadata must be JSON'),
  (lambda variables: {'base': 'x'}, "'base'"),
  (
    lambda variables: {'variables': jax.tree.map(lambda x: x * np.nan, variables)},
    'is not finite; the training diverged',
  ),
  (
    lambda variables: {'variables': {**variables, 'noise': {'key': jax.random.key(0)}}},
    'noise/key is a random key',
  ),
]


@pytest.mark.parametrize('change, sentence', UNSAVED)
def test_what_cannot_be_saved_leaves_no_file(written, tmp_path, change, sentence):
  adapted, params, _, _ = written
  variables = random_variables(adapted, params)
  given = {'variables': variables, **change(variables)}
  with pytest.raises(ValueError, match=sentence):
    adapter_file.save_adapter(tmp_path / 'a', adapted.fix('ssf'), **given)
  assert not list(tmp_path.iterdir())
