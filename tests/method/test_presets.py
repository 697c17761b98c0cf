"""Presets, places in a model by the names that code bases give, genomes from a short dictionary."""

import numpy as np
import pytest

from glora_jax.method.genomes import count_params
from glora_jax.method.presets import (
  block_numbers,
  custom_genome,
  mask_of_target,
  preset,
  presets,
  role,
)
from glora_jax.method.space import Layer, SearchSpace, Spec

SPACE = SearchSpace((1, 2, 3))


def spec_of(names, space=SPACE):
  return Spec(tuple(Layer(name, 8, 8, 'fc1' not in name, space) for name in names))


@pytest.mark.parametrize(
  'name, expected',
  [
    # this project's ViT, scanned and not
    ('blocks/attn/qkv[3]', 'qkv'),
    # vision_transformer and big_vision
    ('Transformer/encoderblock_3/MultiHeadDotProductAttention_0/out', 'proj'),
    ('Transformer/encoderblock_3/MlpBlock_0/Dense_0', 'mlp'),
    # transformers: ViT, BERT, GPT-2, Llama
    ('vit/encoder/layer/3/attention/output/dense', 'proj'),
    ('vit/encoder/layer/3/intermediate/dense', 'mlp'),
    ('h/3/attn/c_proj', 'proj'),
    ('h/3/mlp/c_proj', 'mlp'),
    ('layers_3/feed_forward/w2', 'mlp'),
    # gemma
    ('layer_3/attn/q_einsum', 'qkv'),
    ('layer_3/attn/attn_vec_einsum', 'proj'),
    # DETR's and T5's
    ('block_0/SelfAttention/wo', 'proj'),
    ('block_0/DenseReluDense/wo', 'mlp'),
    # in none of them
    ('patch_embed/proj', None),
  ],
)
def test_names_tell_attention_from_mlp(name, expected):
  assert role(name) == expected


@pytest.mark.parametrize(
  'names, expected',
  [
    (['blocks/qkv[0]', 'blocks/fc1[0]', 'blocks/qkv[1]', 'blocks/fc1[11]'], [0, 0, 1, 2]),
    (['T/encoderblock_10/MlpBlock_0/Dense_1', 'T/encoderblock_9/MlpBlock_0/Dense_0'], [1, 0]),
    (['layers/0/attn/q', 'layers/0/mlp/up', 'layers/1/attn/q', 'embed'], [0, 0, 1, None]),
    (['layers_0/blocks_0/q', 'layers_0/blocks_1/q', 'layers_1/blocks_0/q'], [0, 1, 2]),
    (['steps/mlp/up[0,0]', 'steps/mlp/up[0,1]', 'steps/mlp/up[1,0]'], [0, 1, 2]),
    (['encoder', 'decoder'], [None, None]),
  ],
)  # fmt: skip
def test_blocks_are_counted_by_the_numbers_that_vary(names, expected):
  assert block_numbers(names) == expected


BLOCKS = spec_of(f'blocks/{name}[{n}]' for n in range(3) for name in ('qkv', 'proj', 'fc1', 'fc2'))


@pytest.mark.parametrize(
  'place, rows',
  [
    ('qkv', [0, 4, 8]),
    ('attn', [0, 1, 4, 5, 8, 9]),
    ('mlp', [2, 3, 6, 7, 10, 11]),
    ('last_half', [8, 9, 10, 11]),
    (r'fc1\[[01]\]', [2, 6]),
    (None, list(range(12))),
  ],
)
def test_places_are_found_in_a_transformer(place, rows):
  assert np.flatnonzero(mask_of_target(BLOCKS, place)).tolist() == rows


def test_a_place_gets_the_preset_and_other_layers_nothing():
  genome = preset(BLOCKS, 'scale_shift_lora:2@qkv')
  assert genome[[0, 4, 8]].tolist() == [[2, 4, 0, 0, 2]] * 3
  assert not np.delete(genome, [0, 4, 8], axis=0).any()
  assert preset(BLOCKS, 'hira:1@last_half')[8].tolist() == [3, 0, 0, 0, 0]
  np.testing.assert_array_equal(preset(BLOCKS, 'lora:3'), preset(BLOCKS, 'lora'))


def test_every_base_is_a_preset_whatever_the_space_offers():
  distinct = spec_of(('qkv', 'proj'), SearchSpace.distinct((1, 2)))
  assert presets(distinct)['dora'].tolist() == [[2, 4, 0, 0, 0]] * 2
  assert presets(distinct)['ssf'].tolist() == [[2, 0, 0, 2, 2]] * 2
  assert presets(distinct)['scale_shift_lora'].tolist() == [[2, 4, 0, 0, 2]] * 2


def test_presets_cost_what_their_methods_cost():
  spec = Spec((Layer('a', 6, 9, True, SearchSpace((2, 4))),))
  counts = {name: count_params(spec, genome) for name, genome in presets(spec).items()}
  lora = 4 * (6 + 9)
  assert counts == {
    'linear': 0,
    'bitfit': 9,
    'lora': lora,
    'dora': lora + 9,
    'ssf': 3 * 9,
    'prompt': 6,
    'full': 2 * lora + 4 * (6 + 1) + 2 * 9,
    'hira': lora,
    'scale_shift': 2 * 9,
    'scale_shift_lora': lora + 2 * 9,
  }


def test_custom_genomes_read_their_dictionary():
  choices = {r'qkv\[0\]': {'A': 'constant', 'C': 1}, 'qkv': 'lora', 'fc': 'bitfit'}
  genome = custom_genome(BLOCKS, choices)
  assert genome[0].tolist() == [1, 0, 1, 0, 0]
  assert genome[4].tolist() == [0, 5, 0, 0, 0]
  assert genome[3].tolist() == [0, 0, 0, 0, 2]
  assert not genome[[1, 2]].any()  # fc1 has no bias
  with pytest.raises(ValueError, match='no such tensor'):
    custom_genome(BLOCKS, {'qkv': {'F': 1}})


def test_a_preset_of_a_pattern_is_that_of_the_layers_that_the_pattern_decides():
  genome = custom_genome(BLOCKS, {r'\[[01]\]': 'lora@last_half', 'blocks': 'bitfit'})
  assert np.flatnonzero(genome[:, 1]).tolist() == [4, 5, 6, 7]  # block 1 of 0 and 1
  assert np.flatnonzero(genome[:, 4]).tolist() == [8, 9, 11]
