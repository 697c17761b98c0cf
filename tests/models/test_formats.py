"""Other people's checkpoints without their libraries: files in the exact layout of the published ones, and small models with the
logits that timm and transformers gave (`tests/peers/make_fixtures.py`)."""

import json

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from conftest import FIXTURES, randomized
from flax import traverse_util

from glora_jax.models import weights
from glora_jax.models.containers.npz import write_npz
from glora_jax.models.containers.opening import open_tensors
from glora_jax.models.formats.flax_npz import sincos_2d
from glora_jax.models.formats.table import FORMATS
from glora_jax.models.vit import ViT

FIXTURES = sorted(path for path in FIXTURES.iterdir() if path.is_dir())
IMAGES = np.random.default_rng(0).normal(size=(2, 24, 24, 3)).astype(np.float32)


@pytest.fixture(params=FIXTURES, ids=[path.name for path in FIXTURES])
def fixture(request):
  with np.load(request.param / 'expected.npz') as file:
    return request.param, dict(file)


def test_fixtures_are_there():
  assert len(FIXTURES) == 11


def test_our_model_from_their_file_gives_their_logits(fixture):
  folder, expected = fixture
  model, params, metadata = weights.load(folder)
  np.testing.assert_allclose(
    model.apply({'params': params}, expected['images']), expected['logits'], atol=1e-4
  )
  if 'large_images' in expected:
    model, params, _ = weights.refit(
      model, params, metadata, image_size=expected['large_images'].shape[1]
    )
    np.testing.assert_allclose(
      model.apply({'params': params}, expected['large_images']), expected['large_logits'], atol=1e-4
    )


def test_what_was_read_is_written_back_key_by_key_and_bit_for_bit(fixture, tmp_path):
  folder, _ = fixture
  model, params, metadata = weights.load(folder)
  weights.save(tmp_path / 'back', model, params, metadata, metadata['source'])
  assert_equal_files(folder / 'model.safetensors', tmp_path / 'back' / 'model.safetensors')
  again, same, _ = weights.load(tmp_path / 'back')
  assert again == model
  jax.tree.map(np.testing.assert_array_equal, same, params)


def assert_equal_files(one, other):
  one, other = open_tensors(one), open_tensors(other)
  assert one.specs == other.specs
  for name in one.specs:
    assert one.read(name).tobytes() == other.read(name).tobytes()


# The Flax code bases, as far as names and computation go: what their own code builds, so what its files hold.


class Block(nn.Module):
  classic: bool

  @nn.compact
  def __call__(self, x, _):
    name = lambda module, number: f'{module}_{number}'
    y = nn.LayerNorm(name='LayerNorm_0')(x)
    x = x + nn.MultiHeadDotProductAttention(
      num_heads=3, name=name('MultiHeadDotProductAttention', int(self.classic))
    )(y, y)
    y = nn.LayerNorm(name=name('LayerNorm', 2 if self.classic else 1))(x)
    return x + Mlp(name=name('MlpBlock', 3 if self.classic else 0))(y), None


class Mlp(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(12, name='Dense_1')(nn.gelu(nn.Dense(20, name='Dense_0')(x)))


class Encoder(nn.Module):
  classic: bool
  scanned: bool

  @nn.compact
  def __call__(self, x):
    if self.classic:
      x = Positions(name='posembed_input')(x)
    if self.scanned:
      block = nn.scan(
        Block,
        variable_axes={'params': 0},
        split_rngs={'params': True},
        in_axes=nn.broadcast,
        length=2,
      )
      x, _ = block(self.classic, name='encoderblock')(x, None)
    else:
      for i in range(2):
        x, _ = Block(self.classic, name=f'encoderblock_{i}')(x, None)
    return nn.LayerNorm(name='encoder_norm')(x)


class Positions(nn.Module):
  @nn.compact
  def __call__(self, x):
    return x + self.param('pos_embedding', nn.initializers.normal(), (1, x.shape[1], 12))


class FlaxViT(nn.Module):
  """vision_transformer's (`classic`) or big_vision's ViT of width 12, depth 2, 3 heads, patch 8."""

  classic: bool = False
  scanned: bool = False
  cls: bool = True
  sincos: bool = False
  pre_logits: bool = False
  head: bool = True

  @nn.compact
  def __call__(self, images):
    x = nn.Conv(12, (8, 8), strides=(8, 8), padding='VALID', name='embedding')(images)
    x = x.reshape(x.shape[0], -1, 12)
    if self.sincos:
      x = x + sincos_2d((1, x.shape[1], 12), False)
    elif not self.classic:
      x = x + self.param('pos_embedding', nn.initializers.normal(), (1, x.shape[1], 12))
    if self.cls:
      cls = self.param('cls', nn.initializers.normal(), (1, 1, 12))
      x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, 12)), x], axis=1)
    x = Encoder(self.classic, self.scanned, name='Transformer')(x)
    x = x[:, 0] if self.cls else x.mean(axis=1)
    if self.pre_logits:
      x = nn.tanh(nn.Dense(12, name='pre_logits')(x))
    return nn.Dense(4, name='head')(x) if self.head else x


