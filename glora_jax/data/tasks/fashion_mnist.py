"""Fashion-MNIST from its four idx files, for pretraining."""

from __future__ import annotations

import gzip
import math
import os
import struct

import numpy as np

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


def read_idx(path: str | os.PathLike) -> np.ndarray:
  """Reads one gzipped idx file of the MNIST family.

  The header holds two zero bytes, the type, the number of axes, and the length of each axis.

  Returns:
    uint8 array of the shape that the file says.

  Raises:
    ValueError: the file is damaged or of another type.
  """
  try:
    with gzip.open(path) as file:
      content = file.read()
    zeros, kind, ndim = struct.unpack_from('>HBB', content)
    shape = struct.unpack_from(f'>{ndim}I', content, 4)
    header_size = 4 + 4 * ndim
    if zeros or kind != _UNSIGNED_BYTE or len(content) != header_size + math.prod(shape):
      raise ValueError('its header and size do not agree')
  except (OSError, EOFError, struct.error, ValueError) as error:
    raise ValueError(
      f'{path} is not a readable gzipped idx file of bytes ({error}); fetch it again.'
    ) from error
  return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)


def fashion_mnist(folder: str | os.PathLike) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Reads Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747).

  Args:
    folder: folder of the four original files, as in the Debian package `dataset-fashion-mnist`.

  Returns:
    'train' and 'test', each as images uint8 [n, 28, 28, 3] (the grey value three times) and labels
    int32 [n]; 60,000 and 10,000 of them.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: a file is damaged.
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
    splits[split] = np.repeat(images[..., None], 3, axis=-1), labels.astype(np.int32)
  return splits
