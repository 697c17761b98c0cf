"""Augmentation on the device and normalization: what is drawn at random, and what it does."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from photographs import photographs
from PIL import Image

from glora_jax.vision.data import augment, normalization
from glora_jax.vision.data.normalization import normalize, statistics
from glora_jax.vision.data.shifts import DIRECTIONS, shifted

LARGE = (64, 96)
SIZE = 24
PLAIN = np.full((500, 30, 40, 3), 100, np.float32)


@jax.jit
def random_resized_crop(key, images):
  return augment.random_resized_crop(key, images, SIZE)


random_erasing = jax.jit(augment.random_erasing)


def test_color_jitter_changes_in_a_random_order(monkeypatch):
  """The factors are the same, so that images differ by the order alone."""
  monkeypatch.setattr(
    jax.random, 'uniform', lambda key, shape, **_: np.full(shape, 1.4, np.float32)
  )
  images = np.repeat(photographs(LARGE)[:1], 64, 0)
  found = np.asarray(augment.color_jitter(jax.random.key(0), images, 0.4))
  assert len(np.unique(found, axis=0)) > 3


@pytest.mark.parametrize(
  'function',
  [
    random_resized_crop,
    lambda key, images: augment.color_jitter(key, images, 0.4),
    lambda key, images: random_erasing(key, images.astype(np.float32), 1.0),
    lambda *data: augment.Augmentation(crop=0.5, flip=True, shift=2).apply(*data, SIZE, 'unit'),
  ],
  ids=['random_resized_crop', 'color_jitter', 'random_erasing', 'together'],
)
def test_the_key_decides_and_every_image_has_its_own_draw(function):
  images = np.repeat(photographs(LARGE)[:1], 16, 0)
  first, again, other = (np.asarray(function(jax.random.key(seed), images)) for seed in (0, 0, 1))
  assert_array_equal(first, again)
  assert (first != other).any()
  assert len({image.tobytes() for image in first}) == len(first)


DISTINCT = np.random.default_rng(0).integers(1, 256, (64, 6, 6, 3)).astype(np.uint8)


PADDED = np.pad(DISTINCT, ((0, 0), (2, 2), (2, 2), (0, 0)))


@pytest.mark.parametrize(
  'draw, variants',
  [
    (augment.random_flip, [DISTINCT, DISTINCT[:, :, ::-1]]),
    (
      lambda key, images: augment.random_shift(key, images, 2),
      [PADDED[:, y : y + 6, x : x + 6] for y in range(5) for x in range(5)],
    ),
  ],
  ids=['flip', 'shift'],
)
def test_flips_and_shifts_keep_the_pixels_and_all_are_drawn_equally_often(draw, variants):
  found = draw(jax.random.key(1), DISTINCT)
  matches = np.array([(variant == found).all((1, 2, 3)) for variant in variants])
  assert matches.any(0).all()
  counts = np.bincount(matches.argmax(0), minlength=len(variants))
  share = 1 / len(variants)
  assert np.abs(counts - 64 * share).max() < 4 * np.sqrt(64 * share * (1 - share))
  assert (counts > 0).mean() > 0.5


FIVE = [0, 0.25, 0.5, 0.75, 1]  # quantiles
crop_boxes = jax.jit(augment.crop_boxes, static_argnums=(1, 2, 3))


def test_crops_are_within_the_image_and_uniform_in_area_and_log_ratio():
  boxes = np.asarray(crop_boxes(jax.random.key(0), 10_000, (480, 480), (0.08, 0.5)))
  places, sizes = boxes[:, :2], boxes[:, 2:]
  assert (places >= 0).all()
  assert (places + sizes <= 480).all()
  shares = np.quantile(sizes.prod(1) / 480**2, FIVE)
  assert_allclose(shares, np.linspace(0.08, 0.5, 5), atol=0.01)
  log_ratios = np.log(sizes[:, 1] / sizes[:, 0]) / np.log(4 / 3)
  assert_allclose(np.quantile(log_ratios, FIVE), np.linspace(-1, 1, 5), atol=0.03)
  assert_allclose(np.mean(places / (480 - sizes), axis=0), 0.5, atol=0.01)


@pytest.mark.parametrize(
  'shape, middle', [((100, 300), [0, 83, 100, 133]), ((300, 100), [83, 0, 133, 100])]
)
def test_crops_that_never_fit_become_the_middle(shape, middle):
  boxes = crop_boxes(jax.random.key(0), 1000, shape, (1.0, 1.0))
  assert np.unique(boxes, axis=0).tolist() == [middle]


def test_a_crop_is_what_pillow_makes_of_its_box():
  key, images = jax.random.key(3), photographs(LARGE)
  boxes = np.asarray(augment.crop_boxes(key, len(images), LARGE, (0.08, 1.0)))
  assert boxes[:, 2:].min() < SIZE < boxes[:, 2:].max()
  resized = np.asarray(random_resized_crop(key, images)).astype(int)
  for result, image, (top, left, height, width) in zip(resized, images, boxes, strict=True):
    crop = Image.fromarray(image[top : top + height, left : left + width])
    difference = np.abs(result - crop.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    assert difference[1:-1, 1:-1].max() <= 1
    assert difference.mean() < 3


def test_what_is_erased_is_a_box_of_noise():
  result = np.asarray(random_erasing(jax.random.key(0), PLAIN, 0.25))
  changed = (result != 100).any(-1)
  hit = changed.any((1, 2))
  assert hit.mean() == pytest.approx(0.25, abs=0.077)  # four standard errors
  heights, widths = (changed[hit].any(axis).sum(1) for axis in (2, 1))
  areas = changed[hit].sum((1, 2))
  assert_array_equal(areas, heights * widths)
  assert np.abs(np.log(widths / heights)).max() < np.log(1 / 0.3) + 0.2
  shares = areas / (30 * 40)
  assert 0.01 < shares.min() < shares.max() < 1 / 3 + 0.02
  noise = result[changed]
  assert (noise.mean(), noise.std()) == pytest.approx((0, 1), abs=0.01)


def test_mixup_is_a_convex_combination_with_the_reversed_batch():
  images = np.random.default_rng(0).normal(size=(6, 4, 4, 3)).astype(np.float32)
  labels, alpha = np.eye(6, dtype=np.float32), 0.2
  mix = jax.jit(jax.vmap(augment.mixup, (0, None, None, None)))
  mixed, soft = mix(jax.random.split(jax.random.key(0), 4000), images, labels, alpha)
  shares = np.asarray(soft[:, 0, 0])
  assert shares.mean() == pytest.approx(0.5, abs=0.03)
  variance = 1 / (4 * (2 * alpha + 1))  # of Beta(alpha, alpha)
  assert shares.var() == pytest.approx(variance, abs=0.01)
  for share, found, label in zip(shares[:5], mixed, soft, strict=False):
    assert_allclose(found, share * images + (1 - share) * images[::-1], atol=1e-6)
    assert_allclose(label, share * labels + (1 - share) * labels[::-1], atol=1e-6)


def test_nothing_is_done_unless_asked_for():
  images = photographs((SIZE, SIZE))
  result = augment.Augmentation().apply(jax.random.key(0), images, SIZE, 'inception')
  assert_array_equal(result, normalization.normalize(images, 'inception'))


@pytest.mark.parametrize('num_classes', [2, 100])
def test_an_image_is_shifted_as_its_label_says(num_classes):
  rng = np.random.default_rng(0)
  images = rng.integers(256, size=(40, 12, 18, 3), dtype=np.uint8)
  moved, labels = shifted(images, rng, num_classes)
  assert set(labels) == set(range(min(num_classes, len(DIRECTIONS))))
  for image, found, label in zip(images, moved, labels, strict=True):
    down, right = DIRECTIONS[label]
    assert_array_equal(found, np.roll(image, (3 * down, 4 * right), (0, 1)))


@pytest.mark.parametrize(
  'given, mean, deviation',
  [
    ('unit', 0, 1),
    ('inception', 0.5, 0.5),
    ('imagenet', [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ([[0.1, 0.2, 0.3], [1, 2, 4]], [0.1, 0.2, 0.3], [1, 2, 4]),  # as in a config
  ],
)
def test_normalizations_are_what_they_say(given, mean, deviation):
  expected = (DISTINCT / 255 - mean) / deviation
  assert_allclose(normalize(DISTINCT, given), expected, atol=1e-5)
  assert hash(statistics(given))
