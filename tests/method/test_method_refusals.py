"""What public calls refuse: each error names the value that is wrong."""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_refused
from flax import nnx

import glora_jax
from glora_jax import Layer, SearchSpace, Spec
from glora_jax.method import presets, sharding
from glora_jax.method.genomes import check_genome, genome_from_json
from glora_jax.method.space import MOST_RANKS

X = jnp.ones((2, 4))
KEY = jax.random.key(0)
PARAMS = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}
LAYERS = Spec(tuple(Layer(name, 8, 32) for name in 'abc'))
UNBIASED = Spec((Layer('attn/qkv', 8, 32, bias=False),))
GENOME = np.array([[0, 3, 0, 0, 0]], np.int8)


def adapt(**options):
  return glora_jax.adapt(nn.Dense(3), X, **options)


@functools.cache
def dense():
  return adapt(space=SearchSpace((2, 4)))


@functools.cache
def variables():
  return dense().init(KEY, PARAMS)


class Chain(nn.Module):
  """Two layers with one input, and one that has another."""

  @nn.compact
  def __call__(self, x):
    y = nn.Dense(4, name='first')(x) + nn.Dense(4, name='beside')(x)
    return nn.Dense(4, name='second')(y)


class Classes(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(x).argmax(-1)


class Holder:
  module = print


def chain(**options):
  return glora_jax.adapt(Chain(), X, **options)


def function(params, x):
  return x @ params['w']


def adapt_function(function=function, w=PARAMS['kernel'], **options):
  return glora_jax.adapt_function(function, {'w': w}, X, **options)


def apply_of_another_space():
  return dense().apply(adapt(space=SearchSpace((2, 8))).init(KEY, PARAMS), X, genome=GENOME)


def check_outputs():
  adapted = glora_jax.adapt(Classes(), X)
  return glora_jax.check(adapted, adapted.init(KEY, {'Dense_0': PARAMS}), X)


def explicit_mesh():
  mesh = jax.make_mesh((1,), ('fsdp',), axis_types=(jax.sharding.AxisType.Explicit,))
  return glora_jax.shard(dense(), variables(), mesh)


def random(budget, *layers):
  return glora_jax.random_genomes(np.random.default_rng(0), Spec(layers), 3, budget)


REFUSED = [
  # spaces and layers
  (lambda: SearchSpace(ranks=range(1, MOST_RANKS + 2)), f'{MOST_RANKS}'),
  (lambda: SearchSpace(E='vector', one_shift=True), 'one_shift=True'),
  # what adapt is given
  (lambda: adapt(space=SearchSpace((4, 100_000))), '100000'),
  (lambda: adapt(select='('), "'('"),
  (lambda: chain(select='conv'), "select='conv'", 'first, beside, second'),
  (lambda: adapt(heads='^kernel'), 'no linear layer', 'apart from its heads'),
  (lambda: glora_jax.adapt(Holder(), X), 'Holder', 'adapt_function'),
  (lambda: glora_jax.adapt(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), X), 'Linear', 'nnx.attach'),
  (
    lambda: glora_jax.adapt(
      nn.Einsum((4,), 'bd,d->bd', False, kernel_init=nn.initializers.ones), X
    ),
    'Einsum has no linear layer',
  ),
  (
    lambda: glora_jax.adapt(nn.Conv(3, (2, 2), name='stem'), jnp.ones((1, 4, 4, 3))),
    '(convolution; use convs=True)',
  ),
  # what adapt_function is given
  (lambda: adapt_function(lambda params, x: x @ PARAMS['kernel']), 'none of its params'),
  (lambda: adapt_function(lambda params, x: x * params['w'], jnp.ones(4)), 'no matrix'),
  (lambda: adapt_function(w=jnp.ones((4, 3), jnp.int8)), 'w 4x3', 'int8'),
  (
    lambda: adapt_function(
      lambda params, x: x @ params['w'].astype(x.dtype), jnp.ones((4, 3), jnp.float8_e4m3fn)
    ),
    'kernel of w is',
    'float8_e4m3fn',
  ),
  (lambda: adapt_function(stacks={'w': 0}), 'axis 0 of w'),
  # parameters, variables and genomes of an adapted model
  (lambda: dense().init(KEY, {**PARAMS, 'bias': np.zeros(3, int)}), 'bias is int64'),
  (
    lambda: dense().init(KEY, {'kernel': jnp.ones((4, 6)), 'extra': X}),
    'missing: bias; unexpected: extra; misshaped: kernel is (4, 6)',
  ),
  (apply_of_another_space, "['glora']"),
  (lambda: dense().apply(variables(), X), 'apply needs a genome'),
  (lambda: dense().fix(GENOME).apply(variables(), X, genome=GENOME), 'apply accepts no genome'),
  # keys, specs, genomes and presets without a model
  (lambda: dense().init(0, PARAMS), 'key='),
  (lambda: glora_jax.preset(dense(), 'lora'), 'Adapted', 'adapted.spec'),
  (
    lambda: jax.eval_shape(functools.partial(glora_jax.count_params, dense().spec), GENOME),
    'traced',
  ),
  (lambda: check_genome(LAYERS, np.zeros((2, 5), np.int8)), '(2, 5)', '[..., 3, 5]'),
  (lambda: check_genome(LAYERS, np.ones((3, 5), bool)), 'bool'),
  (lambda: genome_from_json(LAYERS, '{"genome": [[0'), '{"genome": [[0'),
  (lambda: genome_from_json(LAYERS, {'genome': [[0] * 5] * 3, 'layers': [{}] * 3}), 'A is missing'),
  (lambda: random(29, Layer('a', 6, 9, space=SearchSpace(2, B='lora'))), '29', '30'),
  *(
    (functools.partial(glora_jax.preset, LAYERS, name), *named)
    for name, *named in (
      ('lorra', "'lorra'", 'linear, bitfit'),
      ('ssf:2', "'ssf:2'", 'ssf has no LoRA'),
      ('lora:5', 'lora:5', 'of a', 'lora:4'),
      ('lora@qkv', "'qkv'", 'are a, b, c'),
    )
  ),
  (lambda: glora_jax.preset(UNBIASED, 'bitfit'), "'bitfit'"),
  (lambda: presets.custom_genome(LAYERS, {'conv': 'lora'}), 'conv', 'a, b, c'),
  # checks and devices
  (check_outputs, 'floating-point'),
  (explicit_mesh, 'fsdp'),
  (
    lambda: sharding.shard_arrays(
      jax.sharding.AbstractMesh((2,), ('fsdp',)), {'w': np.ones((15, 21))}, min_bytes=100
    ),
    '2 devices',
    '(15, 21)',
  ),
]


