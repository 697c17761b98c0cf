"""Augmentation on the device: every operation against Pillow, and what is drawn at random."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
from PIL import Image, ImageEnhance, ImageOps

from glora_jax.data import augment, normalization, rand_augment

OPERATIONS = rand_augment.OPERATIONS


@functools.cache
def photographs(number=16, size=(40, 48)):
  """uint8 [number, *size, 3]: parts of scikit-learn's two photographs, and last of all a grey image and one of few colours."""
  rng, parts = np.random.default_rng(0), []
  sources = [Image.fromarray(image) for image in sklearn.datasets.load_sample_images().images]
  for index in range(number - 2):
    side = int(rng.integers(60, 400))
    left, top = (int(rng.integers(0, limit - side)) for limit in sources[index % 2].size)
    parts.append(
      np.asarray(
        sources[index % 2].resize(
          size[::-1], Image.Resampling.BICUBIC, (left, top, left + side, top + side)
        )
      )
    )
  return np.stack(
    [
      *parts,
      np.full((*size, 3), 100, np.uint8),
      rng.choice([30, 31, 200], (*size, 3)).astype(np.uint8),
    ]
  )


def enhanced(enhancer):
  return lambda image, factor: enhancer(image).enhance(factor)


def transformed(matrix):
  return lambda image, value: image.transform(
    image.size,
    Image.Transform.AFFINE,
    matrix(value, *image.size),
    Image.Resampling.BILINEAR,
    fillcolor=(128, 128, 128),
  )


# What Pillow does; the arguments, the neutral one first; by how much a value may differ, and for which share of the values.
PILLOW = {
  'auto_contrast': (ImageOps.autocontrast, [None], 1, 0.02),
  'equalize': (ImageOps.equalize, [None], 0, 0),
  'invert': (ImageOps.invert, [None], 0, 0),
  'rotate': (
    lambda image, value: image.rotate(value, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)),
    [0, -30, -7.3, 1, 27],
    1,
    0.02,
  ),
  'posterize': (
    lambda image, value: (
      ImageOps.posterize(image, value) if value else Image.new('RGB', image.size)
    ),
    [8, 4, 2, 1, 0],
    0,
    0,
  ),
  'solarize': (ImageOps.solarize, [256, 0, 26, 128, 255], 0, 0),
  'solarize_add': (
    lambda image, value: image.point(
      [min(255, i + value) if i < 128 else i for i in range(256)] * 3
    ),
    [0, 50, 99, 110],
    0,
    0,
  ),
  'color': (enhanced(ImageEnhance.Color), [1, 0.1, 0.19, 1.5, 1.9], 1, 0.002),
  'contrast': (enhanced(ImageEnhance.Contrast), [1, 0.1, 0.19, 1.5, 1.9], 1, 0.002),
  'brightness': (enhanced(ImageEnhance.Brightness), [1, 0.1, 0.19, 1.5, 1.9], 1, 0.002),
  'sharpness': (enhanced(ImageEnhance.Sharpness), [1, 0.1, 0.19, 1.5, 1.9], 1, 0.002),
  'shear_x': (
    transformed(lambda value, width, height: (1, value, 0, 0, 1, 0)),
    [0, -0.3, 0.1, 0.27],
    1,
    0.02,
  ),
  'shear_y': (
    transformed(lambda value, width, height: (1, 0, 0, value, 1, 0)),
    [0, -0.3, 0.1, 0.27],
    1,
    0.02,
  ),
  'translate_x': (
    transformed(lambda value, width, height: (1, 0, value * width, 0, 1, 0)),
    [0, -0.45, 0.25, 0.411],
    1,
    0.02,
  ),
  'translate_y': (
    transformed(lambda value, width, height: (1, 0, 0, 0, 1, value * height)),
    [0, -0.45, 0.25, 0.411],
    1,
    0.02,
  ),
}


