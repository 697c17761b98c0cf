"""Against timm and transformers themselves."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
import transformers
from comparing import assert_refused
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from trees import normal, randomized

from glora_jax import convert, predict
from glora_jax.vision.data import image, normalization
from glora_jax.vision.models import weights
from glora_jax.vision.models.metadata import share_kept
from glora_jax.vision.models.resize import resize_patch_embed, resize_pos_embed
from glora_jax.vision.models.vit import ACTIVATIONS
from tests.peers import families

IMAGES = np.array(normal(3, 32, 32, 3))
NAMES = families.FAMILIES


def loaded(name, tmp_path):
  """A model of a library, and what we read of its files."""
  theirs = families.build(name)
  families.write(theirs, tmp_path / 'in')
  return theirs, *weights.load(tmp_path / 'in')


def assert_same_logits(theirs, model, params):
  expected = families.logits(theirs, IMAGES)
  assert_allclose(model.apply({'params': params}, IMAGES), expected, atol=1e-4)


@pytest.mark.parametrize(
  'name, format',
  [
    ('timm_vit', 'hf_vit'),
    ('timm_deit3', 'hf_dinov2'),
    ('timm_deit3', 'hf_vit'),
    ('hf_vit', 'hf_dinov2'),
    ('hf_vit', 'timm'),
    ('hf_dinov2_model', 'timm'),
    *((name, None) for name in NAMES),  # where it is from
  ],
)
def test_their_file_gives_their_logits_and_ours_is_opened_by_the_library(name, format, tmp_path):
  theirs, model, params, metadata = loaded(name, tmp_path)
  assert_same_logits(theirs, model, params)
  params = jax.tree.map(jnp.add, params, randomized(params, scale=0.1))  # as a training may
  weights.save(tmp_path / 'out', model, params, metadata, format or metadata['source'])
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  if 'architectures' in config:
    kind = getattr(transformers, *config['architectures'])
    opened, info = kind.from_pretrained(tmp_path / 'out', output_loading_info=True)
    assert not any(info.values()), info
  else:
    opened = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True)
  assert_same_logits(opened.eval(), model, params)


@pytest.mark.parametrize('name', timm.list_models(['vit_*siglip_gap*', 'vit_*quickgelu*']))
def test_a_name_of_timms_tells_the_activation_of_its_model(name, tmp_path):
  with torch.device('meta'):
    activation = timm.create_model(name, depth=1).blocks[0].mlp.act
  families.write(families.build('timm_vit'), tmp_path)
  config = {'architecture': name, 'model_args': {'num_heads': 4}}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  values = torch.linspace(-3, 3, 50)
  ours = ACTIVATIONS[weights.load(tmp_path).model.activation]
  assert_allclose(ours(values.numpy()), activation(values), atol=1e-6)


@pytest.mark.parametrize('rule', image.RULES)
def test_timm_prepares_an_image_as_the_run_did(rule, tmp_path):
  _, *checkpoint = loaded('timm_vit', tmp_path)
  model, params, metadata = weights.refit(*checkpoint, image_size=28, patch_size=7)
  metadata = {**metadata, 'normalization': 'inception', 'resize': rule}
  weights.save(tmp_path / 'model', model, params, metadata, 'timm')
  theirs = timm.create_model(f'local-dir:{tmp_path / "model"}', pretrained=True)
  prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
  picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 97, 3), np.uint8))
  pixels = image.resize(picture, 28, share_kept(metadata, None))
  found = normalization.normalize(pixels, 'inception')
  assert_allclose(found, prepare(picture).permute(1, 2, 0), atol=1e-6)
  assert weights.load(tmp_path / 'model')[2]['resize'] == rule


@pytest.mark.parametrize('name', [name for name in NAMES if name.startswith(('timm_vit', 'hf_'))])
def test_a_state_dict_gives_its_logits(name, tmp_path):
  """Those of transformers 5 have the names of modules, which its safetensors have not."""
  theirs = families.build(name)
  torch.save(theirs.state_dict(), tmp_path / 'in.pth')
  model, params, _ = weights.load(tmp_path / 'in.pth', num_heads=4)
  assert_same_logits(theirs, model, params)


def test_one_of_several_state_dicts_is_chosen_by_its_key(tmp_path, capsys):
  state = families.build('timm_vit').state_dict()
  ema = {name: value + 1 for name, value in state.items()}
  path, back, picture = (str(tmp_path / name) for name in ('in.pth', 'ema.safetensors', 'a.png'))
  torch.save({'model_ema': ema, 'model': state, 'epoch': 3}, path)
  Image.new('L', (28, 28)).save(picture)
  for main, arguments in (
    (convert.main, [path, back]),
    (predict.main, [picture, '--model', path]),
  ):
    arguments += ['--num-heads', '4']
    assert_refused('several state dicts, model_ema, model;', main, arguments, kind=SystemExit)
    main([*arguments, '--key', 'model_ema'])
  for name, key, expected in ((back, None, ema), (path, 'model', state)):
    params = weights.load(name, num_heads=4, key=key).params
    assert_array_equal(params['norm']['bias'], expected['norm.bias'])
  assert_refused("no state dict at the key 'ema'", weights.load, path, key='ema')


def test_swiglu_models_run_as_modules_and_without_a_config_are_refused_by_name(tmp_path):
  config = transformers.Dinov2Config(**families.HF_SHAPE, use_swiglu_ffn=True)
  swiglu = transformers.Dinov2Model(config)
  swiglu.save_pretrained(tmp_path / 'swiglu')
  torch.save(swiglu.state_dict(), tmp_path / 'swiglu.pth')
  assert weights.load(tmp_path / 'swiglu').model.library == 'transformers'
  assert_refused('SwiGLU', weights.load, tmp_path / 'swiglu.pth')


def test_pickles_are_not_executed(tmp_path):
  class Hostile:
    def __reduce__(self):
      return (tmp_path.joinpath('executed').write_text, ('x',))

  torch.save({'model': {'head.weight': Hostile()}}, tmp_path / 'hostile.pth')
  assert_refused('holds more than tensors', weights.load, tmp_path / 'hostile.pth')
  assert not (tmp_path / 'executed').exists()


def test_a_file_that_holds_less_than_it_says_is_refused(tmp_path):
  few = torch.zeros(1).expand(10**9, 16)
  torch.save({**families.build('timm_vit').state_dict(), 'norm.weight': few}, tmp_path / 'few.pth')
  assert_refused('norm.weight declares shape', weights.load, tmp_path / 'few.pth', num_heads=4)


@pytest.mark.parametrize('new', [(3, 4), (14, 9)])
def test_position_embeddings_are_resized_as_timm_does(new):
  old = np.array(normal(1, 26, 8))
  of_timm = resample_abs_pos_embed(torch.tensor(old), list(new), [5, 5])
  assert_allclose(resize_pos_embed(old, (5, 5), new, 'bicubic_antialias'), of_timm, atol=1e-5)


@pytest.mark.parametrize('size', [6, 12, 16])
def test_patch_embeddings_are_resized_as_timm_does(size):
  kernel = np.array(normal(8, 8, 3, 5))
  theirs = resample_patch_embed(torch.tensor(kernel).permute(3, 2, 0, 1), [size, size])
  assert_allclose(resize_patch_embed(kernel, size), theirs.permute(2, 3, 1, 0), atol=1e-4)
