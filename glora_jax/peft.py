"""Adapters of HF PEFT: writes a structure as PEFT LoRAs, and reads PEFT LoRAs as a structure.

A map gives the torch model's names of our layers and heads; for our ViT a format has it.
"""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from glora_jax import hub
from glora_jax.checks import check_path, check_type, listed, shown
from glora_jax.files import Path, first_line, write_json, write_safetensors
from glora_jax.method.adapted import (
  Adapted,
  check_params,
  check_variables,
  dequantize_heads,
  genome_for,
)
from glora_jax.method.adapter_file import require_finite, shapes_of_fresh
from glora_jax.method.genomes import canonicalize
from glora_jax.method.groups import Group, check_storage
from glora_jax.method.site import TABLE, Layout
from glora_jax.method.space import FLAT_FORMS, TENSORS, Spec
from glora_jax.method.supports import COLLECTION
from glora_jax.tree import Path as TreePath
from glora_jax.tree import flatten, grouped, path_name, replace
from glora_jax.vision.models.checkpoint import Arrays, read_checkpoint, require_numbers
from glora_jax.vision.models.formats.format import TorchFormat, Variant
from glora_jax.vision.models.formats.table import TORCH_FORMATS, WRITTEN
from glora_jax.vision.models.metadata import read_json
from glora_jax.vision.models.translate import Origin, fit_to_format, full_name
from glora_jax.vision.models.vit import ViT
from glora_jax.vision.settings import Text, taken

__all__ = ['load_peft', 'save_peft']

NameMap = Mapping[str, str | Sequence[str]]
"""Names of torch modules by regular expressions of our paths; see `save_peft`."""

Names = str | Origin | NameMap
"""The name of a format, what `weights.load` returned as 'source', or a map."""

CONFIG = 'adapter_config.json'
WEIGHTS = 'adapter_model.safetensors'
HUB_FILES = hub.HubFiles(WEIGHTS, (CONFIG,))

_ROOT = 'base_model.model.'  # before the names of the torch model's modules
_LORA = re.compile(r'(.+)\.lora_([AB])\.weight')
_B = TENSORS.index('B')
_FLAT = len(FLAT_FORMS['B'])  # the codes of B before those of its LoRAs
_FOLD = 'fold the structure (adapted.fold) and save the model with weights.save instead'

# What modules are called in transformers 5, whose files have the names of version 4.
_MODULES = {'hf_vit': 'hf_vit_modules', 'hf_dinov2': 'hf_dinov2_modules'}

# Names of parameters here, and in torch.
_KERNELS = ('kernel', 'w')
_LEAVES = {
  **dict.fromkeys((*_KERNELS, 'weight', 'scale'), 'weight'),
  **dict.fromkeys(('bias', 'b'), 'bias'),
}
_LINEAR = Layout((), (0,), (1,))

# Fields of a config that make another function of the same tensors, or a base of its own.
_NOT_READ = re.compile(
  'use_(dora|bdlora|qalora)|bias|lora_bias|(kasa|arrow)_config|alora_invocation_tokens|'
  'layer_replication|target_parameters|trainable_token_indices'
)
_OTHER_BASES = ('pissa', 'olora', 'corda', 'loftq', 'lora_ga')  # `init_lora_weights` begins so


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


