"""This project's own format: round trips, and files that only look like it."""

import flax
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import OURS, assert_equal_params, own  # noqa: F401, fixtures

from glora_jax.files import write_tensors
from glora_jax.models import weights
from glora_jax.models.vit import describe


def test_tensors_round_trip_bit_for_bit(own):
  path, params = own
  model, loaded, _ = weights.load(path)
  assert_equal_params(loaded, params)
  assert describe(model) == describe(OURS)


@pytest.mark.parametrize(
  'metadata',
  ['{}', 'nothing', '[]', '{"kind": "adapter"}', '{"kind": "vit", "model": {"depth": "x"}}'],
)
def test_files_that_only_look_like_ours_are_refused(tmp_path, metadata):
  path = tmp_path / 'odd.safetensors'
  safetensors.numpy.save_file({'a': np.zeros(3)}, path, {'glora_jax': metadata})
  with pytest.raises(ValueError, match='is no vit file that glora_jax wrote'):
    weights.load(path)


def test_a_file_of_another_kind_is_called_what_it_is(tmp_path):
  path = tmp_path / 'adapter.safetensors'
  write_tensors(path, {'params/head/bias': np.zeros(3)}, 'adapter', {})
  sentence = r"no vit file that glora_jax wrote, but one of the kind 'adapter'; give the right file"
  with pytest.raises(ValueError, match=sentence):
    weights.load(path)


@pytest.mark.parametrize('number', ['NaN', '-Infinity', '1e999'])
def test_metadata_that_could_not_be_written_again_are_refused(tmp_path, number):
  path = tmp_path / 'odd.safetensors'
  metadata = f'{{"kind": "vit", "model": {{"depth": 2}}, "notes": [{number}]}}'
  safetensors.numpy.save_file({'a': np.zeros(3)}, path, {'glora_jax': metadata})
  with pytest.raises(ValueError, match=r'is damaged .*not JSON compliant'):
    weights.load(path)


def test_all_wrong_tensors_are_named(own, tmp_path):
  _, params = own
  head = {'kernel': params['head']['kernel'], 'extra': params['head']['bias']}
  norm = {**params['norm'], 'scale': np.ones(13, np.float32)}
  path = tmp_path / 'wrong.safetensors'
  flat = flax.traverse_util.flatten_dict({**params, 'head': head, 'norm': norm}, sep='/')
  write_tensors(path, flat, 'vit', {'model': describe(OURS), 'image_size': 16})
  with pytest.raises(
    ValueError,
    match='missing: head/bias; unexpected: head/extra; '
    r'misshaped: norm/scale is \(13,\) and should be \(12,\)',
  ):
    weights.load(path)


def flat(params):
  return flax.traverse_util.flatten_dict(params, sep='/')


@pytest.mark.parametrize(
  'metadata, sentence',
  [
    ({'normalization': [[0, 0, 0], [0, 1, 1]]}, r'normalization=.* cannot be; it must be one of'),
    ({'normalization': [[0, 0], [0, 1, 1]]}, 'normalization=.* cannot be'),
    ({'normalization': 'imagnet'}, "normalization='imagnet' cannot be"),
    ({'normalization': 7}, 'normalization=7 cannot be'),
    ({'classes': ['a'] * 50}, '50 names of classes for the 5 outputs'),
    ({'classes': ['a', 'b']}, '2 names of classes for the 5 outputs'),
    ({'classes': 'abcde'}, "classes='abcde' cannot be; it must be a list of names"),
    ({'classes': 5}, 'classes=5 cannot be'),
    ({'resize': 'stretch'}, "resize='stretch' cannot be; it must be one of squash"),
    ({'resize': ['squash']}, 'resize=.* cannot be'),
  ],
)
def test_metadata_that_cannot_be_are_refused_when_read_and_when_written(
  own, tmp_path, metadata, sentence
):
  _, params = own
  path = tmp_path / 'odd.safetensors'
  with pytest.raises(ValueError, match=f'is not written: .*{sentence}|is not written: {sentence}'):
    weights.save(path, OURS, params, {'image_size': 16, **metadata})
  assert not path.exists()
  write_tensors(path, flat(params), 'vit', {'model': describe(OURS), 'image_size': 16, **metadata})
  with pytest.raises(ValueError, match=f'odd.safetensors: .*{sentence}|: {sentence}'):
    weights.load(path)


@pytest.mark.parametrize('dtype', [np.int32, np.int8])
def test_whole_numbers_are_no_weights(own, tmp_path, dtype):
  params = flat(own[1])
  params['norm/scale'] = params['norm/scale'].astype(dtype)
  path = tmp_path / 'odd.safetensors'
  write_tensors(path, params, 'vit', {'model': describe(OURS), 'image_size': 16})
  with pytest.raises(ValueError, match='norm/scale hold no floating-point numbers'):
    weights.load(path)


def test_fields_that_do_not_go_with_a_file_of_ours_are_refused(own):
  path, _ = own
  for fields in ({'depth': 7}, {'activation': 'gelo'}, {'num_heads': 7}, {'num_heads': 0}):
    with pytest.raises(ValueError, match=r'does not hold the tensors|gelo|num_heads='):
      weights.load(path, **fields)
