"""GLoRA on models of many kinds, none of which knows of it: what holds whatever the model."""

import functools
import re

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import model_zoo
import numpy as np
import pytest
from comparing import assert_close, assert_trees_close, random_variables, vector
from hand_count import equation

from glora_jax import SearchSpace, preset, random_genomes
from glora_jax.method.adapt import adapt
from glora_jax.method.genomes import canonicalize
from glora_jax.method.trace.events import CHOSEN, ORDINARY

SPACE = SearchSpace(ranks=(2, 4))

every_model = pytest.mark.parametrize('name', model_zoo.EXAMPLES)


@pytest.fixture(autouse=True, scope='module')
def cache_of_small_programs():
  """Lets the persistent compilation cache keep what compiles fast too."""
  name = 'jax_persistent_cache_min_compile_time_secs'
  before = getattr(jax.config, name)
  jax.config.update(name, 0.05)
  yield
  jax.config.update(name, before)


class Session:
  """An example, adapted, with random supports, and its compiled functions. All tests share it."""

  def __init__(self, example, space=SPACE):
    self.example, model = example, example.model
    base = example.variables()
    self.rest = {name: value for name, value in base.items() if name != 'params'}
    self.adapted = adapt(model, *example.inputs, space=space, **example.kwargs)
    self.start = {**self.rest, **self.adapted.init(jax.random.key(0), base['params'])}
    self.variables = {**self.start, **random_variables(self.adapted, base['params'], seed=0)}
    # The largest form of everything, then anything.
    spec = self.adapted.spec
    self.genomes = np.stack(
      [preset(spec, 'full'), *random_genomes(np.random.default_rng(0), spec, 3)]
    )
    call = functools.partial(model.apply, **example.kwargs)
    self.plain = jax.jit(
      lambda params: vector(call({**self.rest, 'params': params}, *example.inputs))
    )
    self.fold = jax.jit(self.adapted.fold)
    self.alone = jax.jit(self._apply)
    self.many = jax.jit(functools.partial(self._many, self._apply))
    self.many_folded = jax.jit(functools.partial(self._many, self._apply_folded))

  def _apply(self, variables, genome):
    inputs, kwargs = self.example.inputs, self.example.kwargs
    return vector(self.adapted.apply(variables, *inputs, genome=genome, **kwargs))

  def _apply_folded(self, variables, genome):
    return self.plain(self.adapted.fold(variables, genome))

  def _many(self, apply, variables, genomes):
    """Outputs of a population, [genome, number], and gradients of a sum of them by the supports."""

    def loss(supports, genome):
      outputs = apply({**variables, 'glora': supports}, genome)
      return jnp.cos(jnp.arange(len(outputs))) @ outputs, outputs

    gradients, outputs = jax.vmap(jax.grad(loss, has_aux=True), (None, 0))(
      variables['glora'], genomes
    )
    return outputs, gradients

  @functools.cached_property
  def folded(self):
    return [self.fold(self.variables, genome) for genome in self.genomes]

  @functools.cached_property
  def expected(self):
    """What the untouched model says with folded params."""
    return np.stack([self.plain(params) for params in self.folded])

  @functools.cached_property
  def population(self):
    """Outputs and gradients of all genomes."""
    return jax.tree.map(np.asarray, self.many(self.variables, self.genomes))

  def supports(self, tree, row):
    """One row's slice of a tree like the supports."""
    path, index = address(self.adapted.spec.layers[row].name)
    return {name: np.asarray(value)[index] for name, value in nn.meta.unbox(at(tree, path)).items()}


def at(tree, path):
  return functools.reduce(lambda node, name: node[name], path.split('/'), tree)


def address(row_name):
  """'blocks/fc1[2,0]' to ('blocks/fc1', (2, 0))."""
  path, _, index = row_name.removesuffix(']').partition('[')
  return path, tuple(int(i) for i in index.split(',')) if index else ()


@functools.cache
def session(name):
  return Session(model_zoo.EXAMPLES[name]())


def matrix_of(example, params, layer):
  """Kernel [in, out] and bias [out] of a row, cut out of the params along the axes in the zoo."""
  path, index = address(layer.name)
  module = nn.meta.unbox(at(params, path))
  leading = tuple(range(len(index)))
  axes = next(
    (axes for prefix, axes in example.stack_axes.items() if path.startswith(prefix)),
    (leading, leading),
  )

  def cut(value, axes):
    return np.moveaxis(np.asarray(value, np.float64), axes, leading)[index]

  bias = cut(module['bias'], axes[1]).ravel() if 'bias' in module else None
  return cut(module['kernel'], axes[0]).reshape(layer.in_features, layer.out_features), bias


@every_model
def test_rows_are_the_linear_layers_in_execution_order(name):
  case = session(name)
  assert tuple(layer.name for layer in case.adapted.spec) == case.example.rows
  sizes = {layer.name: (layer.in_features, layer.out_features) for layer in case.adapted.spec}
  assert {row: sizes[row] for row in case.example.sizes} == case.example.sizes


