"""Files of ours read back: kind, format and shape are checked; damage is one sentence."""

import logging
from typing import TypedDict

import numpy as np
import pytest

from glora_jax import files
from glora_jax.records import read_lines, read_record


class Row(TypedDict):
  params: int
  accuracy: float | None


def test_a_record_of_another_shape_is_damaged(tmp_path):
  path = tmp_path / 'seconds.json'
  files.write_json(path, {'test': 'fast'}, 'seconds')
  with pytest.raises(ValueError, match=r"damaged \(test='fast' must be a finite number\); replace"):
    read_record(path, 'seconds', dict[str, float])


def test_damaged_lines_are_left_out_and_counted(tmp_path, caplog):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(
    b'{"params": 1, "accuracy": 0.5}\n\xff\x00\n[]\n{"params": 2}\n{"params": 3, "ac'
  )
  with caplog.at_level(logging.WARNING):
    assert read_lines(path, 'metrics', Row) == [{'params': 1, 'accuracy': 0.5}]
  assert f'{path}: ignoring 3 damaged lines.' in caplog.text


def test_metadata_cannot_take_the_names_of_what_a_file_says_of_itself(tmp_path):
  with pytest.raises(ValueError, match="metadata name 'kind' is reserved"):
    files.write_tensors(tmp_path / 'x.safetensors', {'a': np.ones(1)}, 'adapter', {'kind': 'mine'})
