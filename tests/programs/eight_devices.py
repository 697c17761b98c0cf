"""Trains and scores on eight devices, with the base replicated and sharded, as one device does."""

import dataclasses
import pathlib
import sys

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from conftest import randomized

import glora_jax
from glora_jax import mesh as meshes
from glora_jax.method.genomes import random_genomes, sample_genome
from glora_jax.models.vit import ViT
from glora_jax.search import scoring
from glora_jax.training import loop
from glora_jax.training.losses import supernet_loss
from glora_jax.training.recipe import Recipe

mesh = meshes.over_devices()
assert dict(mesh.shape) == {'candidate': 1, 'data': 8}
model = ViT(3, patch_size=8, width=64, depth=2, num_heads=2)
labels = np.arange(43) % 3
images = np.random.default_rng(0).normal(size=(43, 16, 16, 3)).astype(np.float32) + labels[
  :, None, None, None
].astype(np.float32)
adapted = glora_jax.adapt(model, images[:1], merge='up_front')
variables = adapted.init(
  jax.random.key(1), randomized(model.init(jax.random.key(2), images[:1])['params'], 3, 0.1)
)
variables['glora'] = randomized(variables['glora'], 4, 0.1)
trainable, frozen = adapted.split(variables)
loss_of = lambda merge: supernet_loss(
  dataclasses.replace(adapted, merge=merge),
  lambda key, x: x + 0.1 * jax.random.normal(key, x.shape),
  lambda key: sample_genome(key, adapted.spec),
)

sharded = meshes.shard(mesh, frozen, min_bytes=1024)
large = [leaf for leaf in jax.tree.leaves(sharded) if leaf.nbytes >= 1024]
held = lambda tree: sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))
assert held(large) * 8 == sum(leaf.nbytes for leaf in large)
total = sum(leaf.nbytes for leaf in jax.tree.leaves(frozen))
assert total / 8 <= held(sharded) < total / 7, (held(sharded), total)
assert held(meshes.replicate(mesh, frozen)) == total
jax.tree.map(np.testing.assert_array_equal, meshes.on_host(sharded), frozen)


class Stream:
  def __len__(self):
    return len(labels)

  def batches(self, indices):
    for index in indices:
      yield images[index], labels[index]


flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def fit(frozen, images=images, loss_fn=loss_of('up_front'), **options):
  recipe = Recipe(epochs=3, batch_size=16, warmup_epochs=1, learning_rate=1e-2)
  losses = []
  state = loop.fit(
    loss_fn,
    trainable,
    frozen,
    images,
    labels,
    recipe,
    jax.random.key(4),
    progress=False,
    steps_per_dispatch=2,
    on_dispatch=lambda _, means: losses.append(means['loss']),
    **options,
  )
  return state, losses


def same(found, expected):
  np.testing.assert_allclose(found[1], expected[1], rtol=2e-4)
  # Gradients that are zero but for rounding are blown up to whole steps by AdamW; all others agree.
  assert (
    np.isclose(flat(found[0].trainable), flat(expected[0].trainable), rtol=1e-2, atol=1e-4).mean()
    > 0.98
  )


expected = fit(frozen)
found = fit(frozen, mesh=mesh)
assert all(
  leaf.sharding.is_fully_replicated and leaf.sharding.num_devices == 8
  for leaf in jax.tree.leaves(found[0][:2])
)
same(found, expected)
same(fit(sharded, Stream(), mesh=mesh, loss_fn=loss_of('lazy')), expected)
half = fit(frozen, mesh=mesh, stop_epoch=1)[0]
np.testing.assert_array_equal(
  flat(fit(frozen, mesh=mesh, state=half)[0].trainable), flat(found[0].trainable)
)

try:
  loop.fit(
    loss_of('lazy'),
    trainable,
    frozen,
    images,
    labels,
    Recipe(batch_size=12),
    jax.random.key(0),
    mesh=mesh,
  )
except ValueError as error:
  assert 'A batch of 12 images cannot be dealt to 8 devices' in str(error)
else:
  raise AssertionError('a batch that does not fit was taken')

blocks = list(meshes.blocks(mesh, Stream(), 10))
assert [len(block[1]) for block in blocks] == [16, 16, 11]
np.testing.assert_array_equal(np.concatenate([block[0] for block in blocks]), images)
genomes = random_genomes(np.random.default_rng(0), adapted.spec, 3)
plain = scoring.make_scorer(adapted)(variables, genomes, images, labels)
on_mesh = scoring.make_scorer(adapted, mesh=mesh)
correct, loss = on_mesh(
  adapted.join(meshes.replicate(mesh, trainable), sharded), genomes, images, labels
)
assert correct.sharding.is_fully_replicated
np.testing.assert_array_equal(correct, plain[0])
np.testing.assert_allclose(loss, plain[1], rtol=1e-4)
