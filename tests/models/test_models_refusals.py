"""What is refused: the type of the error, one line, and what in it is named."""

import json
import os
import shutil

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import OURS, assert_refused, flat, own, params_of, timm  # noqa: F401, fixtures
from places import FIXTURES

from glora_jax.files import write_tensors
from glora_jax.models import weights
from glora_jax.models.classifier import Classifier, find_images
from glora_jax.models.export import load_exported
from glora_jax.models.folder import locate
from glora_jax.models.resize import resize_pos_embed
from glora_jax.models.vit import ViT, describe, vit


def numbers(*shape):
  return np.zeros(shape, np.float32)


BLOCKS = [f'blocks.{block}' for block in range(2)]
MISSING = dict.fromkeys((f'{block}.mlp.fc2.bias' for block in BLOCKS), None)
SPOILT = [  # tensors that are put into a timm file, or taken out, and what is named
  (
    {**MISSING, 'blocks.1.extra.weight': numbers(2), 'norm.bias': numbers(7)},
    ['blocks.{0-1}.mlp.fc2.bias', 'blocks.1.extra.weight', 'norm.bias is (7,)', '(16,)'],
  ),
  ({'dist_token': numbers(2)}, ['DeiT with a distillation token', 'dist_token']),
  ({'attn_pool.q.weight': numbers(2)}, ['pools by attention', 'attn_pool']),
  ({'norm.weight': np.full(16, np.nan)}, 'norm.weight'),
  ({'norm.weight': np.full(16, -np.inf)}, 'norm.weight'),
  ({'norm.weight': np.full(16, 1e300)}, 'norm.weight'),  # no float32
  ({'norm.weight': np.zeros(16, np.int64)}, 'norm.weight'),
  ({'blocks.0.mlp.fc1.weight': None}, 'blocks.0.mlp.fc1.weight'),
  ({'patch_embed.proj.weight': numbers(16, 3)}, 'too few sides'),
  ({'blocks.3000000.norm1.weight': numbers(16)}, 'block 3000000'),
]


@pytest.mark.parametrize('changes, named', SPOILT)
def test_spoilt_tensors_are_named(changes, named, timm):
  timm.tensors.update(changes)
  for name in [name for name, value in changes.items() if value is None]:
    del timm.tensors[name]
  assert_refused(named, timm.load)


@pytest.mark.parametrize(
  'fields, named',
  [
    *(({'image_size': size}, 'image_size=') for size in (0, -8, 1.5, (0, 8), (8, 8, 8))),
    ({'patch_size': 0}, 'patch_size=0'),
    ({'num_heads': None}, 'give num_heads'),
    ({'image_size': 24}, ['17 position embeddings', '24 x 24']),
  ],
)
def test_what_a_caller_says_of_another_file_is_named(fields, named, timm):
  assert_refused(named, timm.load, **fields)


@pytest.mark.parametrize(
  'fields, named',
  [
    ({'num_heads': -4}, 'num_heads=-4'),
    ({'num_heads': 7}, 'num_heads=7'),
    ({'num_heads': 3}, ['num_heads=2', 'num_heads=3']),
    ({'activation': 'quick_gelu'}, ["'gelu'", "'quick_gelu'"]),
    ({'norm_eps': 1e-3}, ['1e-06', '0.001']),
    ({'pool': 'token'}, ["'gap'", "'token'"]),
    ({'depth': 7}, ['blocks/', '(7, ']),
    ({'activation': 'gellu'}, "activation='gellu'"),
    ({'dtype': 'int8'}, "dtype='int8'"),
    ({'remat': 'x'}, "remat='x'"),
    ({'unroll': 0}, 'unroll=0'),
    ({'class_token': 7}, 'class_token=7'),
    ({'drop_path': 2}, 'drop_path=2'),
    ({'image_size': 'x'}, "image_size='x'"),
    ({'image_size': 56}, 'image_size'),
    ({'no_such': 1}, 'no_such'),
  ],
)
def test_what_a_caller_says_of_a_file_of_ours_is_named(fields, named, own):
  assert_refused(named, weights.load, own[0], **fields)


