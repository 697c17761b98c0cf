"""Images that look like something, for tests of augmentation."""

import functools

import numpy as np
import sklearn.datasets
from PIL import Image

NUMBER = 16


@functools.cache
def photographs(size=(40, 48)):
  """uint8 [16, *size, 3]: parts of scikit-learn's photographs, a grey image, one of few colours."""
  rng = np.random.default_rng(0)
  sources = [Image.fromarray(image) for image in sklearn.datasets.load_sample_images().images]
  images = []
  for index in range(NUMBER - 2):
    source = sources[index % 2]
    side = int(rng.integers(60, 400))
    left, top = (int(rng.integers(0, limit - side)) for limit in source.size)
    box = (left, top, left + side, top + side)
    images.append(np.asarray(source.resize(size[::-1], Image.Resampling.BICUBIC, box)))
  grey = np.full((*size, 3), 100, np.uint8)
  few_colours = rng.choice([30, 31, 200], (*size, 3)).astype(np.uint8)
  return np.stack([*images, grey, few_colours])
