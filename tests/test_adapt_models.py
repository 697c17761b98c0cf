"""GLoRA on models of many kinds, none of which knows of it: what must hold whatever the model and the way of merging."""

import dataclasses
import functools
import re

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import model_zoo
import numpy as np
import pytest

from glora_jax import SearchSpace, adapt, canonicalize, count_params, preset, random_genomes

MERGES = ('up_front', 'lazy')
SPACE = SearchSpace(ranks=(2, 4))
# Hundreds of tiny programs run once each: compiling them fast matters, their speed does not.
FAST = {'xla_backend_optimization_level': 0, 'xla_cpu_use_fusion_emitters': False, 'xla_cpu_parallel_codegen_split_count': 2}
jit = functools.partial(jax.jit, compiler_options=FAST if jax.default_backend() == 'cpu' else None)

every_model = pytest.mark.parametrize('name', model_zoo.EXAMPLES)
every_merge = pytest.mark.parametrize('merge', MERGES)


def randomized(tree, seed=0, scale=0.3):
  """The same tree with normal entries: supports that are no longer at their initial values."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, scale, leaf.shape), leaf.dtype), tree)


def vector(outputs):
  """All numbers of a model's output as one float32 vector."""
  return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(outputs)])


def assert_close(actual, expected, tolerance=1e-5):
  """Equal relative to the largest entry: outputs cross zero."""
  actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
  assert actual.shape == expected.shape
  assert np.isfinite(expected).all()
  assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def assert_trees_close(actual, expected, tolerance=1e-5):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert one.dtype == other.dtype
    assert_close(one, other, tolerance)


def dtypes(tree):
  return {leaf.dtype.type for leaf in jax.tree.leaves(tree)}


class Session:
  """An example, adapted, with random supports, and its compiled functions, which all tests share."""

  def __init__(self, example, space=SPACE):
    self.example, model = example, example.model
    base = example.variables()
    self.rest = {name: value for name, value in base.items() if name != 'params'}
    self.adapted = adapt(model, *example.inputs, space=space, **example.kwargs)
    self.start = {**self.rest, **self.adapted.init(jax.random.key(0), base['params'])}
    self.variables = {**self.start, 'glora': randomized(self.start['glora'])}
    # The largest form of everything, then anything.
    spec = self.adapted.spec
    self.genomes = np.stack([preset(spec, 'full'), *random_genomes(np.random.default_rng(0), spec, 3)])
    self.plain = jit(lambda params: vector(model.apply({**self.rest, 'params': params}, *example.inputs, **example.kwargs)))
    self.fold = jit(self.adapted.fold)
    self.one = {merge: jit(functools.partial(self._apply, merge)) for merge in MERGES}
    self.many = {merge: jit(functools.partial(self._apply_with_gradients, merge)) for merge in MERGES}

  def _apply(self, merge, variables, genome):
    return vector(self.adapted.apply(variables, *self.example.inputs, genome=genome, merge=merge, **self.example.kwargs))

  def _apply_with_gradients(self, merge, variables, genomes):
    """Outputs [genome, number], and the gradients of a sum of them with respect to the supports, [genome, ...]."""

    def loss(supports, genome):
      outputs = self._apply(merge, {**variables, 'glora': supports}, genome)
      return jnp.cos(jnp.arange(len(outputs))) @ outputs, outputs

    return jax.vmap(lambda genome: jax.grad(loss, has_aux=True)(variables['glora'], genome)[::-1])(genomes)

  @functools.cached_property
  def folded(self):
    return [self.fold(self.variables, genome) for genome in self.genomes]

  @functools.cached_property
  def expected(self):
    """What the untouched model says with folded params."""
    return np.stack([self.plain(params) for params in self.folded])

  @functools.cache
  def population(self, merge):
    return jax.tree.map(np.asarray, self.many[merge](self.variables, self.genomes))

  def supports(self, tree, row):
    """One row's slice of a tree like the supports."""
    path, index = address(self.adapted.spec.layers[row].name)
    return {name: np.asarray(value)[index] for name, value in at(tree, path).items()}


def at(tree, path):
  return functools.reduce(lambda node, name: node[name], path.split('/'), tree)


def address(row_name):
  """'blocks/fc1[2,0]' to ('blocks/fc1', (2, 0))."""
  path, _, index = row_name.removesuffix(']').partition('[')
  return path, tuple(int(i) for i in index.split(',')) if index else ()


@functools.cache
def session(name):
  return Session(model_zoo.EXAMPLES[name]())


def equation(kernel, bias, supports, alleles, ranks):
  """The paper's equation 10 in plain NumPy: W + W * A + B, b + b * D + E + C @ W."""
  a, b, c, d, e = (int(allele) for allele in alleles)

  def product(tensor, rank):
    return supports[f'{tensor}_down'][:, :rank] @ supports[f'{tensor}_up'][:rank]

  def weight(tensor, code):
    up = supports[f'{tensor}_up']
    return (0.0, up[0, 0], up[0])[code] if code < 3 else product(tensor, ranks[code - 3])

  new_kernel = kernel + kernel * weight('A', a) + weight('B', b)
  if bias is None:
    return new_kernel, None
  prompt = (np.zeros(len(kernel)), supports['C_down'][:, 0])[c] if c < 2 else product('C', ranks[c - 2])[:, 0]
  vector = lambda tensor, code: (0.0, supports[tensor][0], supports[tensor])[code]
  return new_kernel, bias + bias * vector('D', d) + vector('E', e) + prompt @ kernel


