"""Files of ours read back: kind, format and shape are checked; damage is one sentence."""

import logging
import os
import re
import zipfile
from typing import Literal

import numpy as np
import pytest
from typing_extensions import TypedDict

from glora_jax import files
from glora_jax.records import (
  Array,
  check_arrays,
  check_shape,
  read_if_whole,
  read_lines,
  read_record,
)


class Row(TypedDict):
  params: int
  accuracy: float | None


class Labelled(Row, total=False):
  label: str


@pytest.mark.parametrize(
  'value, shape, reason',
  [
    ({'a': True}, dict[str, float], 'a=True should be a valid number'),
    ({'a': float('nan')}, dict[str, float], 'a=nan should be a finite number'),
    ({'params': 1, 'accuracy': None, 'more': 0}, Row, None),
    ({'params': 1, 'accuracy': 0.5, 'label': 3}, Labelled, 'label=3 should be a valid string'),
    (None, Row | None, None),
    ('c', Literal['a', 'b'], "'c' should be 'a' or 'b'"),
  ],
)
def test_a_shape_is_an_annotation(value, shape, reason):
  if reason is None:
    check_shape(value, shape)
  else:
    with pytest.raises(ValueError, match=f'^{re.escape(reason)}$'):
      check_shape(value, shape)


@pytest.mark.parametrize(
  'text, sentence',
  [
    (
      '{"glora_jax": {"kind": "seconds", "format": 1}, "a": "fast"}',
      "is damaged (a='fast' should be a valid number); replace it",
    ),
    (b'\xff\xfe', "is damaged ('utf-8' codec can't decode byte"),
    (
      '{"glora_jax": {"kind": "' + 'x' * 500 + '"}}',
      "is a file of kind '" + 'x' * 79 + "..., expected 'seconds'",
    ),
    (
      '{"glora_jax": {"kind": "seconds", "format": "new"}}',
      "is damaged (its format is 'new')",
    ),
  ],
)
def test_json_that_is_something_else_is_one_sentence(text, sentence, tmp_path):
  path = tmp_path / 'seconds.json'
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(ValueError) as caught:
    read_record(path, 'seconds', dict[str, float])
  assert str(caught.value).startswith(f'{path} {sentence}')
  assert '\n' not in str(caught.value)


EXPECTED = {'codes': Array('i', ('n', 5)), 'loss': Array('f', ('n',)), 'word': Array('U')}


ARRAYS = {'codes': np.zeros((3, 5), np.int8), 'loss': np.ones(3), 'word': np.array('x')}


@pytest.mark.parametrize(
  'changes, reason',
  [
    ({'loss': None}, 'it lacks loss'),
    ({'more': np.zeros(1)}, 'it has the unknown more'),
    ({'codes': np.zeros((3, 4), int)}, 'codes is int64 [3, 4], expected [3, 5]'),
    ({'loss': np.array([1, np.nan, 1])}, 'loss is float64 [3] with non-finite numbers'),
  ],
)
def test_arrays_that_are_others_are_one_sentence(changes, reason, tmp_path):
  path = tmp_path / 'x.npz'
  files.write_arrays(path, ARRAYS, 'archive')
  assert read_if_whole(path, 'archive', EXPECTED).keys() == EXPECTED.keys()
  changed = {**ARRAYS, **changes}
  present = {name: value for name, value in changed.items() if value is not None}
  files.write_arrays(path, present, 'archive')
  assert read_if_whole(path, 'archive', EXPECTED) is None
  with pytest.raises(ValueError, match=f'^{re.escape(reason)}$'):
    check_arrays(present, EXPECTED)


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


def test_a_writer_follows_no_link(tmp_path):
  precious = tmp_path / 'mine'
  precious.write_text('mine')
  os.symlink(precious, tmp_path / 'x.json')
  files.write_json(tmp_path / 'x.json', 1)
  assert precious.read_text() == 'mine'
  assert sorted(os.listdir(tmp_path)) == ['mine', 'x.json']
  assert files.read_json(tmp_path / 'x.json') == 1


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
