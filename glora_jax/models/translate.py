"""Between the tensors of a file, as a format names and lays them out, and parameters of the ViT."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.models.checkpoint import Arrays, Container, require_numbers, require_shapes
from glora_jax.models.formats.format import Format, Variant
from glora_jax.models.formats.rules import Rule
from glora_jax.models.formats.table import FORMATS
from glora_jax.models.vit import ViT


@dataclasses.dataclass(frozen=True)
class Origin:
  """What a file was read as, so that it can be written back in the same way.

  Attributes:
    format: name of the format, a key of `FORMATS`.
    container: type of the file.
    variant: how the file is laid out.
    prefix: what stands before all names.
    wrapper: key that holds the tensors of a PyTorch file.
    unused: tensors that the model has no use for.
  """

  format: str
  container: Container
  variant: Variant
  prefix: str = ''
  wrapper: str | None = None
  unused: Arrays = dataclasses.field(default_factory=dict, repr=False)


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
  rules, shapes = _layout(format, model, variant, expected)
  unused = [name for name in arrays if name not in shapes and re.match(format.unused, name)]
  kept = {name: arrays.pop(name) for name in unused}
  require_shapes(path, arrays, shapes)
  require_numbers(path, arrays)
  params = {name: _read_param(arrays, rules[name], spec.shape) for name, spec in expected.items()}
  return flax.traverse_util.unflatten_dict(params, sep='/'), kept


def _layout(
  format: Format[Any], model: ViT, variant: Variant, expected: Mapping[str, Any]
) -> tuple[dict[str, Rule], dict[str, Any]]:
  """The rules by path of ours, where the format has a place, and arrays shaped as theirs."""
  rules = {rule.ours: rule for rule in format.rules(model, variant) if rule.ours in expected}
  theirs = {}
  for path, rule in rules.items():
    shape = expected[path].shape
    parts = rule.to_theirs(np.broadcast_to(np.float32(0), shape[1:] if rule.is_stacked else shape))
    for name, part in zip(rule.theirs, parts, strict=True):
      if rule.is_per_block:
        theirs.update({name.format(block): part for block in range(model.depth)})
      elif rule.is_stacked:
        theirs[name] = np.broadcast_to(part, (model.depth, *part.shape))
      else:
        theirs[name] = part
  return rules, theirs


def _read_param(arrays: Arrays, rule: Rule, shape: tuple[int, ...]) -> np.ndarray:
  if not rule.theirs:  # computed, and not in the file
    return rule.to_ours(shape)
  if not rule.is_stacked:
    return np.asarray(rule.to_ours(*map(arrays.pop, rule.theirs)), order='C')
  if rule.is_per_block:
    names = [rule.names_in_block(number) for number in range(shape[0])]
    dtypes = [arrays[name].dtype for block in names for name in block]
    blocks = (map(arrays.pop, block) for block in names)
  else:
    stacks = [arrays.pop(name) for name in rule.theirs]
    dtypes = [array.dtype for array in stacks]
    blocks = zip(*stacks, strict=True)
  stacked = np.empty(shape, functools.reduce(jnp.promote_types, dtypes))
  for number, parts in enumerate(blocks):
    stacked[number] = rule.to_ours(*(part.astype(stacked.dtype, copy=False) for part in parts))
  return stacked


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
  format = FORMATS[origin.format]
  model, flat = format.represent(model, dict(flat), origin.variant)
  rules = {rule.ours: rule for rule in format.rules(model, origin.variant) if rule.ours in flat}
  if homeless := sorted(flat.keys() - rules.keys()):
    raise ValueError(
      f'The format {origin.format} has no place for {", ".join(homeless)}; choose another format.'
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
  format = FORMATS[origin.format]
  model, flat, rules = fit_to_format(model, flat, origin)
  tensors = dict(pair for path, rule in rules.items() for pair in _write(rule, flat[path]))
  tensors |= origin.unused
  prefix = format.prefix(model, origin.prefix)
  return model, {full_name(format, prefix, name): value for name, value in tensors.items()}


def full_name(format: Format[Any], prefix: str, name: str) -> str:
  """The name of a tensor or module in a file, where a prefix stands before all that take it."""
  return name if re.match(format.unprefixed, f'{name}.') else prefix + name


def _write(rule: Rule, parameter: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
  """The tensors, with their plain names, that a parameter becomes."""
  if not rule.is_stacked:
    yield from zip(rule.theirs, rule.to_theirs(parameter), strict=True)
    return
  blocks = map(rule.to_theirs, parameter)
  if rule.is_per_block:
    for number, parts in enumerate(blocks):
      yield from zip(rule.names_in_block(number), parts, strict=True)
  else:
    yield from zip(rule.theirs, map(np.stack, zip(*blocks, strict=True)), strict=True)
