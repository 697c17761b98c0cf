"""A pretrained model for another task: a new head, another image size, another patch size."""

import numpy as np
from checkpoints import OURS, own, params_of  # noqa: F401, fixtures

from glora_jax.models import weights
from glora_jax.models.vit import expected_params


def test_a_new_head_is_zero_and_takes_the_place_of_pre_logits():
  model = OURS.clone(pre_logits=9)
  params = params_of(model)
  metadata = {'image_size': 16, 'classes': ['a'] * 5}
  refitted, new, metadata = weights.refit(model, params, metadata, num_classes=3)
  assert (refitted.num_classes, refitted.pre_logits, 'classes' in metadata) == (3, None, False)
  assert 'pre_logits' not in new
  assert new['head']['kernel'].shape == (12, 3)
  assert not np.any(new['head']['kernel'])
  assert not np.any(new['head']['bias'])
  assert 'pre_logits' in params  # what was given is left alone


def test_another_image_size_and_patch_size_go_together(own):
  path, _ = own
  model, params, metadata = weights.refit(*weights.load(path), image_size=24, patch_size=12)
  assert (model.patch_size, metadata['image_size']) == (12, 24)
  assert params['pos_embed'].shape == (1, 5, 12)
  expected = expected_params(model, 24)
  assert params['embed']['kernel'].shape == expected['embed/kernel'].shape
