"""Augmentation against timm and torchvision.

The same photographs, augmented many times by both, have the same statistics: each channel's mean,
variance and mean absolute change are averaged over the repeats of a photograph. Ours and theirs
then differ by chance only, and the mean of these differences must be within four of its standard
errors, plus what rounding may shift.
"""

import functools
import random

import jax
import numpy as np
import pytest
import torch
import torchvision
from photographs import parts
from PIL import Image
from timm.data import auto_augment

from glora_jax.vision.data import augment, rand_augment

PHOTOGRAPHS, REPEATS = 60, 4
BILINEAR = {
  'img_mean': (128, 128, 128),
  'interpolation': Image.Resampling.BILINEAR,
  'magnitude_std': 0.5,
}
TIMM = dict(zip(rand_augment.OPERATIONS, auto_augment._RAND_INCREASING_TRANSFORMS, strict=True))


@functools.cache
def photographs():
  """uint8 [photograph * repeat, 32, 32, 3]; the repeats of a photograph stand side by side."""
  return np.repeat(parts(PHOTOGRAPHS, (32, 32)), REPEATS, 0)


@pytest.fixture(autouse=True)
def seeds():
  random.seed(0)
  np.random.seed(0)
  torch.manual_seed(0)


def by_pillow(transform, images):
  return np.stack([np.asarray(transform(Image.fromarray(image))) for image in images])


def assert_alike(ours, theirs, images):
  """Compares batches, [photograph * repeat, height, width, 3].

  Beside chance, means may differ by 0.1 and variances by 0.2%; `images` are what was augmented.
  """

  def statistics(batch):
    batch = np.asarray(batch, np.float64)
    values = [batch.mean((1, 2)), batch.var((1, 2)), np.abs(batch - images).mean((1, 2))]
    return np.stack(values).reshape(3, PHOTOGRAPHS, -1, 3).mean(2)

  assert ours.shape == theirs.shape
  expected = statistics(theirs)
  differences = statistics(ours) - expected
  standard_errors = differences.std(1, ddof=1) / np.sqrt(PHOTOGRAPHS)
  allowed = np.full_like(standard_errors, 0.1)
  allowed[1] = 0.002 * expected[1].mean(0)
  found = differences.mean(1), standard_errors, allowed
  assert (np.abs(found[0]) <= 4 * standard_errors + allowed).all(), found


@pytest.mark.parametrize('name', TIMM)
def test_operations_have_the_statistics_of_timm(name):
  images = photographs()
  operation = jax.vmap(rand_augment.OPERATIONS[name])
  for seed, magnitude in enumerate((8, 4)):  # from 10 on timm keeps no bits, which Pillow refuses
    levels, signs = rand_augment.sample_levels(jax.random.key(seed), (len(images),), magnitude)
    transform = auto_augment.AugmentOp(TIMM[name], prob=1.0, magnitude=magnitude, hparams=BILINEAR)
    assert_alike(jax.jit(operation)(images, levels, signs), by_pillow(transform, images), images)


def test_color_jitter_has_the_statistics_of_torchvision():
  images = np.repeat(photographs(), 4, 0)
  theirs = by_pillow(torchvision.transforms.ColorJitter(0.4, 0.4, 0.4), images)
  assert_alike(augment.color_jitter(jax.random.key(0), images, 0.4), theirs, images)