LAYOUTS = {
  'in21k': {'classic': True, 'pre_logits': True},
  'augreg': {'classic': True},
  'headless': {'classic': True, 'head': False},
  'classic_gap': {'classic': True, 'cls': False},
  'big_vision': {},
  'big_vision_gap': {'cls': False},
  'scanned': {'scanned': True},
  'scanned_gap': {'scanned': True, 'cls': False},
  'sincos': {'sincos': True, 'cls': False},
}


@pytest.fixture(scope='module', params=LAYOUTS)
def npz(request, tmp_path_factory):
  """(path of a file in a published layout, logits of the code base's own computation)."""
  module = FlaxViT(**LAYOUTS[request.param])
  params = randomized(jax.eval_shape(module.init, jax.random.key(0), IMAGES)['params'])
  flat = {
    '/'.join(path): np.asarray(value) for path, value in traverse_util.flatten_dict(params).items()
  }
  path = tmp_path_factory.mktemp('npz') / f'{request.param}.npz'
  np.savez(path, **flat)
  return (
    path,
    np.asarray(module.apply({'params': params}, IMAGES)),
    {'image_size': 24} if request.param == 'sincos' else {},
  )


def test_npz_files_give_the_logits_of_the_code_that_wrote_them(npz):
  path, logits, size = npz
  model, params, metadata = weights.load(path, **size)
  assert (
    model.num_heads,
    model.width,
    model.depth,
    model.patch_size,
    model.mlp_dim,
    metadata['image_size'],
  ) == (3, 12, 2, 8, 20, 24)
  np.testing.assert_allclose(model.apply({'params': params}, IMAGES), logits, atol=1e-5)


def test_npz_files_round_trip_bit_for_bit(npz, tmp_path):
  path, _, size = npz
  model, params, metadata = weights.load(path, **size)
  weights.save(tmp_path / 'back.npz', model, params, metadata, metadata['source'])
  assert_equal_files(path, tmp_path / 'back.npz')


@pytest.mark.parametrize('prefix', ['params/', 'opt/target/'])
def test_parameters_are_found_in_the_middle_of_a_training_state(prefix, tmp_path):
  params = randomized(jax.eval_shape(FlaxViT().init, jax.random.key(0), IMAGES)['params'])
  flat = {
    prefix + '/'.join(path): np.asarray(value)
    for path, value in traverse_util.flatten_dict(params).items()
  }
  moments = {
    'opt/0/1/' + '/'.join(path): np.zeros_like(value)
    for path, value in traverse_util.flatten_dict(params).items()
  }
  np.savez(
    tmp_path / 'state.npz',
    **{**moments, 'opt/0/count': np.int32(3), 'chrono/steps': np.float64(1)},
    **flat,
  )  # moments first
  model, loaded, metadata = weights.load(tmp_path / 'state.npz')
  np.testing.assert_allclose(
    model.apply({'params': loaded}, IMAGES), FlaxViT().apply({'params': params}, IMAGES), atol=1e-5
  )
  assert metadata['source'].prefix == prefix


def test_a_file_of_two_towers_is_refused(tmp_path):
  params = randomized(jax.eval_shape(FlaxViT().init, jax.random.key(0), IMAGES)['params'])
  flat = {
    '/'.join(path): np.asarray(value) for path, value in traverse_util.flatten_dict(params).items()
  }
  np.savez(
    tmp_path / 'lit.npz',
    **{f'params/{tower}/{name}': value for tower in ('img', 'txt') for name, value in flat.items()},
  )
  with pytest.raises(ValueError, match='holds several models, below params/img/, params/txt/'):
    weights.load(tmp_path / 'lit.npz')


