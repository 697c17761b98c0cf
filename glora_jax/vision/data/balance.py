"""Classes of different sizes, drawn or weighed so that all of them count alike."""

from __future__ import annotations

import jax
import numpy as np


def class_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
  """The weight of an image of each class: inverse to its frequency, with mean 1 over all images.

  Args:
    labels: the class of every image, int [n].
    num_classes: number of classes; one without images does not count.

  Returns:
    float [class].

  Example:
    >>> class_weights(np.array([0, 0, 0, 1]), num_classes=2).round(2).tolist()
    [0.67, 2.0]
  """
  counts = np.bincount(labels, minlength=num_classes)
  return len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))


def draw_classes(
  labels: np.ndarray, number: int, key: jax.Array, epoch: int, num_examples: int
) -> np.ndarray:
  """Draws images so that every class occurs equally often, or once more.

  The images of a class also occur equally often or once more: a random part of a large class, each
  image of a small one several times. This is systematic sampling: images are laid side by side in
  random order, class by class, each as wide as its weight, and drawn at equal distances.

  Args:
    labels: the class of every image, int [n].
    number: how many to draw.
    key: random key of a training.
    epoch: decides the draw, together with the key.
    num_examples: n.

  Returns:
    Indices, int [number], in random order.

  Example:
    >>> labels = np.array([0] * 9 + [1])
    >>> labels[draw_classes(labels, 8, jax.random.key(0), epoch=0, num_examples=10)].tolist()
    [1, 0, 1, 0, 1, 0, 0, 1]
  """
  rng = np.random.default_rng(np.asarray(jax.random.key_data(jax.random.fold_in(key, epoch))))
  order = np.lexsort((rng.random(num_examples), labels))
  ends = np.cumsum(class_weights(labels, 1)[labels[order]])[:-1]
  spots = (rng.random() + np.arange(number)) * num_examples / number
  return rng.permutation(order[np.searchsorted(ends, spots)])
