"""Small files: whole or not there, and damage explained."""

import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import safetensors
from comparing import assert_trees_equal
from limiting import limited

from glora_jax import files


def test_json_round_trips_but_for_numbers_that_are_not_finite(tmp_path):
  path = tmp_path / 'x.json'
  values = {'a': (1, None, float('nan')), 'b': 0.5, 'c': np.float64('inf')}
  files.write_json(path, values, 'tuning')
  assert files.read_json(path, 'tuning') == {'a': [1, None, None], 'b': 0.5, 'c': None}
  assert [*tmp_path.iterdir()] == [path]


def test_a_writer_that_dies_leaves_the_old_file(tmp_path):
  files.write_json(tmp_path / 'x.json', 1)

  with (  # noqa: PT012
    pytest.raises(KeyboardInterrupt),
    files.atomic(tmp_path / 'x.json') as temporary,
    open(temporary, 'w') as file,
  ):
    file.write('half')
    raise KeyboardInterrupt
  assert files.read_json(tmp_path / 'x.json') == 1
  assert [path.name for path in tmp_path.iterdir()] == ['x.json']


def test_a_writer_leaves_alone_what_another_writes_meanwhile(tmp_path):
  """Two processes of this machine write the same file; each is whole, and the last one counts."""
  with files.atomic(tmp_path / 'x.json') as temporary:
    other = 'from glora_jax import files; import sys; files.write_json(sys.argv[1], "other")'
    subprocess.run([sys.executable, '-c', other, str(tmp_path / 'x.json')], check=True)
    assert files.read_json(tmp_path / 'x.json') == 'other'
    with open(temporary, 'w') as file:
      file.write('"own"')
  assert files.read_json(tmp_path / 'x.json') == 'own'
  assert os.listdir(tmp_path) == ['x.json']


@pytest.mark.skipif(os.name != 'posix', reason='Windows has no such permissions')
def test_a_file_may_be_read_by_whom_the_umask_lets(tmp_path):
  before = os.umask(0o027)
  try:
    files.write_safetensors(tmp_path / 'x.safetensors', {'a': np.arange(3)}, {})
  finally:
    os.umask(before)
  assert (tmp_path / 'x.safetensors').stat().st_mode & 0o777 == 0o640


def test_a_file_that_cannot_be_written_is_a_sentence_and_leaves_the_old_one(tmp_path):
  path = tmp_path / 'x.safetensors'
  files.write_tensors(path, {'a': np.arange(3)}, 'order', {})
  refused = pytest.raises(OSError, match=r'x.safetensors cannot be written \(File too large\)')
  with limited(resource.RLIMIT_FSIZE, 1000), refused:
    files.write_tensors(path, {'a': np.zeros(10**5)}, 'order', {})
  assert [*tmp_path.iterdir()] == [path]
  np.testing.assert_array_equal(files.read_tensors(path, 'order')[0]['a'], np.arange(3))


def test_a_pipe_or_a_device_makes_no_room_for_a_file(tmp_path):
  path = tmp_path / 'pipe'
  os.mkfifo(path)
  with pytest.raises(OSError, match=r'pipe cannot be written \(not a regular file\)'):
    files.write_json(path, 1)
  assert path.is_fifo()
  assert [path.name for path in tmp_path.iterdir()] == ['pipe']


def test_json_of_another_shape_is_damaged(tmp_path):
  path = tmp_path / 'seconds.json'
  files.write_json(path, {'test': 'fast'}, 'seconds')
  with pytest.raises(ValueError, match=r"damaged \(test='fast' must be a finite number\); replace"):
    files.read_json(path, 'seconds', dict[str, float])


def test_metadata_cannot_take_the_names_of_what_a_file_says_of_itself(tmp_path):
  with pytest.raises(ValueError, match="metadata name 'kind' is reserved"):
    files.write_tensors(tmp_path / 'x.safetensors', {'a': np.ones(1)}, 'adapter', {'kind': 'mine'})


def test_a_safetensors_file_is_opened_once_for_many_tensors_and_not_for_each(tmp_path, monkeypatch):
  of_100_bytes = {f'{number:02}': np.full(25, number, np.float32) for number in range(40)}
  files.write_safetensors(tmp_path / 'x.safetensors', of_100_bytes, {'a': 'b'})
  opened, safe_open = [], safetensors.safe_open

  def count(*args):
    opened.append(args)
    return safe_open(*args)

  monkeypatch.setattr(safetensors, 'safe_open', count)
  for most, openings in ((2**28, 2), (1000, 5)):
    opened.clear()
    monkeypatch.setattr(files, '_BYTES_PER_OPENING', most)
    found, texts = files.read_safetensors(tmp_path / 'x.safetensors')
    assert texts == {'a': 'b'}
    assert_trees_equal(found, of_100_bytes)
    assert len(opened) == openings
