"""Warns of an attached model whose base has been trained since `attach`."""

from __future__ import annotations

import collections
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from glora_jax.nnx.variables import Genome, Trained

log = logging.getLogger(__name__)

# The bases that `attach` saw, as checksums by the paths and shapes of their parameters.
#
# They are global, since a model has no good place for them. With a static attribute, a step that
# was compiled for one base would be compiled again for the next. A variable would be in the user's
# checkpoints, and his scans would split it.
_SEEN: dict[Any, set[bytes | None]] = collections.defaultdict(set)


def remember_base(model: nnx.Module) -> None:
  """Remembers the base of an attached model."""
  name, checksums = _base(model)
  _SEEN[name].add(checksums)


def warn_if_base_changed(model: nnx.Module) -> None:
  """Logs a warning if `attach` saw bases like that of an attached model, but never this one."""
  name, checksums = _base(model)
  seen = _SEEN.get(name)
  if checksums and seen and not seen & {checksums, None}:
    log.warning(
      'The base of this %s is not the one that attach saw: it was trained, or loaded later. An '
      'adapter fits only the base that it was trained on; to train the adapter alone, optimize '
      'glora_jax.nnx.Trained, not nnx.Param.',
      type(model).__name__,
    )


def _base(model: nnx.Module) -> tuple[Any, bytes | None]:
  """Paths and shapes of the base's parameters, and checksums; None if some values are elsewhere."""
  params = [
    (path, array)
    for path, node in nnx.iter_graph(model)
    if isinstance(node, nnx.Param) and not isinstance(node, Trained | Genome)
    for array in jax.tree.leaves(node.get_raw_value())
  ]
  name = tuple((path, np.shape(array)) for path, array in params)
  if not all(_is_here(array) for _, array in params):
    return name, None
  with jax.ensure_compile_time_eval():  # in a traced function, too
    checksums = jax.device_get([_checksum(array) for _, array in params])
  return name, np.array(checksums, np.uint32).tobytes()


def _is_here(array: Any) -> bool:
  """Whether this process has all values of an array."""
  is_array = isinstance(array, np.ndarray | jax.Array) and not isinstance(array, jax.core.Tracer)
  return is_array and getattr(array, 'is_fully_addressable', True)


@jax.jit
def _checksum(array: jax.Array) -> jax.Array:
  """The sum of the bits of numbers as float32, the same for 16 bits and however it is sharded."""
  bits = jax.lax.bitcast_convert_type(jnp.real(array).astype(jnp.float32), jnp.uint32)
  return bits.sum(dtype=jnp.uint32)
