"""Consistency regularization: two passes with noise on the adapter should agree."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import jax

from glora_jax.checks import field, validate_fields
from glora_jax.method.adapter import ADAPTER


@dataclasses.dataclass(frozen=True)
class Consistency:
  """Consistency regularization as in PACE (Ni et al. 2024, arXiv 2409.17137).

  Two passes, with the adapter multiplied by different noise, should give the same logits.

  Attributes:
    weight: weight of the squared difference between the logits of both, summed over classes. 0 runs
      a single pass without noise.
    sigma: standard deviation of the noise around 1. Each output of a layer draws one number, which
      multiplies all tensors of the adapter for that output.

  Raises:
    TypeError: a field is not a number.
    ValueError: it is not finite, or negative.

  Example:
    >>> import jax.numpy as jnp
    >>> adapter = {'dense': {'B_down': jnp.ones((4, 2)), 'B_up': jnp.ones((2, 3))}}
    >>> noisy = Consistency(weight=1.0, sigma=0.1).perturb(jax.random.key(0), adapter)
    >>> noisy['dense']['B_down'].std().item(), noisy['dense']['B_up'].std().item() > 0
    (0.0, True)
  """

  weight: float = field(0.0, least=0)
  sigma: float = field(0.2, least=0)

  def __post_init__(self):
    validate_fields(self)

  def perturb(self, key: jax.Array, adapter: Any) -> Any:
    """Returns the adapter times noise: A, B, D and E along the outputs, C times one number."""

    def noisy(path, value):
      *module, name = [part.key for part in path if isinstance(part, jax.tree_util.DictKey)]
      entry = ADAPTER[name]
      if entry.drawn:  # a down factor; the up factor of the same LoRA has the noise
        return value
      module_key = jax.random.fold_in(key, zlib.crc32('/'.join(map(str, module)).encode()))
      stack = value.shape[: value.ndim - len(entry.axes)]
      outputs = value.shape[-1] if 'out' in entry.axes else 1
      noise = 1 + self.sigma * jax.random.normal(module_key, (*stack, outputs), value.dtype)
      return value * (noise[..., None, :] if value.ndim > noise.ndim else noise)

    return jax.tree_util.tree_map_with_path(noisy, adapter)
