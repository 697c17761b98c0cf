"""A base model whose parameters are quantized: qwix's arrays (int8, NF4 and all its other types).

They stay as they are among the variables, a quarter of the size or less. Where supports are merged
into them they are full precision, float32, and so are folded parameters, which lose nothing;
`requantize` makes of these again what the base was.
"""

from __future__ import annotations

import sys
from collections.abc import Container, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from glora_jax.tree import Path, path_of


def is_quantized(value: Any) -> bool:
  """Whether a value is a quantized array of qwix, or one with word of how it was quantized."""
  qwix: Any = sys.modules.get('qwix')  # who has such an array has imported it
  return qwix is not None and isinstance(getattr(value, 'array', value), qwix.QArray)


def has_quantized(tree: Any) -> bool:
  """Whether an array of a pytree is quantized."""
  return any(map(is_quantized, jax.tree.leaves(tree, is_leaf=is_quantized)))


def check_unquantized(name: str, params: Any) -> None:
  """Checks that a model computes with full precision itself.

  Args:
    name: the model's name.
    params: its own parameters or their shapes, or an NNX model itself.

  Raises:
    ValueError: some are quantized.
  """
  if has_quantized(params):
    raise ValueError(
      f'{name} is a quantized model of qwix; adapt the model that it was made from, and give the '
      'quantized parameters to init.'
    )


def full_precision(
  params: Any, shapes: Mapping[Path, Any], only: Container[Path] | None = None
) -> Any:
  """Params without quantized arrays.

  Args:
    params: parameters of a model, some of them quantized; any pytree.
    shapes: what the model's own parameters are, by path: an array that qwix has stored in the shape
      of its product gets its shape back.
    only: paths of the arrays to unpack; None for all.

  Returns:
    Params with float32 in the place of what was quantized; `params` itself if nothing was.
  """
  if not has_quantized(params):
    return params

  def unpacked(keys, value):
    path = path_of(keys)
    if not is_quantized(value) or (only is not None and path not in only):
      return value
    array = nn.meta.unbox(getattr(value, 'array', value)).astype(jnp.float32)
    array, own = sys.modules['qwix'].dequantize(array), shapes.get(path)
    return array if own is None or own.size != array.size else array.reshape(own.shape)

  return jax.tree_util.tree_map_with_path(unpacked, params, is_leaf=is_quantized)


def requantize(params: Any, like: Any) -> Any:
  """Params quantized as others are.

  Args:
    params: full-precision parameters, of `adapted.fold` for instance.
    like: parameters of the same structure, some of them quantized.

  Returns:
    Params with quantized arrays in the places where `like` has them: of its types, with scales (and
    zero points) of its shapes, chosen for the new values.
  """
  leaves, structure = jax.tree.flatten(like, is_leaf=is_quantized)
  return structure.unflatten(
    [
      _quantized(value, old) if is_quantized(old) else value
      for old, value in zip(leaves, structure.flatten_up_to(params), strict=True)
    ]
  )


def _quantized(value: jax.Array, like: Any) -> Any:
  old = nn.meta.unbox(getattr(like, 'array', like))
  tiles = dict(enumerate(old.scale_tile_shape))
  shared = {axis for axis, tile in tiles.items() if tile == old.shape[axis]}
  new = sys.modules['qwix'].quantize(
    value.reshape(old.shape),
    old.qtype,
    channelwise_axes=[axis for axis, tile in tiles.items() if tile == 1 and axis not in shared],
    tiled_axes={a: tile for a, tile in tiles.items() if tile > 1 and a not in shared},
    calibration_method='absmax' if old.zero_point is None else 'minmax',
    scale_dtype=old.scale.dtype,
  )
  return like.replace(array=new) if hasattr(like, 'array') else new
