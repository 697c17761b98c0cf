"""Adapters of HF PEFT: its LoRAs are written from a subnet, and read as one."""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from glora_jax.files import Path, first_line, write_json, write_safetensors
from glora_jax.limits import check_path, check_type, shown
from glora_jax.method.adapted import Adapted
from glora_jax.method.adapter_file import require_finite, shapes_of_fresh
from glora_jax.method.groups import check_storage
from glora_jax.method.quantized import full_precision
from glora_jax.method.space import FLAT_FORMS, TENSORS, Spec
from glora_jax.method.supports import COLLECTION
from glora_jax.models import hub
from glora_jax.models.checkpoint import Arrays, read_tensors, require_numbers
from glora_jax.models.metadata import read_json
from glora_jax.models.peft_names import (
  Names,
  Naming,
  Part,
  Transformers,
  naming_to_read,
  naming_to_write,
)
from glora_jax.settings import Text, taken
from glora_jax.tree import flatten, grouped, path_name, replace

CONFIG = 'adapter_config.json'
WEIGHTS = 'adapter_model.safetensors'
HUB_FILES = hub.HubFiles(WEIGHTS, (CONFIG,))

_ROOT = 'base_model.model.'  # before the names of the torch model's modules
_LORA = re.compile(r'(.+)\.lora_([AB])\.weight')
_B = TENSORS.index('B')
_FLAT = len(FLAT_FORMS['B'])  # the codes of B before those of its LoRAs

# Fields of a config that make another function of the same tensors, or a base of its own.
_NOT_READ = (
  'use_dora',
  'use_bdlora',
  'use_qalora',
  'lora_bias',
  'bias',
  'kasa_config',
  'arrow_config',
  'alora_invocation_tokens',
  'layer_replication',
  'target_parameters',
  'trainable_token_indices',
)
_OTHER_BASES = ('pissa', 'olora', 'corda', 'loftq', 'lora_ga')  # `init_lora_weights` begins so


class LowRank(NamedTuple):
  """A LoRA as `down @ up`, [in, rank] and [rank, out]; nothing scales it."""

  down: np.ndarray
  up: np.ndarray


def save_peft(
  folder: Path,
  adapted: Adapted,
  variables: Mapping[str, Any],
  names: Names,
  genome: Any = None,
  *,
  transformers: Transformers = 5,
  base: str | None = None,
) -> None:
  r"""Writes a structure of LoRAs as an adapter that HF PEFT loads onto the torch model.

  The structure has B as LoRA, of any rank in each layer, or none, and no other tensor. The alpha of
  a LoRA is its rank times its scale; where queries, keys and values are one layer
  here and three there, each of the three gets the same `lora_A`. Heads are saved whole
  (`modules_to_save`). `PeftModel.from_pretrained(torch_model, folder)` then gives the same logits.
  DINOv2's classifiers read class token and mean patch; a head that reads one of them is written
  with zeros for the other, and `load_peft` takes these off again.

  Args:
    folder: path of the folder, which is made where it is missing.
    adapted: the adapted model.
    variables: its variables, after training.
    names: what the torch model calls its modules: for this package's ViT the name of a format
      ('timm', 'hf_vit', 'hf_dinov2') or the 'source' that `weights.load` returned; for any model a
      map of paths here, which may be regular expressions, to names of torch modules:
      `{r'layers/(\d+)/attn/q': r'model.layers.\1.self_attn.q_proj'}`. Several names share a layer's
      outputs equally, and '{}' is the place in a stack.
    genome: of a free structure, int [rows, 5].
    transformers: 5, or 4, whose modules had other names in its ViT and DINOv2.
    base: name of the base model that the adapter notes, or a path; a name on the hub may have a
      revision, `hf:owner/name@revision`.

  Raises:
    ValueError: the structure has more than PEFT's LoRA can say, or a layer or head has no name; or
      the variables are those of another model or not finite; the sentence says which.

  Example:
    >>> import json, pathlib, tempfile, jax.numpy as jnp
    >>> from glora_jax import adapt
    >>> adapted = adapt(nn.Dense(3), jnp.zeros((1, 4)), structure='lora:4', scale=2.0)
    >>> params = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}
    >>> variables = adapted.init(jax.random.key(0), params)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   save_peft(folder, adapted, variables, {'Dense': 'layers.0.fc'})
    ...   config = json.loads(pathlib.Path(folder, 'adapter_config.json').read_text())
    >>> config['target_modules'], config['r'], config['lora_alpha']
    (['layers.0.fc'], 4, 8)
  """
  folder = check_path(folder)
  taken(base, 'base', Text | None)
  check_type(adapted, Adapted, 'adapted')
  adapted, genome = adapted.fixed(genome, 'save_peft')
  adapted.check_variables(variables)
  supports = variables[COLLECTION]
  _require_loras(adapted.spec, genome)
  check_storage(adapted.groups, supports, genome)
  params = {
    path_name(path): np.asarray(nn.meta.unbox(value))
    for path, value in flatten(adapted.full_precision(variables['params'])).items()
  }
  naming, params = naming_to_write(names, adapted, params, transformers)
  tensors: Arrays = {}
  ranks, alphas = {}, {}
  for module, (group, index, row, outputs) in naming.parts(np.flatnonzero(genome[:, _B])).items():
    for site in group.members:
      if site.is_convolution:
        raise ValueError(
          f'{site.name} is a convolution, and only linear layers are written as LoRAs of PEFT; '
          'fold the subnet (adapted.fold) and save the model with weights.save instead.'
        )
    rank = ranks[module] = group.space.ranks[genome[row, _B] - _FLAT]
    alpha = rank * group.space.scale
    alphas[module] = int(alpha) if alpha == int(alpha) else alpha
    arrays = group.own(supports)
    tensors[f'{module}.lora_A.weight'] = np.asarray(arrays['B_down'])[index][:, :rank].T
    tensors[f'{module}.lora_B.weight'] = np.asarray(arrays['B_up'])[index][:rank, outputs].T
  heads: Arrays = {}
  for path in sorted(adapted.head_paths):
    name, is_kernel = naming.head(path)
    value = params[path_name(path)]
    heads[name] = value.T if is_kernel else value
  tensors |= heads
  require_finite(folder, tensors)
  os.makedirs(folder, exist_ok=True)
  tensors = {f'{_ROOT}{name}': value for name, value in tensors.items()}
  write_safetensors(os.path.join(folder, WEIGHTS), tensors, {'format': 'pt'})
  write_json(os.path.join(folder, CONFIG), _config(ranks, alphas, heads, base))


