"""GLoRA on models of many kinds, none of which knows of it: what holds whatever the model."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import model_zoo
import numpy as np
import pytest
from comparing import (
  THIN,
  assert_close,
  assert_folds,
  assert_trees_close,
  assert_trees_equal,
  random_variables,
  vector,
)
from hand_count import Kernel, expected, found, unboxed
from trees import normal
from zoo_cases import SPACE, Case

from glora_jax import SearchSpace, adapt_function
from glora_jax.method.adapt import adapt
from glora_jax.method.modules import discover
from glora_jax.method.trace.events import CHOSEN, ORDINARY

pytestmark = pytest.mark.accelerator


class LinenCase(Case):
  """A linen model with all its collections."""

  def __init__(self, example, space=SPACE):
    base = example.variables()
    params = base.pop('params')
    options = {'space': space, **example.options, **example.kwargs}
    adapted = adapt(example.model, *example.inputs, **options)

    @jax.jit
    def plain(params):
      variables = {**base, 'params': params}
      return vector(example.model.apply(variables, *example.inputs, **example.kwargs))

    super().__init__(example, adapted, params, plain, kernels_of(example, params))
    self.rest = base
    self.variables = {**base, **random_variables(adapted, params, seed=0)}
    self.start = {**base, **self.start}


def kernels_of(example, params):
  """An example's kernels by path, counted by hand, with the biases that there are."""
  arrays, kernels = unboxed(params), {}
  for row in example.rows:
    path, _, index = row.partition('[')
    plain = Kernel('Ss'[: len(index.split(',')) if index else 0] + 'io')
    kernel = next((x for prefix, x in example.axes.items() if path.startswith(prefix)), plain)
    bias = f'{path}/bias'
    kernels[f'{path}/kernel'] = kernel._replace(bias=bias if bias in arrays else None)
  return kernels


@functools.cache
def session(name):
  return LinenCase(model_zoo.EXAMPLES[name])


@pytest.mark.parametrize('name', model_zoo.EXAMPLES)
def test_a_model_is_found_whole_starts_as_itself_folds_by_the_equation_and_has_gradients(name):
  case = session(name)
  assert tuple(layer.name for layer in case.adapted.spec) == case.example.rows
  assert found(case.adapted) == expected(case.kernels)
  matrices = case.adapted.coverage().uncovered
  others = [matrix for matrix in matrices if not matrix.reason.startswith(CHOSEN + ORDINARY)]
  assert tuple(matrix.name for matrix in others) == case.example.uncovered
  case.check_results()


@pytest.mark.parametrize('name', ['customized_layers', 'einsums', 'lifted_layers', 'called_twice'])
def test_fixed_subnets_in_their_cheapest_form_give_what_folding_gives(name):
  case = session(name)
  for structure in (THIN, 'lora'):
    assert_folds(case.adapted, case.variables, *case.example.inputs, structure=structure)


def test_no_array_of_the_trace_outlives_it():
  inputs = jax.ShapeDtypeStruct((1, 4), jnp.float32)
  with jax.checking_leaks():
    assert len(discover(nn.Dense(3), (inputs,), {})[1].sites) == 1


@pytest.mark.parametrize('axis', [0, 1, -1])
def test_a_scanned_and_an_unscanned_model_start_from_equal_supports(axis):
  x, kernels = normal(2, 6), normal(3, 6, 6)

  def scanned(stack, x):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, jnp.moveaxis(stack['w'], axis, 0))[0]

  def unscanned(layers, x):
    return functools.reduce(jnp.matmul, layers.values(), x)

  stack, layers = {'w': jnp.moveaxis(kernels, 0, axis)}, dict(zip('abc', kernels, strict=True))
  of_stack, of_layers = (
    adapt_function(function, params, x).init(jax.random.key(0), params)['glora']
    for function, params in ((scanned, stack), (unscanned, layers))
  )
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_layers.values())
  assert_trees_equal(of_stack, {'w': stacked})


def test_traces_of_a_class_level_jit_are_not_shared_between_adapts_with_other_ranks():
  model, x = model_zoo.LiftedLayers(), model_zoo.normal(2, model_zoo.WIDTH)
  params = model_zoo.Example(model, ()).variables()['params']
  adapts = [adapt(model, x, space=SearchSpace(ranks=ranks)) for ranks in ((2, 4), (1, 4))]
  genome = np.array([[3, 3, 2, 2, 2]] * 4)  # LoRA of the first rank, which is not the same in both
  variables = random_variables(adapts[0], params)
  results = [assert_folds(each, variables, x, structure=genome) for each in (*adapts, *adapts)]
  assert np.abs(results[0] - results[1]).max() > 1e-3 * np.abs(results[0]).max()


RUNS = {
  'resnet': {'train': True, 'mutable': ['batch_stats']},
  'keyword_inputs': {
    'train': True,
    'rngs': {'dropout': 5},
    'mutable': ['intermediates'],
    'capture_intermediates': True,
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
  expected = run(case.example.model.apply, {**case.rest, 'params': case.results[1].folded})
  if kwargs.get('mutable') is True:
    # Merged values are no update of the base's params.
    assert_trees_close(actual[1].pop('params'), case.params, 0)
    expected[1].pop('params')
  assert_trees_close(actual, expected)


def test_other_methods_run_with_the_same_supports():
  case = session('other_method')
  model, (x, _) = case.example.model, case.example.inputs
  expected = model.apply({'params': case.results[1].folded}, x, method='embed')
  found = case.adapted.apply(case.variables, x, genome=case.genomes[1], method='embed')
  assert_close(found, expected)
  alone = adapt(model, x, method=model_zoo.TwoTower.embed)
  assert [layer.name for layer in alone.spec] == ['left']
