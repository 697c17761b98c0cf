"""Reads, predicts and trains a head on eight devices, with the base whole and sharded."""

import functools

import jax
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
from trees import randomized

import glora_jax
from glora_jax import mesh as meshes
from glora_jax.training.losses import classification
from glora_jax.training.recipe import Recipe
from glora_jax.vision.data.pipeline import Split, blocks, equal_batches
from glora_jax.vision.models.vit import ViT
from glora_jax.vision.runs.evaluation import make_predictor
from glora_jax.vision.runs.stages.training import HeadOnFeatures

MESH = meshes.make_mesh(jax.devices())
images = np.random.default_rng(0).normal(size=(43, 16, 16, 3)).astype(np.float32)
labels = np.arange(43) % 3


class Stream:
  """Images that lie in memory."""

  def __len__(self):
    return len(labels)

  def batches(self, indices):
    for index in indices:
      yield images[index], labels[index]


read = list(blocks(Split(Stream(), labels), 10, MESH))
assert [len(block_labels) for _, block_labels in read] == [16, 16, 11]
assert_array_equal(np.concatenate([rows for rows, _ in read]), images)

model = ViT(3, patch_size=8, width=64, depth=2, num_heads=2)
adapted = glora_jax.adapt(model, images[:1])
params = randomized(model.init(jax.random.key(2), images[:1])['params'], 3, 0.5)
variables = adapted.init(jax.random.key(1), params)


def preprocess(images, key):
  return -images


def probe(adapted, variables, inputs, mesh=None, preprocess=None):
  recipe = Recipe(epochs=3, batch_size=16, warmup=1 / 3, learning_rate=1e-2)
  options = {'key': jax.random.key(4), 'progress': False, 'mesh': mesh}
  loss, data = classification(preprocess), (inputs, labels)
  found = glora_jax.linear_probe(adapted, variables, loss, data, recipe, **options)
  return found['params']['head']


under_body = probe(adapted, variables, images, preprocess=preprocess)
expected = make_predictor(adapted, preprocess)(variables, images)
assert len({*np.asarray(expected.classes).tolist()}) > 1
fsdp = meshes.make_mesh(jax.devices(), fsdp=4)
sharded = glora_jax.shard(adapted, variables, fsdp, min_bytes=1024)
for mesh, (model_on_mesh, laid) in {MESH: (adapted, variables), fsdp: sharded}.items():
  predict = make_predictor(model_on_mesh, preprocess, mesh=mesh)
  batches = equal_batches(Split(Stream(), labels), 16, mesh)
  parts = [predict(laid, rows) for rows, _ in batches]
  assert all(part.classes.sharding.is_fully_replicated for part in parts)
  classes, probabilities = (np.concatenate(x)[:43] for x in zip(*parts, strict=True))
  assert_array_equal(classes, expected.classes)
  assert_allclose(probabilities, expected.probabilities, rtol=1e-4)
  learner = HeadOnFeatures.of(model_on_mesh)
  features = learner.features(laid, preprocess, Stream(), labels, 16, mesh)
  head = probe(learner, laid, features, mesh)
  jax.tree.map(functools.partial(assert_allclose, atol=1e-5), head, under_body)
  assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(head))
