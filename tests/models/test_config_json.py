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
    ({'architecture': 'vit_so400m_patch16_siglip_gap_256'}, {'activation': 'gelu_tanh'}),
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
    ('vit_medium_patch16_gap_256', None),  # of a width that says it
  ],
)
def test_the_heads_of_widths_that_only_timm_has_are_known_by_name(architecture, heads):
  assert FORMATS['timm'].read_config({'architecture': architecture})['num_heads'] == heads


@pytest.mark.parametrize(
  'crop_pct, mode, expected',
  [
    (0.9, 'center', 248),
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
  for name in ('timm', 'hf_vit') if expected else ():
    format = FORMATS[name]
    files = format.side_files(ViT(2, num_heads=4), metadata, format.variant, {})
    if name == 'timm':
      read = format.read_config(files['config.json'])
    else:
      processor = files['preprocessor_config.json']
      assert processor['do_center_crop']
      assert processor['crop_size'] == {'height': 224, 'width': 224}
      read = format.read_preprocessor(processor)
    assert short_side({'image_size': 224, **read}) == expected


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