def _require_loras(spec: Spec, genome: np.ndarray) -> None:
  """Raises ValueError unless the genome has LoRAs in B and nothing else."""
  for layer, alleles in zip(spec, genome.tolist(), strict=True):
    forms = {
      tensor: layer.space.names(tensor)[code]
      for tensor, code in zip(TENSORS, alleles, strict=True)
      if code and (tensor != 'B' or code < _FLAT)
    }
    if forms:
      stated = ', '.join(f'{tensor}={form}' for tensor, form in forms.items())
      raise ValueError(
        f"PEFT's LoRA says no more than B as LoRA, and {layer.name} has {stated}; fold the subnet "
        '(adapted.fold) and save the model with weights.save instead.'
      )
  if not genome.any():
    raise ValueError(
      'No layer of the subnet has a LoRA, and an adapter of PEFT needs at least one; fold the '
      'subnet (adapted.fold) and save the model with weights.save instead.'
    )


def _config(
  ranks: Mapping[str, int], alphas: Mapping[str, float], heads: Arrays, base: str | None
) -> dict[str, Any]:
  usual, rank_pattern = _usual(ranks)
  alpha, alpha_pattern = _usual(alphas)
  name = hub.parse(base) if hub.is_hub_name(base) else hub.HubName(base or '')
  return {
    'peft_type': 'LORA',
    'task_type': None,
    'base_model_name_or_path': name.repository or None,
    'revision': name.revision,
    'inference_mode': True,
    'r': usual,
    'lora_alpha': alpha,
    'rank_pattern': rank_pattern,
    'alpha_pattern': alpha_pattern,
    'target_modules': list(ranks),
    'modules_to_save': sorted({name.rpartition('.')[0] for name in heads}) or None,
    'lora_dropout': 0.0,
    'bias': 'none',
    'fan_in_fan_out': False,
    'init_lora_weights': True,
    'use_rslora': False,
    'use_dora': False,
  }


def _usual(values: Mapping[str, float]) -> tuple[float, dict[str, float]]:
  """The most frequent value of all modules, and where they differ that of each.

  PEFT takes the first key that a module's name ends with, so longer names come first.
  """
  ((usual, count),) = collections.Counter(values.values()).most_common(1)
  if count == len(values):
    return usual, {}
  return usual, {module: values[module] for module in sorted(values, key=len, reverse=True)}