def matrix_of(example, params, layer):
  """Kernel [in, out] and bias [out] of one row, cut out of the params along the axes that the zoo wrote down."""
  path, index = address(layer.name)
  module = nn.meta.unbox(at(params, path))
  leading = tuple(range(len(index)))
  axes = next((axes for prefix, axes in example.stack_axes.items() if path.startswith(prefix)), (leading, leading))
  cut = lambda value, axes: np.moveaxis(np.asarray(value, np.float64), axes, leading)[index]
  bias = cut(module['bias'], axes[1]).ravel() if 'bias' in module else None
  return cut(module['kernel'], axes[0]).reshape(layer.in_features, layer.out_features), bias


@every_model
def test_rows_are_the_linear_layers_in_execution_order(name):
  case = session(name)
  assert tuple(layer.name for layer in case.adapted.spec) == case.example.rows
  sizes = {layer.name: (layer.in_features, layer.out_features) for layer in case.adapted.spec}
  assert {row: sizes[row] for row in case.example.sizes} == case.example.sizes


@every_model
@every_merge
def test_every_subnet_is_the_base_model_at_initialization(name, merge):
  case = session(name)
  base = case.plain(case.start['params'])
  for genome in case.genomes:
    assert_close(case.one[merge](case.start, genome), base, case.example.tolerance)


@every_model
def test_fold_is_the_equation_on_every_layers_own_slice(name):
  case = session(name)
  spec = case.adapted.spec
  for genome, folded in zip(case.genomes, case.folded, strict=True):
    for row, (layer, alleles) in enumerate(zip(spec, genome, strict=True)):
      supports = case.supports(case.variables['glora'], row)
      expected = equation(*matrix_of(case.example, case.variables['params'], layer), supports, alleles, SPACE.ranks)
      actual = matrix_of(case.example, folded, layer)
      tolerance = 1e-5 if jnp.float32 in dtypes(case.start['params']) else 1e-2  # one rounding to bfloat16
      assert_close(actual[0], expected[0], tolerance)
      assert layer.bias == (actual[1] is not None)
      if layer.bias:
        assert_close(actual[1], expected[1], tolerance)


@every_model
def test_fold_keeps_structure_boxes_and_every_other_parameter(name):
  case = session(name)
  params, folded = case.variables['params'], case.folded[0]
  assert jax.tree.structure(folded) == jax.tree.structure(params)
  assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(folded)] == [
      (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params)]
  adapted = {address(row)[0] for row in case.example.rows}
  for path, value in flax.traverse_util.flatten_dict(nn.meta.unbox(folded), sep='/').items():
    same = np.array_equal(value, at(nn.meta.unbox(params), path))
    assert same != (path.rpartition('/')[0] in adapted), path


@every_model
@every_merge
def test_folded_params_in_the_untouched_model_give_what_apply_gives(name, merge):
  case = session(name)
  for genome, expected in zip(case.genomes, case.expected, strict=True):
    assert_close(case.one[merge](case.variables, genome), expected, case.example.tolerance)


@every_model
@every_merge
def test_vmap_over_genomes_gives_what_single_genomes_give(name, merge):
  case = session(name)
  outputs, _ = case.population(merge)
  for output, expected in zip(outputs, case.expected, strict=True):
    assert_close(output, expected, case.example.tolerance)


@every_model
@every_merge
def test_every_support_of_every_layer_gets_a_gradient(name, merge):
  case = session(name)
  _, gradients = case.population(merge)
  of_full = jax.tree.map(lambda leaf: leaf[0], gradients)
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(of_full))
  assert np.isfinite(largest)
  for row, layer in enumerate(case.adapted.spec):
    for support, gradient in case.supports(of_full, row).items():
      if support[0] in 'CDE' and re.search(case.example.blind, layer.name):
        assert np.abs(gradient).max() < 1e-5 * largest, (layer.name, support)
      else:
        assert np.abs(gradient).max() > 1e-5 * largest, (layer.name, support)


@every_model
def test_lazy_equals_up_front_in_outputs_and_gradients(name):
  case = session(name)
  (up_front, gradients), (lazy, lazy_gradients) = case.population('up_front'), case.population('lazy')
  assert_close(lazy, up_front, case.example.tolerance)
  for genome in range(len(case.genomes)):
    assert_close(*(vector(jax.tree.map(lambda leaf: leaf[genome], tree)) for tree in (lazy_gradients, gradients)),  # noqa: B023
                 case.example.tolerance)


@every_model
def test_spec_is_the_same_however_often_the_model_is_traced(name):
  case = session(name)
  case.expected, case.one['up_front'](case.variables, case.genomes[0])  # it has been run and compiled
  again = adapt(case.example.model, *case.example.inputs, space=SPACE, **case.example.kwargs)
  assert again.spec == case.adapted.spec
  assert hash(again.spec) == hash(case.adapted.spec)
  assert again.sites == case.adapted.sites
  fresh = adapt(model_zoo.EXAMPLES[name]().model, *case.example.inputs, space=SPACE, **case.example.kwargs)
  assert fresh.spec == case.adapted.spec


@every_model
def test_layers_without_bias_have_and_count_no_c_d_e(name):
  case = session(name)
  spec, full = case.adapted.spec, preset(case.adapted.spec, 'full')
  rank = max(SPACE.ranks)
  for row, layer in enumerate(spec):
    only = np.zeros_like(full)
    only[row] = (0, 0, 3, 2, 2)
    bias = 'bias' in at(case.start['params'], address(layer.name)[0])
    assert layer.bias == bias
    assert count_params(spec, only) == (rank * (layer.in_features + 1) + 2 * layer.out_features if bias else 0)
    assert canonicalize(spec, only).any() == bias
    assert ('C_down' in case.supports(case.start['glora'], row)) == bias
