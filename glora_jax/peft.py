"""Adapters of HF PEFT: writes a structure of LoRAs as PEFT does, and reads PEFT's LoRAs as one.

The names of the torch model's modules come from a map (`torch_names`). A layer here may be several
modules there: queries, keys and values are often one kernel in JAX.
"""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Container, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from glora_jax import hub
from glora_jax.checks import check_path, shown, validate
from glora_jax.files import (
  Path,
  damaged,
  first_line,
  load_json,
  read_safetensors,
  require_numbers,
  write_json,
  write_safetensors,
)
from glora_jax.method.adapted import (
  Adapted,
  check_params,
  check_variables,
  dequantize_heads,
  genome_for,
)
from glora_jax.method.adapter import COLLECTION
from glora_jax.method.adapter_file import init_shapes, require_finite
from glora_jax.method.genomes import canonicalize
from glora_jax.method.groups import Group
from glora_jax.method.site import TABLE, Layout
from glora_jax.method.space import FLAT_FORMS, TENSORS, Spec
from glora_jax.torch_names import NameMap, modules_for, name_map
from glora_jax.tree import KeyPath, get, grouped, path_name, replace

__all__ = ['PeftAdapter', 'load_peft', 'read_peft', 'save_peft']

CONFIG = 'adapter_config.json'
WEIGHTS = 'adapter_model.safetensors'

_ROOT = 'base_model.model.'  # before the names of the torch model's modules
_LORA = re.compile(r'(.+)\.lora_([AB])\.weight')
_B = TENSORS.index('B')
_FLAT = len(FLAT_FORMS['B'])  # the codes of B before those of its LoRAs
_FOLD = 'fold the structure (adapted.fold) and save the folded model instead'

# Names of parameters here, and torch's for them.
_KERNELS = ('kernel', 'w')
_LEAVES = {
  'kernel': 'weight',
  'w': 'weight',
  'weight': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'b': 'bias',
}
_LINEAR = Layout((), (0,), (1,))

# Fields of a config with which the same tensors are another function, or belong to another base.
_NOT_READ = re.compile(
  'use_(dora|bdlora|qalora)|bias|lora_bias|(kasa|arrow)_config|alora_invocation_tokens|'
  'layer_replication|target_parameters|trainable_token_indices'
)
# Beginnings of `init_lora_weights` with which PEFT changes the base.
_OTHER_BASES = ('pissa', 'olora', 'corda', 'loftq', 'lora_ga')


class PeftAdapter(NamedTuple):
  """A PEFT adapter, with the torch model's names.

  Attributes:
    path: path of its folder.
    loras: (down [in, rank], up [rank, out]) by module, which add `inputs @ down @ up` to its
      outputs.
    heads: tensors that replace the torch model's.
  """

  path: str
  loras: dict[str, tuple[np.ndarray, np.ndarray]]
  heads: dict[str, np.ndarray]


class _Layer(NamedTuple):
  """An adapted layer, and the torch modules that it consists of.

  Attributes:
    group: the group that it belongs to.
    index: its place in the group's stack.
    row: its row of the genome.
    modules: the columns of its kernel that are a module's, by the module's name.
  """

  group: Group
  index: tuple[int, ...]
  row: int
  modules: dict[str, slice]