@pytest.mark.parametrize(
  'metadata, named',
  [
    ({'normalization': [[0, 0, 0], [0, 1, 1]]}, 'normalization='),
    ({'normalization': 'imagnet'}, "normalization='imagnet'"),
    ({'classes': ['a'] * 50}, ['50 names', '5 outputs']),
    ({'classes': 'abcde'}, "classes='abcde'"),
    ({'resize': 'stretch'}, "resize='stretch'"),
  ],
)
def test_metadata_that_cannot_be_are_refused_when_read_and_when_written(
  metadata, named, own, tmp_path
):
  path, metadata = tmp_path / 'odd.safetensors', {'image_size': 16, **metadata}
  assert_refused(
    [str(path), *([named] if isinstance(named, str) else named)],
    weights.save,
    path,
    OURS,
    own[1],
    metadata,
  )
  assert not path.exists()
  write_tensors(path, flat(own[1]), 'vit', {'model': describe(OURS), **metadata})
  assert_refused(named, weights.load, path)


@pytest.mark.parametrize(
  'metadata, named',
  [
    *((text, 'no vit file') for text in ('{}', 'nothing', '[]', '{"kind": "adapter"}')),
    ('{"kind": "vit", "model": {"depth": "x"}}', 'no vit file'),
    *(
      (f'{{"kind": "vit", "model": {{"depth": 2}}, "notes": [{number}]}}', 'damaged')
      for number in ('NaN', '-Infinity', '1e999')
    ),
  ],
)
def test_files_that_only_look_like_ours_are_refused(metadata, named, tmp_path):
  path = tmp_path / 'odd.safetensors'
  safetensors.numpy.save_file({'a': np.zeros(3)}, path, {'glora_jax': metadata})
  assert_refused([str(path), named], weights.load, path)


@pytest.mark.parametrize(
  'changes, named',
  [
    ({'head/bias': None, 'head/extra': numbers(5)}, ['head/bias', 'head/extra']),
    ({'norm/scale': numbers(13)}, ['norm/scale is (13,)', '(12,)']),
    ({'norm/scale': np.zeros(12, np.int32)}, 'norm/scale'),
  ],
)
def test_wrong_tensors_in_a_file_of_ours_are_named(changes, named, own, tmp_path):
  tensors = {name: x for name, x in {**flat(own[1]), **changes}.items() if x is not None}
  write_tensors(tmp_path / 'a', tensors, 'vit', {'model': describe(OURS), 'image_size': 16})
  assert_refused(named, weights.load, tmp_path / 'a')


def spoilt(**norm):
  params = params_of(OURS)
  return {**params, 'norm': {**params['norm'], **norm}}


@pytest.mark.parametrize('format', [None, 'timm'])
@pytest.mark.parametrize(
  'model, params, named',
  [
    (None, params_of(OURS), 'model=None'),
    (OURS, None, 'params=None'),
    (OURS, {}, 'missing: '),
    (OURS, spoilt(scale=np.full(12, np.nan)), 'norm/scale'),
    (OURS, spoilt(scale=np.zeros(12, np.int32)), ['norm/scale', 'int32']),
    (OURS.clone(num_classes=3), params_of(OURS), ['head/bias is (5,)', '(3,)']),
  ],
)
def test_what_is_not_the_models_is_not_written(model, params, named, format, tmp_path):
  path = tmp_path / 'model.safetensors'
  assert_refused(named, weights.save, path, model, params, {'image_size': 16}, format)
  assert_refused("'image_size'", weights.save, path, OURS, params_of(OURS), {}, format)
  assert not path.exists()


@pytest.mark.parametrize(
  'format, fields, named',
  [
    ('timm', {'pre_logits': 5}, 'pre_logits'),
    ('vit_jax', {'pre_norm': True}, 'pre_norm'),
    ('hf_vit', {'pool': 'gap'}, ["pool='gap'", 'class token']),
    ('hf_vit', {'pool': 'gap', 'class_token': False}, 'class token'),
    ('onnx', {}, ["'onnx'", 'glora_jax']),
  ],
)
def test_formats_refuse_what_they_cannot_say(format, fields, named, tmp_path):
  model = ViT(2, patch_size=8, width=12, depth=1, num_heads=3, **fields)
  out = tmp_path / 'out'
  assert_refused(named, weights.save, out, model, params_of(model, 24), {'image_size': 24}, format)
  assert not out.exists()