def save_peft(
  folder: Path,
  adapted: Adapted,
  variables: Mapping[str, Any],
  names: Names,
  genome: Any = None,
  *,
  base: str | None = None,
) -> None:
  r"""Writes a structure of LoRAs as an adapter that HF PEFT loads onto the torch model.

  In each layer the structure may have a LoRA of B, of any rank, and no other tensor. The alpha of
  a LoRA is its rank times its scale; where queries, keys and values are one layer
  here and three there, each of the three gets the same `lora_A`. Heads are saved whole
  (`modules_to_save`). `PeftModel.from_pretrained(torch_model, folder)` then gives the same logits.
  DINOv2's classifiers read class token and mean patch; a head that reads one of them is written
  with zeros for the other, and `load_peft` takes these off again.

  Args:
    folder: path of the folder; created if missing.
    adapted: the adapted model.
    variables: its variables, after training.
    names: names of the torch model's modules: for this package's ViT the name of a format
      ('timm', 'hf_vit', 'hf_dinov2') or the 'source' that `weights.load` returned; for any model a
      map of paths here, which may be regular expressions, to names of torch modules:
      `{r'layers/(\d+)/attn/q': r'model.layers.\1.self_attn.q_proj'}`. Several names share a layer's
      outputs equally, and '{}' is the place in a stack.
    genome: of a free structure, int [rows, 5].
    base: name or path of the base model to note in the adapter; a name on the hub may have a
      revision, `hf:owner/name@revision`.

  Raises:
    ValueError: PEFT's LoRA cannot express the structure, a layer or head has no name, or the
      variables are those of another model or not finite.

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
  genome = canonicalize(adapted.spec, genome_for(adapted, genome, 'save_peft'))
  adapted = adapted.fix(genome)
  check_variables(adapted, variables)
  supports = variables[COLLECTION]
  _require_loras(adapted.spec, genome)
  check_storage(adapted._places.groups, supports, genome)
  params = {
    path_name(path): np.asarray(nn.meta.unbox(value))
    for path, value in flatten(adapted.full_precision(variables['params'])).items()
  }
  modules, params = _names_to_write(names, adapted, params)
  tensors: Arrays = {}
  ranks, alphas = {}, {}
  parts = _parts(adapted, modules, np.flatnonzero(genome[:, _B]))
  for module, (group, index, row, outputs) in parts.items():
    if others := [site for site in group.members if site.is_convolution or site.kind == TABLE]:
      raise ValueError(
        f'{others[0].name} is a convolution or an embedding, and only linear layers are written as '
        f'PEFT LoRAs; {_FOLD}.'
      )
    rank = ranks[module] = group.space.ranks[genome[row, _B] - _FLAT]
    alpha = rank * group.space.scale
    alphas[module] = int(alpha) if alpha == int(alpha) else alpha
    arrays = group.own(supports)
    tensors[f'{module}.lora_A.weight'] = np.asarray(arrays['B_down'])[index][:, :rank].T
    tensors[f'{module}.lora_B.weight'] = np.asarray(arrays['B_up'])[index][:rank, outputs].T
  heads = {_head(adapted, modules, path): path for path in sorted(adapted._places.head_paths)}
  tensors |= {name: _turned(path, params[path_name(path)]) for name, path in heads.items()}
  require_finite(folder, tensors)
  os.makedirs(folder, exist_ok=True)
  tensors = {f'{_ROOT}{name}': value for name, value in tensors.items()}
  write_safetensors(os.path.join(folder, WEIGHTS), tensors, {'format': 'pt'})
  name = hub.parse(base) if hub.is_hub_name(base) else hub.HubName(base or '')
  rank, rank_pattern = _usual(ranks)
  alpha, alpha_pattern = _usual(alphas)
  config = {
    'peft_type': 'LORA',
    'task_type': None,
    'base_model_name_or_path': name.repository or None,
    'revision': name.revision,
    'inference_mode': True,
    'r': rank,
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
  write_json(os.path.join(folder, CONFIG), config)


def _require_loras(spec: Spec, genome: np.ndarray) -> None:
  """Raises ValueError unless the genome has LoRAs in B and nothing else."""
  for layer, alleles in zip(spec, genome.tolist(), strict=True):
    forms = [
      f'{tensor}={layer.space.names(tensor)[code]}'
      for tensor, code in zip(TENSORS, alleles, strict=True)
      if code and (tensor != 'B' or code < _FLAT)
    ]
    if forms:
      raise ValueError(
        f'PEFT can only store B as LoRA, and {layer.name} has {", ".join(forms)}; {_FOLD}.'
      )
  if not genome.any():
    raise ValueError(
      f'No layer of the structure has a LoRA, but a PEFT adapter needs at least one; {_FOLD}.'
    )


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

  A LoRA with another scale than the model's space is rescaled. Where queries, keys and values are
  one layer here and three there, the layer's LoRA has the summed rank of all that differ in
  `lora_A`, in general 3r, which its space must offer.

  Args:
    folder: path of the adapter's folder, or its name on the hub, `hf:owner/name[@revision]`.
    adapted: the base model, adapted, with the heads that the adapter trains.
    params: the base's parameters; heads that the adapter has are replaced, and those of a quantized
      base are in full precision, as `adapted.init` returns them.
    names: as of `save_peft`; None finds out which format fits.

  Returns:
    (adapted, variables): the model with the adapter's structure fixed, and its supports and heads,
    as of `load_adapter`.

  Raises:
    FileNotFoundError: there is no adapter.
    ValueError: it is damaged, of another kind, or belongs to another model; or the space does not
      offer the ranks that it needs, which the message names.

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
  check_params(adapted, params)
  path = check_path(hub.local(check_path(folder), HUB_FILES))
  loras, others = _read(path)
  if not loras:
    raise ValueError(f'{path} adapts no module; pass the folder of a PEFT adapter.')
  modules, format = _names_to_read(names, adapted, list(loras))
  layers = _match(path, loras, _parts(adapted, modules, range(len(adapted.spec))))
  params = dequantize_heads(adapted, params)
  shapes = shapes_of_fresh(adapted.fix(None), params)[COLLECTION]
  supports = jax.tree.map(lambda value: np.zeros(value.shape, value.dtype), shapes)
  genome = np.zeros((len(adapted.spec), len(TENSORS)), np.int8)
  ranks = {part.row: len(up) for part, _, up in layers}
  for part, down, up in layers:
    rank, space = len(up), part.group.space
    if rank not in space.ranks:
      raise ValueError(
        f'{path} needs a LoRA of rank {rank} for B in {adapted.spec.layers[part.row].name}, which '
        'may be several modules of the adapter, and its space offers '
        f'{", ".join(map(str, space.ranks))}; adapt with a SearchSpace whose ranks are those of '
        f'the adapter: {", ".join(map(str, sorted(set(ranks.values()))))}.'
      )
    genome[part.row, _B] = _FLAT + space.ranks.index(rank)
    arrays = part.group.own(supports)
    arrays['B_down'][part.index][:, :rank] = down / space.scale
    arrays['B_up'][part.index][:rank] = up
  params = _with_heads(path, others, params, adapted, modules, format)
  fixed, variables = adapted.fix(genome), {'params': params, COLLECTION: supports}
  if adapted.genome is not None:
    if (adapted.genome != fixed.genome).any():
      raise ValueError(
        f'{path} has LoRAs in other layers or of other ranks than the structure that this model is '
        'fixed to; load it into adapted.fix(None).'
      )
    trainable, frozen = fixed.split(variables)
    variables = fixed.join(trainable, {**frozen, COLLECTION: {}})
  return fixed, variables


def _read(path: str) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], Arrays]:
  """The LoRAs of an adapter by full name of the torch module, and its other tensors.

  A LoRA is `down @ up`, [in, rank] and [rank, out], with what PEFT multiplies it by.
  """
  file = os.path.join(path, CONFIG)
  config = read_json(file)
  if not isinstance(config, dict):
    raise ValueError(f'{file} is not the config of a PEFT adapter; get it again.')
  odd = {k: x for k, x in config.items() if x and x != 'none' and _NOT_READ.fullmatch(k)}
  if config.get('peft_type') != 'LORA':
    odd = {'peft_type': config.get('peft_type')}
  elif str(config.get('init_lora_weights')).lower().startswith(_OTHER_BASES):
    odd['init_lora_weights'] = config['init_lora_weights']
  if odd:
    stated = ', '.join(f'{field}={shown(value)}' for field, value in odd.items())
    raise ValueError(
      f'{path} has {stated}, but only plain PEFT LoRAs are read; merge the adapter in PEFT '
      '(merge_and_unload), and load the model.'
    )
  file = os.path.join(path, WEIGHTS)
  if not os.path.isfile(file):
    raise FileNotFoundError(
      f'There is no {file}; where there is an adapter_model.bin, save it again with '
      'save_pretrained(..., safe_serialization=True).'
    )
  arrays = read_checkpoint(file).arrays
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


def _scaled(
  path: str, module: str, sides: Arrays, config: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
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
      f'{path}: the alpha of {module} is {shown(alpha)}; expected a finite number, small enough '
      f'for {up.dtype}.'
    )
  return sides['A'].T, up


def _of_module(module: str, pattern: Mapping[str, Any] | None, usual: Any) -> Any:
  """A module's value: that of the first pattern that its name ends with, or the usual one."""
  matching = (
    value for key, value in (pattern or {}).items() if re.fullmatch(rf'(.*\.)?({key})', module)
  )
  return next(matching, usual)