@every_model
def test_no_matrix_is_left_that_is_used_like_a_linear_layer(name):
  matrices = session(name).adapted.coverage().uncovered
  assert not [matrix for matrix in matrices if not matrix.reason.startswith(CHOSEN + ORDINARY)]


@every_model
def test_every_subnet_is_the_base_model_at_initialization(name):
  case = session(name)
  base = case.plain(case.start['params'])
  for outputs in case.many(case.start, case.genomes)[0]:
    assert_close(outputs, base, case.example.tolerance)


@every_model
def test_fold_is_the_equation_on_every_layers_own_slice(name):
  case = session(name)
  dtype = jax.tree.leaves(case.start['params'])[0].dtype
  tolerance = max(1e-5, float(jnp.finfo(dtype).eps))  # one rounding to the parameters' own dtype
  for genome, folded in zip(case.genomes, case.folded, strict=True):
    for row, (layer, alleles) in enumerate(zip(case.adapted.spec, genome, strict=True)):
      supports = case.supports(case.variables['glora'], row)
      expected = equation(
        *matrix_of(case.example, case.variables['params'], layer), supports, alleles, SPACE.ranks
      )
      actual = matrix_of(case.example, folded, layer)
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
    (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params)
  ]
  adapted = {
    f'{address(row)[0]}/{name}' for row in case.example.rows for name in ('kernel', 'bias')
  }
  for path, value in flax.traverse_util.flatten_dict(nn.meta.unbox(folded), sep='/').items():
    assert np.array_equal(value, at(nn.meta.unbox(params), path)) != (path in adapted), path


@every_model
def test_folded_params_in_the_untouched_model_give_what_a_population_gives(name):
  case = session(name)
  outputs, _ = case.population
  assert_close(outputs, case.expected, case.example.tolerance)


@pytest.mark.parametrize(
  'name', ['class_level_jit', 'scan_of_vmap', 'dense_general', 'cond', 'with_partitioning']
)
def test_a_genome_alone_gives_what_it_gives_in_a_population(name):
  case = session(name)
  for genome, outputs in zip(case.genomes, case.population[0], strict=True):
    assert_close(case.alone(case.variables, genome), outputs)


@every_model
def test_every_support_of_every_layer_gets_a_gradient(name):
  case = session(name)
  _, gradients = case.population
  gradients = jax.tree.map(lambda leaf: leaf[0], gradients)  # of the genome with the largest forms
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
  assert np.isfinite(largest)
  for row, layer in enumerate(case.adapted.spec):
    for support, gradient in case.supports(gradients, row).items():
      if support[0] in 'CDE' and re.search(case.example.blind, layer.name):
        assert np.abs(gradient).max() < 1e-5 * largest, (layer.name, support)
      else:
        assert np.abs(gradient).max() > 1e-5 * largest, (layer.name, support)


@pytest.mark.parametrize('name', model_zoo.FAMILIES)
def test_gradients_are_those_of_folded_params_in_the_untouched_model(name):
  case = session(name)
  gradients, expected = case.population[1], case.many_folded(case.variables, case.genomes)[1]
  assert jax.tree.structure(gradients) == jax.tree.structure(expected)

  def by_genome(tree):
    leaves = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves, axis=1)

  for pair in zip(by_genome(gradients), by_genome(expected), strict=True):
    assert_close(*pair, case.example.tolerance)


@every_model
def test_spec_is_the_same_of_an_equal_model_and_of_shapes_in_place_of_arrays(name):
  case, other = session(name), model_zoo.EXAMPLES[name]()

  def shapes(leaf):
    is_array = isinstance(leaf, jax.Array)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_array else leaf

  inputs, kwargs = jax.tree.map(shapes, (other.inputs, dict(other.kwargs)))
  again = adapt(other.model, *inputs, space=SPACE, **kwargs).spec
  assert again == case.adapted.spec
  assert hash(again) == hash(case.adapted.spec)


@pytest.mark.parametrize(
  'name', ['customized_layers', 'called_by_keyword', 'lifted_layers', 'called_twice']
)
def test_fixed_subnets_in_their_cheapest_form_give_what_folding_gives(name):
  case = session(name)
  for codes in ((2, 3, 1, 2, 2), (0, 4, 0, 0, 0)):  # scales with LoRA beside them, LoRA alone
    genome = canonicalize(
      case.adapted.spec, np.broadcast_to(np.array(codes), (len(case.adapted.spec), 5))
    )
    subnet = case.adapted.fix(genome)
    apply = functools.partial(subnet.apply, **case.example.kwargs)
    outputs = vector(jax.jit(apply)(case.variables, *case.example.inputs))
    assert_close(outputs, case.plain(case.fold(case.variables, genome)))


