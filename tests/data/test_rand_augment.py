"""RandAugment: the scale of timm, and what is drawn at random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from photographs import photographs

from glora_jax.data import rand_augment

OPERATIONS = rand_augment.OPERATIONS


def argument(name, magnitude, sign=1, increasing=True):
  level = np.float32(magnitude / rand_augment.MAX_MAGNITUDE)
  return float(OPERATIONS[name].argument(level, sign, increasing))


def test_arguments_are_on_the_scale_of_timm():
  assert argument('rotate', 9, -1) == pytest.approx(-27)
  bits = [argument('posterize', magnitude) for magnitude in (0, 4.9, 5, 9, 10)]
  assert bits == [4, 3, 2, 1, 0]
  assert [argument('solarize', magnitude) for magnitude in (0, 9, 10)] == [256, 26, 0]
  assert [argument('solarize_add', magnitude) for magnitude in (0, 9, 10)] == [0, 99, 110]
  assert [argument('color', 9, sign) for sign in (-1, 1)] == pytest.approx([0.19, 1.81])
  assert argument('contrast', 10, -1) == pytest.approx(0.1)
  assert argument('shear_y', 10) == pytest.approx(0.3)
  assert argument('translate_x', 10, -1) == pytest.approx(-0.45)


def test_arguments_of_the_paper_do_not_all_increase_the_effect():
  bits = [argument('posterize', magnitude, increasing=False) for magnitude in (0, 4.9, 5, 9, 10)]
  assert bits == [0, 1, 2, 3, 4]
  assert argument('solarize', 9, increasing=False) == 230
  assert argument('brightness', 5, -1, increasing=False) == pytest.approx(1.0)


@pytest.fixture(scope='module')
def augmented():
  """Sixteen times the same photograph, after `rand_augment` with the keys 0, 0 and 1."""
  images = np.repeat(photographs((24, 24))[:1], 16, 0)
  apply = jax.jit(rand_augment.rand_augment)
  return images, [np.asarray(apply(jax.random.key(seed), images)) for seed in (0, 0, 1)]


def test_the_key_decides_and_every_image_has_its_own_draw(augmented):
  _, (first, again, other) = augmented
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()
  assert len({image.tobytes() for image in first}) > 7  # a quarter of the images is left alone


def test_the_loop_and_the_vectorized_form_agree(augmented, monkeypatch):
  images, (by_loop, *_) = augmented

  def vectorized(*arguments, cpu, default):
    return default(*arguments)

  monkeypatch.setattr(jax.lax, 'platform_dependent', vectorized)
  apply = jax.jit(lambda *arguments: rand_augment.rand_augment(*arguments))
  difference = np.asarray(apply(jax.random.key(0), images)).astype(int) - by_loop
  assert (by_loop != images).any()
  assert (np.abs(difference) > 1).mean() < 0.001


def test_each_layer_applies_one_operation_or_none(monkeypatch):
  operations = {
    'add 1': rand_augment.Operation(lambda image: image + 1),
    'add 16': rand_augment.Operation(lambda image: image + 16),
  }
  monkeypatch.setattr(rand_augment, 'OPERATIONS', operations)
  number = 4000
  images = jnp.zeros((number, 1, 1, 3), jnp.uint8)
  result = jax.jit(lambda *arguments: rand_augment.rand_augment(*arguments))(
    jax.random.key(0), images
  )
  found = np.bincount(np.asarray(result)[:, 0, 0, 0], minlength=33) / number
  # Of two layers, each none with probability 1/2, either operation with 1/4.
  expected = {0: 1 / 4, 1: 1 / 4, 16: 1 / 4, 2: 1 / 16, 32: 1 / 16, 17: 1 / 8}
  np.testing.assert_allclose(found[list(expected)], list(expected.values()), atol=0.03)
  assert found[list(expected)].sum() == pytest.approx(1)


def test_levels_are_cut_off_and_signs_are_even():
  sample = jax.jit(rand_augment.sample_levels, static_argnums=1)
  levels, signs = sample(jax.random.key(0), (20_000,), 9, 0.5)
  assert levels.max() == 1.0
  above_two_deviations = 0.0228  # of a normal variable
  assert float((levels == 1).mean()) == pytest.approx(above_two_deviations, abs=0.005)
  assert np.median(levels) == pytest.approx(0.9, abs=0.002)
  assert np.mean(signs) == pytest.approx(0, abs=0.03)
  without_deviation, _ = sample(jax.random.key(0), (20_000,), 3, 0)
  np.testing.assert_array_equal(without_deviation, np.float32(0.3))
