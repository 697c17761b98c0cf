"""What public calls refuse: each error names the value that is wrong."""

import functools
import json
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_refused
from flax import nnx
from test_adapt_options import Einsums

import glora_jax
from glora_jax import Layer, SearchSpace, Spec
from glora_jax.method import equation, presets, sharding
from glora_jax.method.genomes import check_genome, genome_from_json
from glora_jax.method.space import MOST_RANKS

X = jnp.ones((2, 4))
KEY = jax.random.key(0)
PARAMS = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}
WHOLE_NUMBERS = jax.tree.map(lambda value: value.astype(int), PARAMS)
EIGHT_BITS = jax.tree.map(lambda value: value.astype(jnp.float8_e4m3fn), PARAMS)
LAYERS = Spec(tuple(Layer(name, 8, 32) for name in 'abc'))
UNBIASED = Spec((Layer('attn/qkv', 8, 32, bias=False),))
GENOME = np.array([[0, 3, 0, 0, 0]], np.int8)
NAMED = glora_jax.genome_to_json(Spec((Layer('Dense', 4, 3),)), GENOME)


def adapt(**options):
  return glora_jax.adapt(nn.Dense(3), X, **options)


@functools.cache
def dense():
  return adapt(space=SearchSpace((2, 4)))


@functools.cache
def variables():
  return dense().init(KEY, PARAMS)


class Chain(nn.Module):
  """Two layers one after another, and one that has other inputs."""

  @nn.compact
  def __call__(self, x):
    y = nn.Dense(4, name='first')(x)
    return nn.Dense(4, name='second')(y) + nn.Dense(4, name='narrow')(x[..., :2])


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


def apply(given=None, genome=GENOME, **options):
  return dense().apply(variables() if given is None else given, X, genome=genome, **options)


def check_outputs(structure=None):
  adapted = glora_jax.adapt(Classes(), X).fix(structure)
  return glora_jax.check(adapted, adapted.init(KEY, {'Dense_0': PARAMS}), X)


def explicit_mesh():
  mesh = jax.make_mesh((1,), ('fsdp',), axis_types=(jax.sharding.AxisType.Explicit,))
  return glora_jax.shard(dense(), variables(), mesh)


def custom(**choices):
  return presets.custom_genome(LAYERS, choices)


def random(budget=None, number=3, rng=None, spec=LAYERS):
  rng = np.random.default_rng(0) if rng is None else rng
  return glora_jax.random_genomes(rng, spec, number, budget)