def _match(
  path: str, loras: Mapping[str, tuple[np.ndarray, np.ndarray]], parts: Mapping[str, Part]
) -> list[tuple[Part, np.ndarray, np.ndarray]]:
  """A part of each row of ours, and its LoRA: those of its parts one after the other.

  Parts with the same `down` share one.
  """
  if unknown := loras.keys() - parts.keys():
    raise ValueError(
      f'{path} adapts {grouped(unknown)}, and no adapted layer of this model has that name; adapt '
      'the layer, or correct names=.'
    )
  rows: dict[int, tuple[Part, dict[bytes, tuple[np.ndarray, np.ndarray]]]] = {}
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
    wide = np.zeros((len(up), group.out_features), np.float32)
    _, by_down = rows.setdefault(part.row, (part, {}))
    by_down.setdefault(down.tobytes(), (down, wide))[1][:, outputs] = up
  layers = []
  for part, by_down in rows.values():
    downs, ups = zip(*by_down.values(), strict=True)
    layers.append((part, np.concatenate(downs, axis=1), np.concatenate(ups)))
  return layers


def _with_heads(
  path: str,
  others: Arrays,
  params: Any,
  adapted: Adapted,
  modules: NameMap,
  format: TorchFormat | None,
) -> Any:
  """The params with the heads that an adapter has."""
  for head in sorted(adapted._places.head_paths):
    name, expected = _head(adapted, modules, head), adapted._places.param_shapes[head].shape
    if name not in others:
      continue
    value = _turned(head, others.pop(name))
    if format is not None and head == ('head', 'kernel'):
      value = format.own_head(adapted.model, value)
    if value.shape != expected:
      raise ValueError(
        f'{path} is of another model: its {path_name(head)} is {value.shape}, and {expected} here.'
      )
    params = replace(params, head, value)
  if others:
    raise ValueError(
      f'{path} has {grouped(others)}, which are not heads of this model; adapt with the heads that '
      'the adapter trains in full, or remove these tensors.'
    )
  return params


