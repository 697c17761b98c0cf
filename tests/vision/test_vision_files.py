"""Arrays and lines in files: of a kind and a format, and damage explained."""

import json
import logging
import zipfile
from typing import TypedDict

import numpy as np
import pytest
from comparing import assert_says_kind_and_format
from numpy.testing import assert_array_equal

from glora_jax.files import STAMP, read_json, stamp_of
from glora_jax.vision import files


class Row(TypedDict):
  params: int
  accuracy: float | None


def test_arrays_round_trip(tmp_path):
  path = tmp_path / 'x.npz'
  files.write_arrays(path, {'a': np.arange(3)})
  assert_array_equal(files.read_arrays(path)['a'], np.arange(3))
  assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize('kept', ['arrays', 'lines'])
def test_what_a_later_version_wrote_or_is_of_another_kind_is_refused(kept, tmp_path, monkeypatch):
  path = tmp_path / 'file'
  write, read = {
    'arrays': (lambda: files.write_arrays(path, {}, 'order'), files.read_arrays),
    'lines': (
      lambda: path.write_text(json.dumps({STAMP: stamp_of('order')}) + '\n'),
      lambda path, kind: files.read_lines(path, kind, dict[str, int]),
    ),
  }[kept]
  assert_says_kind_and_format(path, write, read, monkeypatch)


def test_numbers_that_are_not_finite_are_null(tmp_path):
  path = tmp_path / 'x.json'
  files.write_json(path, {'a': (1, float('nan')), 'b': np.float64('inf')}, 'tuning')
  assert read_json(path, 'tuning') == {'a': [1, None], 'b': None}


def test_damaged_lines_are_left_out_and_counted(tmp_path, caplog):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(
    b'{"params": 1, "accuracy": 0.5}\n\xff\x00\n[]\n{"params": 2}\n{"params": 3, "ac'
  )
  with caplog.at_level(logging.WARNING):
    assert files.read_lines(path, 'metrics', Row) == [{'params': 1, 'accuracy': 0.5}]
  assert f'{path}: ignoring 3 damaged lines.' in caplog.text


def test_what_would_grow_in_memory_or_runs_code_is_refused(tmp_path):
  bomb = tmp_path / 'bomb.npz'
  np.savez_compressed(bomb, codes=np.zeros(10**6))
  pickled = tmp_path / 'pickled.npz'
  np.savez(pickled, codes=np.array([{}], object))
  lying = tmp_path / 'lying.npz'
  with zipfile.ZipFile(lying, 'w') as archive:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,)}\n"
    magic = b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little')
    archive.writestr('codes.npy', magic + header)
  for path in (bomb, pickled, lying):
    with pytest.raises(ValueError, match=f'{path.name} is damaged'):
      files.read_arrays(path)