def test_bfloat16_stays_bfloat16(tmp_path):
  params = jax.tree.map(
    lambda x: x.astype(jnp.bfloat16),
    randomized(FlaxViT().init(jax.random.key(0), IMAGES)['params']),
  )
  write_npz(
    tmp_path / 'in.npz',
    {
      '/'.join(path): np.asarray(value)
      for path, value in traverse_util.flatten_dict(params).items()
    },
  )
  model, loaded, metadata = weights.load(tmp_path / 'in.npz')
  assert {value.dtype for value in jax.tree.leaves(loaded)} == {np.dtype(jnp.bfloat16)}
  weights.save(tmp_path / 'out.npz', model, loaded, metadata, metadata['source'])
  assert_equal_files(tmp_path / 'in.npz', tmp_path / 'out.npz')


MODELS = st.fixed_dictionaries(
  {
    'pool': st.sampled_from(['token', 'gap', 'token+gap']),
    'class_token': st.booleans(),
    'norm_after_pool': st.booleans(),
    'layer_scale': st.sampled_from([None, 1.0]),
    'pre_logits': st.sampled_from([None, 7]),
    'num_classes': st.sampled_from([0, 3]),
    'pre_norm': st.booleans(),
  }
)


@hypothesis.given(MODELS, st.sampled_from(sorted(FORMATS)))
@hypothesis.settings(
  max_examples=60,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_any_model_in_any_format_computes_the_same_or_is_refused(tmp_path_factory, fields, format):
  hypothesis.assume(fields['class_token'] or fields['pool'] == 'gap')
  activation = 'gelu_tanh' if FORMATS[format].container == 'npz' else 'gelu'
  model = ViT(
    patch_size=8, width=12, depth=2, num_heads=3, mlp_dim=24, activation=activation, **fields
  )
  params = randomized(jax.eval_shape(model.init, jax.random.key(0), IMAGES)['params'])
  folder = tmp_path_factory.mktemp('any')
  save = lambda: weights.save(
    folder, model, params, {'image_size': 24, 'normalization': 'unit'}, format
  )
  try:
    save()
  except ValueError:
    with pytest.raises(ValueError, match='choose another format'):
      save()
    return
  loaded, there, metadata = weights.load(folder)
  assert metadata['source'].format == format
  assert metadata['normalization'] == 'unit'
  np.testing.assert_allclose(
    loaded.apply({'params': there}, IMAGES), model.apply({'params': params}, IMAGES), atol=1e-4
  )


def test_formats_refuse_what_they_cannot_say(tmp_path):
  fields = {'patch_size': 8, 'width': 12, 'depth': 1, 'num_heads': 3}
  for format, model, message in [
    ('timm', ViT(2, pre_logits=5, **fields), 'pre_logits'),
    ('vit_jax', ViT(2, pre_norm=True, **fields), 'pre_norm'),
    ('hf_vit', ViT(2, pool='gap', **fields), "pool='gap' with a class token"),
    ('hf_vit', ViT(2, pool='gap', class_token=False, **fields), 'a model without class token'),
  ]:
    params = model.init(jax.random.key(0), IMAGES)['params']
    with pytest.raises(ValueError, match=f'The format {format} .*{message}.*choose another format'):
      weights.save(tmp_path / 'out', model, params, {'image_size': 24}, format)
    assert not (tmp_path / 'out').exists()


@pytest.fixture
def timm(tmp_path):
  """The tensors of a timm file, to be spoilt, and where to write them."""
  return safetensors.numpy.load_file(
    FIXTURES[-1].parent / 'timm_vit' / 'model.safetensors'
  ), tmp_path / 'spoilt.safetensors'


def spoilt(timm):
  tensors, path = timm
  safetensors.numpy.save_file(tensors, path)
  return weights.load(path, num_heads=4)


def test_every_missing_unexpected_and_misshaped_tensor_is_named(timm):
  tensors, _ = timm
  for block in range(2):
    del tensors[f'blocks.{block}.mlp.fc2.bias']
    tensors[f'blocks.{block}.extra.weight'] = np.zeros(2, np.float32)
  tensors['norm.bias'] = np.zeros(7, np.float32)
  with pytest.raises(
    ValueError,
    match=r'missing: blocks\.\{0-1\}\.mlp\.fc2\.bias; unexpected: blocks\.\{0-1\}\.extra\.weight; '
    r'misshaped: norm\.bias is \(7,\) and should be \(16,\)',
  ):
    spoilt(timm)


@pytest.mark.parametrize(
  'name, what',
  [
    ('dist_token', 'DeiT with a distillation token'),
    ('blocks.0.mlp.w12.weight', 'SwiGLU'),
    ('reg_token', 'register tokens'),
    ('blocks.0.attn.q_norm.weight', 'normalizes queries'),
    ('attn_pool.q.weight', 'pools by attention'),
  ],
)
def test_other_architectures_are_refused_by_name(timm, name, what):
  timm[0][name] = np.zeros(2, np.float32)
  with pytest.raises(ValueError, match=f'{what}.*{name}'):
    spoilt(timm)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(timm, value):
  timm[0]['blocks.1.attn.qkv.weight'][3, 4] = value
  with pytest.raises(ValueError, match=r'blocks\.1\.attn\.qkv\.weight is not finite'):
    spoilt(timm)


def test_tensors_of_whole_numbers_are_refused(timm):
  timm[0]['norm.weight'] = np.zeros(16, np.int64)
  with pytest.raises(ValueError, match=r'norm\.weight hold no floating-point numbers'):
    spoilt(timm)


def test_a_file_without_what_tells_its_shape_is_refused(timm):
  del timm[0]['blocks.0.mlp.fc1.weight']
  with pytest.raises(
    ValueError, match=r'the tensor blocks\.0\.mlp\.fc1\.weight, which tells its shape, is missing'
  ):
    spoilt(timm)


def test_files_of_other_things_are_refused(tmp_path):
  safetensors.numpy.save_file(
    {f'layers.{i}.weight': np.zeros(3, np.float32) for i in range(3)},
    tmp_path / 'other.safetensors',
  )
  with pytest.raises(
    ValueError,
    match=r'holds no ViT of a known format, but layers\.\{0-2\}\.weight\. The formats are glora_jax, timm',
  ):
    weights.load(tmp_path / 'other.safetensors')


def test_configs_of_other_code_bases_beside_a_file_are_not_believed(timm):
  config = {
    'model_type': 'clip_vision_model',
    'num_attention_heads': 2,
    'hidden_act': 'quick_gelu',
    'layer_norm_eps': 1e-3,
  }
  (timm[1].parent / 'config.json').write_text(json.dumps(config))
  model, *_ = spoilt(timm)
  assert (model.num_heads, model.activation, model.norm_eps) == (4, 'gelu', 1e-6)


@pytest.mark.parametrize(
  'config, expected',
  [
    ({'architecture': 'vit_so400m_patch14_siglip_gap_224'}, {'num_heads': 16}),
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
  safetensors.numpy.save_file(*timm)
  (timm[1].parent / 'config.json').write_text(json.dumps(config))
  model, *_ = weights.load(timm[1])
  assert {name: getattr(model, name) for name in expected} == expected


def test_a_normalization_without_a_name_is_kept(timm, tmp_path):
  safetensors.numpy.save_file(*timm)
  config = {
    'architecture': 'x',
    'model_args': {'num_heads': 4},
    'pretrained_cfg': {'mean': [0.1, 0.2, 0.3], 'std': [0.4, 0.5, 0.6]},
    'label_names': ['a', 'b', 'c', 'd', 'e'],
  }
  (timm[1].parent / 'config.json').write_text(json.dumps(config))
  model, params, metadata = weights.load(timm[1])
  assert metadata['normalization'] == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
  assert metadata['classes'] == ['a', 'b', 'c', 'd', 'e']
  weights.save(tmp_path / 'out', model, params, metadata, metadata['source'])
  *_, again = weights.load(tmp_path / 'out')
  np.testing.assert_allclose(again['normalization'], metadata['normalization'])


def test_a_pooler_beside_a_classifier_has_no_say(tmp_path):
  tensors = safetensors.numpy.load_file(FIXTURES[0].parent / 'hf_vit' / 'model.safetensors')
  _, params, _ = weights.load(FIXTURES[0].parent / 'hf_vit')
  tensors.update(
    {
      'vit.pooler.dense.weight': np.ones((16, 16), np.float32),
      'vit.pooler.dense.bias': np.ones(16, np.float32),
    }
  )
  safetensors.numpy.save_file(tensors, tmp_path / 'in.safetensors')
  pooled, same, metadata = weights.load(tmp_path / 'in.safetensors', num_heads=4)
  assert pooled.pre_logits is None
  jax.tree.map(np.testing.assert_array_equal, params, same)
  weights.save(tmp_path / 'out.safetensors', pooled, same, metadata, metadata['source'])
  assert_equal_files(tmp_path / 'in.safetensors', tmp_path / 'out.safetensors')


def test_a_file_alone_says_what_it_cannot_say(timm, tmp_path, caplog):
  model, params, metadata = spoilt(timm)
  weights.save(
    tmp_path / 'alone.safetensors',
    model.clone(activation='gelu_tanh'),
    params,
    metadata,
    metadata['source'],
  )
  assert 'alone cannot say num_heads=4' in caplog.text
  assert 'activation=gelu_tanh (without it: gelu)' in caplog.text


def test_a_block_number_beyond_all_reason_is_refused(timm):
  timm[0]['blocks.3000000.norm1.weight'] = np.zeros(16, np.float32)
  with pytest.raises(ValueError, match='block 3000000 is named, and there are only'):
    spoilt(timm)


def test_tensors_without_a_use_are_kept_for_writing(timm, tmp_path):
  timm[0]['mask_token'] = np.full((1, 16), 3, np.float32)
  model, params, metadata = spoilt(timm)
  weights.save(tmp_path / 'back.safetensors', model, params, metadata, metadata['source'])
  assert_equal_files(timm[1], tmp_path / 'back.safetensors')


def test_non_square_grids_must_be_said_and_must_fit(timm):
  timm[0]['pos_embed'] = np.random.default_rng(0).normal(size=(1, 4 * 5 + 1, 16)).astype(np.float32)
  with pytest.raises(
    ValueError, match='21 position embeddings fit no square grid with or without a class token'
  ):
    spoilt(timm)
  safetensors.numpy.save_file(*timm)
  with pytest.raises(
    ValueError,
    match='has 21 position embeddings; images of 32 x 32 in patches of 8 have 16 patches',
  ):
    weights.load(timm[1], num_heads=4, image_size=32)
  model, params, metadata = weights.load(timm[1], num_heads=4, image_size=(32, 40))
  assert metadata['image_size'] == [32, 40]
  assert model.apply({'params': params}, jnp.zeros((1, 32, 40, 3))).shape == (1, 5)
  model, params, metadata = weights.refit(model, params, metadata, image_size=(40, 32))
  assert model.apply({'params': params}, jnp.zeros((1, 40, 32, 3))).shape == (1, 5)


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
def test_an_odd_config_beside_the_file_is_one_sentence(timm, text):
  (timm[1].parent / 'config.json').write_text(text)
  with pytest.raises(ValueError, match=r'config\.json(:| is damaged| is no config)'):
    spoilt(timm)


def test_heads_that_nobody_tells_are_asked_for(timm):
  safetensors.numpy.save_file(*timm)
  with pytest.raises(
    ValueError, match='how many heads a width of 16 is split into; give num_heads'
  ):
    weights.load(timm[1])


def test_class_names_and_normalization_pass_through_hugging_faces_files(tmp_path):
  model, params, metadata = weights.load(FIXTURES[0].parent / 'hf_vit')
  known = {**metadata, 'classes': ['a', 'b', 'c', 'd', 'e'], 'normalization': 'imagenet'}
  weights.save(tmp_path, model, params, known, metadata['source'])
  config = json.loads((tmp_path / 'config.json').read_text())
  assert config['id2label'] == {'0': 'a', '1': 'b', '2': 'c', '3': 'd', '4': 'e'}
  del config['glora_jax']
  (tmp_path / 'config.json').write_text(json.dumps(config))
  _, _, again = weights.load(tmp_path)
  assert (again['classes'], again['normalization']) == (known['classes'], 'imagenet')
