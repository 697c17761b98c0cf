"""Folded models in files that transformers loads: torch's names, and shards with an index."""

from __future__ import annotations

import collections
import functools
import os
import shutil
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from glora_jax.checks import check_path, listed, printable, validate
from glora_jax.files import Path, write_json, write_safetensors
from glora_jax.method.adapted import Adapted, fixed_genome
from glora_jax.method.adapter_file import require_finite
from glora_jax.method.site import TABLE, Site
from glora_jax.method.trace.events import ITEM_BY_ITEM, LOOKED_UP
from glora_jax.torch_names import LEAVES, NameMap, modules_for, name_map
from glora_jax.tree import KeyPath, flatten, grouped, on_host, path_name

INDEX = 'model.safetensors.index.json'
_WEIGHTS = ('.safetensors', INDEX)
_BESIDE = ('.json', '.txt', '.model', '.jinja')  # ends of the files of a config and a tokenizer
_ONLY = 'only linear layers, tables and vectors are written with torch names'


def save_folded(
  folder: Path,
  adapted: Adapted,
  variables: Mapping[str, Any],
  names: str | NameMap,
  *,
  base: Path | None = None,
  max_shard_bytes: int = 5 * 10**9,
) -> None:
  r"""Folds a model and writes it as a folder that transformers' `from_pretrained` loads.

  Kernels of linear layers become weights [out, in], in one tensor for each torch module. Tables and
  vectors are written unchanged. The index is written last: a folder without one is incomplete.

  Args:
    folder: path of the folder; created if missing. It must not have weights yet.
    adapted: the adapted model.
    variables: its variables, after training. If processes hold parts of them, all must call this.
    names: names of the torch model's modules; see `glora_jax.peft.save`. Here all parameters
      need one: the path of a norm is its module's (`layers/(\d+)/norm`), and that of a table its
      own.
    base: path of a folder whose config and tokenizer to copy: its files that end in .json, .txt,
      .model or .jinja. Without it, `config.json` is left to you.
    max_shard_bytes: maximum size of a file, unless one parameter is larger.

  Raises:
    FileExistsError: the folder has weights.
    FileNotFoundError: there is no folder `base`.
    TypeError: an argument has the wrong type.
    ValueError: the structure is free, a parameter has no name or is a convolution, two have the
      same one, or the variables are those of another model or not finite.

  Example:
    >>> import json, pathlib, tempfile, jax.numpy as jnp
    >>> from glora_jax import adapt, save_folded
    >>> adapted = adapt(nn.Dense(3), jnp.zeros((1, 4)), structure='lora:4')
    >>> params = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}
    >>> variables = adapted.init(jax.random.key(0), params)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   save_folded(folder, adapted, variables, {'Dense': 'layers.0.fc'})
    ...   index = json.loads(pathlib.Path(folder, 'model.safetensors.index.json').read_text())
    >>> index['weight_map']['layers.0.fc.weight']
    'model-00001-of-00001.safetensors'
  """
  folder = check_path(folder)
  validate(adapted, Adapted, 'adapted')
  fixed_genome(adapted, 'save_folded')
  names = name_map(names)
  validate(max_shard_bytes, int, 'max_shard_bytes', least=1, most=2**63)
  beside = [] if base is None else [*os.scandir(check_path(base))]
  if os.path.isdir(folder) and any(name.endswith(_WEIGHTS) for name in os.listdir(folder)):
    raise FileExistsError(f'{printable(folder)} has weights; choose another folder, or empty it.')
  shapes, sites = adapted.places.param_shapes, _sites(adapted)
  to_torch = {path: functools.partial(_tensors, names, path, sites.get(path)) for path in shapes}
  # Before anything is folded: every parameter has names, and no two the same.
  planned = [name for path in shapes for name in jax.eval_shape(to_torch[path], shapes[path])]
  if repeated := [name for name, count in collections.Counter(planned).items() if count > 1]:
    raise ValueError(
      f'names: {grouped(repeated)} stands for several parameters; give each its own.'
    )
  folded = flatten(nn.meta.unbox(adapted.fold(variables)))
  params = {path: folded[path] for path in shapes}  # without leaves that are not arrays
  shards = _shards(params, max_shard_bytes)
  os.makedirs(folder, exist_ok=True)
  files = {}
  for number, paths in enumerate(shards, 1):
    tensors = {}
    for path in paths:
      tensors |= to_torch[path](on_host(params[path]))
    require_finite(folder, tensors)
    file = f'model-{number:05}-of-{len(shards):05}.safetensors'
    write_safetensors(os.path.join(folder, file), tensors, {'format': 'pt'})
    files |= dict.fromkeys(tensors, file)
  for entry in beside:
    is_wanted = entry.name.endswith(_BESIDE) and not entry.name.endswith(INDEX)
    if is_wanted and not os.path.lexists(os.path.join(folder, entry.name)):
      shutil.copy(entry.path, folder)
  size = sum(value.nbytes for value in params.values())
  write_json(os.path.join(folder, INDEX), {'metadata': {'total_size': size}, 'weight_map': files})


def _sites(adapted: Adapted) -> dict[KeyPath, Site]:
  """The linear layers and adapted tables of a model, by the paths of their parameters.

  Raises:
    ValueError: a matrix is neither in them nor used unchanged.
  """
  places, sites = adapted.places, {}
  for site in (*places.sites, *places.other_sites):
    if site.is_convolution:
      raise ValueError(f'{site.name} is a convolution; {_ONLY}.')
    sites |= {path: site for path in (site.kernel_path, site.bias_path) if path is not None}
  for path, reason in places.uncovered:
    if path not in sites and not reason.startswith((LOOKED_UP, ITEM_BY_ITEM)):
      raise ValueError(f'{path_name(path)} is not a linear layer ({reason}); {_ONLY}.')
  return sites


def _tensors(names: NameMap, path: KeyPath, site: Site | None, value: Any) -> dict[str, Any]:
  """The torch tensors of a parameter, by name; `site` is its layer if it has one."""
  if site is None:
    *module, leaf = path
    name, kind = (module, LEAVES[leaf]) if leaf in LEAVES else (path, 'weight')
    name = path_name(tuple(name))
    stack = value.shape[: modules_for(names, name, None)[0].count('{}')]
  else:
    name, stack = site.name, site.stack_shape
    is_kernel = path == site.kernel_path
    kind = 'weight' if is_kernel else 'bias'
    value = site.layout.matrices(value) if is_kernel else site.layout.vectors(value)
  is_linear, tensors = site is not None and site.kind != TABLE, {}
  for index in np.ndindex(stack):
    layer, modules = value[index], modules_for(names, name, index)
    width, rest = divmod(layer.shape[-1], len(modules))
    if rest:
      raise ValueError(
        f'names: the {layer.shape[-1]} outputs of {name} cannot be divided among {listed(modules)}.'
      )
    for place, module in enumerate(modules):
      part = layer[..., place * width : (place + 1) * width]
      tensors[f'{module}.{kind}'] = part.T if is_linear else part
  return tensors


def _shards(params: Mapping[KeyPath, Any], most: int) -> list[list[KeyPath]]:
  """The paths of parameters in the order of the files, which have at most so many bytes."""
  shards, size = [[]], 0
  for path, value in params.items():
    if shards[-1] and size + value.nbytes > most:
      shards.append([])
      size = 0
    shards[-1].append(path)
    size += value.nbytes
  return shards
