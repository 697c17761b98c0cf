"""Measures a structure with every batch split over eight devices, and compares with one device."""

import jax
import numpy as np
from test_allocate import KEY, loss, scanned

import glora_jax
from glora_jax import mesh as meshes


def check(is_sharded):
  adapted, variables, batches = scanned()
  pairs = zip(batches[::2], batches[1::2], strict=True)
  batches = [jax.tree.map(lambda *parts: np.concatenate(parts), *pair) for pair in pairs]
  options = {'budget': 150, 'key': KEY, 'max_rank': 2, 'progress': False}
  alone = glora_jax.allocate(adapted, variables, loss, batches, **options)
  mesh = meshes.make_mesh(jax.devices(), fsdp=4 if is_sharded else None)
  assert mesh.size == 8
  if is_sharded:
    adapted, variables = glora_jax.shard(adapted, variables, mesh, min_bytes=64)
  together = glora_jax.allocate(adapted, variables, loss, batches, **options, mesh=mesh)
  for found, expected in zip(together.scores, alone.scores, strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
  np.testing.assert_array_equal(together.genome, alone.genome)
  for leaf in jax.tree.leaves(together.variables['glora']):
    assert leaf.sharding.device_set == set(mesh.devices.flat)


for is_sharded in (False, True):
  check(is_sharded)
