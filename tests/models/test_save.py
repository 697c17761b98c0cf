"""Writing: what stands in a folder, and what a file alone cannot say."""

import json

import pytest
from checkpoints import CLASSES, OURS, params_of, timm  # noqa: F401, fixtures
from places import FIXTURES

from glora_jax.models import weights


def test_metadata_that_a_file_alone_loses_are_said(tmp_path, caplog):
  model = OURS.clone(layer_scale=None, activation='gelu_tanh', class_token=False)
  known = {'image_size': 16, 'normalization': 'unit', 'resize': 'crop', 'classes': CLASSES}
  weights.save(tmp_path / 'in_folder', model, params_of(model), known, 'big_vision')
  assert not caplog.text
  weights.save(tmp_path / 'alone.npz', model, params_of(model), known, 'big_vision')
  lost = weights.load(tmp_path / 'alone.npz').metadata
  assert (lost['normalization'], 'resize' in lost, 'classes' in lost) == ('inception', False, False)
  assert "cannot say normalization='unit' (without it: inception), resize='crop'" in caplog.text
  assert "classes=['a', 'b', 'c', 'd', 'e']; a folder in its place" in caplog.text


def test_class_names_and_normalization_pass_through_hugging_faces_files(tmp_path):
  model, params, metadata = weights.load(FIXTURES / 'hf_vit')
  known = {**metadata, 'classes': CLASSES, 'normalization': 'imagenet'}
  weights.save(tmp_path, model, params, known, metadata['source'])
  config = json.loads((tmp_path / 'config.json').read_text())
  assert config['id2label'] == {'0': 'a', '1': 'b', '2': 'c', '3': 'd', '4': 'e'}
  del config['glora_jax']
  (tmp_path / 'config.json').write_text(json.dumps(config))
  _, _, again = weights.load(tmp_path)
  assert (again['classes'], again['normalization']) == (CLASSES, 'imagenet')


def test_an_older_checkpoint_in_the_folder_is_not_left_to_be_read(tmp_path):
  model = OURS.clone(layer_scale=None, class_token=False)
  params = params_of(model)
  weights.save(tmp_path / 'out', model, params, {'image_size': 16}, 'big_vision')
  with pytest.raises(ValueError, match=r'holds another checkpoint already \(model\.npz\)'):
    weights.save(tmp_path / 'out', model, params, {'image_size': 16}, 'timm')
  weights.save(tmp_path / 'out', model, params, {'image_size': 16}, 'big_vision_scan')
  with pytest.raises(ValueError, match=r'should end in \.safetensors'):
    weights.save(tmp_path / 'model.npz', model, params, {'image_size': 16})
