"""What a torch model calls the layers and heads of ours, for adapters of HF PEFT."""

from __future__ import annotations

import abc
import collections
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from glora_jax.limits import listed, shown
from glora_jax.method.adapted import Adapted
from glora_jax.method.site import Site
from glora_jax.models.formats.format import Flat, Format
from glora_jax.models.formats.rules import Rule
from glora_jax.models.formats.table import FORMATS
from glora_jax.models.peft_heads import check_kernel, layout_of, read_linear
from glora_jax.models.translate import Origin, fit_to_format, full_name, write_param
from glora_jax.models.verification import grouped
from glora_jax.models.vit import ViT
from glora_jax.tree import Path, path_name

NameMap = Mapping[str, str | Sequence[str]]
"""Torch modules by path: regular expressions of our paths, and what they stand for; see `ByMap`."""

Names = str | Origin | NameMap
"""The name of a format, what `weights.load` returned as 'source', or a map."""

Transformers = Literal[4, 5]

# Formats whose names are those of files and of transformers' modules up to version 4, and those of
# its modules since version 5.
_MODULES = {'hf_vit': 'hf_vit_modules', 'hf_dinov2': 'hf_dinov2_modules'}


class Naming(abc.ABC):
  """What the modules of a torch model are called."""

  @abc.abstractmethod
  def modules(self, site: Site, index: tuple[int, ...]) -> tuple[str, ...]:
    """Modules whose outputs, side by side and equal in number, are those of a layer.

    Args:
      site: the linear module of ours.
      index: the layer in its stack; () where it is no stack.

    Raises:
      ValueError: the layer has no name.
    """

  @abc.abstractmethod
  def write_head(self, path: Path, params: Flat) -> Flat:
    """The tensors, by full name, that a parameter which is trained in full becomes.

    Args:
      path: path of the parameter.
      params: all parameters of the model, by 'path/of/parameter'.

    Raises:
      ValueError: the torch model has no module that it makes up with others.
    """

  @abc.abstractmethod
  def read_head(self, path: Path, tensors: Flat, depth: int) -> np.ndarray | None:
    """The parameter that tensors make, which are taken out; None where they are not there.

    Args:
      path: path of the parameter.
      tensors: tensors of the file that belong to no adapter, by full name.
      depth: length of the parameter's first axis, which may be a stack.
    """


class ByFormat(Naming):
  """The names of a format that `convert` knows, for this package's ViT.

  Args:
    model: the ViT.
    format: the format.
    prefix: what stands before all names but those of the head.
  """

  def __init__(self, model: ViT, format: Format[Any], prefix: str):
    self._model = model
    self._format = format
    self._prefix = prefix
    self._rules = {rule.ours: rule for rule in format.rules(model, format.variant)}

  def modules(self, site: Site, index: tuple[int, ...]) -> tuple[str, ...]:
    """As `Naming.modules`; three for queries, keys and values where the format has them so."""
    rule = self._rules.get(path_name(site.kernel_path))
    if rule is None:
      raise ValueError(f'The format {self._format.name} has no place for {site.name}.')
    names = rule.names_in_block(*index) if rule.is_stacked else rule.theirs
    return tuple(self._full(name.removesuffix('.weight')) for name in names)

  def write_head(self, path: Path, params: Flat) -> Flat:
    """As `Naming.write_head`."""
    tensors = write_param(self._rule(path), params[path_name(path)])
    return {self._full(name): tensor for name, tensor in tensors.items()}

  def read_head(self, path: Path, tensors: Flat, depth: int) -> np.ndarray | None:
    """As `Naming.read_head`."""
    rule = self._rule(path)
    blocks = [rule.names_in_block(n) for n in range(depth)] if rule.is_stacked else [rule.theirs]
    names = [[self._full(name) for name in block] for block in blocks]
    if any(name not in tensors for block in names for name in block):
      return None
    read = [rule.to_ours(*map(tensors.pop, block)) for block in names]
    value = np.stack(read) if rule.is_stacked else read[0]
    return self._format.own_head(self._model, value) if path == ('head', 'kernel') else value

  def _rule(self, path: Path) -> Rule:
    rule = self._rules.get(path_name(path))
    if rule is None or not all(name.endswith(('.weight', '.bias')) for name in rule.theirs):
      raise ValueError(
        f'PEFT saves whole modules, and {path_name(path)}, which is trained in full, is none in '
        f'the format {self._format.name}; fold the subnet and save the model instead.'
      )
    return rule

  def _full(self, name: str) -> str:
    return full_name(self._format, self._prefix, name)


