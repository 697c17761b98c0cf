"""What a torch model calls the layers and heads of ours, for adapters of HF PEFT."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from glora_jax.limits import listed, shown
from glora_jax.method.adapted import Adapted
from glora_jax.method.groups import Group
from glora_jax.method.site import Layout
from glora_jax.models.checkpoint import Arrays
from glora_jax.models.formats.format import Format
from glora_jax.models.formats.table import FORMATS
from glora_jax.models.translate import Origin, fit_to_format, full_name
from glora_jax.models.vit import ViT
from glora_jax.tree import Path, grouped, path_name

NameMap = Mapping[str, str | Sequence[str]]
"""Names of torch modules by regular expressions of our paths; see `save_peft`."""

Names = str | Origin | NameMap
"""The name of a format, what `weights.load` returned as 'source', or a map."""

Transformers = Literal[4, 5]

# Formats that name the modules of transformers up to version 4, and since version 5.
_MODULES = {'hf_vit': 'hf_vit_modules', 'hf_dinov2': 'hf_dinov2_modules'}

# Names of parameters here, and in torch.
_LEAVES = {
  'kernel': 'weight',
  'w': 'weight',
  'weight': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'b': 'bias',
}
_KERNELS = ('kernel', 'w')
_LINEAR = Layout((), (0,), (1,))

_TORCH_FORMATS = [name for name, format in FORMATS.items() if format.container != 'npz']


class Part(NamedTuple):
  """The part of a layer of ours that one torch module is.

  Attributes:
    group: the layers that it shares arrays with.
    index: the layer's place in their stack.
    row: its row of the genome.
    outputs: the columns of the layer's kernel.
  """

  group: Group
  index: tuple[int, ...]
  row: int
  outputs: slice


class Naming(NamedTuple):
  """The names of a torch model's modules, for an adapted model.

  Attributes:
    adapted: the adapted model.
    names: the names, by regular expressions of whole paths of ours; the first that fits counts.
    format: the format that they are of; None for a user's map.
  """

  adapted: Adapted
  names: NameMap
  format: Format[Any] | None = None

  def parts(self, rows: Iterable[int]) -> dict[str, Part]:
    """The torch modules that some rows of the genome are made of, by name.

    Raises:
      ValueError: a layer has no name, or shares one with another.
    """
    rows, parts = set(rows), []
    for group in self.adapted.groups:
      for index, row in group.slices():
        start = 0
        for site in group.members if row in rows else ():
          names = self._modules(site.name, index)
          width, rest = divmod(site.out_features, len(names))
          if rest:
            raise ValueError(
              f'names: the {site.out_features} outputs of {site.name} are not divisible among '
              f'{", ".join(names)}.'
            )
          for name in names:
            parts.append((name, Part(group, index, row, slice(start, start + width))))
            start += width
    counts = collections.Counter(name for name, _ in parts)
    if repeated := [name for name, count in counts.items() if count > 1]:
      raise ValueError(
        f'names: {grouped(repeated)} stands for several layers; give each a name of its own.'
      )
    return dict(parts)

  def head(self, path: Path) -> tuple[str, bool]:
    """The tensor, by full name, of a parameter that is trained in full; whether it is a kernel.

    Raises:
      ValueError: it is of no linear layer or norm of the torch model.
    """
    *module, leaf = path
    shape, is_kernel = self.adapted.param_shapes[path].shape, leaf in _KERNELS
    sites = [site for site in self.adapted.head_sites if site.kernel_path == path]
    if (
      leaf not in _LEAVES
      or len(shape) != 1 + is_kernel
      or any(site.layout != _LINEAR for site in sites)
    ):
      raise ValueError(
        f'Heads are linear layers and norms for PEFT, and {path_name(path)} {shape}, which is '
        'trained in full, is a parameter of neither; fold the subnet and save the model instead.'
      )
    names = self._modules(path_name(tuple(module)), ())
    if len(names) > 1:
      raise ValueError(f'names: the head {path_name(tuple(module))} must be one torch module.')
    return f'{names[0]}.{_LEAVES[leaf]}', is_kernel

  def _modules(self, path: str, index: tuple[int, ...]) -> list[str]:
    """Names of the torch modules of a path of ours; '{}' is its place on an axis of a stack."""
    for pattern, modules in self.names.items():
      try:
        match = re.fullmatch(pattern, path)
        given = [modules] if isinstance(modules, str) else modules
        names = [match.expand(name) for name in given] if match else []
      except (re.error, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
          f'names: {shown(pattern)}: {shown(modules)} is no pattern of paths with the name of a '
          f'torch module, or several ({error}).'
        ) from error
      if not match:
        continue
      if not names or any(name.count('{}') != len(index) or not name for name in names):
        raise ValueError(
          f"names: {shown(modules)} should have '{{}}' as often as {path} has axes of a stack, "
          f'{len(index)} times.'
        )
      for place in map(str, index):
        names = [name.replace('{}', place, 1) for name in names]
      return names
    raise ValueError(
      f"names: no pattern matches '{path}'; give the name of its torch module "
      f'({", ".join(map(str, self.names)) or "there are none"}).'
    )


def naming_to_write(
  names: Names, adapted: Adapted, params: Arrays, transformers: Transformers
) -> tuple[Naming, Arrays]:
  """The names that an adapter is written with, and the model's parameters as they know them.

  Args:
    names: a format's name, an origin or a map.
    adapted: the adapted model.
    params: its parameters, by 'path/of/parameter'.
    transformers: version of transformers whose modules are named.

  Raises:
    ValueError: the format is not one of torch, or cannot say the model as it is.
  """
  if transformers not in (4, 5):
    raise ValueError(f'transformers={shown(transformers)} must be 4 or 5.')
  given, model = _check_names(names, adapted)
  if isinstance(names, Mapping):
    return Naming(adapted, names), params
  by_version = _MODULES if transformers == 5 else {new: old for old, new in _MODULES.items()}
  name = by_version.get(given, given)
  if name not in _TORCH_FORMATS:
    known = listed(_TORCH_FORMATS)
    raise ValueError(f'names={shown(given)} is no format of a torch model; those are {known}.')
  format = FORMATS[name]
  prefix = names.prefix if isinstance(names, Origin) else ''
  origin = Origin(name, format.container, format.variant)
  fitted, flat, _ = fit_to_format(model, params, origin)
  for group in adapted.groups:
    for site in group.members:
      kernel = path_name(site.kernel_path)
      if flat[kernel] is not params[kernel]:
        raise ValueError(
          f'The format {name} has LayerScale folded into {site.name}, which the adapter does not '
          "fit; name the modules of a format that has it ('timm', 'hf_dinov2'), or fold the subnet "
          'and save the model.'
        )
  modules = _modules_of(fitted, format, format.prefix(fitted, prefix))
  return Naming(adapted, modules), flat


def naming_to_read(names: Names | None, adapted: Adapted, modules: Sequence[str]) -> Naming:
  """The names that the modules of an adapter have.

  Args:
    names: a format's name, an origin or a map; None for the format that fits.
    adapted: the adapted model.
    modules: modules that the file has an adapter for.

  Raises:
    ValueError: none fits.
  """
  given, model = _check_names(names, adapted)
  if isinstance(names, Mapping):
    return Naming(adapted, names)
  rows = range(len(adapted.spec))
  for name in _TORCH_FORMATS:
    if given not in (None, name):
      continue
    format = FORMATS[name]
    known = Naming(adapted, _modules_of(model, format, '')).parts(rows)
    prefixes = {modules[0].removesuffix(end) for end in known if modules[0].endswith(end)}
    for prefix in sorted(prefix for prefix in prefixes if prefix == '' or prefix.endswith('.')):
      naming = Naming(adapted, _modules_of(model, format, prefix), format)
      if naming.parts(rows).keys() >= set(modules):
        return naming
  wanted = f'the format {shown(given)}' if given else 'any format'
  raise ValueError(
    f'The modules of the adapter ({grouped(modules)}) are not all adapted layers of this model in '
    f'{wanted}; adapt these layers, or give names, a map of paths here to names there.'
  )


def _check_names(names: Any, adapted: Adapted) -> tuple[Any, Any]:
  """The name of a format and the ViT that it names; neither where names are a map."""
  if isinstance(names, Mapping):
    return None, None
  if names is not None and not isinstance(names, str | Origin):
    raise ValueError(
      f"names={shown(names)} must be the name of a format, the 'source' of weights, or a map of "
      'paths here to names of torch modules.'
    )
  if not isinstance(adapted.model, ViT):
    raise ValueError(
      f'Formats are for the ViT of this package, and this is a {type(adapted.model).__name__}; '
      'give names, a map of paths here to names of torch modules.'
    )
  return names.format if isinstance(names, Origin) else names, adapted.model


def _modules_of(model: ViT, format: Format[Any], prefix: str) -> NameMap:
  """The modules of a format that `convert` knows, by path of ours."""
  return {
    rule.ours.rpartition('/')[0]: [
      full_name(format, prefix, name.rpartition('.')[0]) for name in rule.theirs
    ]
    for rule in format.rules(model, format.variant)
    if all(name.endswith(('.weight', '.bias')) for name in rule.theirs)
  }