REFUSED = [
  # spaces and layers
  (lambda: SearchSpace(ranks=range(1, MOST_RANKS + 2)), f'{MOST_RANKS}'),
  (lambda: SearchSpace(E='vector', one_shift=True), 'one_shift=True'),
  (lambda: Spec((3,)), 'layers='),
  # what adapt is given
  (lambda: adapt(space=(2, 4)), 'space=(2, 4)'),
  (lambda: adapt(space=SearchSpace((4, 100_000))), '100000'),
  (lambda: adapt(select='('), "'('"),
  (lambda: chain(select='conv'), "select='conv'", 'first, second'),
  (lambda: chain(space={'first': SearchSpace(), 'conv': SearchSpace()}), "'conv'"),
  (lambda: chain(ties=[('first', 'second')]), 'second and first', 'input array'),
  (lambda: glora_jax.adapt(Holder(), X), 'Holder', 'adapt_function'),
  (lambda: glora_jax.adapt(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), X), 'Linear', 'nnx.attach'),
  (lambda: glora_jax.adapt(nn.LayerNorm(), X), 'LayerNorm'),
  (
    lambda: glora_jax.adapt(
      nn.Dense(3, param_dtype=jnp.int8, kernel_init=nn.initializers.zeros), X
    ),
    'int8',
  ),
  (lambda: glora_jax.adapt(Einsums('bd,d->bd', (4,), False), X), 'einsum', 'bd,d->bd'),
  # what adapt_function is given
  (lambda: adapt_function(lambda params, x: x @ PARAMS['kernel']), 'none of its params'),
  (lambda: adapt_function(lambda params, x: x * params['w'], jnp.ones(4)), 'no matrix'),
  (lambda: adapt_function(w=jnp.ones((4, 3), jnp.int8)), 'w 4x3', 'int8'),
  (
    lambda: adapt_function(lambda params, x: x @ params['w'].astype(x.dtype), EIGHT_BITS['kernel']),
    'kernel of w is',
    'float8_e4m3fn',
  ),
  (lambda: adapt_function(split={'w': 0}), 'axis 0 of w'),
  # parameters, variables and genomes of an adapted model
  (lambda: dense().init(KEY, WHOLE_NUMBERS), 'bias is int32, kernel is int32'),
  (
    lambda: dense().init(KEY, {'kernel': jnp.ones((4, 6)), 'extra': X}),
    'missing: bias; unexpected: extra; misshaped: kernel is (4, 6)',
  ),
  (lambda: apply({'params': PARAMS}), "'glora'"),
  (lambda: apply(adapt(space=SearchSpace((2, 8))).init(KEY, PARAMS), GENOME), "['glora']"),
  (lambda: dense().fold(variables(), np.full_like(GENOME, 9)), 'says 9 for A of layer 0'),
  (lambda: dense().apply(variables(), X), 'apply needs a genome'),
  (lambda: dense().fix(GENOME).apply(variables(), X, genome=GENOME), 'apply takes no genome'),
  (lambda: adapt(structure='lora:2', scale=0.0), 'scale=0.0'),
  # keys, specs, genomes and presets without a model
  (lambda: dense().init(0, PARAMS), 'key='),
  (lambda: glora_jax.preset(dense(), 'lora'), 'Adapted', 'adapted.spec'),
  (lambda: jax.eval_shape(dense().count_params, GENOME), 'traced'),
  (lambda: check_genome(LAYERS, np.zeros((2, 5), np.int8)), '(2, 5)', '[..., 3, 5]'),
  *(
    (functools.partial(check_genome, LAYERS, np.ones((3, 5), kind)), kind)
    for kind in ('float32', 'bool', 'complex64', 'object')
  ),
  (lambda: genome_from_json(LAYERS, '{"genome": [[0'), '{"genome": [[0'),
  (lambda: genome_from_json(LAYERS, {'genome': [[0] * 5] * 3, 'layers': [{}] * 3}), 'layers[0].A'),
  *((functools.partial(random, budget), 'budget=') for budget in (-1, 'many')),
  (
    lambda: random(29, spec=Spec((Layer('a', 6, 9, True, SearchSpace((2,), B='lora')),))),
    '29',
    '30',
  ),
  *(
    (functools.partial(glora_jax.preset, LAYERS, name), *named)
    for name, *named in (
      ('lorra', "'lorra'", 'linear, bitfit'),
      ('ssf:2', "'ssf:2'", 'ssf has no LoRA'),
      ('lora@(', "'('"),
      ('lora:5', 'rank 5', 'of a has the ranks 4'),
      ('lora@qkv', "'qkv'", 'are a, b, c'),
    )
  ),
  (lambda: glora_jax.preset(UNBIASED, 'bitfit'), "'bitfit'"),
  (lambda: custom(conv='lora'), 'conv', 'a, b, c'),
  # the equation, checks and devices
  (lambda: equation.effective(jnp.ones((4, 5)), None, {}, np.zeros(3, int)), '(3,)'),
  (check_outputs, 'floating-point'),
  (lambda: check_outputs('bitfit'), 'adapted.fix(None)'),
  (lambda: glora_jax.shard(dense(), variables(), 8), 'mesh=8'),
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


def test_a_file_that_is_not_there_is_named():
  with pytest.raises(FileNotFoundError, match=r"structure='\./no\.json' does not exist"):
    adapt(structure='./no.json')


def test_a_structure_that_is_no_file_of_one_is_named(tmp_path):
  os.mkfifo(tmp_path / 'pipe.json')
  for path in (tmp_path, tmp_path / 'pipe.json'):
    with pytest.raises(FileNotFoundError, match='is not a file; pass a genome'):
      adapt(structure=path)
  for content in ('null', '3', '"lora:2"'):
    (tmp_path / 'x.json').write_text(content)
    assert_refused(['x.json is damaged', 'genome_to_json'], adapt, structure=tmp_path / 'x.json')


def test_names_of_files_may_look_like_presets_and_patterns_like_files(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  expected = adapt(structure='bitfit')
  content = json.dumps(glora_jax.genome_to_json(expected.spec, expected.genome))
  (tmp_path / 'lora:2').mkdir()
  for name in ('lora:2/x.json', 'UP.JSON'):
    (tmp_path / name).write_text(content)
    assert adapt(structure=name).genome.tolist() == expected.genome.tolist()
  params = {'genome': jnp.ones((4, 4))}
  adapted = glora_jax.adapt_function(
    lambda params, x: x @ params['genome'], params, jnp.ones((1, 4)), structure={'genome': 'lora:2'}
  )
  assert adapted.count_params() == 2 * (4 + 4)


def test_a_linear_probe_needs_no_supports():
  assert dense().split({'params': PARAMS}, supports=False)[0] == {'params': {}}