def load_peft(
  folder: Path, adapted: Adapted, params: Any, names: Names | None = None
) -> tuple[Adapted, dict[str, Any]]:
  """Reads an adapter of PEFT's LoRA as a structure of an adapted model.

  A LoRA that PEFT scales otherwise than the model's space does is rescaled. Where queries, keys and
  values are one layer here and three there, the layer's LoRA has the rank of all that differ in
  `lora_A` together, 3r in general, which its space must offer.

  Args:
    folder: path of the adapter's folder, or its name on the hub, `hf:owner/name[@revision]`.
    adapted: the same model as the base, adapted; its heads are those that the adapter trains.
    params: the base's parameters; heads that the adapter has are replaced, and of a quantized base
      all heads are in full precision, as `adapted.init` gives them.
    names: as of `save_peft`; None finds out which format fits.

  Returns:
    (adapted, variables): the model with the adapter's structure fixed, and its supports and heads,
    as of `load_adapter`.

  Raises:
    FileNotFoundError: there is no adapter.
    ValueError: it is damaged, of another kind, or belongs to another model; or the space does not
      offer the ranks that it needs, and the sentence says which these are.

  Example:
    >>> import tempfile, jax.numpy as jnp
    >>> from glora_jax import adapt
    >>> adapted = adapt(nn.Dense(3), jnp.zeros((1, 4)), structure='lora:4')
    >>> params, names = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}, {'Dense': 'layers.0.fc'}
    >>> variables = adapted.init(jax.random.key(0), params)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   save_peft(folder, adapted, variables, names)
    ...   adapted, variables = load_peft(folder, adapted, params, names)
    >>> adapted.genome.tolist()
    [[0, 3, 0, 0, 0]]
  """
  check_type(adapted, Adapted, 'adapted')
  adapted.check_params(params)
  path = check_path(hub.local(check_path(folder), HUB_FILES))
  loras, others = _read(path)
  if not loras:
    raise ValueError(f'{path} adapts no module; give the folder of an adapter of PEFT.')
  naming = naming_to_read(names, adapted, list(loras))
  layers = _match(path, loras, naming.parts(range(len(adapted.spec))))
  ranks = {row: sum(len(up) for _, up in loras) for row, (_, loras) in layers.items()}
  params = full_precision(params, adapted.param_shapes, only=adapted.head_paths)  # as init does
  shapes = shapes_of_fresh(adapted.fix(None), params)[COLLECTION]
  supports = jax.tree.map(lambda value: np.zeros(value.shape, value.dtype), shapes)
  genome = np.zeros((len(adapted.spec), len(TENSORS)), np.int8)
  for row, (part, together) in layers.items():
    rank, offered = ranks[row], part.group.space.ranks
    if rank not in offered:
      raise ValueError(
        f'{path} needs a LoRA of rank {rank} for B in {adapted.spec.layers[row].name}, which may '
        f'be several modules of the adapter, and its space offers {", ".join(map(str, offered))}; '
        'adapt with a SearchSpace whose ranks are those of the adapter: '
        f'{", ".join(map(str, sorted(set(ranks.values()))))}.'
      )
    genome[row, _B] = _FLAT + offered.index(rank)
    arrays = part.group.own(supports)
    downs = np.concatenate([down for down, _ in together], axis=1)
    arrays['B_down'][part.index][:, :rank] = downs / part.group.space.scale
    arrays['B_up'][part.index][:rank] = np.concatenate([up for _, up in together])
  params = _with_heads(path, others, params, naming)
  fixed = adapted.fix(genome)
  if adapted.genome is not None and (adapted.genome != fixed.genome).any():
    raise ValueError(
      f'{path} has LoRAs in other layers or of other ranks than the structure that this model is '
      'fixed to; load it into adapted.fix(None).'
    )
  variables = {'params': params, COLLECTION: supports}
  if adapted.genome is not None:
    trainable, frozen = fixed.split(variables)
    variables = fixed.join(trainable, {**frozen, COLLECTION: {}})
  return fixed, variables


