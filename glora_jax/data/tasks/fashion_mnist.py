"""Fashion-MNIST from its four idx files, for pretraining."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib

import numpy as np

from glora_jax.files import open_regular

FASHION_MNIST_CLASSES = (
  'T-shirt/top',
  'Trouser',
  'Pullover',
  'Dress',
  'Coat',
  'Sandal',
  'Shirt',
  'Sneaker',
  'Bag',
  'Ankle boot',
)
_PREFIXES = {'train': 'train', 'test': 't10k'}  # of the names of the files
_UNSIGNED_BYTE = 8  # idx's number of this type
_MOST_BYTES = 2**30  # of an uncompressed file


def read_idx(path: str | os.PathLike) -> np.ndarray:
  """Reads one gzipped idx file of the MNIST family.

  The header holds two zero bytes, the type, the number of axes, and the length of each axis.

  Returns:
    uint8 array of the shape that the file says.

  Raises:
    ValueError: the file is damaged or of another type.
  """
  try:
    with open_regular(path) as compressed, gzip.open(compressed) as file:
      zeros, kind, ndim = struct.unpack('>HBB', file.read(4))
      shape = struct.unpack(f'>{ndim}I', file.read(4 * ndim))
      size = math.prod(shape)
      if zeros or kind != _UNSIGNED_BYTE or size > _MOST_BYTES:
        raise ValueError('its header is none of such a file')
      content = file.read(size + 1)  # no more, however much is compressed in it
    if len(content) != size:
      raise ValueError('its header and size do not agree')
  except (OSError, EOFError, struct.error, zlib.error, ValueError) as error:
    raise ValueError(
      f'{path} is not a readable gzipped idx file of bytes ({error}); fetch it again.'
    ) from error
  return np.frombuffer(content, np.uint8).reshape(shape)


def fashion_mnist(folder: str | os.PathLike) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Reads Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747).

  Args:
    folder: folder of the four original files, as in the Debian package `dataset-fashion-mnist`.

  Returns:
    'train' and 'test', each as images uint8 [n, 28, 28, 3] (the grey value three times) and labels
    int32 [n]; 60,000 and 10,000 of them.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: a file is damaged, or is not what its name says.
  """
  if not os.path.isdir(folder):
    raise FileNotFoundError(
      f"There is no folder {folder} with Fashion-MNIST's idx files; install the Debian package "
      'dataset-fashion-mnist, or give another folder with --config.data=FOLDER.'
    )
  splits = {}
  for split, prefix in _PREFIXES.items():
    images = read_idx(os.path.join(folder, f'{prefix}-images-idx3-ubyte.gz'))
    labels = read_idx(os.path.join(folder, f'{prefix}-labels-idx1-ubyte.gz'))
    _require_pairs(os.path.join(folder, prefix), images, labels)
    splits[split] = np.repeat(images[..., None], 3, axis=-1), labels.astype(np.int32)
  return splits


def _require_pairs(prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
  """Raises ValueError where arrays are not images with a label each."""
  number = len(images) if images.ndim == 3 else 0
  if not number or labels.shape != (number,) or labels.max() >= len(FASHION_MNIST_CLASSES):
    raise ValueError(
      f'{prefix}-*: images {list(images.shape)} and labels {list(labels.shape)} are not those of '
      'Fashion-MNIST; fetch the files again.'
    )
