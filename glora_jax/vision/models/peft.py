"""Adapters of HF PEFT for the ViTs of timm and transformers, with the names of their formats."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from glora_jax import peft
from glora_jax.checks import listed, shown, validate
from glora_jax.files import Path
from glora_jax.method.adapted import Adapted, check_variables
from glora_jax.peft.kinds import KindName
from glora_jax.tree import by_name, flatten, grouped, path_name
from glora_jax.vision.models.formats.format import Format, TorchFormat
from glora_jax.vision.models.formats.table import TORCH_FORMATS, WRITTEN
from glora_jax.vision.models.vit import ViT


def save(
  folder: Path,
  adapted: Adapted,
  variables: Mapping[str, Any],
  format: str | Format,
  *,
  kind: KindName | None = None,
  base: str | None = None,
) -> KindName:
  """Writes a fixed structure as an adapter that HF PEFT loads for the torch model of a format.

  DINOv2's classifiers read class token and mean patch. A head that reads only one of them is
  written with zeros for the other, which `load` removes.

  Args:
    folder: path of the folder; created if missing.
    adapted: the adapted ViT.
    variables: its variables, after training.
    format: 'timm', 'hf_vit' or 'hf_dinov2', or the 'source' that `weights.load` returned.
    kind: see `glora_jax.peft.save`.
    base: see `glora_jax.peft.save`.

  Returns:
    The kind that was written.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: the format is unknown, cannot store the model, or folds LayerScale into an adapted
      layer; see also `glora_jax.peft.save`.

  Example:
    >>> import tempfile, jax
    >>> from glora_jax import adapt
    >>> from glora_jax.vision.models import peft, weights
    >>> model, params, _ = weights.load(weights.EMBEDDED_FILE)
    >>> adapted = adapt(model, np.zeros((1, 28, 28, 3)), structure='lora:4')
    >>> variables = adapted.init(jax.random.key(0), params)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   kind = peft.save(folder, adapted, variables, 'timm')
    ...   again, _ = peft.load(folder, adapted, params)
    >>> kind, (again.genome == adapted.genome).all()
    ('lora', np.True_)
  """
  validate(adapted, Adapted, 'adapted')
  validate(adapted.model, ViT, 'adapted.model')
  name, prefix = format, ''
  if isinstance(format, Format):
    name, prefix = format.name, format.prefix
  # In transformers 5 modules have other names than in its files.
  torch_format = TORCH_FORMATS.get(f'{name}_modules') or TORCH_FORMATS.get(
    validate(name, str, 'format')
  )
  if torch_format is None:
    raise ValueError(
      f'format={shown(name)} is not a format of a torch model; use one of {listed(WRITTEN)}.'
    )
  torch_format = dataclasses.replace(torch_format, prefix=prefix).for_model(adapted.model)
  names = torch_format.modules(adapted.model)
  check_variables(adapted, variables)
  flat = flatten(adapted.full_precision(variables['params']))
  params = {path: np.asarray(value) for path, value in by_name(flat).items()}
  _, fitted, _ = torch_format.fit(adapted.model, params)
  for site in adapted.places.sites:
    kernel = path_name(site.kernel_path)
    if fitted[kernel] is not params[kernel]:
      raise ValueError(
        f'The format {torch_format.name} folds LayerScale into {site.name}, which is adapted; '
        "use a format that has LayerScale ('timm', 'hf_dinov2'), or fold the structure "
        'and save the model with weights.save.'
      )
  heads = {f'{names["head"][0]}.weight': fitted['head/kernel'].T} if 'head/kernel' in fitted else {}
  return peft.save(folder, adapted, variables, names, kind=kind, heads=heads, base=base)


def load(folder: Path, adapted: Adapted, params: Any) -> tuple[Adapted, dict[str, Any]]:
  """Reads a PEFT adapter for the torch model of any format, which is found from its names.

  Args:
    folder: path of the adapter's folder, or its name on the hub, `hf:owner/name[@revision]`.
    adapted: the ViT, adapted, with the heads that the adapter trains.
    params: the base's parameters.

  Returns:
    (adapted, variables), as `glora_jax.peft.load`.

  Raises:
    FileNotFoundError: there is no adapter.
    TypeError: an argument has the wrong type.
    ValueError: no format has its names; see also `glora_jax.peft.load`.

  Example: see `save`.
  """
  validate(adapted, Adapted, 'adapted')
  validate(adapted.model, ViT, 'adapted.model')
  adapter = peft.read(folder)
  format = _find(adapted.model, adapter.modules.keys())
  names = format.modules(adapted.model)
  head = f'{names["head"][0]}.weight'
  if head in adapter.heads:
    adapter.heads[head] = format.own_head(adapted.model, adapter.heads[head].T).T
  return peft.load(adapter, adapted, params, names)


def _find(model: ViT, modules: Set[str]) -> TorchFormat:
  """The format that has all modules of an adapter, with the prefix of their names."""
  for format in TORCH_FORMATS.values():
    known = [
      name.format(block)
      for block in range(model.depth)
      for name in itertools.chain(*format.modules(model).values())
    ]
    prefixes = {
      module.removesuffix(end) for module in modules for end in known if module.endswith(end)
    }
    for prefix in sorted(prefixes):
      found = dataclasses.replace(format, prefix=prefix)
      if modules <= {found.full_name(module) for module in known}:
        return found
  raise ValueError(
    f'The modules of the adapter ({grouped(modules)}) are not all layers of this ViT in a format '
    f'({listed(WRITTEN)}); load it with glora_jax.peft.load and a map of names.'
  )
