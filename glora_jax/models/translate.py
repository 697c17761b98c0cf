"""Between the tensors of a file, as a format names and lays them out, and parameters of the ViT."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import flax
import jax
import numpy as np

from glora_jax.models.containers import (
  Container,
  Tensors,
  finite,
  read_finite,
  require_floats,
  require_shapes,
)
from glora_jax.models.formats.format import Flat, Format, Variant
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
  unused: Flat = dataclasses.field(default_factory=dict, repr=False)


class PlainNames:
  """The tensors of a file under the names that its format knows, without the prefix.

  Args:
    tensors: the opened file.
    in_file: the name in the file of each tensor, by its plain name.
  """

  def __init__(self, tensors: Tensors, in_file: Mapping[str, str]):
    self.path = tensors.path
    self.specs = {plain: tensors.specs[name] for plain, name in in_file.items()}
    self._tensors = tensors
    self._in_file = in_file

  def read(self, plain: str) -> np.ndarray:
    """A tensor, as it is in the file."""
    return self._tensors.read(self._in_file[plain])

  def read_finite(self, plain: str) -> np.ndarray:
    """A tensor; ValueError where a number in it is not finite."""
    return read_finite(self._tensors, self._in_file[plain])

  def finite_blocks(self, plain: str) -> Iterator[np.ndarray]:
    """A tensor along its first axis, one index at a time; ValueError where it is not finite."""
    name = self._in_file[plain]
    for block in self._tensors.blocks(name):
      yield finite(self.path, name, block)


def read_params(
  tensors: PlainNames,
  format: Format[Any],
  model: ViT,
  variant: Variant,
  expected: Mapping[str, jax.ShapeDtypeStruct],
) -> tuple[dict[str, Any], Flat]:
  """Reads all parameters of a model, each written at once to where it stays.

  Args:
    tensors: the file.
    format: format that it is in.
    model: the ViT that is made of it.
    variant: how the file is laid out.
    expected: shapes of the model's parameters, by path.

  Returns:
    (nested parameters, the tensors that the format knows and the model has no use for).

  Raises:
    ValueError: tensors are missing, unexpected or misshaped, and all are named; or one of them is
      damaged, or holds anything but finite floating-point numbers.
  """
  rules, shapes = _layout(format, model, variant, expected)
  specs = tensors.specs
  unused = [name for name in specs if name not in shapes and re.match(format.unused, name)]
  used = {name: spec for name, spec in specs.items() if name not in unused}
  require_shapes(tensors.path, {name: spec.shape for name, spec in used.items()}, shapes)
  require_floats(tensors.path, used)
  params = {path: _read_param(tensors, rules[path], spec.shape) for path, spec in expected.items()}
  nested = flax.traverse_util.unflatten_dict(params, sep='/')
  return nested, {name: tensors.read(name) for name in unused}


def _layout(
  format: Format[Any], model: ViT, variant: Variant, expected: Mapping[str, Any]
) -> tuple[dict[str, Rule], dict[str, tuple[int, ...]]]:
  """The rules by path of ours, where the format has a place, and the shapes of their tensors."""
  rules = {rule.ours: rule for rule in format.rules(model, variant) if rule.ours in expected}
  shapes = {}
  for path, rule in rules.items():
    shape = expected[path].shape
    parameter = np.broadcast_to(np.float32(0), shape[1:] if rule.is_stacked else shape)
    for name, part in zip(rule.theirs, rule.to_theirs(parameter), strict=True):
      if not rule.is_stacked:
        shapes[name] = part.shape
      elif rule.is_per_block:
        shapes.update({name.format(block): part.shape for block in range(model.depth)})
      else:
        shapes[name] = (model.depth, *part.shape)
  return rules, shapes


def _read_param(tensors: PlainNames, rule: Rule, shape: tuple[int, ...]) -> np.ndarray:
  if not rule.theirs:  # computed, and not in the file
    return rule.to_ours(shape)
  if not rule.is_stacked:
    parts = map(tensors.read_finite, rule.theirs)
    return np.asarray(rule.to_ours(*parts), order='C')
  if rule.is_per_block:
    names = [rule.names_in_block(number) for number in range(shape[0])]
    blocks = (map(tensors.read_finite, block) for block in names)
    sources = [name for block in names for name in block]
  else:
    blocks = zip(*(tensors.finite_blocks(name) for name in rule.theirs), strict=True)
    sources = list(rule.theirs)
  specs = tensors.specs
  dtype = _common_type({specs[name].dtype for name in sources})
  alike = ((part.astype(dtype, copy=False) for part in parts) for parts in blocks)
  return stack(shape, dtype, (rule.to_ours(*parts) for parts in alike))


def _common_type(dtypes: Collection[np.dtype]) -> np.dtype:
  """The type that holds numbers of all; NumPy knows none for float16 and bfloat16 together."""
  widest = max(dtypes, key=lambda dtype: dtype.itemsize)
  return widest if len(dtypes) == 1 or widest.itemsize > 2 else np.dtype(np.float32)


def stack(shape: tuple[int, ...], dtype: np.dtype, blocks: Iterable[np.ndarray]) -> np.ndarray:
  """As `np.stack`, without ever holding the blocks twice."""
  stacked = np.empty(shape, dtype)
  for number, block in enumerate(blocks):
    stacked[number] = block
  return stacked


class Fitted(NamedTuple):
  """A model as a format can say it.

  Attributes:
    model: the ViT that the format's code base will build.
    flat: its parameters, by path.
    rules: how they become tensors, by path.
  """

  model: ViT
  flat: Flat
  rules: dict[str, Rule]


def fit_to_format(model: ViT, flat: Flat, origin: Origin) -> Fitted:
  """An equal model that a format has a place for; nothing is written.

  What a format cannot say is folded into what it can, where that changes nothing: LayerScale into
  the layers before it, the class token's position into the class token.

  Args:
    model: the ViT.
    flat: its parameters, by path.
    origin: the format, and how the file is to be laid out.

  Raises:
    ValueError: the format has no place for the model.
  """
  format = FORMATS[origin.format]
  model, flat = format.represent(model, dict(flat), origin.variant)
  rules, _ = _layout(format, model, origin.variant, flat)
  if homeless := sorted(flat.keys() - rules.keys()):
    raise ValueError(
      f'The format {origin.format} has no place for {", ".join(homeless)}; choose another format.'
    )
  return Fitted(model, flat, rules)


def to_tensors(model: ViT, flat: Flat, origin: Origin) -> tuple[ViT, Flat]:
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
  tensors = {}
  for path, rule in rules.items():
    tensors.update(write_param(rule, flat[path]))
  tensors.update(origin.unused)
  prefix = format.prefix(model, origin.prefix)
  return model, {full_name(format, prefix, name): value for name, value in tensors.items()}


def full_name(format: Format[Any], prefix: str, name: str) -> str:
  """The name of a tensor or module in a file, where a prefix stands before all that take it."""
  return name if re.match(format.unprefixed, f'{name}.') else prefix + name


def write_param(rule: Rule, parameter: np.ndarray) -> Flat:
  """The tensors, by plain name, that a parameter becomes."""
  if not rule.is_stacked:
    return dict(zip(rule.theirs, rule.to_theirs(parameter), strict=True))
  blocks = [rule.to_theirs(block) for block in parameter]
  if rule.is_per_block:
    return {
      name: part
      for number, block in enumerate(blocks)
      for name, part in zip(rule.names_in_block(number), block, strict=True)
    }
  stacked = [np.stack(parts) for parts in zip(*blocks, strict=True)]
  return dict(zip(rule.theirs, stacked, strict=True))