def save_peft(
  folder: Path,
  adapted: Adapted,
  variables: Mapping[str, Any],
  names: str | NameMap,
  genome: Any = None,
  *,
  heads: Mapping[str, np.ndarray] = {},
  base: str | None = None,
) -> None:
  r"""Writes a structure of LoRAs as an adapter that HF PEFT loads onto the torch model.

  In each layer the structure may have a LoRA of B, of any rank, and no other tensor. The alpha of a
  LoRA is its rank times its scale. If queries, keys and values are one layer here and three in
  torch, each of the three gets the same `lora_A`. Heads are saved as `modules_to_save`. Then
  `PeftModel.from_pretrained(torch_model, folder)` gives the same logits.

  Args:
    folder: path of the folder; created if missing.
    adapted: the adapted model.
    variables: its variables, after training.
    names: names of the torch model's modules, by paths here, which may be regular expressions:
      `{r'layers/(\d+)/attn/q': r'model.layers.\1.self_attn.q_proj'}`. Several names share a layer's
      outputs equally, and '{}' is the place in a stack. 'tunix_gemma3', 'tunix_llama3' and
      'tunix_qwen3' are those of transformers' models, for the models of google-tunix.
    genome: int [rows, 5], if the structure is free.
    heads: tensors to write instead of the variables' heads, by torch name, if the torch model has a
      head in another shape.
    base: name or path of the base model to write to the config; a name on the hub may have a
      revision, `hf:owner/name@revision`.

  Raises:
    TypeError: an argument has the wrong type.
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
  validate(base, str | None, 'base')
  validate(heads, Mapping, 'heads')
  on_hub = hub.parse(base) if hub.is_hub_name(base) else hub.HubName(base or '')
  validate(adapted, Adapted, 'adapted')
  names = name_map(names)
  genome = canonicalize(adapted.spec, genome_for(adapted, genome, 'save_peft'))
  check_variables(adapted.fix(genome), variables)
  _require_loras(adapted.spec, genome)
  tensors, ranks, alphas = {}, {}, {}
  for group, index, row, modules in _layers(adapted, names, np.flatnonzero(genome[:, _B])):
    for site in group.members:
      if site.is_convolution or site.kind == TABLE:
        raise ValueError(
          f'{site.name} is a convolution or an embedding, and only linear layers are written as '
          f'PEFT LoRAs; {_FOLD}.'
        )
    arrays = group.arrays(variables[COLLECTION])
    rank = group.space.ranks[genome[row, _B] - _FLAT]
    alpha = rank * group.space.scale
    for module, outputs in modules.items():
      tensors[f'{module}.lora_A.weight'] = np.asarray(arrays['B_down'])[index][:, :rank].T
      tensors[f'{module}.lora_B.weight'] = np.asarray(arrays['B_up'])[index][:rank, outputs].T
      ranks[module] = rank
      alphas[module] = int(alpha) if alpha == int(alpha) else alpha
  params = dequantize_heads(adapted, variables['params'])
  head_paths = _head_paths(adapted, names)
  for name, path in head_paths.items():
    tensors[name] = heads.get(name, np.asarray(nn.meta.unbox(get(params, path))).T)
  require_finite(folder, tensors)
  os.makedirs(folder, exist_ok=True)
  tensors = {f'{_ROOT}{name}': value for name, value in tensors.items()}
  write_safetensors(os.path.join(folder, WEIGHTS), tensors, {'format': 'pt'})
  rank, rank_pattern = _largest(ranks)
  alpha, alpha_pattern = _largest(alphas)
  config = {  # the other fields have PEFT's defaults
    'peft_type': 'LORA',
    'base_model_name_or_path': on_hub.repository or None,
    'revision': on_hub.revision,
    'r': rank,
    'lora_alpha': alpha,
    'rank_pattern': rank_pattern,
    'alpha_pattern': alpha_pattern,
    'target_modules': list(ranks),
    'modules_to_save': sorted({name.rpartition('.')[0] for name in head_paths}) or None,
  }
  write_json(os.path.join(folder, CONFIG), config)


def _require_loras(spec: Spec, genome: np.ndarray) -> None:
  """Raises ValueError unless the genome has LoRAs in B and nothing else."""
  for layer, forms in zip(spec, genome.tolist(), strict=True):
    forms = [
      f'{tensor}={layer.space.names(tensor)[code]}'
      for tensor, code in zip(TENSORS, forms, strict=True)
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


def _largest(values: Mapping[str, float]) -> tuple[float, dict[str, float]]:
  """The largest value of all modules, and if they differ, PEFT's pattern with that of each.

  PEFT uses the first key of a pattern that a module's name ends with, so longer ones come first.
  """
  largest, patterns = max(values.values()), {}
  if min(values.values()) < largest:
    patterns = {module: values[module] for module in sorted(values, key=len, reverse=True)}
  return largest, patterns


def load_peft(
  adapter: Path | PeftAdapter, adapted: Adapted, params: Any, names: str | NameMap
) -> tuple[Adapted, dict[str, Any]]:
  """Reads a PEFT adapter of LoRAs as a structure of an adapted model.

  A LoRA with another scale than the model's search space is rescaled. If queries, keys and values
  are one layer here and three in torch, the ranks of those with different `lora_A` add up, in
  general to 3r, and the layer's search space must have a LoRA of that rank.

  Args:
    adapter: path of its folder; its name on the hub, `hf:owner/name[@revision]`; or the result of
      `read_peft`.
    adapted: the adapted base model, with the heads that the adapter trains.
    params: the base's parameters; heads that the adapter has are replaced, and those of a quantized
      base are in full precision, as `adapted.init` returns them.
    names: see `save_peft`.

  Returns:
    (adapted, variables): the model with the adapter's structure fixed, and variables with its
    arrays and heads, as of `load_adapter`.

  Raises:
    FileNotFoundError: there is no adapter.
    TypeError: an argument has the wrong type.
    ValueError: it is damaged, of another kind, or belongs to another model; or the search space
      lacks the ranks that it needs, which the message names.

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
  validate(adapted, Adapted, 'adapted')
  names = name_map(names)
  check_params(adapted, params)
  if not isinstance(adapter, PeftAdapter):
    adapter = read_peft(adapter)
  layers = _layers(adapted, names, range(len(adapted.spec)))
  modules = {module for layer in layers for module in layer.modules}
  if unknown := adapter.loras.keys() - modules:
    raise ValueError(
      f'{adapter.path} adapts {grouped(unknown)}, and no adapted layer of this model has that '
      'name; adapt the layer, or correct names=.'
    )
  params = dequantize_heads(adapted, params)
  shapes = init_shapes(adapted.fix(None), params)[COLLECTION]
  collection = jax.tree.map(lambda value: np.zeros(value.shape, value.dtype), shapes)
  genome = np.zeros((len(adapted.spec), len(TENSORS)), np.int8)
  found = [(layer, _lora_of_layer(adapter, layer)) for layer in layers]
  loras = [(layer, lora) for layer, lora in found if lora is not None]
  ranks = {len(up) for _, (_, up) in loras}
  for (group, index, row, _), (down, up) in loras:
    rank, space = len(up), group.space
    if rank not in space.ranks:
      raise ValueError(
        f'{adapter.path} needs a LoRA of rank {rank} for B in {adapted.spec.layers[row].name}, '
        'which may be several modules of the adapter, and its search space has '
        f'{", ".join(map(str, space.ranks))}; adapt with a SearchSpace whose ranks are those of '
        f'the adapter: {", ".join(map(str, sorted(ranks)))}.'
      )
    genome[row, _B] = _FLAT + space.ranks.index(rank)
    arrays = group.arrays(collection)
    arrays['B_down'][index][:, :rank] = down / space.scale
    arrays['B_up'][index][:rank] = up
  heads = _head_paths(adapted, names)
  if others := adapter.heads.keys() - heads.keys():
    raise ValueError(
      f'{adapter.path} has {grouped(others)}, which are not heads of this model; adapt with the '
      'heads that the adapter trains in full, or remove these tensors.'
    )
  for name, value in adapter.heads.items():
    path = heads[name]
    expected = adapted.places.param_shapes[path].shape
    if value.T.shape != expected:
      raise ValueError(
        f'{adapter.path} is of another model: its {path_name(path)} is {value.T.shape}, and '
        f'{expected} here.'
      )
    params = replace(params, path, value.T)
  fixed, variables = adapted.fix(genome), {'params': params, COLLECTION: collection}
  if adapted.genome is not None:
    if (adapted.genome != fixed.genome).any():
      raise ValueError(
        f'{adapter.path} has LoRAs in other layers or of other ranks than the structure that '
        'this model is fixed to; load it into adapted.fix(None).'
      )
    trainable, frozen = fixed.split(variables)
    variables = fixed.join(trainable, {**frozen, COLLECTION: {}})
  return fixed, variables


