"""Files of arrays: what is in them, and what hostile or broken ones do."""

import io
import struct
import zipfile

import numpy as np
import pytest
from comparing import assert_refused

from glora_jax.vision.models.checkpoint import read_checkpoint


def npy(shape):
  header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape!r}, }}".ljust(117) + '\n'
  return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header.encode() + bytes(16)


def archive(name, content):
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w') as opened:
    opened.writestr(name, content)
  return file.getvalue()


@pytest.mark.parametrize(
  'content, named',
  [
    (b'', 'is empty'),
    (b'GIF89a' + bytes(100), 'not an npz, safetensors or PyTorch file'),
    (archive('photo.jpg', b''), 'photo.jpg'),
    (archive('a.npy', npy((-1, 4))), 'negative dimensions'),
    (archive('a.npy', npy((2**40,))), 'is damaged or incomplete'),
  ],
)
def test_files_that_declare_what_they_do_not_hold_and_others_are_refused(content, named, tmp_path):
  (tmp_path / 'file').write_bytes(content)
  assert_refused(named, read_checkpoint, tmp_path / 'file')
  assert_refused('none', read_checkpoint, tmp_path / 'none', kind=FileNotFoundError)


def test_pickled_arrays_are_not_executed(tmp_path):
  class Hostile:
    def __reduce__(self):
      return (tmp_path.joinpath('executed').write_text, ('x',))

  np.savez(tmp_path / 'file.npz', a=np.array([Hostile()], object))
  assert_refused('Object arrays', read_checkpoint, tmp_path / 'file.npz')
  assert not (tmp_path / 'executed').exists()


def test_zip_bombs_are_refused_by_what_they_declare(tmp_path):
  np.savez_compressed(tmp_path / 'bomb.npz', np.zeros(17_000_000, np.float32))
  assert_refused('68000128', read_checkpoint, tmp_path / 'bomb.npz')
