"""Reading: what is wrong with a file is said with the names of its tensors."""

import re

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import OURS, assert_equal_files, assert_equal_params, own, timm  # noqa: F401, fixtures
from places import FIXTURES

from glora_jax.models import weights
from glora_jax.models.vit import expected_params


def test_every_missing_unexpected_and_misshaped_tensor_is_named(timm):
  for block in range(2):
    del timm.tensors[f'blocks.{block}.mlp.fc2.bias']
    timm.tensors[f'blocks.{block}.extra.weight'] = np.zeros(2, np.float32)
  timm.tensors['norm.bias'] = np.zeros(7, np.float32)
  with pytest.raises(
    ValueError,
    match=r'missing: blocks\.\{0-1\}\.mlp\.fc2\.bias; '
    r'unexpected: blocks\.\{0-1\}\.extra\.weight; '
    r'misshaped: norm\.bias is \(7,\) and should be \(16,\)',
  ):
    timm.load()


@pytest.mark.parametrize(
  'name, architecture',
  [
    ('dist_token', 'DeiT with a distillation token'),
    ('blocks.0.mlp.w12.weight', 'SwiGLU'),
    ('reg_token', 'register tokens'),
    ('blocks.0.attn.q_norm.weight', 'normalizes queries'),
    ('attn_pool.q.weight', 'pools by attention'),
  ],
)
def test_other_architectures_are_refused_by_name(timm, name, architecture):
  timm.tensors[name] = np.zeros(2, np.float32)
  with pytest.raises(ValueError, match=f'{architecture}.*{name}'):
    timm.load()


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(timm, value):
  timm.tensors['blocks.1.attn.qkv.weight'][3, 4] = value
  with pytest.raises(ValueError, match=r'blocks\.1\.attn\.qkv\.weight is not finite'):
    timm.load()


def test_weights_that_no_float32_holds_are_refused(timm):
  timm.tensors['norm.weight'] = np.full(16, 1e300)
  with pytest.raises(ValueError, match=r'norm\.weight is not finite'):
    timm.load()


def test_tensors_of_whole_numbers_are_refused(timm):
  timm.tensors['norm.weight'] = np.zeros(16, np.int64)
  with pytest.raises(ValueError, match=r'norm\.weight hold no floating-point numbers'):
    timm.load()