def read_peft(folder: Path) -> PeftAdapter:
  """Reads a PEFT adapter without loading it into a model; errors as of `load_peft`."""
  path = check_path(hub.local(folder, (WEIGHTS, CONFIG)))
  file = os.path.join(path, WEIGHTS)
  if not os.path.isfile(file):
    raise FileNotFoundError(
      f'There is no {file}; pass the folder of an adapter that PEFT has saved, with '
      'safe_serialization=True.'
    )
  config = load_json(os.path.join(path, CONFIG), 'get it again')
  _check_config(path, config)
  try:
    tensors, _ = read_safetensors(file)
  except Exception as error:  # safetensors raises its own type, and others for odd contents
    raise damaged(file, error, 'get it again') from error
  require_numbers(file, tensors)
  sides, heads = collections.defaultdict(dict), {}
  for name, value in tensors.items():
    name = name.removeprefix(_ROOT)
    if match := _LORA.fullmatch(name):
      sides[match[1]][match[2]] = value
    else:
      heads[name] = value
  if not sides:
    raise ValueError(f'{path} adapts no module; pass the folder of a PEFT adapter.')
  loras = {module: _lora(path, module, found, config) for module, found in sides.items()}
  return PeftAdapter(path, loras, heads)


def _check_config(path: str, config: Any) -> None:
  """Raises ValueError unless a config is one of plain LoRAs."""
  if not isinstance(config, dict):
    raise ValueError(f'{path}: {CONFIG} is not the config of a PEFT adapter; get it again.')
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


