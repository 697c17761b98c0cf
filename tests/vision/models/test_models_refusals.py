"""What is refused: the type of the error, one line, and what in it is named."""

import functools
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import OURS, flat, own, params_of, timm  # noqa: F401, fixtures
from comparing import assert_refused
from places import FIXTURES

from glora_jax.files import write_tensors
from glora_jax.vision.models import weights
from glora_jax.vision.models.checkpoint import locate
from glora_jax.vision.models.classifier import Classifier, find_images
from glora_jax.vision.models.resize import resize_pos_embed
from glora_jax.vision.models.vit import describe


def numbers(*shape):
  return np.zeros(shape, np.float32)


MISSING = {f'blocks.{block}.mlp.fc2.bias': None for block in range(2)}
SCALES = [f'encoder.layer.{block}.layer_scale1.lambda1' for block in range(2)]
SPOILT = [  # tensors that are put into a file of another library, or taken out, and what is named
  (
    'timm_vit',
    {**MISSING, 'blocks.1.extra.weight': numbers(2), 'norm.bias': numbers(7)},
    ['blocks.{0-1}.mlp.fc2.bias', 'blocks.1.extra.weight', 'norm.bias is (7,)'],
  ),
  ('timm_vit', {'dist_token': numbers(2)}, 'dist_token'),
  ('timm_vit', {'norm.weight': np.full(16, -np.inf)}, 'norm.weight'),
  ('timm_vit', {'norm.weight': np.zeros(16, np.int32)}, 'int32'),
  ('timm_vit', {'patch_embed.proj.weight': numbers(16, 3)}, 'too few axes'),
  ('timm_vit', {'blocks.3000000.norm1.weight': numbers(16)}, 'block 3000000'),
  # Every DINOv2 has a layer scale, and no ViT of transformers has one.
  (
    'hf_dinov2',
    dict.fromkeys(f'dinov2.{name}' for name in SCALES),
    'missing: encoder.layer.{0-1}.layer_scale1.lambda1',
  ),
  (
    'hf_vit',
    {f'vit.{name}': numbers(16) for name in SCALES},
    'unexpected: encoder.layer.{0-1}.layer_scale1.lambda1',
  ),
  (
    None,
    {f'layers.{i}.weight': numbers(3) for i in range(3)},
    'does not have a ViT of a known format; it has layers.{0-2}.weight',
  ),
]


@pytest.mark.parametrize('family, changes, named', SPOILT)
def test_what_is_wrong_with_another_file_is_named(family, changes, named, tmp_path):
  path = FIXTURES / str(family) / 'model.safetensors'
  tensors = (safetensors.numpy.load_file(path) if family else {}) | changes
  tensors = {name: value for name, value in tensors.items() if value is not None}
  safetensors.numpy.save_file(tensors, tmp_path / 'in.safetensors')
  assert_refused(named, weights.load, tmp_path / 'in.safetensors', num_heads=4)


@pytest.mark.parametrize(
  'is_ours, fields, named',
  [
    (False, {'image_size': (8, 8, 8)}, 'image_size='),
    (False, {'num_heads': None}, 'pass num_heads'),
    (True, {'num_heads': 3}, 'num_heads=3'),
    (True, {'image_size': 56}, 'image_size'),
    (True, {'no_such': 1}, 'no_such'),
  ],
)
def test_what_a_caller_says_of_a_file_is_named(is_ours, fields, named, own, timm):
  load = functools.partial(weights.load, own[0]) if is_ours else timm.load
  assert_refused(named, load, **fields)


ODD = {'image_size': 16, 'resize': 'stretch'}


DIVERGED = {**params_of(OURS), 'norm': {'scale': np.full(12, np.nan), 'bias': numbers(12)}}


def test_metadata_and_numbers_that_cannot_be_are_refused_when_read_and_when_written(own, tmp_path):
  path = tmp_path / 'odd.safetensors'
  for metadata, named in (
    (ODD, "resize='stretch'"),
    ({**ODD, 'resize': None, 'crop': 'x'}, "crop='x'"),
  ):
    assert_refused(f'{path} is not written: {named}', weights.save, path, OURS, own[1], metadata)
  assert not path.exists()
  right = {'model': describe(OURS), 'image_size': 16}
  for params, metadata, named in (
    (own[1], {**right, **ODD}, [str(path), "resize='stretch'"]),
    (DIVERGED, right, 'norm/scale is not finite'),
    (DIVERGED, {'model': {'depth': 'x'}}, 'not a glora_jax vit file'),
  ):
    write_tensors(path, flat(params), 'vit', metadata)
    assert_refused(named, weights.load, path)


@pytest.mark.parametrize(
  'model, params, format, named',
  [
    (OURS, None, None, 'params=None must be a Mapping.'),
    (OURS, DIVERGED, None, ['is not written', 'norm/scale']),
    (OURS.clone(num_classes=3), params_of(OURS), 'timm', ['is not written', 'head/bias is (5,)']),
    (OURS, params_of(OURS), 'hf_vit', "pool='gap'"),
  ],
)
def test_what_cannot_be_written_is_named_and_leaves_nothing(model, params, format, named, tmp_path):
  path = tmp_path / 'out'
  assert_refused(named, weights.save, path, model, params, {'image_size': 16}, format)
  assert not path.exists()


def test_class_names_that_are_not_those_of_all_classes_are_named(tmp_path):
  folder = shutil.copytree(FIXTURES / 'hf_vit', tmp_path / 'hf_vit')
  config = json.loads((folder / 'config.json').read_text())
  config['id2label'] = dict.fromkeys('12345', 'cat')
  (folder / 'config.json').write_text(json.dumps(config))
  assert_refused([f'{folder}/config.json', '1, 2, 3, 4, 5'], weights.load, folder)


def test_folders_without_one_checkpoint_are_named(tmp_path):
  assert_refused(str(tmp_path), locate, tmp_path, kind=FileNotFoundError)
  for names in (['model-1-of-2.npz'], ['a.npz', 'b.npz']):
    for name in names:
      (tmp_path / name).touch()
    assert_refused([str(tmp_path), ', '.join(names)], locate, tmp_path)


GRID = np.zeros((1, 196, 2), np.float32)


def test_arguments_that_cannot_be_are_named(backbone, own, tmp_path):
  assert_refused("'image_size'", weights.save, tmp_path / 'out', OURS, params_of(OURS), {})
  assert_refused('196 tokens', resize_pos_embed, GRID, (13, 13), (7, 7), 'bicubic')
  assert_refused('./photos', find_images, './photos', kind=TypeError)
  assert_refused("'x'", Classifier, backbone, rule='x')
  assert_refused('b.png', lambda: next(Classifier(backbone)('b.png')), kind=TypeError)
  for name, value in {'image_size': 25, 'patch_size': 0, 'num_classes': -1}.items():
    assert_refused(f'{name}={value}', weights.refit, *weights.load(own[0]), **{name: value})
