"""Trains a head on features on eight devices as one device does under the body; reads blocks."""

import functools

import jax
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
from trees import randomized

import glora_jax
from glora_jax import mesh as meshes
from glora_jax.training.head_alone import warm_head
from glora_jax.training.recipe import Recipe
from glora_jax.vision.data.pipeline import blocks
from glora_jax.vision.models.vit import ViT
from glora_jax.vision.runs.stages.training import HeadOnFeatures

RECIPE = Recipe(epochs=3, batch_size=16, warmup_epochs=1, learning_rate=1e-2)

labels = np.arange(43) % 3
images = np.random.default_rng(0).normal(labels[:, None, None, None], size=(43, 16, 16, 3))
images = images.astype(np.float32)
model = ViT(3, patch_size=8, width=64, depth=2, num_heads=2)
params = randomized(model.init(jax.random.key(2), images[:1])['params'], 3, 0.1)
adapted = glora_jax.adapt(model, images[:1])
variables = adapted.init(jax.random.key(1), params)


class Stream:
  def __len__(self):
    return len(labels)

  def batches(self, indices):
    for index in indices:
      yield images[index], labels[index]


def negated(images, key):
  return -images


def warm(adapted, variables, inputs, mesh=None, **options):
  arguments = adapted, variables, inputs, labels, RECIPE, jax.random.key(4)
  return warm_head(*arguments, progress=False, mesh=mesh, **options)['params']['head']


head_of_one_device = warm(adapted, variables, images, preprocess=negated)
mesh, fsdp = meshes.over(jax.devices()), meshes.over(jax.devices(), fsdp=4)
for devices, inputs, (model, held) in (
  (mesh, images, (adapted, variables)),
  (fsdp, Stream(), glora_jax.shard(adapted, variables, fsdp, min_bytes=1024)),
):
  learner = HeadOnFeatures.of(model)
  features = learner.features(held, negated, inputs, labels, 16, devices)
  head = warm(learner, held, features, devices)
  jax.tree.map(functools.partial(assert_allclose, atol=1e-5), head, head_of_one_device)
  assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(head))

read = list(blocks(mesh, Stream(), 10))
assert [len(block_labels) for _, block_labels in read] == [16, 16, 11]
assert_array_equal(np.concatenate([rows for rows, _ in read]), images)
assert jax.device_count() == 8
