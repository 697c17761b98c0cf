"""Slices of TPUs that are not at hand, for their compiler (pip install 'jax[tpu]')."""

import importlib.util
import os

import jax
from jax.experimental import topologies

from glora_jax import mesh as meshes


def has_compiler() -> bool:
  """Whether libtpu is installed."""
  return importlib.util.find_spec('libtpu') is not None


def mesh_of(topology: str) -> jax.sharding.Mesh:
  """The mesh over all chips of a slice, 'v5e:2x4' for instance; programs only compile for it."""
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # or libtpu asks a server that only TPU VMs have
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  mesh = meshes.make_mesh(topologies.get_topology_desc(topology, 'tpu').devices)
  assert mesh is not None, 'a slice has several chips'
  return mesh
