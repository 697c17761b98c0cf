"""Bases quantized by qwix itself."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
import torch
from comparing import assert_refused, assert_trees_close
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal
from places import code_of
from trees import normal, randomized

import glora_jax
from glora_jax.method.quantized import dequantize, has_quantized, is_quantized, requantize

pytestmark = pytest.mark.accelerator

X, KEY = normal(2, 4, 8), jax.random.key(0)


class Model(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.silu(nn.MultiHeadDotProductAttention(2, name='attention')(x, x))
    return nn.Dense(3, name='head')(nn.silu(nn.Dense(16, name='fc')(x)))


class NnxModel(nnx.Module):
  def __init__(self, rngs):
    self.fc, self.head = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)

  def __call__(self, x):
    return self.head(nnx.silu(self.fc(x)))


def quantized(**rule):
  """(the model as qwix quantizes it, its params)."""
  rules = [qwix.QuantizationRule(module_path='(attention|fc).*', **rule)]
  model = qwix.quantize_model(Model(), qwix.PtqProvider(rules))
  params = Model().init(jax.random.key(1), X)['params']
  shapes = jax.eval_shape(model.init, jax.random.key(1), X)['params']
  return model, jax.jit(lambda params: qwix.quantize_params(params, shapes))(params)


@pytest.fixture(scope='module', params=[('int8', None), ('nf4', 4)])
def ready(request):
  qtype, tile_size = request.param
  theirs, params = quantized(weight_qtype=qtype, tile_size=tile_size)
  adapted = glora_jax.adapt(Model(), X, space=glora_jax.SearchSpace())
  return theirs, params, adapted, adapted.init(KEY, params)


def reader(params, x):
  """Looks rows of one array up, and multiplies with another, neither of them adapted."""
  x = (x + params['table'][np.arange(x.shape[1])]) @ params['fc']['w'] + params['fc']['b']
  return nn.silu(x) @ params['out'] @ params['head']['w']


READ = {
  'table': normal(5, 8),
  'fc': {'w': normal(8, 8, seed=1), 'b': normal(8)},
  'out': normal(8, 8, seed=2),
  'head': {'w': normal(8, 3, seed=3)},
}


def test_an_adapter_goes_onto_a_base_whose_head_is_quantized_and_which_peft_may_leave_out(
  tmp_path,
):
  base = jax.tree.map(lambda array: qwix.quantize(array, 'int8'), READ)
  plain = jax.tree.map(dequantize, base, is_leaf=is_quantized)
  adapted, headless = (
    glora_jax.adapt_function(reader, READ, X, structure='lora', select='fc', heads=heads)
    for heads in ('head', None)
  )
  glora_jax.save_adapter(tmp_path / 'adapter', adapted, adapted.init(KEY, base))
  names = {'fc/w': 'fc', 'head.*': 'head'}
  glora_jax.peft.save(tmp_path / 'peft', headless, headless.init(KEY, base), names)
  for fixed, loaded in (
    glora_jax.load_adapter(tmp_path / 'adapter', adapted, base),
    glora_jax.peft.load(tmp_path / 'peft', adapted, base, names),
  ):
    assert is_quantized(loaded['params']['fc']['w'])
    assert_allclose(fixed.apply(loaded, X), reader(plain, X), rtol=1e-5, atol=1e-6)
    head = fixed.split(loaded)[0]['params']['head']['w']  # to be trained
    assert_array_equal(head, plain['head']['w'])


def shape_and_type(leaf):
  return leaf.shape, leaf.dtype


def test_a_quantized_base_stays_quantized_starts_as_qwix_runs_it_is_checked_and_gets_a_structure(
  ready,
):
  theirs, params, adapted, variables = ready
  assert is_quantized(variables['params']['attention']['query']['kernel'])
  genome = glora_jax.preset(adapted.spec, 'full')
  ours = jax.jit(adapted.apply)(variables, X, genome=genome)
  assert_allclose(ours, jax.jit(theirs.apply)({'params': params}, X), atol=1e-5)
  assert glora_jax.check(adapted, variables, X).ok
  found = glora_jax.allocate(
    adapted,
    variables,
    lambda forward, batch, _: (forward(batch) ** 2).mean(),
    [X + shift for shift in range(4)],
    budget=40,
    key=KEY,
    progress=False,
  )
  assert 0 < found.count_params() <= 40
  chosen = jax.jit(adapted.fix(found.genome).apply)(found.variables, X)
  assert_allclose(chosen, ours, atol=1e-5)


def test_fold_is_full_precision_and_requantized_as_it_was(ready, caplog):
  """By the lines of the page."""
  _, params, adapted, _ = ready
  [block] = code_of('docs/concepts/equation.md')
  names = {'glora_jax': glora_jax, 'jax': jax, 'model': Model(), 'images': X}
  names |= {'quantized_params': params, 'genome': glora_jax.preset(adapted.spec, 'full')}
  with caplog.at_level('INFO', 'glora_jax'):
    exec(block, names)
  assert re.search(r'changes (attention/\w+|fc)/kernel most, by [\d.e-]+ of its norm', caplog.text)
  folded, again = names['folded'], names['smaller']
  assert {leaf.dtype for leaf in jax.tree.leaves(folded)} == {np.dtype(np.float32)}
  assert jax.tree.structure(again) == jax.tree.structure(params)
  assert jax.tree.map(shape_and_type, again) == jax.tree.map(shape_and_type, params)
  allowed = 2.0**-7 if 'int8' in str(params) else 2.0**-2
  pairs = zip(*map(jax.tree.leaves, (adapted.full_precision(again), folded)), strict=True)
  for rounded, exact in pairs:
    assert_allclose(rounded, exact, atol=allowed * np.abs(exact).max())


class Layer(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return x + nn.Dense(8, name='fc')(nn.silu(x)), None


class Stack(nn.Module):
  @nn.compact
  def __call__(self, x):
    layers = nn.scan(Layer, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)
    return nn.Dense(3, name='head')(layers(name='layers')(x, None)[0])


class Tied(nn.Module):
  @nn.compact
  def __call__(self, x):
    table = nn.Embed(16, 8, name='table')
    return table.attend(nn.Dense(8, name='fc')(table(x[..., 0].astype(int) % 16)))


def pack(params, qtype, tiles=4):
  """Quantizes all but heads and biases of Flax, along the second to last axis."""

  def packed(path, kernel):
    if 'head' in str(path) or 'bias' in str(path):
      return kernel
    axis = max(kernel.ndim - 2, 0)
    rest = [dim for dim in range(kernel.ndim) if dim != axis]
    size = tiles if kernel.shape[axis] % tiles == 0 else kernel.shape[axis]
    return qwix.quantize(kernel, qtype, channelwise_axes=rest, tiled_axes={axis: size})

  return jax.tree_util.tree_map_with_path(packed, params)


def of_linen(model, structure, **options):
  adapted = glora_jax.adapt(model, X, structure=structure, **options)
  return adapted, model.init(KEY, X)['params']


def of_torch(structure):
  layers = torch.nn.Linear(8, 8), torch.nn.SiLU(), torch.nn.Linear(8, 3)
  module = torch.nn.Sequential(*layers).eval()
  inputs = torch.tensor(np.array(X))
  return glora_jax.torch.adapt(module, inputs, structure=structure, heads=None, select='0')


def of_function(structure):
  return glora_jax.adapt_function(reader, READ, X, structure=structure, select='fc'), READ


WAYS = {
  'linen': functools.partial(of_linen, Model()),
  'stack': functools.partial(of_linen, Stack()),
  'tied': functools.partial(of_linen, Tied(), embeddings=True),
  'rows': functools.partial(of_linen, Tied(), embeddings=[0, 2]),
  'function': of_function,
  'torch': of_torch,
}


def kept(loss, trainable):
  """Size of the largest array of numbers that is kept for the way back."""
  leaves = jax.tree.leaves(jax.vjp(loss, trainable)[1])
  return max(leaf.size for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating))


def assert_leaves_close(ours, theirs):
  assert_trees_close(jax.tree.leaves(ours), jax.tree.leaves(theirs), 1e-4)


@pytest.mark.parametrize(
  'way, qtype, structure',
  [
    *((way, 'nf4', 'lora:2') for way in WAYS),
    ('linen', 'int8', 'lora:2'),
    ('function', 'int4', 'full'),
    ('stack', 'nf4', 'full'),
    ('tied', 'nf4', 'full'),
  ],
)
def test_a_quantized_base_is_trained_on_as_the_same_in_full(way, qtype, structure):
  adapted, params = WAYS[way](structure)
  packed = jax.jit(pack, static_argnums=1)(params, qtype)
  variables = adapted.init(KEY, packed)
  variables['glora'] = randomized(variables['glora'])
  plain = {**variables, 'params': adapted.full_precision(variables['params'])}

  def loss(trainable, frozen, x=X):
    outputs = adapted.apply(adapted.join(trainable, frozen), x)
    return (outputs**2).sum(), outputs

  gradient = jax.jit(jax.grad(loss, has_aux=True))
  trainable, frozen = adapted.split(variables)
  ours = gradient(trainable, frozen)
  assert_leaves_close(ours, gradient(*adapted.split(plain)))
  folded = {'params': jax.jit(adapted.fold)(variables)}
  assert_allclose(jax.jit(adapted.model.apply)(folded, X), ours[1], rtol=1e-4, atol=1e-5)
  # One layer of a stack is taken out at a time, and nothing is kept of it for the way back.
  assert 'f32[3,8,8]' not in str(jax.make_jaxpr(gradient)(trainable, frozen))
  if structure != 'full':
    assert kept(lambda trainable: loss(trainable, frozen, X[:1, :1])[0], trainable) < 64


@pytest.mark.parametrize('select, structure', [(None, 'lora:2'), ('fc', np.ones((1, 5), int))])
def test_a_live_model_is_trained_on_its_quantized_parameters(select, structure):
  model = NnxModel(nnx.Rngs(0))
  provider = qwix.PtqProvider([qwix.QuantizationRule(weight_qtype='nf4', tile_size=4)])
  theirs = qwix.quantize_model(model, provider, X)
  packed = glora_jax.nnx.params(theirs)
  options = {'structure': structure, 'select': select, 'heads': None, 'key': KEY}
  ours, plain = (
    glora_jax.nnx.attach(glora_jax.nnx.with_params(model, params), X, **options)
    for params in (packed, jax.tree.map(dequantize, packed, is_leaf=is_quantized))
  )
  assert is_quantized(vars(ours.fc)['kernel'].get_value())
  assert_allclose(ours(X), theirs(X), atol=1e-5)
  for one in (ours, plain):
    nnx.update(one, randomized(nnx.state(one, glora_jax.nnx.AdapterParam)))

  def loss(model, x=X):
    return (model(x) ** 2).sum()

  gradient = nnx.grad(loss, argnums=nnx.DiffState(0, glora_jax.nnx.Trained))
  assert_leaves_close(gradient(ours), gradient(plain))
  graph, trained, rest = nnx.split(ours, glora_jax.nnx.Trained, ...)
  assert kept(lambda new: loss(nnx.merge(graph, new, rest), X[:1, :1]), trained) < 48
  folded = glora_jax.nnx.fold(ours)
  assert type(folded) is NnxModel
  assert not has_quantized(folded)
  adapted, variables = glora_jax.nnx.as_adapted(ours)
  for outputs in (folded(X), adapted.apply(variables, X)):
    assert_allclose(outputs, ours(X), atol=1e-5)


def test_a_bfloat16_model_computes_in_bfloat16_and_sharded_parts_are_gathered_packed():
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), READ)
  x = X.astype(jnp.bfloat16)
  adapted = glora_jax.adapt_function(reader, params, x, structure='lora:2', select='fc')
  variables = adapted.init(KEY, pack(params, 'nf4'))
  outputs = adapted.apply(variables, x)
  assert outputs.dtype == jnp.bfloat16
  mesh = jax.make_mesh((1,), ('fsdp',), axis_types=(jax.sharding.AxisType.Auto,))
  sharded, placed = glora_jax.shard(adapted, variables, mesh, min_bytes=1)
  assert is_quantized(placed['params']['out'])
  assert_array_equal(jax.jit(sharded.apply)(placed, x), jax.jit(adapted.apply)(variables, x))


def test_asymmetric_quantization_has_its_zero_points_back_and_nothing_is_dequantized_for_no_log(
  monkeypatch, caplog
):
  kernel = READ['out'] + 1
  old = qwix.quantize(kernel, 'int8', tiled_axes={0: 4}, calibration_method='minmax')
  exact = qwix.dequantize(old)
  dequantized = []
  monkeypatch.setattr('glora_jax.method.quantized.dequantize', dequantized.append)
  with caplog.at_level('WARNING', 'glora_jax'):
    again = requantize({'kernel': exact}, {'kernel': old})['kernel']
  assert not dequantized
  assert jax.tree.map(shape_and_type, again) == jax.tree.map(shape_and_type, old)
  assert again.zero_point is not None
  assert_allclose(qwix.dequantize(again), exact, atol=2.0**-7 * np.abs(exact).max())


def test_models_that_are_quantized_themselves_are_refused_and_no_quantized_vocabulary_is_extended():
  rules = [qwix.QuantizationRule(module_path='.*', weight_qtype='int8')]
  model = qwix.quantize_model(NnxModel(nnx.Rngs(0)), qwix.PtqProvider(rules), X)
  theirs, params = quantized(weight_qtype='int8')
  for named, call, *arguments in (
    ('Model is a quantized model of qwix', glora_jax.adapt, theirs, X),
    ('reader is a q', glora_jax.adapt_function, reader, pack(READ, 'int8'), X),
    ('NnxModel is a quantized model of qwix', glora_jax.nnx.attach, model, X),
    ('extend them first', glora_jax.extend, params, {'head': -1}, 1),
  ):
    assert_refused(named, call, *arguments)
