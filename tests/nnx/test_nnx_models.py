"""GLoRA on NNX models of many kinds, alive and as pure functions."""

import functools

import jax
import jax.numpy as jnp
import nnx_zoo
import numpy as np
import pytest
from comparing import assert_close, vector
from flax import nnx
from hand_count import quick_first, randomized_model
from live_models import call, randomize
from zoo_cases import SPACE, Case, Results, case_of

import glora_jax
from glora_jax import nnx as glora_nnx
from glora_jax.nnx import AdapterParam, live

# Small, and unlike each other; the others are left to `.ci/full`.
QUICK = (
  'shared_layers',
  'streams_as_an_argument',
  'scattered_parameters',
  'mapped_over_one_input',
  'loops_in_a_vmap',
)
QUICK_ALIVE = (
  'scanned_along_axis_1',
  'scans_in_a_vmap',
  'linen_inside',
  'scattered_parameters',
  'odd_names',
)


@nnx.jit
def compute(model, inputs, kwargs):
  """Gradients of a sum of the outputs by the adapter, the outputs, and the folded parameters."""

  def loss(model):
    outputs = vector(model(*inputs, **kwargs))
    return jnp.cos(jnp.arange(len(outputs))) @ outputs, outputs

  folded = glora_nnx.params(glora_nnx.fold(model))
  return *nnx.grad(loss, argnums=nnx.DiffState(0, AdapterParam), has_aux=True)(model), folded


@functools.cache
def base(name):
  """(example, its model with random parameters)."""
  example = nnx_zoo.EXAMPLES[name]()
  return example, randomized_model(example.make)


@functools.cache
def case(name):
  """The model as a pure function."""
  return case_of(*base(name))


@pytest.mark.parametrize('name', nnx_zoo.EXAMPLES)
def test_layers_and_matrices_are_those_that_a_reader_counts(name):
  case(name).check_layers()


@quick_first(nnx_zoo.EXAMPLES, *QUICK)
def test_as_a_function_it_starts_as_the_model_folds_by_the_equation_and_has_gradients(name):
  case(name).check_results()


class LiveCase(Case):
  """The model alive, with the genome that it has."""

  def __init__(self, name):
    example, model = base(name)
    self.attached = glora_nnx.attach(
      model, *example.inputs, space=SPACE, **example.options, **example.kwargs
    )
    adapted, variables = glora_nnx.as_adapted(self.attached)
    super().__init__(example, adapted, glora_nnx.params(model), case(name).plain)
    self.genomes = [live.get_genome(self.attached)]
    self.variables, self.start = variables | self.variables, variables | self.start

  def compute(self, variables):
    glora_nnx.set_variables(self.attached, variables)
    gradients, outputs, folded = compute(self.attached, self.example.inputs, self.example.kwargs)
    return [Results(outputs, gradients, folded)]


@quick_first(nnx_zoo.EXAMPLES, *QUICK, *QUICK_ALIVE)
def test_a_live_model_computes_the_equation_folds_and_has_gradients(name):
  alive, (example, model) = LiveCase(name), base(name)
  alive.check_identity()
  alive.check_fold()
  sizes = [float(np.abs(leaf).max()) for leaf in jax.tree.leaves(alive.results[0].gradients)]
  assert min(sizes) > 1e-6 * max(sizes) or example.blind != r'(?!)'
  assert isinstance(alive.attached, type(model))
  assert nnx.graphdef(glora_nnx.fold(alive.attached)) == nnx.graphdef(model)


@functools.partial(jax.jit, static_argnums=0)
def outputs_of(graphdef, state, population, inputs):
  """What the subnets of a population say, all at once."""

  def output(genome):
    model = nnx.merge(graphdef, state, copy=True)
    glora_nnx.set_genome(model, genome)
    return model(*inputs)

  return jax.vmap(output)(population)


@pytest.mark.parametrize('name', QUICK_ALIVE)
def test_a_population_a_fixed_model_and_one_with_the_adapter_of_a_file_say_the_same(name, tmp_path):
  example, model = base(name)
  attached, another = (glora_nnx.attach(model, *example.inputs, space=SPACE) for _ in range(2))
  randomize(attached)
  population = glora_jax.random_genomes(np.random.default_rng(0), live.spec(attached), 2)
  outputs = outputs_of(*nnx.split(attached), population, example.inputs)
  for genome, expected in zip(population, outputs, strict=True):
    glora_nnx.set_genome(attached, genome)
    np.testing.assert_array_equal(live.get_genome(attached), genome)
    folded = glora_nnx.fold(attached)
    assert_close(call(folded, *example.inputs), expected)
  assert_close(call(glora_nnx.fix(attached, genome), *example.inputs), expected)
  glora_nnx.save_adapter(tmp_path / 'adapter', attached)
  glora_nnx.load_adapter(tmp_path / 'adapter', another)
  assert_close(call(another, *example.inputs), expected)
