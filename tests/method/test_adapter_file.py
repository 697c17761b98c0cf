"""Adapter files: what they hold, what they give back, on which base they are refused."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from comparing import random_params, random_variables
from trees import randomized

import glora_jax
from glora_jax.files import read_tensors, write_tensors
from glora_jax.method import adapter_file, presets
from glora_jax.method.draws import random_genomes
from glora_jax.method.genomes import canonicalize
from glora_jax.models.vit import ViT

IMAGES = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))


@pytest.fixture(scope='module', params=[True, False], ids=['tied', 'untied'])
def subnet(request):
  model = ViT(3, patch_size=8, width=12, depth=2, num_heads=2)
  adapted = glora_jax.adapt(model, IMAGES, space=glora_jax.SearchSpace((2, 4), tied=request.param))
  return adapted, random_variables(adapted, random_params(model, IMAGES))


def test_an_adapter_gives_the_same_logits_on_a_fresh_base(subnet, tmp_path):
  adapted, variables = subnet
  base = {**variables['params'], 'head': jax.tree.map(jnp.zeros_like, variables['params']['head'])}
  apply = jax.jit(lambda v, g: adapted.apply(v, IMAGES, genome=g))
  for seed in range(5):
    genome = random_genomes(np.random.default_rng(seed), adapted.spec, 1)[0]
    adapter_file.save_adapter(tmp_path / 'a.safetensors', adapted, variables, genome, task='x')
    loaded, found = adapter_file.load_adapter(tmp_path / 'a.safetensors', adapted, base)
    np.testing.assert_array_equal(found, canonicalize(adapted.spec, genome))
    np.testing.assert_array_equal(apply(loaded, found), apply(variables, genome))


def test_an_adapter_holds_exactly_the_trained_numbers_and_the_heads(subnet, tmp_path):
  adapted, variables = subnet
  for seed in range(5):
    genome = random_genomes(np.random.default_rng(seed), adapted.spec, 1)[0]
    adapter_file.save_adapter(tmp_path / 'a.safetensors', adapted, variables, genome)
    tensors = safetensors.numpy.load_file(tmp_path / 'a.safetensors')
    supports = sum(value.size for name, value in tensors.items() if name.startswith('glora/'))
    assert supports == adapted.count_params(genome)
    assert {name for name in tensors if not name.startswith('glora/')} == {
      'params/head/kernel',
      'params/head/bias',
    }


def test_adapters_of_another_base_model_or_space_are_refused(subnet, tmp_path):
  adapted, variables = subnet
  path = tmp_path / 'a.safetensors'
  adapter_file.save_adapter(path, adapted, variables, presets.preset(adapted.spec, 'full'))
  with pytest.raises(ValueError, match='trained on other base weights'):
    adapter_file.load_adapter(
      path, adapted, {**variables['params'], 'cls': variables['params']['cls'] + 1}
    )
  with pytest.raises(
    ValueError,
    match=r'another model or search space\. It has 8 layers, and this model 8; '
    r'the first that differs is layer 0: '
    r"Layer\(name='blocks/attn/qkv\[0\]'.*ranks=\(2, 4\).*there, .*ranks=\(4,\).*here",
  ):
    adapter_file.load_adapter(path, glora_jax.adapt(adapted.model, IMAGES), variables['params'])
  other_head = adapted.model.clone(num_classes=4)
  params = {**variables['params'], 'head': {'kernel': jnp.zeros((12, 4)), 'bias': jnp.zeros(4)}}
  space_of = adapted.spec.layers[0].space
  with pytest.raises(ValueError, match=r'has the heads head/bias \(3,\)'):
    adapter_file.load_adapter(path, glora_jax.adapt(other_head, IMAGES, space=space_of), params)
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(ValueError, match='damaged'):
    adapter_file.load_adapter(path, adapted, variables['params'])


@pytest.mark.parametrize('kind', [jnp.bfloat16, jnp.float16])
def test_an_adapter_goes_onto_its_base_in_fewer_bits_and_from_there_onto_the_longer_one(
  subnet, tmp_path, kind
):
  adapted, variables = subnet
  genome = presets.preset(adapted.spec, 'full')
  longer = variables['params']
  shorter = jax.tree.map(lambda value: value.astype(kind), longer)
  other = {**shorter, 'cls': (shorter['cls'] * 1.02).astype(kind)}
  for trained_on, loaded_onto in ((longer, shorter), (shorter, longer), (shorter, shorter)):
    trained = {**variables, 'params': trained_on}
    adapter_file.save_adapter(tmp_path / 'a', adapted, trained, genome)
    own, _ = adapter_file.load_adapter(tmp_path / 'a', adapted, trained_on)
    loaded, _ = adapter_file.load_adapter(tmp_path / 'a', adapted, loaded_onto)
    jax.tree.map(np.testing.assert_array_equal, loaded['glora'], own['glora'])
    assert loaded['params']['cls'] is loaded_onto['cls']
    with pytest.raises(ValueError, match=r'other base weights; .* pass strict=False'):
      adapter_file.load_adapter(tmp_path / 'a', adapted, other)


def test_an_adapter_goes_onto_another_base_where_that_is_meant_and_only_if_it_fits(
  written, tmp_path
):
  adapted, params, tensors, metadata = written
  write_tensors(tmp_path / 'a', tensors, 'adapter', metadata)
  other = jax.tree.map(lambda value: 2 * value, params)
  loaded, _ = adapter_file.load_adapter(tmp_path / 'a', adapted, other, strict=False)
  assert loaded['params']['body']['bias'] is other['body']['bias']
  own, _ = adapter_file.load_adapter(tmp_path / 'a', adapted, params)
  jax.tree.map(np.testing.assert_array_equal, loaded['glora'], own['glora'])
  with pytest.raises(ValueError, match='These params are not those of the adapted BodyAndHead'):
    adapter_file.load_adapter(tmp_path / 'a', adapted, {'body': other['body']}, strict=False)
  wider = {'body': other['body'], 'head': {'kernel': jnp.zeros((3, 5)), 'bias': jnp.zeros(5)}}
  of_five = glora_jax.adapt(BodyAndHead(classes=5), jnp.ones((1, 4)))
  with pytest.raises(ValueError, match='has the heads'):
    adapter_file.load_adapter(tmp_path / 'a', of_five, wider, strict=False)


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
  adapter_file.save_adapter(path, adapted, variables, genome)
  loaded, found = adapter_file.load_adapter(path, other, SQUARES)
  np.testing.assert_array_equal(found, genome[::-1])
  for saved, read in zip(
    jax.tree.leaves(adapted.fold(variables, genome)),
    jax.tree.leaves(other.fold(loaded, found)),
    strict=True,
  ):
    np.testing.assert_allclose(saved, read, atol=1e-6)


def test_a_kernel_with_its_axes_the_other_way_round_is_refused(tmp_path):
  adapted, path = chain('a', 'b'), tmp_path / 'a.safetensors'
  adapter_file.save_adapter(
    path, adapted, random_variables(adapted, SQUARES), np.zeros((2, 5), int)
  )
  with pytest.raises(ValueError, match=r"no layer a/w in the parameters and axes .*'in': \[1\]"):
    adapter_file.load_adapter(path, chain('a', 'b', transposed=True), SQUARES)


class WithStatistics(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    x = nn.BatchNorm(use_running_average=not train, name='norm')(nn.Dense(6, name='hidden')(x))
    return nn.Dense(2, name='head')(x)


def test_an_adapter_brings_the_batch_statistics_that_training_left(tmp_path):
  model, x = WithStatistics(), jax.random.normal(jax.random.key(0), (8, 4))
  adapted = glora_jax.adapt(model, x)
  start = jax.jit(model.init)(jax.random.key(1), x)
  variables = random_variables(adapted, start['params']) | {'batch_stats': start['batch_stats']}
  genome = presets.preset(adapted.spec, 'full')
  train = functools.partial(adapted.apply, genome=genome, train=True, mutable=['batch_stats'])
  variables |= jax.jit(train)(variables, x)[1]
  adapter_file.save_adapter(tmp_path / 'a.safetensors', adapted, variables, genome)
  loaded, found = adapter_file.load_adapter(tmp_path / 'a.safetensors', adapted, start['params'])
  np.testing.assert_array_equal(found, genome)
  apply = jax.jit(functools.partial(adapted.apply, genome=genome))
  np.testing.assert_array_equal(apply(loaded, x), apply(variables, x))


def test_a_batch_in_which_each_example_has_its_own_adapter_equals_one_by_one(subnet, tmp_path):
  adapted, variables = subnet
  images = jax.random.normal(jax.random.key(5), (3, 16, 16, 3))
  adapters = []
  for seed in range(3):
    trained = {
      **variables,
      'glora': randomized(variables['glora'], seed),
      'params': {**variables['params'], 'head': randomized(variables['params']['head'], seed)},
    }
    genome = random_genomes(np.random.default_rng(seed), adapted.spec, 1)[0]
    path = tmp_path / f'{seed}.safetensors'
    adapter_file.save_adapter(path, adapted, trained, genome)
    adapters.append(adapter_file.load_adapter(path, adapted, variables['params']))
  apply = jax.jit(lambda v, genome, image: adapted.apply(v, image[None], genome=genome)[0])
  alone = [apply(v, genome, image) for (v, genome), image in zip(adapters, images, strict=True)]

  frozen = adapted.split(variables)[1]
  halves = [adapted.split(v)[0] for v, _ in adapters]
  trainable = jax.tree.map(lambda *leaves: jnp.stack(leaves), *halves)
  genomes = np.stack([genome for _, genome in adapters])

  @jax.jit
  @jax.vmap
  def together(trainable, genome, image):
    return adapted.apply(adapted.join(trainable, frozen), image[None], genome=genome)[0]

  np.testing.assert_allclose(together(trainable, genomes, images), np.stack(alone), atol=1e-5)


def test_adapters_of_boxed_models_round_trip(tmp_path):
  init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, 'model'))
  model, x = nn.Dense(6, kernel_init=init), jnp.ones((2, 4))
  adapted = glora_jax.adapt(model, x)
  variables = random_variables(adapted, random_params(model, x))
  genome = presets.preset(adapted.spec, 'full')
  path = tmp_path / 'a.safetensors'
  adapter_file.save_adapter(path, adapted, variables, genome)
  loaded, found = adapter_file.load_adapter(path, adapted, variables['params'])
  assert loaded['glora']['B_up'].names == (None, 'model')
  apply = jax.jit(lambda v, g: adapted.apply(v, x, genome=g))
  np.testing.assert_array_equal(apply(loaded, found), apply(variables, genome))


class BodyAndHead(nn.Module):
  classes: int = 2

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.classes, name='head')(nn.Dense(3, name='body')(x))


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """A small adapter in the parts of its file: (adapted, params, tensors, metadata)."""
  model = BodyAndHead()
  adapted = glora_jax.adapt(model, jnp.ones((1, 4)))
  params = random_params(model, jnp.ones((1, 4)))
  path = tmp_path_factory.mktemp('adapter') / 'a.safetensors'
  variables = random_variables(adapted, params)
  adapter_file.save_adapter(path, adapted, variables, presets.preset(adapted.spec, 'ssf'))
  return adapted, params, *read_tensors(path, 'adapter')


@pytest.mark.parametrize(
  'changes, sentence',
  [
    ({'E': np.full(3, np.nan, np.float32)}, 'glora/body/E has numbers that are not finite'),
    ({'E': np.zeros((1, 1), np.float32)}, r'misshaped: glora/body/E is \(1, 1\) and should be'),
    ({'E': np.zeros(3, np.int32)}, 'glora/body/E is int32 and no floating-point numbers'),
    ({'B_up': np.zeros(3, np.float32)}, 'unexpected: glora/body/B_up'),
    ({'../head/E': np.zeros(3, np.float32)}, 'unexpected: glora/body/../head/E'),
    ({'E': None}, 'missing: glora/body/E'),
  ],
)
def test_tensors_that_are_not_those_of_the_genome_are_refused(written, tmp_path, changes, sentence):
  adapted, params, tensors, metadata = written
  changed = tensors | {f'glora/body/{name}': value for name, value in changes.items()}
  changed = {name: value for name, value in changed.items() if value is not None}
  write_tensors(tmp_path / 'a', changed, 'adapter', metadata)
  with pytest.raises(ValueError, match=f'a is damaged .*{sentence}.*; get it again'):
    adapter_file.load_adapter(tmp_path / 'a', adapted, params)


@pytest.mark.parametrize('name', ['params', 'batch_stats', 'params/head/bias/x'])
def test_names_that_are_no_paths_in_a_collection_are_refused(written, tmp_path, name):
  adapted, params, tensors, metadata = written
  write_tensors(tmp_path / 'a', tensors | {name: np.zeros(3)}, 'adapter', metadata)
  with pytest.raises(ValueError, match='is no name of a tensor in a collection'):
    adapter_file.load_adapter(tmp_path / 'a', adapted, params)


@pytest.mark.parametrize(
  'changes, sentence',
  [
    ({'spec': None}, 'spec is missing'),
    ({'genome': None}, 'genome is missing'),
    ({'base': None}, 'base is missing'),
    ({'base': 3}, '3 at base is not a text'),
    ({'spec': 'body'}, "'body' at spec is not a list"),
    ({'genome': [[0, 0, 0, 0, 0]] * 2}, 'are of .* layers'),
    ({'layers': None}, 'layers is missing'),
    ({'parameters': None}, 'parameters is missing'),
    ({'layers': [{'A': 'none'}]}, r'layers\[0\].B is missing'),
    ({'parameters': [[]]}, 'belongs to another model'),
  ],
)
def test_metadata_that_are_not_an_adapters_are_refused(written, tmp_path, changes, sentence):
  adapted, params, tensors, metadata = written
  changed = {name: value for name, value in (metadata | changes).items() if value is not None}
  write_tensors(tmp_path / 'a', tensors, 'adapter', changed)
  with pytest.raises(ValueError, match=sentence):
    adapter_file.load_adapter(tmp_path / 'a', adapted, params)


@pytest.mark.parametrize('text', ['[]', '7', 'nothing', '{"kind": "adapter", "format": 99}'])
def test_metadata_of_another_kind_or_a_later_version_are_refused(written, tmp_path, text):
  adapted, params, tensors, _ = written
  safetensors.numpy.save_file(tensors, tmp_path / 'a', {'glora_jax': text})
  with pytest.raises(ValueError, match=r'no adapter file|damaged|written by a later version'):
    adapter_file.load_adapter(tmp_path / 'a', adapted, params)


@pytest.mark.parametrize(
  'value', [b'x', {1, 2}, np.ones(2) * 1j, jnp.float32(np.nan), float('nan'), ...]
)
def test_metadata_that_json_cannot_say_are_refused_and_leave_no_file(written, tmp_path, value):
  adapted, params, _, _ = written
  genome = presets.preset(adapted.spec, 'ssf')
  with pytest.raises(ValueError, match='Metadata must be what JSON can say, texts, finite'):
    adapter_file.save_adapter(
      tmp_path / 'a', adapted, random_variables(adapted, params), genome, note=value
    )
  assert not list(tmp_path.iterdir())


def test_metadata_may_be_numbers_and_arrays_of_numpy_and_jax(written, tmp_path):
  adapted, params, _, _ = written
  variables, genome = random_variables(adapted, params), presets.preset(adapted.spec, 'ssf')
  notes = {
    'accuracy': np.float32(0.5),
    'step': jnp.int32(7),
    'rate': jnp.bfloat16(1.5),
    'curve': [jnp.array([1.0, 2.0]), {'best': np.int64(3)}],
  }
  adapter_file.save_adapter(tmp_path / 'a', adapted, variables, genome, **notes)
  _, metadata = read_tensors(tmp_path / 'a', 'adapter')
  plain = {'accuracy': 0.5, 'step': 7, 'rate': 1.5, 'curve': [[1.0, 2.0], {'best': 3}]}
  assert {name: metadata[name] for name in notes} == plain


def test_names_of_any_letters_are_shown_as_they_can_be(written, tmp_path):
  adapted, params, tensors, metadata = written
  with pytest.raises(FileNotFoundError, match=r'There is no file .*/ü\\n; give'):
    adapter_file.load_adapter(tmp_path / 'ü\n', adapted, params)
  write_tensors(tmp_path / 'ü\n', tensors, 'adapter', metadata)
  with pytest.raises(ValueError, match=r'The adapter .*/ü\\n was trained on other base weights'):
    adapter_file.load_adapter(tmp_path / 'ü\n', adapted, jax.tree.map(np.zeros_like, params))
  with pytest.raises(ValueError, match='These params are not those of the adapted BodyAndHead'):
    adapter_file.load_adapter(tmp_path / 'ü\n', adapted, b'x')


def test_supports_that_are_not_finite_are_refused_and_leave_no_file(written, tmp_path):
  adapted, params, _, _ = written
  variables = jax.tree.map(lambda x: x * np.nan, random_variables(adapted, params))
  genome = presets.preset(adapted.spec, 'ssf')
  with pytest.raises(ValueError, match='has numbers that are not finite; the training diverged'):
    adapter_file.save_adapter(tmp_path / 'a', adapted, variables, genome)
  assert not list(tmp_path.iterdir())


def test_variables_of_another_model_are_refused_and_leave_no_file(tmp_path):
  adapted = glora_jax.adapt(nn.Dense(3), jnp.zeros((1, 4)))
  params = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}
  variables = adapted.init(jax.random.key(0), params)
  genome = presets.preset(adapted.spec, 'lora')
  variables['params'] = {'kernel': jnp.ones((4, 5)), 'bias': jnp.zeros(5)}
  with pytest.raises(ValueError, match=r'not those of the adapted Dense\. .* kernel is \(4, 5\)'):
    glora_jax.save_adapter(tmp_path / 'adapter', adapted, variables, genome)
  assert not list(tmp_path.iterdir())


class Noisy(nn.Module):
  """A layer, and noise by a random key that the model keeps in a collection of its own."""

  @nn.compact
  def __call__(self, x):
    key = self.variable('noise', 'key', lambda: jax.random.key(0))
    return nn.Dense(3, name='dense')(x) + jax.random.normal(key.value, ())


def test_a_random_key_among_the_variables_is_refused_by_its_name(tmp_path):
  model, x = Noisy(), jnp.ones((1, 4))
  adapted = glora_jax.adapt(model, x)
  variables = random_variables(adapted, random_params(model, x))
  variables['noise'] = {'key': jax.random.key(0)}
  genome = glora_jax.preset(adapted.spec, 'lora')
  with pytest.raises(ValueError, match=r'noise/key is a random key, .* leave the collection'):
    glora_jax.save_adapter(tmp_path / 'adapter', adapted, variables, genome)
  assert not list(tmp_path.iterdir())