@pytest.mark.parametrize('axis', [0, 1, -1])
def test_a_scanned_and_an_unscanned_model_have_equal_rows_and_start_from_equal_supports(axis):
  models = model_zoo.Chain(model_zoo.Block, 2), model_zoo.Scanned(axis, 2)
  unscanned, scanned = (Session(model_zoo.Example(model, ())) for model in models)
  names = [layer.name for layer in unscanned.adapted.spec]
  assert names == ['block_0/fc1', 'block_0/fc2', 'block_1/fc1', 'block_1/fc2']
  names = [layer.name for layer in scanned.adapted.spec]
  assert names == ['blocks/fc1[0]', 'blocks/fc2[0]', 'blocks/fc1[1]', 'blocks/fc2[1]']
  blocks = (unscanned.start['glora'][f'block_{i}'] for i in range(2))
  stacked = {'blocks': jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}
  assert_trees_close(scanned.start['glora'], stacked, 0)


def test_traces_of_a_class_level_jit_are_not_shared_between_adapts_with_other_ranks():
  model, x = model_zoo.Chain(model_zoo.JitBlock, 1), model_zoo.normal(2, model_zoo.WIDTH)
  params = model_zoo.Example(model, ()).variables()['params']
  adapts = [adapt(model, x, space=SearchSpace(ranks=ranks)) for ranks in ((2, 4), (1, 4))]
  genome = np.array([[3, 3, 2, 2, 2]] * 2)  # LoRA of the first rank, which is not the same in both
  variables, results = random_variables(adapts[0], params), []
  for adapted in (*adapts, *adapts):
    results.append(jax.jit(functools.partial(adapted.apply, genome=genome))(variables, x))
    folded = jax.jit(functools.partial(adapted.fold, genome=genome))(variables)
    assert_close(results[-1], jax.jit(model.apply)({'params': folded}, x))
  assert np.abs(results[0] - results[1]).max() > 1e-3 * np.abs(results[0]).max()


RUNS = {
  'resnet': {'train': True, 'mutable': ['batch_stats']},
  'dropout_and_batch_norm': {
    'train': True,
    'rngs': {'dropout': 5},
    'mutable': ['batch_stats', 'intermediates'],
    'capture_intermediates': True,
  },
  'class_level_jit': {
    'capture_intermediates': lambda module, method: method == '__call__',
    'mutable': 'intermediates',
  },
  'called_twice': {'mutable': True, 'capture_intermediates': True},
}


@pytest.mark.parametrize('name', RUNS)
def test_what_comes_back_has_the_models_own_structure_and_values(name):
  case, kwargs = session(name), dict(RUNS[name])
  rngs = {stream: jax.random.key(seed) for stream, seed in kwargs.pop('rngs', {}).items()}

  def run(apply, variables, **more):
    return jax.jit(
      functools.partial(apply, rngs=rngs, **{**case.example.kwargs, **kwargs}, **more)
    )(variables, *case.example.inputs)

  actual = run(case.adapted.apply, case.variables, genome=case.genomes[1])
  expected = run(case.example.model.apply, {**case.rest, 'params': case.folded[1]})
  if kwargs.get('mutable') is True:
    # Merged values are no update of the base's params.
    assert_trees_close(actual[1].pop('params'), case.variables['params'], 0)
    expected[1].pop('params')
  assert_trees_close(actual, expected)


def test_other_methods_run_with_the_same_supports():
  case = session('other_method')
  (x, _), genome = case.example.inputs, case.genomes[1]
  expected = case.example.model.apply({'params': case.folded[1]}, x, method='embed')
  embed = jax.jit(
    lambda genome: case.adapted.apply(case.variables, x, genome=genome, method='embed')
  )
  assert_close(embed(genome), expected)
  alone = adapt(case.example.model, x, method=model_zoo.TwoTower.embed)
  assert [layer.name for layer in alone.spec] == ['left']


def test_every_leaf_of_untied_supports_gets_a_gradient_from_some_genome():
  case = Session(model_zoo.EXAMPLES['scan_axis_last'](), SearchSpace(ranks=(2, 4), tied=False))
  spec = case.adapted.spec
  everywhere = [np.full((len(spec), 5), code) for code in range(int(spec.num_codes.max()))]
  genomes = [np.minimum(genome, spec.num_codes - 1).astype(np.int8) for genome in everywhere]
  outputs, gradients = case.many(case.variables, np.stack(genomes))
  for output, genome in zip(outputs, genomes, strict=True):
    assert_close(output, case.plain(case.fold(case.variables, genome)))
  sizes = jax.tree.map(lambda leaf: np.abs(leaf).max(axis=0), gradients)
  names = ('constant', 'vector')
  for row in range(len(spec)):
    leaves = case.supports(sizes, row)
    assert {f'{tensor}_{name}' for tensor in 'AB' for name in names} <= leaves.keys()
    assert all(leaf.max() > 1e-5 for leaf in leaves.values())


def test_frozen_dictionaries_stay_frozen():
  case = session('called_twice')
  frozen, genome = flax.core.freeze(case.start['params']), case.genomes[1]
  variables = {**case.adapted.init(jax.random.key(0), frozen), 'glora': case.variables['glora']}
  assert jax.tree.structure(case.fold(variables, genome)) == jax.tree.structure(frozen)
  assert_close(case.alone(variables, genome), case.expected[1])
