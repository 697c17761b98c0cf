"""HF PEFT's adapters as files: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from glora_jax.files import Path, first_line, write_json, write_safetensors
from glora_jax.limits import check_path, listed, printable, shown
from glora_jax.method.space import Tensor
from glora_jax.models import hub
from glora_jax.models.containers.opening import open_tensors
from glora_jax.models.formats.format import Flat
from glora_jax.models.metadata import read_json
from glora_jax.models.verification import read_finite, require_floats

CONFIG = 'adapter_config.json'
TENSORS = 'adapter_model.safetensors'
HUB_FILES = hub.HubFiles(TENSORS, (CONFIG,))

_ROOT = 'base_model.model.'  # before the names of the torch model's modules

# Fields of a LoRA's config that make another function of the same tensors, or a base of its own.
_OTHER_FUNCTIONS = (
  'use_dora',
  'use_bdlora',
  'use_qalora',
  'lora_bias',
  'kasa_config',
  'arrow_config',
  'alora_invocation_tokens',
  'layer_replication',
  'target_parameters',
  'trainable_token_indices',
)
_OTHER_BASES = ('pissa', 'olora', 'corda', 'loftq', 'lora_ga')  # `init_lora_weights` begins so

_LORA = re.compile(r'(.+)\.lora_([AB])\.weight')
_GLORA = re.compile(r'(.+)\.glora_([ABCDE])\.(Xd|Xu|X|zeros)')


class LowRank(NamedTuple):
  """A tensor of the equation as `down @ up`.

  Attributes:
    down: [in, rank].
    up: [rank, out]; for C [rank, 1].
  """

  down: np.ndarray
  up: np.ndarray


class FlatForm(NamedTuple):
  """A tensor of the equation that is a constant or a vector.

  Attributes:
    form: which of both.
    values: [1], or [out] (of C: [in]).
  """

  form: Literal['constant', 'vector']
  values: np.ndarray


Forms = dict[Tensor, LowRank | FlatForm]
"""The forms of a layer's tensors, where they are not none."""


class AdapterFile(NamedTuple):
  """What an adapter says.

  Attributes:
    path: path of its folder.
    modules: what it says of each torch module that it adapts, by full name.
    others: other tensors, of modules that were trained in full, by full name.
  """

  path: str
  modules: dict[str, Forms]
  others: Flat


def write(folder: Path, loras: Mapping[str, LowRank], heads: Flat, base: str | None) -> None:
  """Writes an adapter of LoRAs, each with an alpha equal to its rank.

  Args:
    folder: path of the folder, which is made where it is missing.
    loras: the LoRAs by full name of the torch module; at least one.
    heads: tensors of modules that were trained in full, by full name.
    base: name of the base model; `hf:owner/name@revision` becomes name and revision.
  """
  tensors = {}
  for module, (down, up) in loras.items():
    tensors[f'{_ROOT}{module}.lora_A.weight'] = down.T
    tensors[f'{_ROOT}{module}.lora_B.weight'] = up.T
  tensors |= {f'{_ROOT}{name}': value for name, value in heads.items()}
  config = _config(loras, heads, base)
  os.makedirs(folder, exist_ok=True)
  write_safetensors(os.path.join(folder, TENSORS), tensors, {'format': 'pt'})
  write_json(os.path.join(folder, CONFIG), config)


def _config(loras: Mapping[str, LowRank], heads: Flat, base: str | None) -> dict[str, Any]:
  ranks = {module: lora.down.shape[1] for module, lora in loras.items()}
  ((usual, count),) = collections.Counter(ranks.values()).most_common(1)
  # PEFT takes the first key that a module's name ends with. So longer names come first, and where
  # ranks differ, every module has its own key.
  pattern = {}
  if count < len(ranks):
    pattern = {module: ranks[module] for module in sorted(ranks, key=len, reverse=True)}
  name = hub.parse(base) if hub.is_hub_name(base) else hub.HubName(base or '')
  return {
    'peft_type': 'LORA',
    'task_type': None,
    'base_model_name_or_path': name.repository or None,
    'revision': name.revision,
    'inference_mode': True,
    'r': usual,
    'lora_alpha': usual,
    'rank_pattern': pattern,
    'alpha_pattern': pattern,
    'target_modules': list(ranks),
    'modules_to_save': sorted({name.rpartition('.')[0] for name in heads}) or None,
    'lora_dropout': 0.0,
    'bias': 'none',
    'fan_in_fan_out': False,
    'init_lora_weights': True,
    'use_rslora': False,
    'use_dora': False,
  }


def read(folder: Path) -> AdapterFile:
  """Reads an adapter of PEFT's LoRA or GLoRA.

  Args:
    folder: path of the folder, or a name on the hub.

  Raises:
    FileNotFoundError: there is no adapter.
    ValueError: it is damaged, or of a kind that is not read.
  """
  path = check_path(hub.local(check_path(folder), HUB_FILES))
  config, tensors = _read_config(path), _read_tensors(path)
  kind = config.get('peft_type')
  if not isinstance(kind, str) or kind not in _READERS:
    raise ValueError(
      f'{path} is an adapter of PEFT of the kind {shown(kind)}; {" and ".join(_READERS)} are read.'
    )
  _require_plain(path, config)
  named = {name.removeprefix(_ROOT): value for name, value in tensors.items()}
  modules = _READERS[kind](path, named, config)
  return AdapterFile(path, modules, named)


def _read_config(path: str) -> dict[str, Any]:
  file = os.path.join(path, CONFIG)
  if not os.path.isfile(file):
    raise FileNotFoundError(
      f'There is no {CONFIG} in {path}; give the folder of an adapter of PEFT.'
    )
  config = read_json(file)
  if not isinstance(config, dict):
    raise ValueError(f'{file} is no config of an adapter of PEFT; get it again.')
  return config


