"""This project's own format: round trips, and files that only look like it."""

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import OURS, assert_equal_params, own  # noqa: F401, fixtures

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


def test_all_wrong_tensors_are_named(own, tmp_path):
  _, params = own
  head = {'kernel': params['head']['kernel'], 'extra': params['head']['bias']}
  norm = {**params['norm'], 'scale': np.ones(13, np.float32)}
  path = tmp_path / 'wrong.safetensors'
  weights.save(path, OURS, {**params, 'head': head, 'norm': norm}, {'image_size': 16})
  with pytest.raises(
    ValueError,
    match='missing: head/bias; unexpected: head/extra; '
    r'misshaped: norm/scale is \(13,\) and should be \(12,\)',
  ):
    weights.load(path)