def _names_to_write(names: Any, adapted: Adapted, params: Arrays) -> tuple[NameMap, Arrays]:
  """The map that an adapter is written with, and the model's parameters as the names know them."""
  if isinstance(names, Mapping):
    return names, params
  given = _format_name(names, adapted)
  name = _MODULES.get(given, given)
  if name not in TORCH_FORMATS:
    known = listed(WRITTEN)
    raise ValueError(f'names={shown(given)} is not a format of a torch model; use one of {known}.')
  format = TORCH_FORMATS[name]
  origin = Origin(name, Variant())
  model, flat, _ = fit_to_format(adapted.model, params, origin)
  for group in adapted._places.groups:
    for site in group.members:
      kernel = path_name(site.kernel_path)
      if flat[kernel] is not params[kernel]:
        raise ValueError(
          f'The format {name} folds LayerScale into {site.name}, which the adapter does not fit; '
          "use a format that has LayerScale ('timm', 'hf_dinov2'), or fold the structure and save "
          'the model.'
        )
  prefix = format.prefix(model, names.prefix if isinstance(names, Origin) else '')
  return _modules_of(model, format, prefix), flat


def _names_to_read(
  names: Any, adapted: Adapted, modules: Sequence[str]
) -> tuple[NameMap, TorchFormat | None]:
  """The map that fits the modules of an adapter, and the format that it is of."""
  if isinstance(names, Mapping):
    return names, None
  given = names and _format_name(names, adapted)
  for name, format in TORCH_FORMATS.items() if isinstance(adapted.model, ViT) else ():
    if given not in (None, name):
      continue
    known = _parts(adapted, _modules_of(adapted.model, format, ''), range(len(adapted.spec)))
    prefixes = {
      module.removesuffix(end) for module in modules for end in known if module.endswith(end)
    }
    for prefix in sorted(prefix for prefix in prefixes if prefix == '' or prefix.endswith('.')):
      if {full_name(format, prefix, module) for module in known} >= set(modules):
        return _modules_of(adapted.model, format, prefix), format
  wanted = f'the format {shown(given)}' if given else 'any format'
  raise ValueError(
    f'The modules of the adapter ({grouped(modules)}) are not all adapted layers of this model in '
    f'{wanted}; adapt these layers, or pass names, a map of paths here to names there.'
  )


