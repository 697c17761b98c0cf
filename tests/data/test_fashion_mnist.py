"""Fashion-MNIST's idx files: what was written is read, and damage is noticed."""

import gzip
import struct

import numpy as np
import pytest

from glora_jax.data.tasks import fashion_mnist


def idx(array):
  header = struct.pack(f'>HBB{array.ndim}I', 0, 8, array.ndim, *array.shape)
  return gzip.compress(header + array.tobytes())


def test_idx_files_round_trip(tmp_path):
  rng = np.random.default_rng(0)
  images, labels = {}, {}
  for split, prefix, number in (('train', 'train', 6), ('test', 't10k', 3)):
    images[split] = rng.integers(0, 256, (number, 28, 28)).astype(np.uint8)
    labels[split] = rng.integers(0, 10, number).astype(np.uint8)
    (tmp_path / f'{prefix}-images-idx3-ubyte.gz').write_bytes(idx(images[split]))
    (tmp_path / f'{prefix}-labels-idx1-ubyte.gz').write_bytes(idx(labels[split]))
  read = fashion_mnist.fashion_mnist(tmp_path)
  for split in ('train', 'test'):
    np.testing.assert_array_equal(read[split][0], np.repeat(images[split][..., None], 3, -1))
    np.testing.assert_array_equal(read[split][1], labels[split])


WHOLE = idx(np.zeros((4, 5), np.uint8))


@pytest.mark.parametrize(
  'content',
  [
    WHOLE[:-9],
    b'',
    b'no gzip',
    gzip.compress(gzip.decompress(WHOLE)[:-1]),
    gzip.compress(b'\x00\x00\x0d\x01' + bytes(8)),
    gzip.compress(b'\x00\x00\x08\x02' + b'\xff' * 8),
    gzip.compress(gzip.decompress(WHOLE) + bytes(2**24)),
  ],
  ids=['cut off', 'empty', 'no gzip', 'a byte too few', 'floats', 'endless', 'a bomb'],
)
def test_damaged_idx_files_are_refused(tmp_path, content):
  path = tmp_path / 'train-images-idx3-ubyte.gz'
  path.write_bytes(content)
  with pytest.raises(ValueError, match='not a readable gzipped idx file'):
    fashion_mnist.read_idx(path)


def test_files_that_do_not_belong_together_are_refused(tmp_path):
  for prefix in ('train', 't10k'):
    (tmp_path / f'{prefix}-images-idx3-ubyte.gz').write_bytes(idx(np.zeros((3, 4, 4), np.uint8)))
    (tmp_path / f'{prefix}-labels-idx1-ubyte.gz').write_bytes(idx(np.zeros(2, np.uint8)))
  with pytest.raises(ValueError, match=r'images \[3, 4, 4\] and labels \[2\] are not those'):
    fashion_mnist.fashion_mnist(tmp_path)


def test_a_missing_folder_says_where_the_files_come_from():
  with pytest.raises(FileNotFoundError, match='Debian package dataset-fashion-mnist'):
    fashion_mnist.fashion_mnist('no/such/folder')