class ByMap(Naming):
  r"""The names that a user gives.

  Each key is a regular expression of a whole path of ours, and the first that fits counts. Its
  value is the torch module's name, in which groups of the expression (`\1`) and, with '{}', the
  place in a stack may stand; or several, which share the layer's outputs equally and in this order.

  Args:
    names: the map.
    heads: the linear layers among the heads; other kernels are taken for convolutions'.

  Raises:
    ValueError: it is none of patterns to names.
  """

  def __init__(self, names: NameMap, heads: Iterable[Site] = ()):
    for pattern, modules in names.items():
      _check_names(pattern, modules)
    self._names = names
    linear = [site for site in heads if not site.is_convolution]
    self._by_kernel = {site.kernel_path: site for site in linear}
    self._by_bias = {site.bias_path: site for site in linear if site.bias_path is not None}

  def modules(self, site: Site, index: tuple[int, ...]) -> tuple[str, ...]:
    """As `Naming.modules`."""
    modules = tuple(self._find(site.name))
    if any(name.count('{}') != len(index) for name in modules):
      raise ValueError(
        f"names: {', '.join(modules)} should have '{{}}' as often as {site.name} has axes of a "
        f'stack, {len(index)} times.'
      )
    return tuple(_placed(name, index) for name in modules)

  def write_head(self, path: Path, params: Flat) -> Flat:
    """As `Naming.write_head`; kernels are [..., in, out] here, and [out, in, ...] there."""
    name, is_kernel = self._tensor(path)
    value = params[path_name(path)]
    if path in self._by_bias:
      value = np.asarray(layout_of(self._by_bias[path]).vectors(value))
    if not is_kernel:
      return {name: value}
    if path in self._by_kernel:
      return {name: np.asarray(layout_of(self._by_kernel[path]).matrices(value)).T}
    check_kernel(path_name(path), value)
    return {name: np.moveaxis(value, (-1, -2), (0, 1))}

  def read_head(self, path: Path, tensors: Flat, depth: int) -> np.ndarray | None:
    """As `Naming.read_head`."""
    name, is_kernel = self._tensor(path)
    value = tensors.pop(name, None)
    if value is None:
      return value
    site = self._by_kernel.get(path) or self._by_bias.get(path)
    if site is not None and (is_kernel or path in self._by_bias):
      return read_linear(site, path, value)
    if not is_kernel:
      return value
    check_kernel(name, value)
    return np.moveaxis(value, (0, 1), (-1, -2))

  def _find(self, path: str) -> Iterator[str]:
    for pattern, modules in self._names.items():
      if match := re.fullmatch(pattern, path):
        names = (modules,) if isinstance(modules, str) else modules
        return (_filled(match, name) for name in names)
    raise ValueError(
      f"names: no pattern matches '{path}'; give the name of its torch module "
      f'({", ".join(map(str, self._names)) or "there are none"}).'
    )

  def _tensor(self, path: Path) -> tuple[str, bool]:
    """The name of a head's tensor, and whether it is a kernel, whose axes have another order."""
    *module, leaf = path
    if leaf not in _LEAVES:
      raise ValueError(
        f'{path_name(path)}, which is trained in full, has no counterpart in torch that is known '
        f'here; parameters named {", ".join(_LEAVES)} have.'
      )
    modules = list(self._find(path_name(tuple(module))))
    if len(modules) > 1 or '{}' in modules[0]:
      raise ValueError(f'names: the head {path_name(tuple(module))} must be one torch module.')
    return f'{modules[0]}.{_LEAVES[leaf]}', leaf in _KERNELS


def _check_names(pattern: Any, modules: Any) -> None:
  """Raises ValueError unless an item of a map is a pattern with one name or several."""
  names = [modules] if isinstance(modules, str) else modules
  are_names = isinstance(names, Sequence) and names and all(isinstance(n, str) and n for n in names)
  if not isinstance(pattern, str | re.Pattern) or not are_names:
    raise ValueError(
      f'names: {shown(pattern)}: {shown(modules)} is no pattern of paths with the name of a torch '
      'module, or several.'
    )
  try:
    re.compile(pattern)
  except re.error as error:
    raise ValueError(f'names: {shown(pattern)} is no regular expression ({error}).') from error


def _filled(match: re.Match[str], name: str) -> str:
  """A name with the groups of an expression in it."""
  try:
    return match.expand(name)
  except (re.error, IndexError) as error:
    raise ValueError(
      f'names: {shown(name)} asks for a group that {shown(match.re.pattern)} does not have '
      f'({error}).'
    ) from error


def _placed(name: str, index: Sequence[int]) -> str:
  """A name with the place in a stack where it has '{}'."""
  for number in index:
    name = name.replace('{}', str(number), 1)
  return name


# Names of parameters here, and in torch.
_LEAVES = {
  'kernel': 'weight',
  'w': 'weight',
  'weight': 'weight',
  'scale': 'weight',
  'embedding': 'weight',
  'bias': 'bias',
  'b': 'bias',
}
_KERNELS = ('kernel', 'w')