def _lora(
  path: str, module: str, sides: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
  """A module's LoRA (down [in, rank], up [rank, out]) with PEFT's scale, alpha / rank, in `up`."""
  down, up = sides.get('A'), sides.get('B')
  if down is None or up is None or not down.ndim == up.ndim == 2 or len(down) != up.shape[1]:
    shapes = {f'lora_{side}': value.shape for side, value in sides.items()}
    raise ValueError(
      f'{path}: {module} has {shapes}; expected lora_A [rank, in] and lora_B [out, rank], as of a '
      'linear layer.'
    )
  rank = len(down)
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
    up = scale * up.T.astype(np.float32)
  if not np.isfinite(up).all():
    raise ValueError(
      f'{path}: the alpha of {module} is {shown(alpha)}; expected a finite number, small enough '
      f'for {up.dtype}.'
    )
  return down.T.astype(np.float32), up


def _of_module(module: str, pattern: Mapping[str, Any] | None, usual: Any) -> Any:
  """The value of the first pattern that a module's name ends with, or else the usual one."""
  matching = (
    value for key, value in (pattern or {}).items() if re.fullmatch(rf'(.*\.)?({key})', module)
  )
  return next(matching, usual)


def _lora_of_layer(adapter: PeftAdapter, layer: _Layer) -> tuple[np.ndarray, np.ndarray] | None:
  """The LoRA of a layer (down [in, rank], up [rank, out]); None if its modules have none.

  The modules' LoRAs are put side by side, each with zeros in the outputs of the others. Those with
  an equal `down` share its columns, so that what `save_peft` wrote gets its rank back.
  """
  group, by_down = layer.group, {}
  for module, outputs in layer.modules.items():
    if module not in adapter.loras:
      continue
    down, up = adapter.loras[module]
    shape, expected = (len(down), up.shape[1]), (group.in_features, outputs.stop - outputs.start)
    if shape != expected:
      raise ValueError(
        f'{adapter.path} is of another model: its B of {module} is {shape}, and {group.name} '
        f'needs {expected}.'
      )
    wide = np.zeros((len(up), group.out_features), np.float32)
    by_down.setdefault(down.tobytes(), (down, wide))[1][:, outputs] = up
  if not by_down:
    return None
  downs, ups = zip(*by_down.values(), strict=True)
  return np.concatenate(downs, axis=1), np.concatenate(ups)


def _layers(adapted: Adapted, names: NameMap, rows: Container[int]) -> list[_Layer]:
  """The layers of some of the genome's rows, with their torch modules."""
  layers, modules = [], collections.Counter()
  for group in adapted.places.groups:
    for index, row in group.slices():
      if row not in rows:
        continue
      layer, start = _Layer(group, index, row, {}), 0
      for site in group.members:
        found = modules_for(names, site.name, index)
        width, rest = divmod(site.out_features, len(found))
        if rest:
          raise ValueError(
            f'names: the {site.out_features} outputs of {site.name} cannot be divided among '
            f'{", ".join(found)}.'
          )
        for module in found:
          layer.modules[module] = slice(start, start + width)
          start += width
        modules.update(found)
      layers.append(layer)
  if repeated := [module for module, count in modules.items() if count > 1]:
    raise ValueError(
      f'names: {grouped(repeated)} stands for several layers; give each its own name.'
    )
  return layers


def _head_paths(adapted: Adapted, names: NameMap) -> dict[str, KeyPath]:
  """The paths of the parameters that are trained in full, by the torch tensors' names."""
  heads, places = {}, adapted.places
  for path in sorted(places.head_paths):
    *module, leaf = path
    shape, is_kernel = places.param_shapes[path].shape, leaf in _KERNELS
    is_linear = all(
      site.layout == _LINEAR for site in places.other_sites if site.kernel_path == path
    )
    if leaf not in _LEAVES or len(shape) != 1 + is_kernel or not is_linear:
      raise ValueError(
        f'PEFT heads are linear layers and norms, but {path_name(path)} {shape}, which is trained '
        f'in full, belongs to neither; {_FOLD}.'
      )
    modules = modules_for(names, path_name(tuple(module)))
    name = f'{modules[0]}.{_LEAVES[leaf]}'
    if len(modules) > 1 or name in heads:
      raise ValueError(
        f'names: the head {path_name(tuple(module))} must be one torch module, and no other '
        f'head {modules[0]}.'
      )
    heads[name] = path
  return heads
