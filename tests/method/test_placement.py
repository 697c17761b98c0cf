"""Where layers are, by the names that code bases give them, and presets placed there."""

import numpy as np
import pytest

from glora_jax.method.presets import (
  block_numbers,
  file_name,
  placed_rows,
  preset,
  preset_label,
  presets,
  role,
)
from glora_jax.method.space import Layer, SearchSpace, Spec

SPACE = SearchSpace((1, 2, 3))


def spec_of(names, space=SPACE):
  return Spec(tuple(Layer(name, 8, 8, space=space) for name in names))


@pytest.mark.parametrize(
  'name, expected',
  [
    # this project's ViT, scanned and not
    ('blocks/attn/qkv[3]', 'qkv'),
    # vision_transformer and big_vision
    ('Transformer/encoderblock_3/MultiHeadDotProductAttention_0/query', 'qkv'),
    ('Transformer/encoderblock_3/MultiHeadDotProductAttention_0/out', 'proj'),
    ('Transformer/encoderblock_3/MlpBlock_0/Dense_0', 'mlp'),
    # transformers: ViT, BERT, GPT-2, Llama
    ('vit/encoder/layer/3/attention/attention/key', 'qkv'),
    ('vit/encoder/layer/3/attention/output/dense', 'proj'),
    ('vit/encoder/layer/3/intermediate/dense', 'mlp'),
    ('vit/encoder/layer/3/output/dense', 'mlp'),
    ('h/3/attn/c_proj', 'proj'),
    ('h/3/mlp/c_proj', 'mlp'),
    ('layers/3/self_attn/o_proj', 'proj'),
    ('layers_3/down_proj', 'mlp'),
    ('layers_3/feed_forward/w2', 'mlp'),
    # gemma
    ('layer_3/attn/q_einsum', 'qkv'),
    ('layer_3/attn/attn_vec_einsum', 'proj'),
    # DETR's and T5's
    ('block_0/SelfAttention/wo', 'proj'),
    ('block_0/DenseReluDense/wo', 'mlp'),
    # ties, and what is in none of them
    ('blocks_1/attn/query+key+value', 'qkv'),
    ('patch_embed/proj', None),
    ('Dense_0', None),
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
    (['Encoder_0/block_0/q', 'Encoder_0/block_1/q'], [0, 1]),
    (['layers_0/blocks_0/q', 'layers_0/blocks_1/q', 'layers_1/blocks_0/q'], [0, 1, 2]),
    (['steps/mlp/up[0,0]', 'steps/mlp/up[0,1]', 'steps/mlp/up[1,0]'], [0, 1, 2]),
    (['Dense_0', 'Dense_1', 'Dense_2'], [0, 1, 2]),
    (['encoder', 'decoder'], [None, None]),
    (['block_0/fc1', 'block_0/fc2'], [None, None]),
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
  assert np.flatnonzero(placed_rows(BLOCKS, place)).tolist() == rows


def test_a_place_gets_the_preset_and_other_layers_nothing():
  genome = preset(BLOCKS, 'scale_shift_lora:2@qkv')
  assert genome[[0, 4, 8]].tolist() == [[2, 4, 0, 0, 2]] * 3
  assert not np.delete(genome, [0, 4, 8], axis=0).any()
  assert preset(BLOCKS, 'hira:1@last_half')[8].tolist() == [3, 0, 0, 0, 0]
  np.testing.assert_array_equal(preset(BLOCKS, 'lora:3'), preset(BLOCKS, 'lora'))


def test_every_base_is_a_preset_whatever_the_space_offers():
  distinct = spec_of(('qkv', 'fc1'), SearchSpace.distinct((1, 2)))
  assert presets(distinct)['ssf'].tolist() == [[2, 0, 0, 2, 2]] * 2
  assert presets(distinct)['scale_shift_lora'].tolist() == [[2, 4, 0, 0, 2]] * 2


@pytest.mark.parametrize(
  'spec, name, message',
  [
    (BLOCKS, 'lorra', "'lorra' is unknown; the presets are linear, bitfit"),
    (BLOCKS, 'lora:', "has the rank ''; it must be a whole number"),
    (BLOCKS, 'lora:rising', "has the rank 'rising'"),
    (BLOCKS, 'ssf:2', 'ssf has no LoRA'),
    (BLOCKS, 'lora@', 'has nothing behind its @'),
    (BLOCKS, 'lora@(', r"'\(', which is no regular expression"),
    (BLOCKS, 'lora:5', r'needs rank 5, .* blocks/qkv\[0\] has the ranks 1, 2, 3'),
    (spec_of(('a', 'b')), 'lora@qkv', "No adapted layer is in the place 'qkv'.* are a, b"),
    (spec_of(('a', 'b')), 'lora@last_half', "in the place 'last_half'"),
  ],
)
def test_presets_that_there_are_not_or_that_a_model_cannot_have_are_explained(spec, name, message):
  with pytest.raises(ValueError, match=message):
    preset(spec, name)


def test_labels_say_the_rank_and_files_have_safe_names():
  assert preset_label(BLOCKS, 'lora') == 'lora:3'
  assert preset_label(BLOCKS, 'hira@attn') == 'hira:3@attn'
  qkv, fc1 = (spec_of([name], SearchSpace(rank)) for name, rank in (('qkv', 4), ('fc1', 8)))
  mixed = Spec((*qkv, *fc1))
  assert [preset_label(mixed, name) for name in ('lora', 'lora@qkv')] == ['lora:4/8', 'lora:4@qkv']
  for name in ('lora:2', 'bitfit', 'ssf@qkv'):
    assert preset_label(BLOCKS, name) == name
  assert '/' not in file_name('lora@blocks/../x')
  assert file_name('lora:2@qkv') == 'lora:2@qkv'
