"""Many adapters on one base: each example is answered as by its adapter alone."""

import functools
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_refused, random_params
from numpy.testing import assert_allclose
from small_models import Transformer
from trees import normal, randomized

import glora_jax
from glora_jax import Pool
from glora_jax.files import read_tensors, write_tensors
from glora_jax.method import adapter_file
from glora_jax.tree import fingerprints

X, IMAGES, NAMES = normal(6, 4), normal(6, 4, 4, 3), ['a', None, 'b', 'c', 'a', 'b']
STRUCTURES = {
  'a': {'qkv': {'A': 'vector', 'B': 'lora:2', 'C': 'lora:2', 'D': 'vector', 'E': 'constant'}},
  'b': {'fc': {'A': 'constant', 'B': 'vector', 'C': 'vector'}, 'proj': {'D': 'constant'}},
  'c': 'lora:4',
}
A_TOO = {'c': {'': {'A': 'lora:4', 'B': 'constant', 'E': 'vector'}}}


def save(folder, adapted, params, structures):
  """Files of trained structures, and what each answers alone."""
  alone = {}
  for seed, (name, structure) in enumerate(structures.items()):
    fixed = adapted.fix(structure)
    trainable, frozen = fixed.split(fixed.init(jax.random.key(seed), params))
    variables = fixed.join(randomized(trainable, seed, scale=0.2), frozen)
    glora_jax.save_adapter(folder / name, fixed, variables)
    alone[name] = fixed, variables
  return alone


def pool_of(folder, adapted, params, names, **options):
  """A pool with the adapters of those names."""
  pool = Pool(adapted, params, **options)
  for name in names:
    pool.load(name, folder / name)
  return pool


