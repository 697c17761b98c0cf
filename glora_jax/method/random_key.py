"""Random keys, as public calls take them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from glora_jax.limits import shown

_RAW_KEYS = ((2,), (4,))  # shapes of `jax.random.PRNGKey`, by JAX's implementations


def check_key(key: Any) -> None:
  """Raises ValueError unless a value is one random key, of either kind that JAX knows."""
  dtype, shape = getattr(key, 'dtype', None), getattr(key, 'shape', None)
  is_new = dtype is not None and shape == () and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
  if not is_new and not (dtype == np.uint32 and shape in _RAW_KEYS):
    raise ValueError(f'key={shown(key)} must be one random key, jax.random.key(0) for instance.')