@pytest.mark.parametrize(
  'call, named', [pytest.param(call, named, id=' '.join(named)) for call, *named in REFUSED]
)
def test_what_cannot_be_is_refused_by_name(call, named):
  assert_refused(named, call)


def test_a_structure_that_is_no_file_of_one_is_named(tmp_path):
  path = str(tmp_path / 'x.safetensors')
  assert_refused(
    f'structure={path!r} does not exist', adapt, structure=path, kind=FileNotFoundError
  )
  assert_refused('is not a file; pass an', adapt, structure=tmp_path, kind=FileNotFoundError)
  pathlib.Path(path).write_text('null')
  assert_refused('x.safetensors is damaged', adapt, structure=path)
  (tmp_path / 'UP.JSON').write_text('null')
  assert_refused(
    ['UP.JSON', 'not an adapter', 'json.load'], adapt, structure=str(tmp_path / 'UP.JSON')
  )


def test_names_of_files_may_look_like_presets_and_patterns_like_files(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  expected = adapt(structure='bitfit')
  (tmp_path / 'lora:2').mkdir()
  for name in ('lora:2/x.safetensors', 'UP.SAFETENSORS'):
    glora_jax.save_adapter(name, expected, expected.init(KEY, PARAMS))
    assert adapt(structure=name).genome.tolist() == expected.genome.tolist()
  params = {'genome': jnp.ones((4, 4))}
  adapted = glora_jax.adapt_function(
    lambda params, x: x @ params['genome'], params, jnp.ones((1, 4)), structure={'genome': 'lora:2'}
  )
  assert adapted.count_params() == 2 * (4 + 4)
