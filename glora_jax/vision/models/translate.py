"""Between the tensors of a file, as a format names and lays them out, and parameters of the ViT."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.files import require_numbers
from glora_jax.vision.models.checkpoint import Arrays, require_shapes
from glora_jax.vision.models.formats.format import Format, Rule, Variant
from glora_jax.vision.models.formats.table import TORCH_FORMATS, WRITTEN
from glora_jax.vision.models.vit import ViT


@dataclasses.dataclass(frozen=True)
class Origin:
  """What a file was read as, so that it can be written back in the same way.

  Attributes:
    format: name of the format, a key of `FORMATS`.
    variant: how the file is laid out.
    prefix: what stands before all names.
    unused: tensors that the model has no use for.
  """

  format: str
  variant: Variant
  prefix: str = ''
  unused: Arrays = dataclasses.field(default_factory=dict, repr=False)

  @property
  def is_written(self) -> bool:
    """Whether the format is written; all others are only read."""
    return self.format in WRITTEN


def read_params(
  path: str,
  arrays: Arrays,
  format: Format[Any],
  model: ViT,
  variant: Variant,
  expected: Mapping[str, jax.ShapeDtypeStruct],
) -> tuple[dict[str, Any], Arrays]:
  """Makes all parameters of a model; the arrays are taken out one by one, so memory is not doubled.

  Args:
    path: path of the file.
    arrays: its arrays by name, the prefix removed.
    format: format that it is in.
    model: the ViT that is made of it.
    variant: how the file is laid out.
    expected: shapes of the model's parameters, by path.

  Returns:
    (nested parameters, the arrays that the format knows and the model has no use for).

  Raises:
    ValueError: arrays are missing, unexpected or misshaped, and all are named; or one of them holds
      anything but finite floating-point numbers.
  """
  rules = {rule.ours: rule for rule in format.rules(model, variant) if rule.ours in expected}
  empty = {path: np.broadcast_to(np.float32(0), spec.shape) for path, spec in expected.items()}
  shapes = _written(rules, empty, model.depth)
  unused = [name for name in arrays if name not in shapes and re.match(format.unused, name)]
  kept = {name: arrays.pop(name) for name in unused}
  require_shapes(path, arrays, shapes)
  require_numbers(path, arrays)
  params = {
    ours: _param(arrays, rules[ours], spec.shape, model.depth) for ours, spec in expected.items()
  }
  return flax.traverse_util.unflatten_dict(params, sep='/'), kept


def _param(arrays: Arrays, rule: Rule, shape: tuple[int, ...], depth: int) -> np.ndarray:
  """A parameter, whose tensors leave the file's; those of blocks are stacked, all in one type."""
  if not rule.theirs:  # computed positions, made of nothing but their shape
    return rule.to_ours(shape)
  names = rule.theirs
  in_file = [
    [name.format(block) for block in range(depth if '{}' in name else 1)] for name in names
  ]
  dtype = functools.reduce(jnp.promote_types, (arrays[x].dtype for found in in_file for x in found))
  parts = []
  for name, found in zip(names, in_file, strict=True):
    blocks = [arrays.pop(x).astype(dtype, copy=False) for x in found]
    parts.append(np.stack(blocks) if '{}' in name else blocks[0])
  return np.asarray(rule.to_ours(*parts), order='C')


def _written(rules: Mapping[str, Rule], flat: Arrays, depth: int) -> Arrays:
  """The tensors, by plain name, that parameters become."""
  tensors = {}
  for path, rule in rules.items():
    parts = dict(zip(rule.theirs, rule.to_theirs(flat[path]), strict=True))
    if '{}' in ''.join(parts):
      named = parts.items()
      parts = {name.format(n): part[n] for n in range(depth) for name, part in named}
    tensors |= parts
  return tensors


def fit_to_format(model: ViT, flat: Arrays, origin: Origin) -> tuple[ViT, Arrays, dict[str, Rule]]:
  """An equal model that a format has a place for; nothing is written.

  What a format cannot say is folded into what it can, where that changes nothing: LayerScale into
  the layers before it, the class token's position into the class token.

  Args:
    model: the ViT.
    flat: its parameters, by path.
    origin: the format, and how the file is to be laid out.

  Returns:
    (the ViT that the format's code base will build, its parameters by path, how they become
    tensors by path).

  Raises:
    ValueError: the format has no place for the model.
  """
  format = TORCH_FORMATS[origin.format]
  model, flat = format.represent(model, dict(flat), origin.variant)
  rules = {rule.ours: rule for rule in format.rules(model, origin.variant) if rule.ours in flat}
  if homeless := sorted(flat.keys() - rules.keys()):
    raise ValueError(
      f'The format {origin.format} cannot store {", ".join(homeless)}; choose another format.'
    )
  return model, flat, rules


def to_tensors(model: ViT, flat: Arrays, origin: Origin) -> tuple[ViT, Arrays]:
  """The tensors of a file, by name, and the model as that format's code base will build it.

  Args:
    model: the ViT.
    flat: its parameters, by path.
    origin: the format, and how the file is to be laid out.

  Raises:
    ValueError: the format has no place for the model.
  """
  format = TORCH_FORMATS[origin.format]
  model, flat, rules = fit_to_format(model, flat, origin)
  tensors = _written(rules, flat, model.depth) | origin.unused
  prefix = format.prefix(model, origin.prefix)
  return model, {full_name(format, prefix, name): value for name, value in tensors.items()}


def full_name(format: Format[Any], prefix: str, name: str) -> str:
  """The name of a tensor or module in a file, where a prefix stands before all that take it."""
  return name if re.match(format.unprefixed, f'{name}.') else prefix + name
