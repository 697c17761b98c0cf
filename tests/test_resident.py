"""Images that stay on a device: the same images, laid as a TPU takes some of them best."""

import jax.numpy as jnp
import numpy as np

from glora_jax import mesh as meshes

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 72, 3), np.uint8)
LABELS = np.arange(20) % 3


def order_of(array):
  return array.format.layout.major_to_minor


def test_images_lie_one_after_the_other_on_tpus_and_are_the_same(monkeypatch):
  images = jnp.asarray(IMAGES)
  assert meshes.hold(None, images) is images  # on other devices
  assert order_of(images) == (0, 1, 2, 3)
  monkeypatch.setattr(meshes, 'is_on_tpus', lambda sharding: True)
  images, labels = meshes.hold(None, (IMAGES, LABELS))
  assert order_of(images) == (0, 3, 1, 2)
  assert order_of(labels) == (0,)
  np.testing.assert_array_equal(images, IMAGES)
  np.testing.assert_array_equal(labels, LABELS)
  assert images.dtype == np.uint8
  assert meshes.hold(None, images) is images
  # What would take more room so, or is no image.
  for shape in ((20, 8, 64, 3), (20, 14, 96, 192), (20, 96, 3), (2, 2, 8, 96, 3)):
    array = jnp.zeros(shape, np.uint8)
    assert meshes.hold(None, array) is array
