"""A base model whose parameters are quantized: qwix's arrays (int8, NF4 and all its other types).

They stay quantized among the variables, about a quarter of float32's bytes or less, and each is
dequantized where the model uses it (`glora_jax.method.program`): in float32, then cast to the
model's own type. Folded parameters are float32, and lose nothing; `requantize` quantizes them as
the base was.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Container, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from glora_jax.tree import KeyPath, path_name, path_of

log = logging.getLogger(__name__)


def is_quantized(value: Any) -> bool:
  """Whether a value is a quantized array of qwix, alone or in qwix's record of how it was made."""
  qwix: Any = sys.modules.get('qwix')  # to have such an array is to have imported it
  return qwix is not None and isinstance(getattr(value, 'array', value), qwix.QArray)


def has_quantized(tree: Any) -> bool:
  """Whether an array of a pytree is quantized."""
  return any(map(is_quantized, jax.tree.leaves(tree, is_leaf=is_quantized)))


def check_unquantized(name: str, params: Any) -> None:
  """Checks that a model computes with full precision itself.

  Args:
    name: the model's name.
    params: its own parameters or their shapes.

  Raises:
    ValueError: some are quantized.
  """
  if has_quantized(params):
    raise ValueError(
      f'{name} is a quantized model of qwix; adapt the model that it was made from, and pass the '
      'quantized parameters to init.'
    )


def dequantize(array: Any) -> jax.Array:
  """A quantized array in full precision, in the type it stands for; any other array unchanged."""
  if not is_quantized(array):
    return array
  wide = _bare(array).astype(jnp.float32)
  return sys.modules['qwix'].dequantize(wide).astype(array.dtype)


def _bare(array: Any) -> Any:
  """The quantized array in Flax's box and in qwix's record of how it was made."""
  return nn.meta.unbox(getattr(array, 'array', array))


def as_dequantized(params: Any) -> Any:
  """Params; if some are quantized, the shapes and types of all when dequantized."""
  if not has_quantized(params):
    return params
  return jax.eval_shape(functools.partial(jax.tree.map, dequantize, is_leaf=is_quantized), params)


def repeat_scales(array: Any, axes: Iterable[int]) -> Any:
  """A quantized array with a scale for each index along some axes.

  Scales are one for a tile of the array. With one for each layer, a stack of layers can be sliced,
  scanned and batched leaf by leaf.
  """

  def repeat(leaf: jax.Array) -> jax.Array:
    for axis in axes:
      leaf = leaf.repeat(array.shape[axis] // leaf.shape[axis], axis)
    return leaf

  return jax.tree.map(repeat, array)


def split_quantized(params: Any, shapes: Mapping[KeyPath, Any]) -> tuple[Any, dict[KeyPath, Any]]:
  """Params with shapes instead of quantized arrays, and the quantized arrays by path.

  Args:
    params: parameters of a model, some of them quantized; any pytree.
    shapes: the model's own parameters or their shapes, by path; {} if `params` have them.

  Returns:
    (params, quantized arrays in the model's shapes). Quantized biases and arrays whose tiles do not
    lie along the model's axes are dequantized here.
  """
  quantized: dict[KeyPath, Any] = {}

  def shape_of(keys: Any, value: Any) -> Any:
    if not is_quantized(value):
      return value
    path = path_of(keys)
    like, array = shapes.get(path, value), _bare(value)
    # qwix may have stored it as [in, out]; tiles of that need not be tiles of the model's axes.
    with contextlib.suppress(ValueError):
      array = array.reshape(like.shape)
    if array.shape != like.shape or array.ndim < 2:
      return dequantize(array).reshape(like.shape).astype(like.dtype)
    quantized[path] = array.astype(jnp.promote_types(array.dtype, like.dtype))
    return jax.ShapeDtypeStruct(like.shape, like.dtype)

  return jax.tree_util.tree_map_with_path(shape_of, params, is_leaf=is_quantized), quantized


def full_precision(
  params: Any, shapes: Mapping[KeyPath, Any], only: Container[KeyPath] | None = None
) -> Any:
  """Params without quantized arrays.

  Args:
    params: parameters of a model, some of them quantized; any pytree.
    shapes: the model's own parameters or their shapes, by path: an array that qwix has stored in
      the shape of its product gets the model's shape back.
    only: paths of the arrays to dequantize; None for all.

  Returns:
    Params with float32 instead of quantized arrays; `params` itself if none was quantized.
  """
  if not has_quantized(params):
    return params

  def dequantize_leaf(keys, value):
    path = path_of(keys)
    if not is_quantized(value) or (only is not None and path not in only):
      return value
    array, like = dequantize(_bare(value).astype(jnp.float32)), shapes.get(path)
    return array if like is None or like.size != array.size else array.reshape(like.shape)

  return jax.tree_util.tree_map_with_path(dequantize_leaf, params, is_leaf=is_quantized)


def requantize(params: Any, like: Any) -> Any:
  """Quantizes params as others are quantized.

  Args:
    params: full-precision parameters, of `adapted.fold` for instance.
    like: parameters of the same structure, some of them quantized.

  Returns:
    Params with quantized arrays where `like` has them: of its types, with scales (and zero points)
    of its shapes, chosen for the new values. The error of the rounding is logged as INFO.

  Example: an array that `like` has in full precision stays as it is.
    >>> import glora_jax, jax.numpy as jnp
    >>> folded = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}
    >>> same = glora_jax.requantize(folded, like=folded)
    >>> same['kernel'] is folded['kernel']
    True
  """
  leaves, structure = jax.tree_util.tree_flatten_with_path(like, is_leaf=is_quantized)
  new, errors = [], {}
  is_logged = log.isEnabledFor(logging.INFO)
  for (keys, old), value in zip(leaves, structure.flatten_up_to(params), strict=True):
    new.append(_quantize_like(value, old) if is_quantized(old) else value)
    if is_logged and is_quantized(old) and not isinstance(value, jax.core.Tracer):
      errors[path_name(path_of(keys))] = _rounding_error(new[-1], value)
  if errors:
    errors = jax.device_get(errors)
    worst = max(errors, key=lambda name: errors[name])
    log.info('requantizing changes %s most, by %.2g of its norm', worst, errors[worst])
  return structure.unflatten(new)


@jax.jit
def _rounding_error(quantized: Any, exact: jax.Array) -> jax.Array:
  """The norm of what quantizing has changed, relative to the array's."""
  change = dequantize(quantized).ravel() - exact.ravel()
  return jnp.linalg.norm(change) / jnp.linalg.norm(exact.ravel())


def _quantize_like(value: jax.Array, like: Any) -> Any:
  """A value with the tiles of another array.

  qwix accepts them by axis: one scale for each index (`channelwise_axes`) or for each tile
  (`tiled_axes`), and otherwise one for all of the axis, also for an axis of size one.
  """
  old = _bare(like)
  tiles = dict(enumerate(old.scale_tile_shape))
  one_scale = {axis for axis, tile in tiles.items() if tile == old.shape[axis]}
  new = sys.modules['qwix'].quantize(
    value.reshape(old.shape),
    old.qtype,
    channelwise_axes=[axis for axis, tile in tiles.items() if tile == 1 and axis not in one_scale],
    tiled_axes={a: tile for a, tile in tiles.items() if tile > 1 and a not in one_scale},
    calibration_method='absmax' if old.zero_point is None else 'minmax',
    scale_dtype=old.scale.dtype,
  )
  return like.replace(array=new) if hasattr(like, 'array') else new
