"""Images that stay on a device: the same images, laid as a TPU takes some of them best."""

import jax.numpy as jnp
import numpy as np
import pytest

from glora_jax import mesh as meshes

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 72, 3), np.uint8)
LABELS = np.arange(20) % 3
IMAGE_BY_IMAGE = (0, 3, 1, 2)


def order_of(array):
  return array.format.layout.major_to_minor


@pytest.fixture
def on_tpus(monkeypatch):
  """Every device is taken for a TPU."""
  monkeypatch.setattr(meshes, 'is_on_tpus', lambda sharding: True)


@pytest.mark.usefixtures('on_tpus')
def test_images_lie_one_after_the_other_and_are_the_same():
  images, labels = meshes.hold(None, (IMAGES, LABELS))
  assert order_of(images) == IMAGE_BY_IMAGE
  assert order_of(labels) == (0,)
  np.testing.assert_array_equal(images, IMAGES)
  np.testing.assert_array_equal(labels, LABELS)
  assert images.dtype == np.uint8
  assert meshes.hold(None, images) is images


@pytest.mark.usefixtures('on_tpus')
@pytest.mark.parametrize(
  'shape', [(20, 8, 64, 3), (20, 14, 96, 192), (20, 96, 3), (2, 2, 8, 96, 3)]
)
def test_what_would_take_more_room_so_or_is_no_image_stays_as_it_is(shape):
  array = jnp.zeros(shape, np.uint8)
  assert meshes.hold(None, array) is array


def test_elsewhere_arrays_stay_as_they_are():
  images = jnp.asarray(IMAGES)
  assert meshes.hold(None, images) is images
  assert order_of(images) == (0, 1, 2, 3)
