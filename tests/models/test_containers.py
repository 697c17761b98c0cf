"""Files of tensors: what is in them, how little is read, and what hostile or broken ones do."""

import io
import json
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from glora_jax.files import write_safetensors
from glora_jax.models.containers import open_tensors, write_npz

TENSORS = {
  'a/b': np.arange(6, dtype=np.float32).reshape(2, 3),
  'half': np.ones(4, np.float16),
  'double': np.zeros((1, 2, 3)),
  'brain': np.arange(3).astype(ml_dtypes.bfloat16),
  'scalar': np.float32(2).reshape(()),
}


@pytest.mark.parametrize(
  'write, container',
  [(write_npz, 'npz'), (lambda p, t: write_safetensors(p, t, {}), 'safetensors')],
)
def test_tensors_round_trip_with_their_types(write, container, tmp_path):
  write(tmp_path / 'file', TENSORS)
  opened = open_tensors(tmp_path / 'file')
  assert opened.container == container
  assert opened.specs == {name: (value.shape, value.dtype) for name, value in TENSORS.items()}
  for name, value in TENSORS.items():
    assert opened.read(name).dtype == value.dtype
    np.testing.assert_array_equal(opened.read(name), value)


def test_tensors_that_are_no_floating_point_numbers_have_no_type(tmp_path):
  write_npz(tmp_path / 'file', {'count': np.arange(3)})
  assert open_tensors(tmp_path / 'file').specs == {'count': ((3,), None)}


@pytest.mark.parametrize('write', [write_npz, lambda p, t: write_safetensors(p, t, {})])
@pytest.mark.parametrize(
  'damage',
  [lambda b: b[: len(b) // 2], lambda b: b[:-10], lambda b: b[:20] + b'\xff' * 60 + b[80:]],
)
def test_damaged_files_are_refused_in_one_sentence(write, damage, tmp_path):
  path = tmp_path / 'file'
  write(path, TENSORS)
  path.write_bytes(damage(path.read_bytes()))

  def read_all():
    opened = open_tensors(path)
    return [opened.read(name) for name in opened.specs]

  with pytest.raises(ValueError, match=f'^{path}.*(damaged|cut off|no npz)') as caught:
    read_all()
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'content, message',
  [
    (b'', 'is empty'),
    (b'GIF89a' + bytes(100), 'is no npz, safetensors or PyTorch file'),
    (b'PK\x03\x04' + bytes(50), 'damaged'),
    (struct.pack('<Q', 2**40) + b'{"a":1}', 'damaged'),
    (b'\x00' * 40, 'is no npz'),
  ],
)
def test_other_files_are_refused(content, message, tmp_path):
  (tmp_path / 'file').write_bytes(content)
  with pytest.raises(ValueError, match=message):
    open_tensors(tmp_path / 'file')


def test_a_missing_file_is_said_to_be_missing(tmp_path):
  with pytest.raises(FileNotFoundError, match='There is no file'):
    open_tensors(tmp_path / 'none')


def npy(shape, dtype='<f4', content=b''):
  header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}".ljust(117) + '\n'
  return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header.encode() + content


@pytest.mark.parametrize(
  'member, message',
  [
    (npy((-1, 4), content=bytes(16)), r'declares shape \(-1, 4\)'),
    (
      npy((2**40,), content=bytes(16)),
      r'declares shape \(1099511627776,\) of float32, but 16 bytes are there',
    ),
    (npy((3,), content=bytes(16)), 'but 16 bytes are there'),
    (npy((1,), '|O', b'\x80\x04N.'), 'holds Python objects'),
    (b'nothing', 'damaged'),
  ],
)
def test_npz_files_that_declare_what_they_do_not_hold_are_refused(member, message, tmp_path):
  with zipfile.ZipFile(tmp_path / 'file.npz', 'w') as archive:
    archive.writestr('a.npy', member)
  with pytest.raises(ValueError, match=message):
    open_tensors(tmp_path / 'file.npz')


def test_pickled_arrays_are_not_executed(tmp_path):
  class Hostile:
    def __reduce__(self):
      return (tmp_path.joinpath('executed').write_text, ('x',))

  np.savez(tmp_path / 'file.npz', a=np.array([Hostile()], object))
  with pytest.raises(ValueError, match='holds Python objects'):
    open_tensors(tmp_path / 'file.npz')
  assert not (tmp_path / 'executed').exists()


def test_zip_bombs_are_refused_by_what_they_declare(tmp_path):
  with zipfile.ZipFile(tmp_path / 'bomb.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(17_000_000, np.float32))
    archive.writestr('a.npy', buffer.getvalue())
  with pytest.raises(ValueError, match=r'declares to unpack to 68000128; that is no checkpoint'):
    open_tensors(tmp_path / 'bomb.npz')


@pytest.mark.parametrize(
  'spec',
  [
    {'dtype': 'F32', 'shape': [-2, 2], 'data_offsets': [0, 16]},
    {'dtype': 'F32', 'shape': [2**40], 'data_offsets': [0, 16]},
    {'dtype': 'F32', 'shape': [4], 'data_offsets': [0, 2**40]},
    {'dtype': 'X', 'shape': [4], 'data_offsets': [0, 16]},
  ],
)
def test_hostile_safetensors_headers_are_refused(spec, tmp_path):
  header = json.dumps({'a': spec}).encode()
  (tmp_path / 'file').write_bytes(struct.pack('<Q', len(header)) + header + bytes(16))
  with pytest.raises(ValueError, match='damaged or cut off'):
    open_tensors(tmp_path / 'file')


def test_a_zip_of_other_things_is_refused(tmp_path):
  with zipfile.ZipFile(tmp_path / 'file.zip', 'w') as archive:
    archive.writestr('photo.jpg', b'')
  with pytest.raises(ValueError, match=r'is a zip file with photo\.jpg in it'):
    open_tensors(tmp_path / 'file.zip')


def test_safetensors_stay_readable_to_their_own_library(tmp_path):
  write_safetensors(tmp_path / 'file', TENSORS, {'format': 'pt'})
  for name, value in safetensors.numpy.load_file(tmp_path / 'file').items():
    np.testing.assert_array_equal(value, TENSORS[name])
