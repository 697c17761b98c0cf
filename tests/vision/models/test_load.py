"""Reading: where a checkpoint lies, what its config says, and what is wrong with its tensors."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import CLASSES, assert_equal_files, assert_equal_params, timm  # noqa: F401, a fixture
from comparing import assert_refused
from numpy.testing import assert_array_equal
from places import FIXTURES

from glora_jax.files import write_json
from glora_jax.vision.data import image
from glora_jax.vision.models import weights
from glora_jax.vision.models.checkpoint import locate
from glora_jax.vision.models.formats.table import FORMATS
from glora_jax.vision.models.vit import ViT
from glora_jax.vision.runs.config import default_config


def test_tensors_of_both_16_bit_types_become_one_of_32_bits(timm):
  expected = []
  for block, dtype in enumerate((np.float16, ml_dtypes.bfloat16)):
    name = f'blocks.{block}.attn.qkv.weight'
    timm.tensors[name] = timm.tensors[name].astype(dtype)
    expected.append(timm.tensors[name].astype(np.float32).T)
  kernel = timm.load().params['blocks']['attn']['qkv']['kernel']
  assert kernel.dtype == np.float32
  assert_array_equal(kernel, expected)


def test_a_pooler_beside_a_classifier_has_no_say(tmp_path):
  tensors = safetensors.numpy.load_file(FIXTURES / 'hf_vit' / 'model.safetensors')
  _, params, _ = weights.load(FIXTURES / 'hf_vit')
  tensors['vit.pooler.dense.weight'] = np.ones((16, 16), np.float32)
  tensors['vit.pooler.dense.bias'] = np.ones(16, np.float32)
  safetensors.numpy.save_file(tensors, tmp_path / 'in.safetensors')
  pooled, same, _ = weights.load(tmp_path / 'in.safetensors', num_heads=4)
  assert pooled.pre_logits is None
  assert_equal_params(params, same)


def test_non_square_grids_must_be_told_and_must_fit(timm):
  positions = np.random.default_rng(0).normal(size=(1, 4 * 5 + 1, 16))
  timm.tensors['pos_embed'] = positions.astype(np.float32)
  assert_refused('21 position embeddings do not fit a square grid', timm.load)
  loaded = timm.load(image_size=(32, 40))
  refitted = weights.refit(*loaded, image_size=(40, 32))
  for (_, params, metadata), size in ((loaded, [32, 40]), (refitted, [40, 32])):
    assert metadata['image_size'] == size
    assert params['pos_embed'].shape == positions.shape


def test_what_another_file_or_its_config_says_is_not_overridden():
  folder = FIXTURES / 'hf_vit'
  said = {'num_heads': 4, 'image_size': (32, 32), 'pool': 'token'}
  assert weights.load(folder, **said).model == weights.load(folder).model
  for other in ({'num_heads': 8}, {'image_size': (16, 64)}, {'pool': 'gap'}):
    assert_refused('config.json has', weights.load, folder, **other)


@pytest.mark.parametrize(
  'expected, others',
  [
    ('weights.npz', ['config.json']),
    ('model.safetensors', ['pytorch_model.bin', 'model.npz', 'best.safetensors']),
    ('folded/model.safetensors', ['adapter.safetensors']),
    ('model.npz', ['folded/model.safetensors']),
  ],
)
def test_the_one_checkpoint_in_a_folder_is_found(tmp_path, expected, others):
  (tmp_path / 'folded').mkdir()
  for name in (expected, *others):
    (tmp_path / name).touch()
  assert locate(tmp_path) == locate(tmp_path / expected) == str(tmp_path / expected)


CLIP = {
  'model_type': 'clip_vision_model',
  'num_attention_heads': 2,
  'hidden_act': 'quick_gelu',
  'layer_norm_eps': 1e-3,
}


@pytest.mark.parametrize('config', [CLIP, json.loads(default_config().to_json())])
def test_a_config_of_something_else_beside_a_file_is_not_believed(config, timm):
  write_json(timm.config, config, 'config')
  model, *_ = timm.load()
  assert (model.num_heads, model.activation, model.norm_eps) == (4, 'gelu', 1e-6)


@pytest.mark.parametrize(
  'config, expected',
  [
    (
      {'architecture': 'vit_so400m_patch14_siglip_gap_224'},
      {'num_heads': 16, 'activation': 'gelu'},
    ),
    (
      {'model_args': {'num_heads': 4, 'act_layer': 'quick_gelu', 'global_pool': 'avg'}},
      {'num_heads': 4, 'activation': 'quick_gelu', 'pool': 'gap'},
    ),
    (
      {'model_type': 'timm_wrapper', 'model_args': {'num_heads': 4}, 'global_pool': 'avg'},
      {'pool': 'gap'},
    ),
  ],
)
def test_timms_configs_are_understood(timm, config, expected):
  timm.config.write_text(json.dumps({'architecture': 'vit_tiny_patch16_224', **config}))
  model, *_ = timm.load(num_heads=None)
  assert {name: getattr(model, name) for name in expected} == expected


@pytest.mark.parametrize(
  'crop_pct, mode, expected',
  [(0.9, 'center', 248), (1.0, 'center', 224), (0.9, 'squash', None), (None, 'center', None)],
)
def test_images_are_cropped_as_timm_does(crop_pct, mode, expected):
  """The shorter side that timm scales an image of any size to; it truncates the quotient."""
  config = {
    'architecture': 'vit_tiny_patch16_224',
    'pretrained_cfg': {'input_size': [3, 224, 224], 'crop_pct': crop_pct, 'crop_mode': mode},
  }
  timm, hf = (FORMATS[name] for name in ('timm', 'hf_vit'))
  facts = timm.read_config(config)
  assert short_side(facts) == expected
  if expected:
    model, metadata = ViT(2, num_heads=4), {'normalization': 'imagenet', **facts}
    config = timm.side_files(model, metadata)['config.json']
    processor = hf.side_files(model, metadata)['preprocessor_config.json']
    for again in (timm.read_config(config), {**facts, **hf.read_preprocessor(processor)}):
      assert short_side(again) == expected


@pytest.mark.parametrize(
  'side, fields, expected', [(224, {}, 256), (384, {}, None), (384, {'do_center_crop': True}, 438)]
)
def test_what_processors_of_transformers_do_to_images_is_known_or_refused(side, fields, expected):
  """Of ConvNeXT and PoolFormer."""
  processor = {'size': {'shortest_edge': side}, 'crop_size': side, 'crop_pct': 0.875, **fields}
  read = FORMATS['hf_vit'].read_preprocessor
  assert short_side({'image_size': side, **read(processor)}) == expected
  assert_refused('do_flip_channel_order=True, which', read, {'do_flip_channel_order': True})


def short_side(facts):
  """What `image.resize` scales the shorter side to; None where nothing is cropped."""
  share = facts.get('crop') or image.CROP
  return round(facts['image_size'] / share) if facts.get('resize') == 'crop' else None


def test_a_config_of_hugging_face_is_believed_but_for_classes_that_are_too_few(tmp_path, caplog):
  folder = shutil.copytree(FIXTURES / 'hf_vit', tmp_path / 'hf_vit')
  config = json.loads((folder / 'config.json').read_text())
  config |= {'model_type': 'vit_msn', 'layer_norm_eps': 1e-3, 'num_attention_heads': 2}
  config['id2label'] = {'0': 'cat', '1': 'dog'}
  (folder / 'config.json').write_text(json.dumps(config))
  model, _, metadata = weights.load(folder)
  assert (model.norm_eps, model.num_heads) == (1e-3, 2)
  assert 'classes' not in metadata
  assert 'names 2 classes' in caplog.text