def _read_tensors(path: str) -> Flat:
  file = os.path.join(path, TENSORS)
  if not os.path.isfile(file):
    raise FileNotFoundError(
      f'There is no {TENSORS} in {path}; where there is an adapter_model.bin, save it again with '
      'save_pretrained(..., safe_serialization=True).'
    )
  opened = open_tensors(file)
  require_floats(file, opened.specs)
  return {name: read_finite(opened, name) for name in opened.specs}


def _require_plain(path: str, config: Mapping[str, Any]) -> None:
  """Raises ValueError for a config that makes more of its tensors than is read here."""
  odd = {field: config[field] for field in _OTHER_FUNCTIONS if config.get(field)}
  if config.get('bias', 'none') != 'none':
    odd['bias'] = config['bias']
  if str(config.get('init_lora_weights')).lower().startswith(_OTHER_BASES):
    odd['init_lora_weights'] = config['init_lora_weights']
  if odd:
    stated = ', '.join(f'{field}={shown(value)}' for field, value in odd.items())
    raise ValueError(
      f'{path} has {stated}, which is not read; merge the adapter in PEFT (merge_and_unload), and '
      'load the model.'
    )


def _read_lora(path: str, tensors: Flat, config: Mapping[str, Any]) -> dict[str, Forms]:
  found = collections.defaultdict(dict)
  for name in list(tensors):
    if match := _LORA.fullmatch(name):
      module, part = match.groups()
      found[module][part] = _matrix(path, name, tensors.pop(name))
  modules = {}
  for module, parts in found.items():
    if parts.keys() != {'A', 'B'} or parts['A'].shape[0] != parts['B'].shape[1]:
      raise ValueError(f'{path}: lora_A and lora_B of {module} do not belong together.')
    scale, alpha = _scale(path, module, parts['A'].shape[0], config)
    with np.errstate(over='ignore', invalid='ignore'):
      up = scale * parts['B'].T
    if not np.isfinite(up).all():
      raise ValueError(
        f'{path}: the alpha of {module} is {shown(alpha)}; a finite number is expected, small '
        f'enough for {up.dtype}.'
      )
    modules[module] = {'B': LowRank(parts['A'].T, up)}
  return modules


def _scale(path: str, module: str, rank: int, config: Mapping[str, Any]) -> tuple[float, Any]:
  """(what PEFT multiplies a LoRA with, the alpha that it is made of)."""
  try:
    stated = _of_module(module, config.get('rank_pattern'), config.get('r', rank))
    alpha = _of_module(module, config.get('alpha_pattern'), config.get('lora_alpha', 8))
    scale = float(alpha) / (rank**0.5 if config.get('use_rslora') else rank)
  except (re.error, TypeError, ValueError, AttributeError, ArithmeticError) as error:
    raise ValueError(
      f'{path}: the rank or alpha of {module} cannot be read ({first_line(error)}).'
    ) from error
  if stated != rank:
    raise ValueError(
      f'{path}: {CONFIG} gives {module} the rank {shown(stated)}, and its tensors have rank '
      f'{rank}; take both from the same adapter.'
    )
  return scale, alpha


def _of_module(module: str, pattern: Mapping[str, Any] | None, usual: Any) -> Any:
  """A module's value: that of the first pattern that its name ends with, or the usual one."""
  matching = (
    value for key, value in (pattern or {}).items() if re.fullmatch(rf'(.*\.)?({key})', module)
  )
  return next(matching, usual)


def _read_glora(path: str, tensors: Flat, config: Mapping[str, Any]) -> dict[str, Forms]:
  found = collections.defaultdict(lambda: collections.defaultdict(dict))
  for name in list(tensors):
    if match := _GLORA.fullmatch(name):
      module, tensor, part = match.groups()
      value = tensors.pop(name)
      if part != 'zeros':  # of a tensor that is none
        found[module][tensor][part] = value.astype(np.float32)
  return {
    module: {
      tensor: _form(path, printable(f'{module}.glora_{tensor}'), tensor, parts)
      for tensor, parts in forms.items()
    }
    for module, forms in found.items()
  }


def _form(path: str, name: str, tensor: str, parts: Flat) -> LowRank | FlatForm:
  if parts.keys() == {'Xd', 'Xu'}:
    down, up = _matrix(path, name, parts['Xd']), _matrix(path, name, parts['Xu'])
    if down.shape[1] != up.shape[0]:
      raise ValueError(f'{path}: Xd and Xu of {name} do not belong together.')
    if tensor in ('D', 'E'):
      raise ValueError(
        f'{path}: {name} is a LoRA, and only A, B and C are that; a constant or a vector is '
        'expected.'
      )
    # A and B lie there as [out, in]; C is a column of inputs in both.
    return LowRank(down, up) if tensor == 'C' else LowRank(up.T, down.T)
  if parts.keys() != {'X'}:
    raise ValueError(f'{path}: {name} is incomplete, it has only {listed(parts)}.')
  values = parts['X'].reshape(-1)
  # A constant is [1]; vectors of weights are columns, so one of a single output is [1, 1].
  is_constant = parts['X'].shape == (1,)
  return FlatForm('constant' if is_constant else 'vector', values)


def _matrix(path: str, name: str, value: np.ndarray) -> np.ndarray:
  if value.ndim != 2:
    raise ValueError(
      f'{path}: {name} has the shape {value.shape}; only adapters of linear layers are read, whose '
      'tensors are matrices.'
    )
  return value.astype(np.float32)


_READERS: dict[str, Callable[[str, Flat, Mapping[str, Any]], dict[str, Forms]]] = {
  'LORA': _read_lora,
  'GLORA': _read_glora,
}
