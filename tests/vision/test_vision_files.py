"""Arrays and lines in files: of a kind and a format, and damage explained."""

import csv
import json
import logging
import zipfile
from typing import TypedDict

import numpy as np
from comparing import assert_says_kind_and_format
from numpy.testing import assert_array_equal

from glora_jax.files import STAMP, stamp_of
from glora_jax.vision import files


class Row(TypedDict):
  params: int
  accuracy: float | None


def test_an_array_that_is_not_the_whole_one_that_was_written_counts_as_missing(tmp_path):
  path, array = tmp_path / 'x.npz', np.arange(6, dtype=np.uint8).reshape(2, 3)
  assert files.read_array(path, (2, 3), np.uint8) is None
  files.write_array(path, array)
  assert [*tmp_path.iterdir()] == [path]
  assert_array_equal(files.read_array(path, (2, 3), np.uint8), array)
  assert files.read_array(path, (3, 2), np.uint8) is None
  assert files.read_array(path, (2, 3), np.int8) is None
  content = path.read_bytes()
  for damaged in (content[:-1], content.replace(array.tobytes(), bytes(6))):  # or a bit has flipped
    path.write_bytes(damaged)
    assert files.read_array(path, (2, 3), np.uint8) is None
  header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,)}\n"
  for damaged in (header, header.replace(b',)', b',('), header.replace(b"'f", b"b'f")):
    with zipfile.ZipFile(path, 'w') as archive:
      start = b'\x93NUMPY\x01\x00' + len(damaged).to_bytes(2, 'little')
      archive.writestr('array.npy', start + damaged)
    assert files.read_array(path, (10**15,), np.float64) is None
  np.savez(path, array=np.array([{}], object))
  assert files.read_array(path, (1,), object) is None


def test_what_a_later_version_wrote_or_is_of_another_kind_is_refused(tmp_path, monkeypatch):
  path = tmp_path / 'file'
  assert_says_kind_and_format(
    path,
    lambda: path.write_text(json.dumps({STAMP: stamp_of('order')}) + '\n'),
    lambda path, kind: files.read_lines(path, kind, dict[str, int]),
    monkeypatch,
  )


def test_damaged_lines_are_left_out_and_counted(tmp_path, caplog):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(
    b'{"params": 1, "accuracy": 0.5}\n\xff\x00\n[]\n{"params": 2}\n{"params": 3, "ac'
  )
  with caplog.at_level(logging.WARNING):
    assert files.read_lines(path, 'metrics', Row) == [{'params': 1, 'accuracy': 0.5}]
  assert f'{path}: ignoring 3 damaged lines.' in caplog.text


def test_predictions_are_read_back_exactly_whatever_the_names(tmp_path):
  path, classes = tmp_path / 'predictions.csv', ['a "cat", or\n', 'file']
  shares = np.random.default_rng(0).dirichlet([1, 1], 3).astype(np.float32)
  names = ['a/\udcff.png', 'ü, b.png', '"']
  rows = [[name, 'file', classes[0], *row] for name, row in zip(names, shares, strict=True)]
  files.write_predictions(path, classes, [*rows, ['broken.png', '', '', '', '']])
  with open(path, newline='', encoding='utf-8', errors='surrogateescape') as file:
    header, *lines, broken = csv.reader(file)
  assert header == ['file', 'label', 'answer', *classes]
  assert [line[:3] for line in lines] == [row[:3] for row in rows]
  assert_array_equal(np.array([line[3:] for line in lines], np.float32), shares)
  assert broken == ['broken.png', *[''] * 4]