@pytest.mark.parametrize('name', OPERATIONS)
def test_every_operation_gives_what_pillow_gives(name):
  theirs, values, largest, share = PILLOW[name]
  function = OPERATIONS[name].function
  arguments = lambda value: () if value is None else (value,)
  ours = jax.jit(jax.vmap(function, (0, *([None] * len(arguments(values[0]))))))
  for value in values:
    result = np.asarray(ours(photographs(), *arguments(value)))
    assert result.dtype == np.uint8
    expected = np.stack(
      [np.asarray(theirs(Image.fromarray(image), *arguments(value))) for image in photographs()]
    )
    difference = np.abs(result.astype(int) - expected)
    assert difference.max() <= largest, value
    assert (difference > 0).mean() <= share, value
    if value is values[0] and value is not None:
      np.testing.assert_array_equal(result, photographs())


def test_arguments_are_on_the_scale_of_timm():
  argument = lambda name, magnitude, sign=1, increasing=True: float(
    OPERATIONS[name].argument(jnp.float32(magnitude / 10), sign, increasing)
  )
  assert argument('rotate', 9, -1) == pytest.approx(-27)
  assert [argument('posterize', magnitude) for magnitude in (0, 4.9, 5, 9, 10)] == [4, 3, 2, 1, 0]
  assert [
    argument('posterize', magnitude, increasing=False) for magnitude in (0, 4.9, 5, 9, 10)
  ] == [0, 1, 2, 3, 4]
  assert [argument('solarize', magnitude) for magnitude in (0, 9, 10)] == [256, 26, 0]
  assert argument('solarize', 9, increasing=False) == 230
  assert [argument('solarize_add', magnitude) for magnitude in (0, 9, 10)] == [0, 99, 110]
  assert [argument('color', 9, sign) for sign in (-1, 1)] == pytest.approx([0.19, 1.81])
  assert argument('contrast', 10, -1) == pytest.approx(0.1)
  assert argument('brightness', 5, -1, increasing=False) == pytest.approx(1.0)
  assert argument('shear_y', 10) == pytest.approx(0.3)
  assert argument('translate_x', 10, -1) == pytest.approx(-0.45)


SQUARE = (24, 24)
PLAIN = np.full((500, 30, 40, 3), 100, np.float32)
JITTED = {
  'random_resized_crop': jax.jit(lambda key, images: augment.random_resized_crop(key, images, 24)),
  'color_jitter': jax.jit(augment.color_jitter),
  'rand_augment': jax.jit(rand_augment.rand_augment),
  'random_erasing': jax.jit(augment.random_erasing),
}


