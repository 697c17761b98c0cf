"""Reading: what is wrong with a file is said with the names of its tensors."""

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import OURS, assert_equal_files, assert_equal_params, own, timm  # noqa: F401, fixtures
from places import FIXTURES

from glora_jax.models import weights
from glora_jax.models.vit import expected_params


def test_tensors_of_both_16_bit_types_become_one_of_32_bits(timm):
  names = [f'blocks.{block}.attn.qkv.weight' for block in range(2)]
  first, second = (timm.tensors[name].copy() for name in names)
  timm.tensors[names[0]] = first.astype(np.float16)
  timm.tensors[names[1]] = second.astype(ml_dtypes.bfloat16)
  kernel = timm.load().params['blocks']['attn']['qkv']['kernel']
  assert kernel.dtype == np.float32
  np.testing.assert_array_equal(kernel[0].T, first.astype(np.float16))
  np.testing.assert_array_equal(kernel[1].T, second.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_files_of_other_things_are_refused(tmp_path):
  tensors = {f'layers.{i}.weight': np.zeros(3, np.float32) for i in range(3)}
  safetensors.numpy.save_file(tensors, tmp_path / 'other.safetensors')
  with pytest.raises(
    ValueError,
    match=r'holds no ViT of a known format, but layers\.\{0-2\}\.weight',
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


def test_non_square_grids_must_be_told_and_must_fit(timm):
  positions = np.random.default_rng(0).normal(size=(1, 4 * 5 + 1, 16))
  timm.tensors['pos_embed'] = positions.astype(np.float32)
  with pytest.raises(
    ValueError,
    match=r'21 position embeddings fit no square grid .* give weights\.load their image_size',
  ):
    timm.load()
  model, params, metadata = timm.load(image_size=(32, 40))
  assert metadata['image_size'] == [32, 40]
  assert expected_params(model, (32, 40))['pos_embed'].shape == params['pos_embed'].shape
  model, params, metadata = weights.refit(model, params, metadata, image_size=(40, 32))
  assert metadata['image_size'] == [40, 32]
  assert expected_params(model, (40, 32))['pos_embed'].shape == params['pos_embed'].shape


@pytest.mark.parametrize(
  'name, stated, other',
  [
    ('hf_vit', {'num_heads': 4}, {'num_heads': 8}),
    ('hf_vit', {'image_size': (32, 32)}, {'image_size': (16, 64)}),
    ('hf_vit', {'pool': 'token'}, {'pool': 'gap'}),
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
