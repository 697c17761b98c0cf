"""Arguments of public calls that cannot be are refused in one sentence before anything is done."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import glora_jax
from glora_jax import Layer, SearchSpace, Spec

INPUTS = jnp.ones((2, 4))
PARAMS = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}


def adapted_with(**fields):
  return glora_jax.adapt(nn.Dense(3), INPUTS, space=SearchSpace(**fields))


@pytest.fixture(scope='module')
def adapted():
  return adapted_with(ranks=(2, 4))


@pytest.fixture(scope='module')
def variables(adapted):
  return adapted.init(jax.random.key(0), PARAMS)


@pytest.mark.parametrize(
  'space, sentence',
  [
    ((2, 4), r'space=\(2, 4\) must be a SearchSpace'),
    ({}, r'space=\{\} offers nothing'),
    ({'kernel': 4}, "space has 'kernel': 4; it must have a SearchSpace"),
    ({4: SearchSpace()}, 'space has 4: SearchSpace'),
  ],
)
def test_a_space_that_is_none_is_refused(space, sentence):
  with pytest.raises(ValueError, match=sentence):
    glora_jax.adapt(nn.Dense(3), INPUTS, space=space)


def test_ranks_far_above_every_layer_of_their_space_are_refused():
  with pytest.raises(ValueError, match=r'rank 100000, and no layer with it has more than 4 inputs'):
    adapted_with(ranks=(4, 100_000))
  assert len(adapted_with(ranks=(16,)).spec) == 1


@pytest.mark.parametrize('merge', ['lazzy', 3, 'auto'])
def test_a_way_of_merging_that_is_none_is_refused(adapted, variables, merge):
  genome = glora_jax.preset(adapted.spec, 'lora')
  with pytest.raises(ValueError, match=f"merge={merge!r} is unknown; it is 'up_front' or 'lazy'"):
    adapted.apply(variables, INPUTS, genome=genome, merge=merge)


@pytest.mark.parametrize('fields', [{'ranks': (2, 8)}, {'ranks': (2, 4), 'tied': False}])
def test_variables_of_another_space_are_refused(adapted, fields):
  other = adapted_with(**fields).init(jax.random.key(0), PARAMS)
  genome = glora_jax.preset(adapted.spec, 'bitfit')
  calls = [
    lambda: adapted.apply(other, INPUTS, genome=genome),
    lambda: adapted.fold(other, genome),
    lambda: adapted.fix(genome).apply(other, INPUTS),
  ]
  for call in calls:
    with pytest.raises(ValueError, match=r"supports in variables\['glora'\] are not those"):
      call()


def test_variables_that_lack_a_collection_are_refused(adapted, variables):
  genome = glora_jax.preset(adapted.spec, 'lora')
  for name in ('params', 'glora'):
    fewer = {key: value for key, value in variables.items() if key != name}
    for call in (adapted.split, adapted.fix(genome).split):
      with pytest.raises(ValueError, match=f"The variables have no '{name}'"):
        call(fewer)
  with pytest.raises(ValueError, match='are a list and no dictionary'):
    adapted.split([])
  assert adapted.split({'params': PARAMS}, supports=False)[0] == {'params': {}}


def test_a_population_is_refused_where_one_genome_is_meant(adapted, variables, tmp_path):
  population = np.stack([glora_jax.preset(adapted.spec, 'lora')] * 2)
  file = tmp_path / 'adapter.safetensors'
  calls = [
    lambda: adapted.apply(variables, INPUTS, genome=population),
    lambda: adapted.fold(variables, population),
    lambda: adapted.fix(population),
    lambda: glora_jax.save_adapter(file, adapted, variables, population),
    lambda: glora_jax.genome_to_json(adapted.spec, population),
  ]
  for call in calls:
    with pytest.raises(ValueError, match=r'takes one genome \[1, 5\], not \(2, 1, 5\)'):
      call()
  assert not file.exists()


@pytest.mark.parametrize(
  'choices, sentence',
  [
    ({'(': 'lora'}, r"'\(' is not a regular expression"),
    ({'fc1': 3}, 'fc1=3 must be the name of a preset'),
    (['lora'], r"choices=\['lora'\] must be a dictionary"),
  ],
)
def test_choices_that_are_none_are_refused_by_custom_genome(choices, sentence):
  with pytest.raises(ValueError, match=sentence):
    glora_jax.custom_genome(Spec((Layer('fc1', 8, 32),)), choices)
