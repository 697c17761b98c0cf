"""Image files to classes."""

import numpy as np

from glora_jax.models.classifier import Classifier, find_images


def test_folders_are_searched_in_the_order_of_names_and_paths_stay_in_theirs(photos):
  inside = [f'{photos}/{name}' for name in ('inside/a.png', 'inside/b.gif', 'inside/deeper/x.bmp')]
  above = [f'{photos}/{name}' for name in ('a.JPG', 'b.png', 'c.webp')]
  assert find_images([str(photos)]) == [*above, *inside, f'{photos}/z.tif']
  assert find_images([f'{photos}/z.tif', f'{photos}/inside']) == [f'{photos}/z.tif', *inside]


def test_the_size_of_batches_changes_no_answer(backbone, photos):
  images = find_images([str(photos)])
  classifier = Classifier(backbone)
  together = dict(classifier(images))
  assert list(together) == images
  assert len({probabilities.tobytes() for probabilities in together.values()}) == len(images)
  for size in (1, 3):
    for path, probabilities in classifier(images, batch_size=size):
      np.testing.assert_allclose(probabilities, together[path], atol=1e-6)
