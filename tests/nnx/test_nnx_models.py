"""GLoRA on NNX models of many kinds, as pure functions and alive."""

import functools

import jax
import jax.numpy as jnp
import nnx_zoo
import numpy as np
import pytest
from comparing import vector
from flax import nnx
from hand_count import randomized_model
from zoo_cases import SPACE, Case, Results, case_of

from glora_jax import nnx as glora_nnx
from glora_jax.nnx import Support, live

# Small, and unlike each other; the others are left to `.ci/full`, and computed for the record, too.
QUICK = (
  'stacked_keys_and_values',
  'scanned_layers',
  'shared_layers',
  'streams_as_an_argument',
)
every_model = pytest.mark.parametrize('name', nnx_zoo.EXAMPLES)
quick_models = pytest.mark.parametrize(
  'name',
  [pytest.param(name, marks=[pytest.mark.full] * (name not in QUICK)) for name in nnx_zoo.EXAMPLES],
)


@nnx.jit
def compute(model, inputs, kwargs):
  """Gradients of a sum of the outputs by the supports, the outputs, and the folded parameters."""

  def loss(model):
    outputs = vector(model(*inputs, **kwargs))
    return jnp.cos(jnp.arange(len(outputs))) @ outputs, outputs

  folded = glora_nnx.params(glora_nnx.fold(model))
  return *nnx.grad(loss, argnums=nnx.DiffState(0, Support), has_aux=True)(model), folded


@functools.cache
def base(name):
  """(example, its model with random parameters)."""
  example = nnx_zoo.EXAMPLES[name]()
  return example, randomized_model(example.make)


@functools.cache
def case(name):
  """The model as a pure function."""
  return case_of(*base(name))


@every_model
def test_rows_are_the_layers_that_a_reader_counts(name):
  case(name).check_rows()


@quick_models
def test_every_subnet_is_the_model_at_initialization(name):
  case(name).check_identity()


@quick_models
def test_fold_is_the_equation_along_the_axes_that_a_reader_finds(name):
  case(name).check_fold()


@quick_models
def test_every_support_of_every_layer_gets_a_gradient(name):
  case(name).check_gradients()


@every_model
def test_matrices_that_no_row_covers_are_named(name):
  case(name).check_coverage()


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


@quick_models
def test_a_live_model_has_the_rows_computes_the_equation_folds_and_has_gradients(name):
  alive, (example, model) = LiveCase(name), base(name)
  alive.check_rows()
  alive.check_identity()
  alive.check_fold()
  sizes = [float(np.abs(leaf).max()) for leaf in jax.tree.leaves(alive.results[0].gradients)]
  assert min(sizes) > 1e-6 * max(sizes) or example.blind != r'(?!)'
  assert isinstance(alive.attached, type(model))
  assert type(nnx.eval_shape(glora_nnx.fold, alive.attached)) is type(model)
