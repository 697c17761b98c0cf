"""Classifiers of timm and transformers as backbones of runs, against both libraries."""

import html
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
import transformers
from timm.models import _hub
from tiny_runs import make_config, without_seconds
from trees import randomized

from glora_jax import convert
from glora_jax.vision.data import image
from glora_jax.vision.models import weights
from glora_jax.vision.models.checkpoint import hub_name
from glora_jax.vision.models.classifier import Classifier
from glora_jax.vision.runs.experiment import run
from glora_jax.vision.runs.workdir import Stopped
from tests.peers.torch_zoo import moved

TIMM = {  # fields that make them small, and the size of images
  'vit_small_patch14_reg4_dinov2': ({'depth': 1, 'embed_dim': 24, 'num_heads': 2}, 56),
  'vit_base_patch16_siglip_224': ({'depth': 1, 'embed_dim': 24, 'num_heads': 2}, 64),
  'vit_small_patch16_dinov3': ({'depth': 1, 'embed_dim': 24, 'num_heads': 2}, 64),
  'eva02_tiny_patch14_224': ({'depth': 1, 'embed_dim': 24, 'num_heads': 2}, 56),
  'convnext_tiny': ({'depths': (1, 1, 1, 1), 'dims': (8, 8, 8, 12)}, 224),
  'convnext_atto': ({'depths': (1, 1, 1, 1), 'dims': (8, 8, 8, 12)}, 224),
  'swin_tiny_patch4_window7_224': ({'depths': (1, 1), 'num_heads': (2, 2), 'embed_dim': 8}, 224),
}
SMALL = {'hidden_size': 24, 'num_hidden_layers': 1, 'num_attention_heads': 2, 'patch_size': 14}
TEXT = {**SMALL, 'vocab_size': 9, 'bos_token_id': 0, 'eos_token_id': 1, 'intermediate_size': 24}
SEEING = {**SMALL, 'image_size': 56, 'intermediate_size': 24}
TRANSFORMERS = {
  'dinov2_with_registers': transformers.Dinov2WithRegistersConfig(**SMALL, image_size=98),
  'siglip': transformers.SiglipConfig(vision_config=SEEING, text_config=TEXT),
  'convnext': transformers.ConvNextConfig(hidden_sizes=[8, 8, 8, 12], depths=[1, 1, 1, 1]),
  'swin': transformers.SwinConfig(
    image_size=56, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=7
  ),
}


def save_for_hub(module, folder, **fields):
  """As timm saves a module."""
  _hub.save_for_hf(moved(module, 0.1), folder, safe_serialization=True, **fields)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Makes the checkpoint of a family, once."""
  made, root = {}, tmp_path_factory.mktemp('families')

  def folder(name):
    if name not in made:
      made[name] = path = root / name
      path.mkdir()
      if name in TIMM:
        fields, side = TIMM[name]
        resized = {'img_size': side} if side < 224 else {}
        module = timm.create_model(name, num_classes=5, **fields, **resized)
        save_for_hub(module, path)
      else:
        parts = {'max_shard_size': '10KB'} if name == 'swin' else {}
        module = transformers.AutoModel.from_config(TRANSFORMERS[name])
        moved(module, 0.1).save_pretrained(path, **parts)
        transformers.ViTImageProcessor(size={'height': 56, 'width': 56}).save_pretrained(path)
    return str(made[name])

  return folder


def assert_as_in_library(checkpoint, folder):
  """The checkpoint has the logits of the folder's module; gives images and logits."""
  model, params, metadata = checkpoint
  shape = 2, metadata['image_size'], metadata['image_size'], 3
  images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  inputs = torch.from_numpy(images).permute(0, 3, 1, 2)
  if model.library == 'timm':
    theirs = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()(inputs)
  else:
    module = transformers.AutoModelForImageClassification.from_pretrained(folder)
    theirs = module(inputs, **model.options).logits
  logits = jax.jit(model.apply)({'params': params}, images)
  np.testing.assert_allclose(logits, theirs.detach(), atol=1e-5)
  return images, logits


RESIZED = 'vit_small_patch14_reg4_dinov2', 'dinov2_with_registers', 'siglip'


@pytest.mark.parametrize(
  'name, sizes',
  [
    *((name, {}) for name in (*TIMM, *TRANSFORMERS)),
    *((name, {'image_size': 112}) for name in RESIZED),
  ],
)
def test_logits_are_the_librarys_before_and_after_saving(name, sizes, folders, tmp_path):
  checkpoint = weights.load(folders(name))
  if name in TIMM:
    assert_as_in_library(checkpoint, folders(name))
  else:
    assert checkpoint.model.num_classes == 0
  model, params, metadata = weights.refit(*checkpoint, num_classes=3, **sizes)
  params = jax.tree.map(jnp.add, params, randomized(params, scale=0.1))
  metadata['classes'] = ['a', 'b', 'c']
  weights.save(tmp_path, model, params, metadata)
  images, logits = assert_as_in_library((model, params, metadata), tmp_path)
  again, _, read = weights.load(tmp_path)
  assert read == metadata
  assert again.num_classes == 3
  features = jax.jit(model.clone(num_classes=0).apply)({'params': params}, images)
  np.testing.assert_allclose(model.logits_of(params, features), logits, atol=1e-5)


