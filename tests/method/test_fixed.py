"""A model with one structure: given by name, genome, choices or file; what it stores; its scale."""

import functools
import json

import flax.linen as nn
import jax
import model_zoo
import numpy as np
import pytest
from comparing import (
  assert_close,
  assert_folds,
  assert_refused,
  assert_trees_close,
  random_params,
  random_variables,
  ready,
)
from flax import nnx
from numpy.testing import assert_array_equal
from small_models import Mlp
from trees import normal, randomized

import glora_jax
from glora_jax import SearchSpace, load_adapter, preset, random_genomes, save_adapter
from glora_jax.files import write_json
from glora_jax.method.genomes import canonicalize

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
  save_adapter(adapter, adapted, adapted.init(jax.random.key(0), PARAMS))
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


# What a fixed subnet stores.

SPACE = SearchSpace(ranks=(1, 2, 4))


@functools.cache
def mlp(space=SPACE):
  """(adapted, variables with random supports)."""
  return ready(Mlp(), X, space=space, heads=None)


def genomes_of(spec, number):
  """Random genomes without the largest rank, so that storage can be cut."""
  drawn = random_genomes(np.random.default_rng(1), spec, number)
  limit = spec.num_codes.astype(np.int8) - 1
  limit[:, 3:] = 3  # D and E have no ranks
  return canonicalize(spec, np.minimum(drawn, limit - 1))


def rejoined(subnet, variables):
  return subnet.join(*subnet.split(variables))


def shapes(tree):
  return jax.tree.map(lambda x: x.shape, nn.meta.unbox(tree))


def test_storage_is_cut_to_the_largest_rank_of_each_tensor():
  adapted, variables = mlp()
  genome = np.array([[0, 4, 1, 0, 0], [2, 0, 0, 0, 0]], np.int8)  # B r2, C vector; A vector
  subnet = adapted.fix(genome)
  trainable, frozen = subnet.split(variables)
  assert shapes(trainable['glora']) == {
    'fc': {'B_down': (4, 2), 'B_up': (2, 6), 'C_down': (4, 1)},
    'head': {'A_up': (1, 3)},
  }
  assert frozen['glora']['fc']['C_up'].shape == (1, 1)
  assert frozen['glora']['head']['B_down'].shape == (6, 1)


def boxed_in_a_scan():
  example = model_zoo.EXAMPLES['with_partitioning']
  adapted = glora_jax.adapt(example.model, *example.inputs, space=SPACE)
  return *example.inputs, adapted, random_variables(adapted, example.variables()['params'])


@pytest.mark.parametrize(
  'make',
  [
    boxed_in_a_scan,
    lambda: (X, *mlp(SearchSpace((1, 2, 4), shared=False))),
    lambda: (X, *mlp(SearchSpace.distinct((1, 2, 4)))),
  ],
)
def test_cut_storage_holds_less_is_not_cut_again_and_is_the_same_subnet(make):
  inputs, adapted, variables = make()
  [genome] = genomes_of(adapted.spec, 1)
  subnet = adapted.fix(genome)
  narrow = rejoined(subnet, variables)
  assert shapes(narrow['glora']) != shapes(variables['glora'])
  jax.tree.map(assert_array_equal, rejoined(subnet, narrow), narrow)
  assert_folds(subnet, narrow, inputs)
  assert_trees_close(jax.jit(subnet.fold)(narrow), jax.jit(subnet.fold)(variables), 1e-2)


def test_a_subnet_with_a_higher_rank_is_refused_in_cut_storage(tmp_path):
  adapted, variables = mlp()
  narrow = rejoined(adapted.fix('lora:1'), variables)
  higher = preset(adapted.spec, 'lora:2')
  for use in (
    lambda: adapted.apply(narrow, X, genome=higher),
    lambda: adapted.fix(higher).split(narrow),
    lambda: save_adapter(tmp_path / 'adapter.safetensors', adapted.fix(higher), narrow),
  ):
    assert_refused('a LoRA of rank 2 for B in fc, but these variables store rank 1', use)


def test_an_adapter_of_cut_storage_is_that_of_the_whole(tmp_path):
  adapted, variables = mlp()
  [genome] = genomes_of(adapted.spec, 1)
  narrow = rejoined(adapted.fix(genome), variables)
  for name, content in (('whole', variables), ('narrow', narrow)):
    save_adapter(tmp_path / name, adapted.fix(genome), content)
  assert (tmp_path / 'narrow').read_bytes() == (tmp_path / 'whole').read_bytes()
  fixed, loaded = load_adapter(tmp_path / 'narrow', adapted, variables['params'])
  assert_array_equal(fixed.genome, genome)
  assert shapes(loaded['glora']) == shapes(variables['glora'])