def assert_alone(answers, alone, params, inputs, names=NAMES):
  base = next(iter(alone.values()))[0].model
  runs = {name: functools.partial(fixed.apply, own) for name, (fixed, own) in alone.items()}
  runs[None] = functools.partial(base.apply, {'params': params})
  runs = {name: jax.jit(runs[name]) for name in set(names)}
  for number, name in enumerate(names):
    expected = runs[name](*(array[number : number + 1] for array in inputs))
    assert_allclose(answers[number], expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('merge, tied', [(False, (True, False)), (True, (False, True))])
def test_each_example_is_answered_as_by_its_adapter_alone(merge, tied, tmp_path):
  model = Transformer(3)
  params = random_params(model, IMAGES)
  of_qkv, of_others = (glora_jax.SearchSpace((2, 4), shared=own, scale=2) for own in tied)
  adapted = glora_jax.adapt(model, IMAGES, space={'qkv': of_qkv, '': of_others})
  alone = save(tmp_path, adapted, params, STRUCTURES | A_TOO if merge else STRUCTURES)
  pool = pool_of(tmp_path, adapted, params, alone, slots=3, rank=5, merge=merge)
  assert_alone(pool(IMAGES, NAMES), alone, params, (IMAGES,))


def mlp(params, x):
  return (
    params['activation'](x @ params['w'] + params['b']) @ params['head']['w'] + params['head']['b']
  )


def of_function(classes=3, shift=0, **options):
  """A function, some of whose parameters are no arrays."""
  params = {
    'name': 'one',
    'activation': jnp.tanh,
    'w': normal(4, 5) + shift,
    'b': normal(5),
    'head': {'w': normal(5, classes), 'b': normal(classes)},
  }
  options = {'space': glora_jax.SearchSpace(), **options}
  return glora_jax.adapt_function(mlp, params, X[:1], **options), params


def test_a_function_is_served(tmp_path):
  adapted, params = of_function()
  every = {'': {'A': 'constant', 'B': 'lora', 'C': 'vector', 'D': 'constant', 'E': 'constant'}}
  alone = save(tmp_path, adapted, params, {'a': every, 'b': {'': {'B': 'constant'}}, 'c': 'ssf'})
  pool = pool_of(tmp_path, adapted, params, alone)
  assert_alone(pool(X, NAMES), alone, params, (X,))


def test_a_count_without_axes_becomes_one_for_each_example():
  def model(params, x, count):
    return x @ params['w'], count + x.shape[0]

  params = {'w': normal(4, 3)}
  adapted = glora_jax.adapt_function(model, params, X, 0, structure='lora:2')
  pool = Pool(adapted, params)
  for given in (np.int32(1), np.arange(6)):
    _, count = pool((X, given), [None] * 6)
    np.testing.assert_array_equal(count, np.broadcast_to(given + 1, 6))


class Decoder(nn.Module):
  decode: bool

  @nn.compact
  def __call__(self, x, mask=None):
    attention = nn.MultiHeadDotProductAttention(2, decode=self.decode, name='attention')
    return nn.Dense(3, name='head')(attention(x, x, mask=mask))


def test_a_decoder_keeps_a_cache_for_each_example(tmp_path):
  whole, model, x = Decoder(False), Decoder(True), normal(6, 4, 8)
  params = random_params(whole, x)
  structures = {'a': 'lora', 'b': 'bitfit', 'c': 'ssf'}
  alone = save(tmp_path, glora_jax.adapt(whole, x), params, structures)
  adapted = glora_jax.adapt(model, x[:1, :1])
  pool = pool_of(tmp_path, adapted, params, alone, mutable=['cache'])
  empty = model.init(jax.random.key(0), x[:1])['cache']
  cache, answers = {'cache': jax.tree.map(lambda leaf: jnp.stack([leaf] * 6), empty)}, []
  for step in range(4):
    answer, cache = pool(x[:, step : step + 1], NAMES, **cache)
    answers.append(answer)
  mask = nn.make_causal_mask(x[..., 0])
  assert_alone(jnp.concatenate(answers, 1), alone, params, (x, mask))


def test_nothing_is_compiled_for_another_mix_or_another_adapter(tmp_path):
  adapted, params = of_function()
  alone = save(tmp_path, adapted, params, {'a': 'lora', 'b': 'ssf', 'c': 'bitfit'})
  pool = pool_of(tmp_path, adapted, params, 'a', slots=2.0, rank=4.0, evict=True)
  mixed, compiled = ['c', 'a', None] * 2, []
  pool(X, ['a'] * 6)
  jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
  try:
    pool.load('b', tmp_path / 'b')
    pool(X, ['b', 'a', None] * 2)
    pool.load('c', tmp_path / 'c')  # in the place of b, which was used before a
    assert pool.names == ['a', 'c']
    pool(X, iter(mixed))
    assert pool.names == ['c', 'a']
    answers = pool(X, mixed)
  finally:
    jax.monitoring.clear_event_listeners()
  assert not [name for name in compiled if 'backend_compile' in name]
  assert_alone(answers, alone, params, (X,), mixed)


def test_logits_beyond_an_adapters_classes_are_minus_infinity(tmp_path):
  adapted, params = of_function()
  alone = save(tmp_path, *of_function(classes=2), {'a': 'lora'})
  answers = pool_of(tmp_path, adapted, params, 'a')(X[:2], ['a', None])
  assert np.isneginf(answers).tolist() == [[False, False, True], [False] * 3]
  fixed, variables = alone['a']
  assert_allclose(answers[:1, :2], fixed.apply(variables, X[:1]), rtol=1e-5)


def test_a_sum_without_heads_is_served_with_those_of_another_base(tmp_path):
  adapted, params = of_function()
  save(tmp_path, adapted, params, {'a': 'lora'})
  glora_jax.combine({tmp_path / 'a': 1}, tmp_path / 'sum')
  _, other = of_function(shift=1)
  pool = Pool(adapted, other)
  pool.load('a', tmp_path / 'sum', strict=False)
  fixed, variables = glora_jax.load_adapter(tmp_path / 'sum', adapted, other, strict=False)
  assert_allclose(pool(X, ['a'] * 6), fixed.apply(variables, X), rtol=1e-5)


def test_a_base_is_read_for_its_fingerprints_once_and_only_if_a_load_is_strict(
  tmp_path, monkeypatch
):
  adapted, params = of_function()
  save(tmp_path, adapted, params, {'a': 'lora'})
  hashed = []

  def count(params, *rounded):
    hashed.append(rounded)
    return fingerprints(params, *rounded)

  monkeypatch.setattr(adapter_file, 'fingerprints', count)
  pool = Pool(adapted, params)
  pool.load('a', tmp_path / 'a', strict=False)
  assert not hashed
  for name in 'bc':
    pool.load(name, tmp_path / 'a')
  assert len(hashed) == 1


REFUSED = [
  # structure, options of the function and of the pool, what is said
  ('lora:8', {}, {}, 'rank=8'),
  ('hira:2', {}, {}, 'merge=True'),
  ('lora:2', {'shift': 1}, {}, 'other base weights'),
  ('lora:2', {'classes': 4}, {}, r'head/w is \(5, 4\)'),
  ('ssf', {}, {'slots': 1}, 'full.*a'),
]


@pytest.mark.parametrize('structure, function, options, message', REFUSED)
def test_what_does_not_fit_is_refused_and_nothing_is_lost(
  structure, function, options, message, tmp_path
):
  adapted, params = of_function()
  alone = save(tmp_path, adapted, params, {'a': 'bitfit'})
  pool = pool_of(tmp_path, adapted, params, 'a', **{'slots': 2, 'rank': 4, **options})
  space = glora_jax.SearchSpace((2, 8))
  save(tmp_path, *of_function(**function, space=space), {'b': structure})
  with pytest.raises(ValueError, match=message):
    pool.load('b', tmp_path / 'b')
  with pytest.raises(ValueError, match="no adapter 'b' in the pool; it holds: a"):
    pool(X, ['b'] * 6)
  assert_alone(pool(X, ['a', None] * 3), alone, params, (X,), ['a', None] * 3)


def test_a_load_that_is_interrupted_loses_nothing(tmp_path, monkeypatch):
  adapted, params = of_function()
  alone = save(tmp_path, adapted, params, {'a': 'ssf', 'b': 'bitfit'})
  pool = pool_of(tmp_path, adapted, params, 'a', slots=1, evict=True)

  def interrupted(*arguments, write=pool._write):
    write(*arguments)
    raise KeyboardInterrupt

  monkeypatch.setattr(pool, '_write', interrupted)
  with pytest.raises(KeyboardInterrupt):
    pool.load('b', tmp_path / 'b')
  names = ['a', None] * 3
  assert_alone(pool(X, names), alone, params, (X,), names)


def test_odd_names_files_and_collections_are_refused_in_a_sentence(tmp_path):
  adapted, params = of_function()
  save(tmp_path, adapted, params, {'a': 'lora'})
  pool, path = pool_of(tmp_path, adapted, params, 'a'), tmp_path / 'a'
  assert_refused('1 names', pool, X, 'a')
  assert_refused("adapter ['a']", pool, X, [['a']] * 6)
  assert_refused('4, 6 examples', pool, X, ['a'] * 6, cache={'k': jnp.ones(4)})
  assert_refused('no examples', pool, 1.0, ['a'])
  assert_refused('names=None must be an Iterable', pool, X, None, kind=TypeError)
  tensors, metadata = read_tensors(path, 'adapter')
  metadata['layers'][0]['B'] = f'lora:{"9" * 5000}'
  write_tensors(path, tensors, 'adapter', metadata)
  assert_refused(['lora:999', 'rank=999'], pool.load, 'b', path)


def test_hidden_layers_of_heads_are_not_padded(tmp_path):
  def function(params, x):
    return nn.gelu(nn.tanh(x @ params['body']) @ params['h']) @ params['last']

  def made(width):
    params = {'body': normal(4, 5), 'h': normal(5, width), 'last': normal(width, 2)}
    return glora_jax.adapt_function(function, params, X, heads=['h', 'last']), params

  save(tmp_path, *made(3), {'a': 'lora'})
  assert_refused('heads of another model', Pool(*made(4), rank=8).load, 'a', tmp_path / 'a')


def test_a_pool_keeps_no_array_of_the_host():
  adapted, params = of_function()
  kernel = np.array(params['w']).view(np.matrix)  # JAX may share the memory of plain arrays
  alive = weakref.ref(kernel)
  pool = Pool(adapted, {**params, 'w': kernel})
  del kernel
  assert alive() is None
  assert pool.names == []
