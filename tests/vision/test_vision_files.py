"""Arrays in files: whole or not there, of a kind and a format, and damage explained."""

import zipfile

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from glora_jax.files import LaterVersionError
from glora_jax.vision import files


def test_arrays_round_trip(tmp_path):
  path = tmp_path / 'x.npz'
  files.write_arrays(path, {'a': np.arange(3)})
  assert_array_equal(files.read_arrays(path)['a'], np.arange(3))
  assert [*tmp_path.iterdir()] == [path]


def test_arrays_of_a_later_version_or_of_another_kind_are_refused(tmp_path, monkeypatch):
  path = tmp_path / 'x.npz'
  files.write_arrays(path, {}, 'order')
  files.read_arrays(path, 'order')
  with pytest.raises(ValueError, match="of kind 'order'"):
    files.read_arrays(path, 'archive')
  with monkeypatch.context() as later:
    later.setattr('glora_jax.files.FORMATS', {'order': 2})
    files.write_arrays(path, {}, 'order')
  with pytest.raises(LaterVersionError, match=r"by a later version .*format 2 of 'order'"):
    files.read_arrays(path, 'order')


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
