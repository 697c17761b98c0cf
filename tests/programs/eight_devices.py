"""Trains and scores on eight devices, with the base replicated and sharded, as one device does."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from small_models import Transformer
from trees import randomized

import glora_jax
from benchmarks.tpu_programs.collectives import collectives
from glora_jax import mesh as meshes
from glora_jax.method import sharding
from glora_jax.method.draws import random_genomes, sample_genome
from glora_jax.search import scoring
from glora_jax.training.fit import step_loss
from glora_jax.training.gradient import by_device
from glora_jax.training.losses import classification
from glora_jax.training.recipe import Recipe
from glora_jax.tree import on_host

MESH = meshes.make_mesh(jax.devices())
FSDP = meshes.make_mesh(jax.devices(), fsdp=4)
MIN_BYTES = 1024  # of a sharded array
RECIPE = Recipe(epochs=3, batch_size=16, warmup=1 / 3, learning_rate=1e-2)

labels = np.arange(43) % 3
noise = np.random.default_rng(0).normal(size=(43, 16, 16, 3))
images = noise.astype(np.float32) + labels[:, None, None, None].astype(np.float32)
model = Transformer(3, width=64, drop_path=0.3)
params = randomized(model.init(jax.random.key(2), images[:1])['params'], 3, 0.1)
adapted = glora_jax.adapt(model, images[:1], space=glora_jax.SearchSpace())
variables = adapted.init(jax.random.key(1), params)
variables['glora'] = randomized(variables['glora'], 4, 0.1)
trainable, frozen = adapted.split(variables)


class Stream:
  def __len__(self):
    return len(labels)

  def batches(self, indices):
    for index in indices:
      yield images[index], labels[index]


def bytes_per_device(tree):
  return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def assert_replicated(tree):
  assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(tree))
  assert all(leaf.sharding.num_devices == 8 for leaf in jax.tree.leaves(tree))


def noisy(x, key):
  return x + 0.1 * jax.random.normal(key, x.shape)


def fit(
  variables=variables, data=(images, labels), adapted=adapted, drawn=False, last=None, **options
):
  """The state and mean losses of a supernet; but for the structure, things are drawn if asked."""
  losses = []

  def note(step, means):
    losses.append(means['loss'])
    return step == last

  state = glora_jax.fit(
    adapted,
    variables,
    classification(noisy if drawn else None, train=drawn),
    data,
    options.pop('recipe', RECIPE),
    key=jax.random.key(4),
    sample=lambda key: sample_genome(key, adapted.spec),
    progress=False,
    every=2,
    callback=note,
    **options,
  )
  return state, losses


def flat(tree):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def assert_trained_alike(found, expected):
  assert_allclose(found[1], expected[1], rtol=2e-4)
  # AdamW blows up gradients that are zero but for rounding to whole steps; all others agree.
  states = flat(found[0].trainable), flat(expected[0].trainable)
  assert np.isclose(*states, rtol=1e-2, atol=1e-4).mean() > 0.98


assert dict(MESH.shape) == {'candidate': 1, 'data': 8}
assert dict(FSDP.shape) == {'candidate': 1, 'data': 2, 'fsdp': 4}
with pytest.raises(ValueError, match=r'mesh.fsdp=3 does not divide the 8 devices of a process'):
  meshes.make_mesh(jax.devices(), fsdp=3)

# Where arrays lie.
sharded = sharding.shard_arrays(MESH, frozen, min_bytes=MIN_BYTES)
total = sum(leaf.nbytes for leaf in jax.tree.leaves(frozen))
assert total / 8 <= bytes_per_device(sharded) < total / 7, (bytes_per_device(sharded), total)
jax.tree.map(assert_array_equal, jax.tree.map(on_host, sharded), frozen)

# Training, where nothing is drawn but structures: eight devices do what one does.
on_one_device = fit()
on_mesh = fit(mesh=MESH)
assert_replicated(on_mesh[0][:2])
assert_trained_alike(on_mesh, on_one_device)
listed = [(images[start : start + 16], labels[start : start + 16]) for start in (0, 16)]
in_parts = {'data': listed, 'recipe': dataclasses.replace(RECIPE, accumulate=2)}
assert_trained_alike(fit(mesh=MESH, **in_parts), fit(**in_parts))

# What is drawn for images depends on the number of devices, each of which draws for its own; the
# same devices draw it again. With sharded weights the batch is one, and so is what is drawn.
drawn_on_one = fit(drawn=True)
drawn_on_mesh = fit(drawn=True, mesh=MESH)
assert not np.allclose(drawn_on_mesh[1], drawn_on_one[1], rtol=1e-3)
gathering, on_fsdp = glora_jax.shard(adapted, variables, FSDP, min_bytes=MIN_BYTES)
options = {'adapted': gathering, 'mesh': FSDP, 'drawn': True}
assert_trained_alike(fit(on_fsdp, Stream(), **options), drawn_on_one)
half, _ = fit(mesh=MESH, drawn=True, last=2)
resumed, _ = fit(mesh=MESH, drawn=True, state=half)
assert_array_equal(flat(resumed.trainable), flat(drawn_on_mesh[0].trainable))


def draw(trainable, frozen, batch, key):
  return jax.numpy.sum(trainable), {'own': jax.random.uniform(meshes.device_key(key))}


key = jax.random.key(4)
gradient = jax.jit(by_device(jax.value_and_grad(draw, has_aux=True), MESH))
(_, found), _ = gradient(jax.numpy.zeros(2), {}, images[:16], key)
own_keys = [jax.random.fold_in(key, device) for device in range(8)]
assert_allclose(found['own'], np.mean([*map(jax.random.uniform, own_keys)]), rtol=1e-6)

# Weights that are too small to be sharded are whole on every device, and each takes its images.
whole, on_devices = glora_jax.shard(adapted, variables, MESH)
assert_trained_alike(fit(on_devices, adapted=whole, mesh=MESH), on_one_device)
with pytest.raises(ValueError, match='A batch of 12 examples cannot be split over 8 devices'):
  fit(mesh=MESH, recipe=Recipe(batch_size=12))


def bytes_reduced(around):
  """Bytes that a device gets for the gradient of a dense layer with thin supports."""
  rows, dense = np.ones((16, 64), np.float32), nn.Dense(64)
  layer = glora_jax.adapt(dense, rows, space=glora_jax.SearchSpace((1,)))
  params = dense.init(jax.random.key(0), rows)['params']
  gradient = around(jax.value_and_grad(step_loss(layer, classification()), has_aux=True))
  gradient = jax.jit(gradient, out_shardings=meshes.replicated(MESH))
  half, rest = meshes.replicate(MESH, layer.split(layer.init(jax.random.key(0), params)))
  batch = meshes.split_rows(MESH, (rows, np.zeros(16, np.int32)))
  program = gradient.lower(half, rest, batch, jax.random.key(1)).compile()
  return collectives(program.as_text())['all-reduce']['bytes'], flat(half).nbytes


# What is sent: gradients by supports, and not by the merged kernel.
reduced, trained = bytes_reduced(functools.partial(by_device, mesh=MESH))
assert trained <= reduced <= trained + 64, (reduced, trained)
assert bytes_reduced(lambda gradient: gradient)[0] > 64 * 64 * 4


# Resident images, laid as on a TPU.
is_on_tpus, meshes.is_on_tpus = meshes.is_on_tpus, lambda sharding: True
meshes._HALF_A_ROW = 8
held = meshes.hold(MESH, images)
assert held.format.layout.major_to_minor == (0, 3, 1, 2)
assert held.sharding.is_fully_replicated
meshes.is_on_tpus = is_on_tpus


# A linear probe.
def probe(adapted, variables, data=(images, labels), mesh=None):
  options = {'key': jax.random.key(4), 'progress': False, 'mesh': mesh}
  found = glora_jax.linear_probe(adapted, variables, classification(), data, RECIPE, **options)
  return found['params']['head']


head = probe(gathering, on_fsdp, Stream(), FSDP)
jax.tree.map(functools.partial(assert_allclose, atol=1e-5), head, probe(adapted, variables))
assert_replicated(head)

# Scoring.
genomes = random_genomes(np.random.default_rng(0), adapted.spec, 3)
loss = classification()
expected = scoring.make_scorer(adapted, loss)(variables, genomes, (images, labels))
found = scoring.make_scorer(gathering, loss, mesh=FSDP)(on_fsdp, genomes, (held, labels))
assert found.correct.sharding.is_fully_replicated
assert_array_equal(found.correct, expected.correct)
assert_allclose(found.loss, expected.loss, rtol=1e-4)

# Kernels are gathered a block at a time, and folded ones lie as those of the base.
text = jax.jit(gathering.apply).lower(on_fsdp, images[:16], genome=genomes[0]).compile().as_text()
gathered = set(re.findall(r'f32\[([\d,]+)\]\S* all-gather\(', text))
assert '1,64,128' in gathered
assert gathered.isdisjoint({'2,64,128', '16,13,64'})  # neither stacks nor activations
folded = jax.jit(gathering.fold)(on_fsdp, genomes[0])
close = functools.partial(assert_allclose, rtol=1e-4, atol=1e-6)
jax.tree.map(close, folded, adapted.fold(variables, genomes[0]))
kernel, base = (tree['blocks']['fc1']['kernel'] for tree in (folded, on_fsdp['params']))
assert kernel.sharding.is_equivalent_to(base.sharding, base.ndim)