def test_a_stopped_run_resumes_and_what_it_leaves_is_a_model_of_the_library(
  folders, tmp_path, capsys
):
  config = make_config(folders('siglip'))
  config.structure, config.presets, config.budget = 'lora:1', None, None
  config.data.resize = 'crop'
  whole = run(config, str(tmp_path / 'whole'))
  calls = iter(range(100))
  with pytest.raises(Stopped):
    run(config, str(tmp_path / 'stopped'), stop=lambda: next(calls) == 2)
  assert without_seconds(run(config, str(tmp_path / 'stopped'))) == without_seconds(whole)
  assert whole['fold_max_abs_diff'] < 1e-5

  folded = tmp_path / 'whole' / 'folded'
  classifier = Classifier(str(folded))
  assert classifier.share == image.CROP
  assert len(classifier.classes) == 10
  module = transformers.AutoModelForImageClassification.from_pretrained(folded)
  assert module.config.id2label[3] == '3'
  page = html.unescape((tmp_path / 'whole' / 'report.html').read_text())
  code = re.search(
    r'import jax.numpy as jnp\n\nimport glora_jax\n.*?variables, images\)', page, re.S
  )
  names = {}
  exec(code[0], names)  # applies the adapter
  plain, params, _ = weights.load(folded)
  logits = plain.apply({'params': params}, names['images'])
  np.testing.assert_allclose(names['logits'], logits, atol=1e-5)
  convert.main([str(folded)])
  assert 'SiglipForImageClassification' in capsys.readouterr().out
  convert.main([str(folded), str(tmp_path / 'converted')])
  ours, theirs = (weights.load(path).params for path in (folded, tmp_path / 'converted'))
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
  'values, sentence',
  [
    ({'dtype': 'bfloat16'}, "model.dtype='bfloat16' is only for the ViT"),
    ({'patch_size': 7}, 'patch_size=7 is only for the ViT'),
  ],
)
def test_what_a_module_has_not_is_refused(values, sentence, folders, tmp_path):
  config = make_config(folders('siglip'))
  config.structure = 'lora:1'
  config.model.update(values)
  with pytest.raises(ValueError, match=sentence):
    run(config, str(tmp_path / 'run'))


def test_what_cannot_be_loaded_run_or_exported_is_a_sentence(folders, tmp_path):
  folder = shutil.copytree(folders('convnext'), tmp_path / 'broken')
  config = json.loads((folder / 'config.json').read_text())
  for broken in ({**config, 'hidden_sizes': [8, 8, 8, 16]}, {'model_type': 'dinov3_vit'}):
    (folder / 'config.json').write_text(json.dumps(broken))
    with pytest.raises(ValueError, match='transformers cannot load and run it'):
      weights.load(folder)
  with pytest.raises(SystemExit, match='cannot be exported'):
    convert.main([folders('siglip'), str(tmp_path / 'model.jax_export')])
  with pytest.raises(ValueError, match='has no head'):
    Classifier(folders('siglip'))


def test_classifiers_of_transformers_may_end_in_several_layers(tmp_path):
  config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
  module = transformers.ResNetForImageClassification(config)
  moved(module, 0.1).half().save_pretrained(tmp_path / 'half')
  checkpoint = weights.load(tmp_path / 'half')
  weights.save(tmp_path / 'whole', *checkpoint)
  assert_as_in_library(checkpoint, tmp_path / 'whole')


def test_timm_can_replace_the_head_of_what_was_saved(tmp_path):
  """Also where all fields of the first `config.json` stood side by side."""
  module = timm.create_model('test_convnext', num_classes=5)
  save_for_hub(module, tmp_path / 'old')
  path = tmp_path / 'old' / 'config.json'
  fields = json.loads(path.read_text())['pretrained_cfg']
  path.write_text(json.dumps({**fields, 'architecture': 'test_convnext'}))
  weights.save(tmp_path / 'new', *weights.load(tmp_path / 'old'))
  other = timm.create_model(f'local-dir:{tmp_path / "new"}', pretrained=True, num_classes=2)
  assert other.get_classifier().out_features == 2


def test_a_vit_that_is_not_plain_stays_so_when_it_was_saved(tmp_path):
  fields, _ = TIMM['vit_small_patch14_reg4_dinov2']
  fields = {**fields, 'act_layer': 'relu', 'img_size': 32}
  module = timm.create_model('vit_small_patch16_224', num_classes=5, **fields)
  save_for_hub(module, tmp_path / 'relu', model_args=fields)
  weights.save(tmp_path / 'again', *weights.load(tmp_path / 'relu'))
  assert_as_in_library(weights.load(tmp_path / 'again'), tmp_path / 'relu')


def test_the_file_that_is_named_is_read_or_refused(folders, tmp_path):
  folder = shutil.copytree(folders('convnext'), tmp_path / 'two')
  shutil.copy(folder / 'model.safetensors', folder / 'ema.safetensors')
  assert weights.load(folder / 'model.safetensors').model.library == 'transformers'
  with pytest.raises(ValueError, match='might read another'):
    weights.load(folder / 'ema.safetensors')


def test_classes_that_are_not_those_of_the_head_are_refused(folders, tmp_path):
  model, params, metadata = weights.load(folders('convnext_atto'))
  with pytest.raises(ValueError, match='5 outputs, but there are 2 names'):
    weights.save(tmp_path / 'new', model, params, {**metadata, 'classes': ['a', 'b']})


def test_names_of_timm():
  assert hub_name('timm:convnext_atto') == 'hf:timm/convnext_atto.d2_in1k'
  with pytest.raises(ValueError, match='has no weights'):
    hub_name('timm:convnext_ato')