def _read(path: str) -> tuple[dict[str, LowRank], Arrays]:
  """The LoRAs of an adapter by full name of the torch module, and its other tensors."""
  file = os.path.join(path, CONFIG)
  config = read_json(file)
  if config is None:
    raise FileNotFoundError(f'There is no {file}; give the folder of an adapter of PEFT.')
  if not isinstance(config, dict):
    raise ValueError(f'{file} is no config of an adapter of PEFT; get it again.')
  odd = {name: config[name] for name in _NOT_READ if config.get(name) and config[name] != 'none'}
  if config.get('peft_type') != 'LORA':
    odd = {'peft_type': config.get('peft_type')}
  elif str(config.get('init_lora_weights')).lower().startswith(_OTHER_BASES):
    odd['init_lora_weights'] = config['init_lora_weights']
  if odd:
    stated = ', '.join(f'{field}={shown(value)}' for field, value in odd.items())
    raise ValueError(
      f'{path} has {stated}, and only plain LoRAs of PEFT are read; merge the adapter in PEFT '
      '(merge_and_unload), and load the model.'
    )
  file = os.path.join(path, WEIGHTS)
  if not os.path.isfile(file):
    raise FileNotFoundError(
      f'There is no {file}; where there is an adapter_model.bin, save it again with '
      'save_pretrained(..., safe_serialization=True).'
    )
  arrays = read_tensors(file).arrays
  require_numbers(file, arrays)
  others = {name.removeprefix(_ROOT): array for name, array in arrays.items()}
  found = collections.defaultdict(dict)
  for name in list(others):
    if match := _LORA.fullmatch(name):
      module, side = match.groups()
      found[module][side] = value = others.pop(name).astype(np.float32)
      if value.ndim != 2:
        raise ValueError(
          f'{path}: {name} has the shape {value.shape}; only adapters of linear layers are read, '
          'whose tensors are matrices.'
        )
  return {module: _scaled(path, module, sides, config) for module, sides in found.items()}, others


def _scaled(path: str, module: str, sides: Arrays, config: Mapping[str, Any]) -> LowRank:
  """A module's LoRA, with what PEFT multiplies it by."""
  if sides.keys() != {'A', 'B'} or sides['A'].shape[0] != sides['B'].shape[1]:
    raise ValueError(f'{path}: lora_A and lora_B of {module} do not belong together.')
  rank = len(sides['A'])
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
  with np.errstate(over='ignore', invalid='ignore'):
    up = scale * sides['B'].T
  if not np.isfinite(up).all():
    raise ValueError(
      f'{path}: the alpha of {module} is {shown(alpha)}; a finite number is expected, small '
      f'enough for {up.dtype}.'
    )
  return LowRank(sides['A'].T, up)


def _of_module(module: str, pattern: Mapping[str, Any] | None, usual: Any) -> Any:
  """A module's value: that of the first pattern that its name ends with, or the usual one."""
  matching = (
    value for key, value in (pattern or {}).items() if re.fullmatch(rf'(.*\.)?({key})', module)
  )
  return next(matching, usual)


def _match(
  path: str, loras: Mapping[str, LowRank], parts: Mapping[str, Part]
) -> dict[int, tuple[Part, list[LowRank]]]:
  """The LoRAs of each row of ours, one after the other; parts with the same `down` share one."""
  if unknown := loras.keys() - parts.keys():
    raise ValueError(
      f'{path} adapts {grouped(unknown)}, and no adapted layer of this model has that name; adapt '
      'the layer, or correct names.'
    )
  rows: dict[int, tuple[Part, dict[bytes, LowRank]]] = {}
  for module, part in parts.items():
    if module not in loras:
      continue
    group, outputs, (down, up) = part.group, part.outputs, loras[module]
    found, expected = (len(down), up.shape[1]), (group.in_features, outputs.stop - outputs.start)
    if found != expected:
      raise ValueError(
        f'{path} is of another model: its B of {module} is {found}, and {group.name} needs '
        f'{expected}.'
      )
    whole = LowRank(down, np.zeros((len(up), group.out_features), np.float32))
    _, by_down = rows.setdefault(part.row, (part, {}))
    by_down.setdefault(down.tobytes(), whole).up[:, outputs] = up
  return {row: (part, list(by_down.values())) for row, (part, by_down) in rows.items()}


def _with_heads(path: str, tensors: Arrays, params: Any, naming: Naming) -> Any:
  """The params with the heads that an adapter has."""
  remaining, adapted = dict(tensors), naming.adapted
  for head in sorted(adapted.head_paths):
    name, is_kernel = naming.head(head)
    if name not in remaining:
      continue
    value = remaining.pop(name)
    value = value.T if is_kernel else value
    if naming.format and head == ('head', 'kernel'):
      value = naming.format.own_head(adapted.model, value)
    expected = adapted.param_shapes[head].shape
    if value.shape != expected:
      raise ValueError(
        f'{path} is of another model: its {path_name(head)} is {value.shape}, and {expected} here.'
      )
    params = replace(params, head, value)
  if remaining:
    raise ValueError(
      f'{path} has {grouped(remaining)}, which no head of this model is; adapt with heads that the '
      'adapter trains in full, or take these tensors out.'
    )
  return params