def naming_to_write(
  names: Names, adapted: Adapted, params: Flat, transformers: Transformers
) -> tuple[Naming, Flat]:
  """The names that an adapter is written with, and the model's parameters as they know them.

  Args:
    names: a format's name, an origin or a map.
    adapted: the adapted model.
    params: its parameters, by 'path/of/parameter'.
    transformers: version of transformers whose modules are named.

  Raises:
    ValueError: the format is not one of torch, or cannot say the model as it is.
  """
  _check_kind(names)
  if transformers not in (4, 5):
    raise ValueError(f'transformers={shown(transformers)} must be 4 or 5.')
  if isinstance(names, Mapping):
    return ByMap(names, adapted.head_sites), params
  model = _require_vit(adapted)
  given = names.format if isinstance(names, Origin) else names
  by_version = _MODULES if transformers == 5 else {new: old for old, new in _MODULES.items()}
  name = by_version.get(given, given)
  if name not in _torch_formats():
    known = listed(_torch_formats())
    raise ValueError(f'names={shown(given)} is no format of a torch model; those are {known}.')
  format = FORMATS[name]
  prefix = names.prefix if isinstance(names, Origin) else ''
  fitted = fit_to_format(model, params, Origin(name, format.container, format.variant))
  for group in adapted.groups:
    for site in group.members:
      kernel = path_name(site.kernel_path)
      if fitted.flat[kernel] is not params[kernel]:
        raise ValueError(
          f'The format {name} has LayerScale folded into {site.name}, which the adapter does not '
          "fit; name the modules of a format that has it ('timm', 'hf_dinov2'), or fold the subnet "
          'and save the model.'
        )
  return ByFormat(fitted.model, format, format.prefix(fitted.model, prefix)), fitted.flat


def naming_to_read(names: Names | None, adapted: Adapted, modules: Iterable[str]) -> Naming:
  """The names that the modules of an adapter have.

  Args:
    names: a format's name, an origin or a map; None for the format that fits.
    adapted: the adapted model.
    modules: modules that the file has an adapter for.

  Raises:
    ValueError: none fits.
  """
  if names is not None:
    _check_kind(names)
  if isinstance(names, Mapping):
    by_map = ByMap(names, adapted.head_sites)
    require_distinct(_all_modules(adapted, by_map))
    return by_map
  model = _require_vit(adapted)
  modules = list(modules)
  given = names.format if isinstance(names, Origin) else names
  formats = [FORMATS[name] for name in _torch_formats() if given in (None, name)]
  for format in formats:
    known = set(_all_modules(adapted, ByFormat(model, format, '')))
    for prefix in _prefixes(modules, known):
      naming = ByFormat(model, format, prefix)
      if set(modules) <= set(_all_modules(adapted, naming)):
        return naming
  wanted = f'the format {shown(given)}' if given else 'any format'
  raise ValueError(
    f'The modules of the adapter ({grouped(modules)}) are not all adapted layers of this model in '
    f'{wanted}; adapt these layers, or give names, a map of paths here to names there.'
  )


def _check_kind(names: Any) -> None:
  """Raises ValueError where names are neither those of a format nor a map."""
  if not isinstance(names, str | Origin | Mapping):
    raise ValueError(
      f"names={shown(names)} must be the name of a format, the 'source' of weights, or a map of "
      'paths here to names of torch modules.'
    )


def require_distinct(modules: Iterable[str]) -> None:
  """Raises ValueError where two layers of ours are the same torch module."""
  repeated = [name for name, count in collections.Counter(modules).items() if count > 1]
  if repeated:
    raise ValueError(
      f'names: {grouped(repeated)} stands for several layers; give each a name of its own.'
    )


def _torch_formats() -> list[str]:
  return [name for name, format in FORMATS.items() if format.container != 'npz']


def _require_vit(adapted: Adapted) -> ViT:
  if not isinstance(adapted.model, ViT):
    raise ValueError(
      f'Formats are for the ViT of this package, and this is a {type(adapted.model).__name__}; '
      'give names, a map of paths here to names of torch modules.'
    )
  return adapted.model


def _all_modules(adapted: Adapted, naming: Naming) -> Iterator[str]:
  for group in adapted.groups:
    for index, _ in group.slices():
      for site in group.members:
        yield from naming.modules(site, index)


def _prefixes(modules: Sequence[str], known: Iterable[str]) -> list[str]:
  """What stands before a name that is known, in the first of the modules."""
  prefixes = (modules[0].removesuffix(name) for name in known if modules[0].endswith(name))
  return sorted({prefix for prefix in prefixes if prefix == '' or prefix.endswith('.')})