@pytest.mark.parametrize(
  'text',
  [
    '[1, 2',
    '{"glora_jax": 3}',
    '{"architecture": null}',
    '{"architecture": "x", "model_args": [1]}',
    '{"architecture": "x", "model_args": {"num_heads": "4"}}',
    '{"architecture": "x", "global_pool": "max"}',
  ],
)
def test_an_odd_config_beside_the_file_is_named(text, timm):
  timm.config.write_text(text)
  assert_refused(str(timm.config), timm.load)


def test_a_pipe_in_place_of_a_config_is_not_waited_for(timm):
  os.mkfifo(timm.config)
  assert_refused(str(timm.config), timm.load, kind=OSError)


@pytest.mark.parametrize(
  'file, text, named',
  [
    ('preprocessor_config.json', '{"image_mean": [0.5', ''),
    ('preprocessor_config.json', '[1]', ''),
    ('preprocessor_config.json', '{"image_mean": [0.5, 0.5, 0.5]}', 'image_std'),
    ('preprocessor_config.json', '{"image_mean": [0.5], "image_std": [0.5, 0.5, 0.5]}', ''),
    ('config.json', {'id2label': {'cat': 'a'}}, "'cat'"),
    ('config.json', {'id2label': {str(number): 'cat' for number in range(1, 6)}}, '1, 2, 3, 4, 5'),
  ],
)
def test_an_odd_file_of_hugging_face_is_named(file, text, named, tmp_path):
  folder = shutil.copytree(FIXTURES / 'hf_vit', tmp_path / 'hf_vit')
  if not isinstance(text, str):
    text = json.dumps({**json.loads((folder / file).read_text()), **text})
  (folder / file).write_text(text)
  assert_refused([f'{folder}/{file}', named], weights.load, folder)


@pytest.mark.parametrize(
  'sizes',
  [
    {'image_size': 0},
    {'patch_size': 0},
    {'num_classes': -1},
    {'image_size': 2.5},
    {'image_size': 25},
  ],
)
def test_sizes_that_cannot_be_are_named(sizes, own):
  ((name, value),) = sizes.items()
  assert_refused(f'{name}={value}', weights.refit, *weights.load(own[0]), **sizes)


@pytest.mark.parametrize(
  'fields, named',
  [
    ({'num_heads': 5}, ['width=12', 'num_heads=5']),
    ({'pool': 'max'}, "pool='max'"),
    ({'class_token': False}, 'class_token=False'),
    ({'patch_size': 7}, 'patch_size=7'),
    ({'activation': 'relu'}, "activation='relu'"),
  ],
)
def test_fields_that_do_not_go_together_are_named(fields, named):
  model = ViT(5, **{'patch_size': 8, 'width': 12, 'depth': 2, 'num_heads': 3, **fields})
  assert_refused(named, params_of, model)


@pytest.mark.parametrize(
  'files, named',
  [
    ([], 'folder'),
    (['model-00001-of-00002.safetensors'], 'model-00001-of-00002'),
    (['a.npz', 'b.npz'], ['a.npz, b.npz']),
  ],
)
def test_folders_without_one_checkpoint_are_named(files, named, tmp_path):
  for name in files:
    (tmp_path / name).touch()
  kind = ValueError if files else FileNotFoundError
  assert_refused([str(tmp_path), *named], locate, tmp_path, kind=kind)


def test_other_arguments_that_cannot_be_are_named(backbone, tmp_path):
  (tmp_path / 'odd').write_bytes(b'x' * 100)
  assert_refused('odd', load_exported, tmp_path / 'odd')
  assert_refused("'XL'", vit, 'XL', 10)
  grid = np.zeros((1, 198, 2), np.float32), (14, 14), (7, 7)
  assert_refused(['198 tokens', '14 x 14'], resize_pos_embed, *grid, 'bicubic')
  assert_refused("'nearest'", resize_pos_embed, grid[0][:, :196], *grid[1:], 'nearest')
  assert_refused('None', Classifier, None)
  assert_refused("'x'", Classifier, backbone, rule='x')
  assert_refused('b.png', lambda: next(Classifier(backbone)('b.png')))
  assert_refused('./photos', find_images, './photos')
