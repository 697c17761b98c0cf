"""Images that look like something, for tests of augmentation."""

import functools

import numpy as np
import sklearn.datasets
from PIL import Image


def parts(number, size):
  """uint8 [number, *size, 3]: parts of scikit-learn's two photographs."""
  rng = np.random.default_rng(0)
  sources = [Image.fromarray(image) for image in sklearn.datasets.load_sample_images().images]
  images = []
  for index in range(number):
    source, side = sources[index % 2], int(rng.integers(60, 400))
    left, top = (int(rng.integers(0, limit - side)) for limit in source.size)
    box = (left, top, left + side, top + side)
    images.append(np.asarray(source.resize(size[::-1], Image.Resampling.BICUBIC, box)))
  return np.stack(images)


@functools.cache
def photographs(size=(40, 48)):
  """uint8 [16, *size, 3]: parts of photographs, a grey image, one of few colours."""
  grey = np.full((1, *size, 3), 100, np.uint8)
  few_colours = np.random.default_rng(0).choice([30, 31, 200], (1, *size, 3)).astype(np.uint8)
  return np.concatenate([parts(14, size), grey, few_colours])