@pytest.mark.parametrize('name', JITTED)
def test_the_key_decides_and_every_image_has_its_own_draw(name):
  arguments = (
    (PLAIN, 1.0) if name == 'random_erasing' else (np.repeat(photographs(16, SQUARE)[:1], 16, 0),)
  )
  first, again, other = (
    np.asarray(JITTED[name](jax.random.key(seed), *arguments)) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()
  different = len({image.tobytes() for image in first})
  assert (
    different > 7 if name == 'rand_augment' else different == len(first)
  )  # a quarter of the images is left alone


def test_each_layer_applies_one_operation_or_none(monkeypatch):
  monkeypatch.setattr(
    rand_augment,
    'OPERATIONS',
    {
      'one': rand_augment.Operation(lambda image: image + 1),
      'sixteen': rand_augment.Operation(lambda image: image + 16),
    },
  )
  result = rand_augment.rand_augment(jax.random.key(0), jnp.zeros((4000, 1, 1, 3), jnp.uint8))
  found = np.bincount(np.asarray(result)[:, 0, 0, 0], minlength=33) / 4000
  expected = {
    0: 1 / 4,
    1: 1 / 4,
    16: 1 / 4,
    2: 1 / 16,
    32: 1 / 16,
    17: 1 / 8,
  }  # of two layers, each 1/2 none, 1/4 one, 1/4 sixteen
  np.testing.assert_allclose(found[list(expected)], list(expected.values()), atol=0.03)
  assert found[list(expected)].sum() == pytest.approx(1)


def test_the_loop_and_the_vectorized_form_agree(monkeypatch):
  images = photographs(16, SQUARE)
  by_loop = JITTED['rand_augment'](jax.random.key(0), images)
  monkeypatch.setattr(
    jax.lax, 'platform_dependent', lambda *arguments, cpu, default: default(*arguments)
  )
  vectorized = jax.jit(lambda *arguments: rand_augment.rand_augment(*arguments))(
    jax.random.key(0), images
  )
  assert (by_loop != images).any()
  assert (np.abs(by_loop.astype(int) - vectorized.astype(int)) > 1).mean() < 0.001


def test_levels_are_cut_off_and_signs_are_even():
  levels, signs = rand_augment.sample_levels(jax.random.key(0), (20_000,), 9, 0.5)
  assert levels.max() == 1.0
  assert float((levels == 1).mean()) == pytest.approx(
    0.0228, abs=0.005
  )  # a normal variable above two deviations
  assert float(jnp.median(levels)) == pytest.approx(0.9, abs=0.002)
  assert float(signs.mean()) == pytest.approx(0, abs=0.03)
  np.testing.assert_array_equal(
    rand_augment.sample_levels(jax.random.key(0), (4,), 3, 0)[0], np.float32(0.3)
  )


BOXES = 10_000


def test_crops_are_within_the_image_and_uniform_in_area_and_log_ratio():
  boxes = np.asarray(
    augment.crop_boxes(jax.random.key(0), BOXES, (480, 480), (0.08, 0.5), (3 / 4, 4 / 3))
  )
  top, left, height, width = boxes.T
  assert (boxes >= 0).all()
  assert (top + height <= 480).all()
  assert (left + width <= 480).all()
  share = height * width / 480**2
  np.testing.assert_allclose(
    np.quantile(share, [0, 0.25, 0.5, 0.75, 1]), np.linspace(0.08, 0.5, 5), atol=0.01
  )
  log_ratio = np.log(width / height) / np.log(4 / 3)
  np.testing.assert_allclose(
    np.quantile(log_ratio, [0, 0.25, 0.5, 0.75, 1]), np.linspace(-1, 1, 5), atol=0.03
  )
  assert np.mean(top / (480 - height)) == pytest.approx(0.5, abs=0.01)
  assert np.mean(left / (480 - width)) == pytest.approx(0.5, abs=0.01)


def test_crops_that_never_fit_become_the_middle():
  middle = lambda shape: np.unique(
    augment.crop_boxes(jax.random.key(0), BOXES, shape, (1.0, 1.0), (3 / 4, 4 / 3)), axis=0
  ).tolist()
  assert middle((100, 300)) == [[0, 83, 100, 133]]
  assert middle((300, 100)) == [[83, 0, 133, 100]]


def test_a_crop_is_what_pillow_makes_of_its_box():
  images, key = photographs(16, (64, 96)), jax.random.key(3)
  boxes = np.asarray(augment.crop_boxes(key, len(images), (64, 96), (0.08, 1.0), (3 / 4, 4 / 3)))
  assert boxes[:, 2:].min() < 24 < boxes[:, 2:].max()
  resized = np.asarray(JITTED['random_resized_crop'](key, images)).astype(int)
  for result, image, (top, left, height, width) in zip(resized, images, boxes, strict=True):
    crop = Image.fromarray(image[top : top + height, left : left + width])
    difference = np.abs(result - np.asarray(crop.resize((24, 24), Image.Resampling.BILINEAR)))
    assert difference[1:-1, 1:-1].max() <= 1
    assert difference.mean() < 3


def test_the_whole_image_at_its_own_size_stays():
  images = photographs(16, SQUARE)
  np.testing.assert_array_equal(
    augment.random_resized_crop(jax.random.key(0), images, 24, (1.0, 1.0), (1.0, 1.0)), images
  )


def test_without_strength_colours_stay():
  images = photographs(16, SQUARE)
  np.testing.assert_array_equal(JITTED['color_jitter'](jax.random.key(0), images, 0.0), images)


def test_what_is_erased_is_a_box_of_noise():
  result = np.asarray(JITTED['random_erasing'](jax.random.key(0), PLAIN, 0.25))
  changed = (result != 100).all(-1)
  np.testing.assert_array_equal(changed, (result != 100).any(-1))
  hit = changed.any((1, 2))
  assert hit.mean() == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 500))
  heights, widths = changed.any(2).sum(1)[hit], changed.any(1).sum(1)[hit]
  np.testing.assert_array_equal(changed.sum((1, 2))[hit], heights * widths)
  assert heights.max() < 30
  assert widths.max() < 40
  assert np.abs(np.log(widths / heights)).max() < np.log(1 / 0.3) + 0.2
  assert (heights * widths).min() / 1200 > 0.02 - 0.01
  assert (heights * widths).max() / 1200 < 1 / 3 + 0.02
  noise = result[changed]
  assert noise.mean() == pytest.approx(0, abs=0.01)
  assert noise.std() == pytest.approx(1, abs=0.01)
  np.testing.assert_array_equal(JITTED['random_erasing'](jax.random.key(0), PLAIN, 0.0), PLAIN)