def _format_name(names: Any, adapted: Adapted) -> str:
  """The name of the format that names are of, which must be of our ViT."""
  if not isinstance(names, str | Origin):
    raise ValueError(
      f"names={shown(names)} must be the name of a format, the 'source' of weights, or a map of "
      'paths here to names of torch modules.'
    )
  if not isinstance(adapted.model, ViT):
    raise ValueError(
      f'Formats are for the ViT of this package, and this is a {type(adapted.model).__name__}; '
      'pass names, a map of paths here to names of torch modules.'
    )
  return names.format if isinstance(names, Origin) else names


def _modules_of(model: ViT, format: TorchFormat, prefix: str) -> NameMap:
  """The modules of a format that `convert` knows, by path of ours."""
  return {
    rule.ours.rpartition('/')[0]: [
      full_name(format, prefix, name.rpartition('.')[0]) for name in rule.theirs
    ]
    for rule in format.rules(model, Variant())
    if all(name.endswith(('.weight', '.bias')) for name in rule.theirs)
  }


def _parts(adapted: Adapted, names: NameMap, rows: Container[int]) -> dict[str, Part]:
  """The torch modules that some rows of the genome are made of, by name."""
  parts, repeated = {}, []
  for group in adapted._places.groups:
    for index, row in group.slices():
      start = 0
      for site in group.members if row in rows else ():
        modules = _modules(names, site.name, index)
        width, rest = divmod(site.out_features, len(modules))
        if rest:
          raise ValueError(
            f'names: the {site.out_features} outputs of {site.name} cannot be divided among '
            f'{", ".join(modules)}.'
          )
        repeated += [module for module in modules if module in parts]
        for module in modules:
          parts[module] = Part(group, index, row, slice(start, start + width))
          start += width
  if repeated:
    raise ValueError(
      f'names: {grouped(dict.fromkeys(repeated))} stands for several layers; give each its own '
      'name.'
    )
  return parts


def _head(adapted: Adapted, names: NameMap, path: TreePath) -> str:
  """The tensor, by full name, of a parameter that is trained in full."""
  *module, leaf = path
  shape, is_kernel = adapted._places.param_shapes[path].shape, leaf in _KERNELS
  sites = [site for site in adapted._places.head_sites if site.kernel_path == path]
  is_linear = all(site.layout == _LINEAR for site in sites)
  if leaf not in _LEAVES or len(shape) != 1 + is_kernel or not is_linear:
    raise ValueError(
      f'PEFT heads are linear layers and norms, but {path_name(path)} {shape}, which is trained in '
      f'full, belongs to neither; {_FOLD}.'
    )
  modules = _modules(names, path_name(tuple(module)), ())
  if len(modules) > 1:
    raise ValueError(f'names: the head {path_name(tuple(module))} must be one torch module.')
  return f'{modules[0]}.{_LEAVES[leaf]}'


def _turned(path: TreePath, value: np.ndarray) -> np.ndarray:
  """A head's parameter as torch has it, or one of torch's as it is here."""
  return value.T if path[-1] in _KERNELS else value


def _modules(names: NameMap, path: str, index: tuple[int, ...]) -> list[str]:
  """Names of the torch modules of a path of ours; '{}' is its place on an axis of a stack."""
  for pattern, modules in names.items():
    try:
      match = re.fullmatch(pattern, path)
      given = [modules] if isinstance(modules, str) else modules
      found = [match.expand(name) for name in given] if match else []
    except (re.error, IndexError, TypeError, AttributeError) as error:
      raise ValueError(
        f'names: {shown(pattern)}: {shown(modules)} is not a pattern of paths with one or several '
        f'names of torch modules ({error}).'
      ) from error
    if not match:
      continue
    if not found or any(name.count('{}') != len(index) or not name for name in found):
      raise ValueError(
        f"names: {shown(modules)} should have '{{}}' {len(index)} times, once for each stack axis "
        f'of {path}.'
      )
    for place in map(str, index):
      found = [name.replace('{}', place, 1) for name in found]
    return found
  raise ValueError(
    f"names: no pattern matches '{path}'; add the name of its torch module "
    f'({", ".join(map(str, names)) or "there are none"}).'
  )