def test_tensors_of_both_16_bit_types_become_one_of_32_bits(timm):
  names = [f'blocks.{block}.attn.qkv.weight' for block in range(2)]
  first, second = (timm.tensors[name].copy() for name in names)
  timm.tensors[names[0]] = first.astype(np.float16)
  timm.tensors[names[1]] = second.astype(ml_dtypes.bfloat16)
  kernel = timm.load().params['blocks']['attn']['qkv']['kernel']
  assert kernel.dtype == np.float32
  np.testing.assert_array_equal(kernel[0].T, first.astype(np.float16))
  np.testing.assert_array_equal(kernel[1].T, second.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_a_file_without_what_tells_its_shape_is_refused(timm):
  del timm.tensors['blocks.0.mlp.fc1.weight']
  with pytest.raises(
    ValueError, match=r'the tensor blocks\.0\.mlp\.fc1\.weight, which tells its shape, is missing'
  ):
    timm.load()


def test_a_tensor_with_too_few_sides_to_tell_the_shape_is_refused(timm):
  timm.tensors['patch_embed.proj.weight'] = np.zeros((16, 3), np.float32)
  with pytest.raises(ValueError, match='a tensor that tells the shape has too few sides'):
    timm.load()


def test_files_of_other_things_are_refused(tmp_path):
  tensors = {f'layers.{i}.weight': np.zeros(3, np.float32) for i in range(3)}
  safetensors.numpy.save_file(tensors, tmp_path / 'other.safetensors')
  with pytest.raises(
    ValueError,
    match=r'holds no ViT of a known format, but layers\.\{0-2\}\.weight\. '
    'The formats are glora_jax, timm',
  ):
    weights.load(tmp_path / 'other.safetensors')


def test_a_pooler_beside_a_classifier_has_no_say(tmp_path):
  tensors = safetensors.numpy.load_file(FIXTURES / 'hf_vit' / 'model.safetensors')
  _, params, _ = weights.load(FIXTURES / 'hf_vit')
  tensors['vit.pooler.dense.weight'] = np.ones((16, 16), np.float32)
  tensors['vit.pooler.dense.bias'] = np.ones(16, np.float32)
  safetensors.numpy.save_file(tensors, tmp_path / 'in.safetensors')
  pooled, same, metadata = weights.load(tmp_path / 'in.safetensors', num_heads=4)
  assert pooled.pre_logits is None
  assert_equal_params(params, same)
  weights.save(tmp_path / 'out.safetensors', pooled, same, metadata, metadata['source'])
  assert_equal_files(tmp_path / 'in.safetensors', tmp_path / 'out.safetensors')


def test_a_block_number_beyond_all_reason_is_refused(timm):
  timm.tensors['blocks.3000000.norm1.weight'] = np.zeros(16, np.float32)
  with pytest.raises(ValueError, match='block 3000000 is named, and there are only'):
    timm.load()


def test_tensors_without_a_use_are_kept_for_writing(timm, tmp_path):
  timm.tensors['mask_token'] = np.full((1, 16), 3, np.float32)
  model, params, metadata = timm.load()
  weights.save(tmp_path / 'back.safetensors', model, params, metadata, metadata['source'])
  assert_equal_files(timm.path, tmp_path / 'back.safetensors')


def test_non_square_grids_must_be_told_and_must_fit(timm):
  positions = np.random.default_rng(0).normal(size=(1, 4 * 5 + 1, 16))
  timm.tensors['pos_embed'] = positions.astype(np.float32)
  with pytest.raises(
    ValueError,
    match=r'21 position embeddings fit no square grid with or without a class token; '
    r'give weights\.load their image_size, \(height, width\)',
  ):
    timm.load()
  with pytest.raises(
    ValueError,
    match='has 21 position embeddings; images of 32 x 32 in patches of 8 have 16 patches',
  ):
    timm.load(image_size=32)
  model, params, metadata = timm.load(image_size=(32, 40))
  assert metadata['image_size'] == [32, 40]
  assert expected_params(model, (32, 40))['pos_embed'].shape == params['pos_embed'].shape
  model, params, metadata = weights.refit(model, params, metadata, image_size=(40, 32))
  assert metadata['image_size'] == [40, 32]
  assert expected_params(model, (40, 32))['pos_embed'].shape == params['pos_embed'].shape


@pytest.mark.parametrize('size', [0, -8, 1.5, (0, 8), (8, 8, 8)])
def test_an_image_size_that_is_none_is_refused(timm, size):
  with pytest.raises(ValueError, match=r'image_size=.* cannot be; it must be 1 to'):
    timm.load(image_size=size)
  with pytest.raises(ValueError, match='patch_size=0 cannot be'):
    timm.load(patch_size=0)


def test_heads_that_nobody_tells_are_asked_for(timm):
  with pytest.raises(
    ValueError, match='how many heads a width of 16 is split into; give num_heads'
  ):
    timm.load(num_heads=None)


@pytest.mark.parametrize(
  'fields',
  [{'num_heads': 3}, {'activation': 'quick_gelu'}, {'norm_eps': 1e-3}, {'pool': 'token'}],
)
def test_what_a_file_of_ours_says_is_not_overridden(own, fields):
  ((name, value),) = fields.items()
  stated = getattr(OURS, name)
  sentence = f'says {name}={stated!r}, but {name}={value!r} was given; leave it out'
  with pytest.raises(ValueError, match=re.escape(sentence)):
    weights.load(own[0], **fields)
  assert weights.load(own[0], **{name: stated}).model == weights.load(own[0]).model


@pytest.mark.parametrize(
  'name, stated, other',
  [
    ('hf_vit', {'num_heads': 4}, {'num_heads': 8}),
    ('hf_vit', {'norm_eps': 1e-12}, {'norm_eps': 1e-6}),
    ('hf_vit', {'image_size': (32, 32)}, {'image_size': (16, 64)}),
    ('hf_vit', {'pool': 'token'}, {'pool': 'gap'}),
    ('timm_vit', {'num_heads': 4}, {'num_heads': 2}),
  ],
)
def test_what_another_file_or_its_config_says_is_not_overridden(name, stated, other):
  assert weights.load(FIXTURES / name, **stated).model == weights.load(FIXTURES / name).model
  with pytest.raises(ValueError, match=r'or its config\.json says .* was given; leave it out'):
    weights.load(FIXTURES / name, **other)


def test_heads_that_are_an_axis_of_an_npz_file_are_not_overridden(own, tmp_path):
  model, params, metadata = weights.load(FIXTURES / 'timm_vit')
  weights.save(tmp_path / 'a.npz', model, params, metadata, 'vit_jax')
  assert weights.load(tmp_path / 'a.npz', activation='gelu').model.activation == 'gelu'
  with pytest.raises(ValueError, match='says num_heads=4, but num_heads=2 was given'):
    weights.load(tmp_path / 'a.npz', num_heads=2)


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'num_heads': -4}, 'num_heads=-4 cannot be; it must be a whole number, 1 to'),
    ({'num_heads': 7}, 'is not a multiple of num_heads=7'),
    ({'depth': 7}, r'misshaped: blocks/.* should be \(7, '),
    ({'activation': 'gellu'}, "activation='gellu' cannot be; it must be one of"),
    ({'dtype': 'int8'}, "dtype='int8' cannot be; it must be a floating-point type"),
    ({'remat': 'x'}, "remat='x' cannot be; it must be the name of a policy"),
    ({'unroll': 0}, 'unroll=0 cannot be; it must be a whole number, 1 to'),
    ({'class_token': 7}, 'class_token=7 cannot be; it must be True or False'),
    ({'drop_path': 2}, 'drop_path=2 cannot be; it must be at least 0 and below 1'),
    ({'image_size': 'x'}, "image_size='x' cannot be"),
    ({'no_such': 1}, 'no_such: the ViT has no such field'),
    ({'image_size': 56}, r'knows its image_size itself; weights\.refit'),
  ],
)
def test_wrong_fields_are_explained(own, fields, message):
  with pytest.raises(ValueError, match=message):
    weights.load(own[0], **fields)