def test_mixup_is_a_convex_combination_with_the_reversed_batch():
  rng = np.random.default_rng(0)
  images, labels = rng.normal(size=(6, 4, 4, 3)).astype(np.float32), np.eye(6, dtype=np.float32)
  mix = jax.jit(jax.vmap(augment.mixup, (0, None, None, None)))
  mixed_images, mixed_labels = mix(jax.random.split(jax.random.key(0), 4000), images, labels, 0.2)
  shares = np.asarray(mixed_labels[:, 0, 0])
  assert shares.mean() == pytest.approx(0.5, abs=0.03)
  assert shares.var() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.01)  # of Beta(alpha, alpha)
  for index in range(5):
    combination = lambda values, share=shares[index]: share * values + (1 - share) * values[::-1]
    np.testing.assert_allclose(mixed_images[index], combination(images), atol=1e-6)
    np.testing.assert_allclose(mixed_labels[index], combination(labels), atol=1e-6)
  np.testing.assert_allclose(mixed_labels.sum(-1), 1, atol=1e-6)


def test_nothing_is_done_unless_asked_for():
  images = photographs(16, SQUARE)
  result = augment.Augmentation().apply(jax.random.key(0), images, 24, 'inception')
  np.testing.assert_array_equal(result, normalization.normalize(images, 'inception'))


def test_everything_together_is_one_after_the_other():
  augmentation = augment.Augmentation(
    crop=True, flip=True, shift=2, color_jitter=0.4, rand_augment=True, erasing=0.5
  )
  images, key = photographs(16, (64, 96)), jax.random.key(2)
  result = jax.jit(augmentation.apply, static_argnums=(2, 3))(key, images, 24, 'imagenet')
  crop_key, flip_key, shift_key, color_key, operations_key, erasing_key = jax.random.split(key, 6)
  cropped = JITTED['random_resized_crop'](crop_key, images)
  shifted = augment.random_shift(shift_key, augment.random_flip(flip_key, cropped), 2)
  distorted = JITTED['rand_augment'](operations_key, JITTED['color_jitter'](color_key, shifted))
  expected = JITTED['random_erasing'](
    erasing_key, normalization.normalize(distorted, 'imagenet'), 0.5
  )
  assert result.shape == (16, 24, 24, 3)
  assert result.dtype == np.float32
  assert (
    np.abs(result - expected) > 0.02
  ).mean() < 0.001  # one of 255 levels, which depends on the last bit of a float, is 0.0175


@pytest.mark.parametrize(
  'field, value',
  [
    ('crop', 0.08),
    ('flip', 2),
    ('rand_augment', 9),
    ('crop_scale', (0.0, 1.0)),
    ('crop_scale', (0.5, 0.1)),
    ('crop_scale', 0.08),
    ('shift', -1),
    ('shift', 1.5),
    ('color_jitter', -0.1),
    ('magnitude', 11.0),
    ('erasing', 1.5),
    ('mixup', float('nan')),
  ],
)
def test_wrong_values_are_named(field, value):
  with pytest.raises(ValueError, match=f'{field}=.* is not '):
    augment.Augmentation(**{field: value})


def test_images_of_another_size_need_a_crop():
  with pytest.raises(ValueError, match='40 x 48 pixels are not of size=24'):
    augment.Augmentation(flip=True).apply(jax.random.key(0), photographs(), 24, 'unit')


def test_a_list_of_a_config_is_hashable_all_the_same():
  assert hash(augment.Augmentation(crop_scale=[0.3, 1.0])) == hash(
    augment.Augmentation(crop_scale=(0.3, 1.0))
  )
