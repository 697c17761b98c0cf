"""The `config.json` beside a checkpoint: what is believed, and what is refused."""

import json
import shutil

import numpy as np
import pytest
from checkpoints import CLASSES, timm  # noqa: F401, fixtures
from places import FIXTURES

from glora_jax.data import image
from glora_jax.files import write_json
from glora_jax.models import weights
from glora_jax.models.formats.table import FORMATS
from glora_jax.models.vit import ViT
from glora_jax.runs.config import default_config


def test_configs_of_other_code_bases_beside_a_file_are_not_believed(timm):
  config = {
    'model_type': 'clip_vision_model',
    'num_attention_heads': 2,
    'hidden_act': 'quick_gelu',
    'layer_norm_eps': 1e-3,
  }
  timm.config.write_text(json.dumps(config))
  model, *_ = timm.load()
  assert (model.num_heads, model.activation, model.norm_eps) == (4, 'gelu', 1e-6)


def test_the_config_of_a_workdir_beside_a_file_says_nothing_of_it(timm):
  write_json(timm.config, json.loads(default_config().to_json()), 'config')
  model, *_ = timm.load()
  assert (model.num_heads, model.activation) == (4, 'gelu')


@pytest.mark.parametrize(
  'config, expected',
  [
    (
      {'architecture': 'vit_so400m_patch14_siglip_gap_224'},
      {'num_heads': 16, 'activation': 'gelu'},
    ),
    ({'architecture': 'vit_so400m_patch16_siglip_gap_256'}, {'activation': 'gelu_tanh'}),
    (
      {'architecture': 'vit_large_patch16_siglip_gap_512', 'model_args': {'num_heads': 4}},
      {'activation': 'gelu_tanh'},
    ),
    (
      {'architecture': 'vit_base_patch32_siglip_gap_256.v2_webli', 'model_args': {'num_heads': 2}},
      {'num_heads': 2, 'activation': 'gelu_tanh'},
    ),
    (
      {
        'architecture': 'vit_tiny_patch16_224',
        'model_args': {'num_heads': 4, 'act_layer': 'quick_gelu', 'global_pool': 'avg'},
      },
      {'num_heads': 4, 'activation': 'quick_gelu', 'pool': 'gap'},
    ),
    (
      {
        'model_type': 'timm_wrapper',
        'architecture': 'vit_tiny_patch16_224',
        'model_args': {'num_heads': 4},
        'global_pool': 'avg',
      },
      {'pool': 'gap'},
    ),
  ],
)
def test_timms_configs_are_understood(timm, config, expected):
  timm.config.write_text(json.dumps(config))
  model, *_ = timm.load(num_heads=None)
  assert {name: getattr(model, name) for name in expected} == expected


def test_a_normalization_without_a_name_is_kept(timm, tmp_path):
  config = {
    'architecture': 'x',
    'model_args': {'num_heads': 4},
    'pretrained_cfg': {'mean': [0.1, 0.2, 0.3], 'std': [0.4, 0.5, 0.6]},
    'label_names': CLASSES,
  }
  timm.config.write_text(json.dumps(config))
  model, params, metadata = timm.load(num_heads=None)
  assert metadata['normalization'] == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
  assert metadata['classes'] == CLASSES
  weights.save(tmp_path / 'out', model, params, metadata, metadata['source'])
  *_, again = weights.load(tmp_path / 'out')
  np.testing.assert_allclose(again['normalization'], metadata['normalization'])


@pytest.mark.parametrize(
  'architecture, heads',
  [
    ('vit_xsmall_patch16_clip_224', 4),
    ('vit_betwixt_patch16_gap_256', 10),
    ('vit_base_patch16_plus_clip_240', 14),
    ('vit_medium_patch16_gap_256', None),  # of a width that says it
  ],
)
def test_the_heads_of_widths_that_only_timm_has_are_known_by_name(architecture, heads):
  assert FORMATS['timm'].read_config({'architecture': architecture})['num_heads'] == heads


@pytest.mark.parametrize(
  'crop_pct, mode, expected',
  [
    (0.9, 'center', 248),
    (0.95, 'center', 235),
    (0.875, 'center', 256),
    (1.0, 'center', 224),
    (0.9, 'squash', None),
    (None, 'center', None),
  ],
)
def test_images_are_cropped_as_timm_does(crop_pct, mode, expected):
  """The shorter side that timm scales an image of any size to; it truncates the quotient."""
  config = {
    'architecture': 'vit_tiny_patch16_224',
    'pretrained_cfg': {'input_size': [3, 224, 224], 'crop_pct': crop_pct, 'crop_mode': mode},
  }
  facts = FORMATS['timm'].read_config(config)
  assert short_side(facts) == expected
  metadata = {'normalization': 'imagenet', **facts}
  for name, read in (('timm', read_timm), ('hf_vit', read_hugging_face)):
    format = FORMATS[name]
    files = format.side_files(ViT(2, num_heads=4), metadata, format.variant, {})
    if expected is not None:
      assert short_side({'image_size': 224, **read(format, files)}) == expected


def short_side(facts):
  """What `image.resize` scales the shorter side to; None where nothing is cropped."""
  share = facts.get('crop') or image.CROP
  return round(facts['image_size'] / share) if facts.get('resize') == 'crop' else None


def read_timm(format, files):
  return format.read_config(files['config.json'])


def read_hugging_face(format, files):
  return format.read_preprocessor(files['preprocessor_config.json'])


def with_config(tmp_path, **fields):
  """A folder with a ViT of Hugging Face's whose config says something else."""
  folder = shutil.copytree(FIXTURES / 'hf_vit', tmp_path / 'hf_vit')
  file = folder / 'config.json'
  file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
  return folder


def test_names_of_more_or_fewer_classes_than_there_are_are_left_aside_with_a_word(tmp_path, caplog):
  folder = with_config(tmp_path, id2label={'0': 'cat', '1': 'dog'})
  *_, metadata = weights.load(folder)
  assert 'classes' not in metadata
  assert 'names 2 classes, and its head has 5 outputs; the names are left aside' in caplog.text


@pytest.mark.parametrize('model_type', ['vit_msn', 'vit_mae'])
def test_configs_of_other_pretrainings_of_the_same_model_are_believed(model_type, tmp_path):
  folder = with_config(tmp_path, model_type=model_type, layer_norm_eps=1e-3, num_attention_heads=2)
  model, *_ = weights.load(folder)
  assert (model.norm_eps, model.num_heads) == (1e-3, 2)
