"""A model with one structure: given by name, genome, choices or file; what it stores; its scale."""

import json

import flax.linen as nn
import jax
import pytest
from comparing import (
  assert_close,
  assert_folds,
  assert_trees_close,
  random_params,
  random_variables,
)
from flax import nnx
from numpy.testing import assert_array_equal
from small_models import Mlp
from trees import normal, randomized

import glora_jax
from glora_jax import SearchSpace
from glora_jax.files import write_json

X = normal(5, 4)


PARAMS = random_params(Mlp(), X)


def function(params, x):
  x = nn.gelu(x @ params['fc']['kernel'] + params['fc']['bias'])
  return x @ params['head']['kernel'] + params['head']['bias']


def with_structure(structure, **options):
  """The same network fixed to a structure by the three ways of adapting: (adapted, params)."""
  live = nnx.bridge.ToNNX(Mlp(), nnx.Rngs(0)).lazy_init(X)
  yield glora_jax.adapt(Mlp(), X, structure=structure, **options), PARAMS
  yield glora_jax.adapt_function(function, PARAMS, X, structure=structure, **options), PARAMS
  attached = glora_jax.nnx.attach(live, X, structure=structure, **options)
  yield glora_jax.nnx.as_adapted(attached)[0], glora_jax.nnx.params(live)


@pytest.mark.parametrize('structure', ['scale_shift_lora:2', 'full', 'linear'])
def test_variables_hold_what_the_structure_reads_and_nothing_needs_a_genome(structure):
  answers = []
  for adapted, params in with_structure(structure, scale=3.0):
    start = adapted.init(jax.random.key(1), params)
    assert_close(adapted.apply(start, X), function(params, X))
    assert sum(leaf.size for leaf in jax.tree.leaves(start['glora'])) == adapted.count_params()
    variables = {'params': PARAMS, 'glora': randomized(start['glora'])}
    answers.append(assert_folds(adapted, variables, X))
    assert f'trained parameters: {adapted.count_params():,} in' in adapted.summary()
  for answer in answers[1:]:
    assert_close(answer, answers[0])


def test_a_fixed_structure_starts_with_the_numbers_of_the_free_one():
  free = glora_jax.adapt(Mlp(), X, space=SearchSpace((1, 4)))
  fixed = free.fix('scale_shift_lora:1')
  key = jax.random.key(2)
  expected, _ = fixed.split(free.init(key, PARAMS))
  found, _ = fixed.split(fixed.init(key, PARAMS))
  jax.tree.map(assert_array_equal, found, expected)


def test_a_structure_is_the_same_by_name_genome_choices_and_file(tmp_path):
  adapted = glora_jax.adapt(Mlp(), X, structure='scale_shift_lora:2')
  described = glora_jax.genome_to_json(adapted.spec, adapted.genome)
  adapter = tmp_path / 'adapter.safetensors'
  write_json(tmp_path / 'genome.json', described, 'genome')
  glora_jax.save_adapter(adapter, adapted, adapted.init(jax.random.key(0), PARAMS))
  forms = {'A': 'vector', 'B': 'lora:2', 'E': 'vector'}
  for structure in (
    adapter,
    str(adapter),
    {**described, 'tied': 5, 'scale': 'x'},  # what it says besides is not trusted
    json.loads((tmp_path / 'genome.json').read_text()),
    {'fc': forms},
    {'fc': 'scale_shift_lora:2'},
  ):
    other = glora_jax.adapt(Mlp(), X, structure=structure)
    assert_array_equal(other.genome, adapted.genome)
    assert other.spec == adapted.spec
  space = SearchSpace((1, 2))
  of_codes = glora_jax.adapt(Mlp(), X, structure=[[2, 4, 0, 0, 2]], space=space)
  assert of_codes.fix(adapter).genome.tolist() == of_codes.genome.tolist()


def test_a_scale_multiplies_a_lora_of_b_and_nothing_else():
  plain = glora_jax.adapt(Mlp(), X, structure='full', space=SearchSpace((2,)))
  scaled = glora_jax.adapt(Mlp(), X, structure='full', space=SearchSpace((2,)), scale=3.0)
  variables = random_variables(plain, PARAMS)
  adapter = variables['glora']['fc']
  longer = {'fc': {**adapter, 'B_up': 3 * adapter['B_up']}}
  expected = {**variables, 'glora': longer}
  assert_close(scaled.apply(variables, X), plain.apply(expected, X), 1e-4)
  assert_trees_close(scaled.fold(variables), plain.fold(expected), 1e-4)
  for structure in ('bitfit', 'ssf', 'hira', [[0, 2, 0, 0, 0]]):  # vectors lie where LoRAs do
    of_plain, of_scaled = (
      adapted.fix(None).fix(structure).apply(variables, X) for adapted in (plain, scaled)
    )
    assert_array_equal(of_plain, of_scaled)
