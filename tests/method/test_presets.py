"""Presets and genomes from a short dictionary."""

import numpy as np
import pytest

from glora_jax.method import presets
from glora_jax.method.genomes import count_params
from glora_jax.method.space import Layer, SearchSpace, Spec


def test_presets_cost_what_their_methods_cost():
  spec = Spec(
    (Layer('a', 6, 9, True, SearchSpace((2, 4))), Layer('b', 9, 3, True, SearchSpace((2, 4))))
  )
  counts = {name: count_params(spec, genome) for name, genome in presets.presets(spec).items()}
  assert counts == {
    'linear': 0,
    'bitfit': 9 + 3,
    'lora': 4 * (6 + 9) + 4 * (9 + 3),
    'ssf': 3 * (9 + 3),
    'prompt': 6 + 9,
    'full': 2 * 4 * (15 + 12) + 4 * (7 + 10) + 2 * (9 + 3),
    'hira': 4 * (6 + 9) + 4 * (9 + 3),
    'scale_shift': 2 * (9 + 3),
    'scale_shift_lora': 4 * (6 + 9) + 4 * (9 + 3) + 2 * (9 + 3),
  }


def test_custom_genomes_read_their_dictionary():
  space = SearchSpace((2, 4))
  names = [f'{layer}[{block}]' for block in range(2) for layer in ('qkv', 'proj', 'mlp/1', 'mlp/2')]
  spec = Spec(tuple(Layer(name, 12, 12, space=space) for name in names))
  genome = presets.custom_genome(
    spec, {r'qkv\[0\]': {'A': 'constant', 'C': 1}, 'qkv': 'lora', 'mlp': 'bitfit'}
  )
  assert genome[0].tolist() == [1, 0, 1, 0, 0]
  assert genome[4].tolist() == [0, 4, 0, 0, 0]
  assert genome[2].tolist() == genome[3].tolist() == [0, 0, 0, 0, 2]
  assert genome[1].tolist() == [0, 0, 0, 0, 0]
  for choices, message in (
    ({'qkv': {'F': 1}}, 'no such tensor'),
    ({'qkv': {'D': 'lora'}}, 'none, constant, vector'),
  ):
    with pytest.raises(ValueError, match=message):
      presets.custom_genome(spec, choices)


BLOCKS = Spec(
  tuple(
    Layer(f'blocks/{block}/{name}', 12, 12, bias=name != 'fc1')
    for block in range(4)
    for name in ('qkv', 'fc1')
  )
)


@pytest.mark.parametrize('name', ['bitfit', 'prompt', 'lora@qkv', 'lora@last_half', 'ssf@fc1'])
def test_a_custom_genome_of_all_layers_by_a_presets_name_is_the_preset(name):
  genome = presets.custom_genome(BLOCKS, {'blocks': name})
  np.testing.assert_array_equal(genome, presets.preset(BLOCKS, name))
  assert genome.any()


def test_a_preset_of_a_pattern_is_that_of_the_layers_that_the_pattern_decides():
  genome = presets.custom_genome(BLOCKS, {'blocks/[01]': 'lora@last_half', 'blocks': 'bitfit'})
  assert [row for row, alleles in enumerate(genome) if alleles[1]] == [2, 3]  # block 1 of 0 and 1
  assert [row for row, alleles in enumerate(genome) if alleles[4]] == [4, 6]
