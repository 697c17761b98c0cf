"""This project's own format: round trips, and files that only look like it."""

import numpy as np
import pytest
from checkpoints import OURS, assert_equal_params, own  # noqa: F401, fixtures

from glora_jax.files import write_tensors
from glora_jax.models import weights
from glora_jax.models.vit import describe


def test_tensors_round_trip_bit_for_bit(own):
  path, params = own
  model, loaded, _ = weights.load(path)
  assert_equal_params(loaded, params)
  assert describe(model) == describe(OURS)


def test_a_file_of_another_kind_is_called_what_it_is(tmp_path):
  path = tmp_path / 'adapter.safetensors'
  write_tensors(path, {'params/head/bias': np.zeros(3)}, 'adapter', {})
  sentence = r"no vit file that glora_jax wrote, but one of the kind 'adapter'; give the right file"
  with pytest.raises(ValueError, match=sentence):
    weights.load(path)
