"""Adapters of HF PEFT: a subnet of LoRAs written as one, PEFT's LoRA and GLoRA read as a subnet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from glora_jax.files import Path
from glora_jax.limits import Domain, check_path, check_type
from glora_jax.method import genomes
from glora_jax.method.adapted import Adapted
from glora_jax.method.adapter_file import require_finite, shapes_of_fresh
from glora_jax.method.quantized import full_precision
from glora_jax.method.space import FLAT_FORMS, TENSORS, Spec
from glora_jax.method.storage import check_storage
from glora_jax.method.supports import COLLECTION
from glora_jax.method.validation import check_one_genome
from glora_jax.models import peft_file
from glora_jax.models.formats.format import Flat
from glora_jax.models.peft_file import AdapterFile, Forms, LowRank
from glora_jax.models.peft_layers import AdaptedLayer, combine, fill, match_layers
from glora_jax.models.peft_names import (
  Names,
  Naming,
  Transformers,
  naming_to_read,
  naming_to_write,
  require_distinct,
)
from glora_jax.models.verification import grouped
from glora_jax.tree import flatten, get, path_name, replace

_B = TENSORS.index('B')


def save_peft(
  folder: Path,
  adapted: Adapted,
  variables: Mapping[str, Any],
  genome: Any,
  names: Names,
  *,
  transformers: Transformers = 5,
  base: str | None = None,
) -> None:
  r"""Writes a subnet of LoRAs as an adapter that HF PEFT loads onto the torch model.

  The subnet has B as LoRA, of any rank in each layer, or none, and no other tensor. Each LoRA gets
  an alpha equal to its rank, so nothing is scaled; where queries, keys and values are one layer
  here and three there, each of the three gets the same `lora_A`. Heads are saved whole
  (`modules_to_save`). `PeftModel.from_pretrained(torch_model, folder)` then gives the same logits.
  DINOv2's classifiers read class token and mean patch; a head that reads one of them is written
  with zeros for the other, and `load_peft` takes these off again.

  Args:
    folder: path of the folder, which is made where it is missing.
    adapted: the adapted model.
    variables: its variables, after training.
    genome: the subnet, int [rows, 5].
    names: what the torch model calls its modules: for this package's ViT the name of a format
      ('timm', 'hf_vit', 'hf_dinov2') or the 'source' that `weights.load` returned; for any model a
      map of paths here, which may be regular expressions, to names of torch modules:
      `{r'layers/(\d+)/attn/q': r'model.layers.\1.self_attn.q_proj'}`. Several names share a layer's
      outputs equally, and '{}' is the place in a stack.
    transformers: 5, or 4, whose modules had other names in its ViT and DINOv2.
    base: name of the base model that the adapter notes, or a path; a name on the hub may have a
      revision, `hf:owner/name@revision`.

  Raises:
    ValueError: the subnet has more than PEFT's LoRA can say, or a layer or head has no name; or the
      variables are those of another model or not finite; the sentence says which.

  Example:
    >>> import json, pathlib, tempfile, jax.numpy as jnp
    >>> from glora_jax import adapt, preset
    >>> adapted = adapt(nn.Dense(3), jnp.zeros((1, 4)))
    >>> params = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}
    >>> variables = adapted.init(jax.random.key(0), params)
    >>> lora = preset(adapted.spec, 'lora:4')
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   save_peft(folder, adapted, variables, lora, {'Dense': 'layers.0.fc'})
    ...   config = json.loads(pathlib.Path(folder, 'adapter_config.json').read_text())
    >>> config['target_modules'], config['r'], config['lora_alpha']
    (['layers.0.fc'], 4, 4)
  """
  folder = check_path(folder)
  Domain(str, optional=True).check(base, 'base')
  check_type(adapted, Adapted, 'adapted')
  adapted.check_variables(variables)
  check_one_genome(adapted.spec, genome, 'save_peft')
  genome = genomes.canonicalize(adapted.spec, genome)
  _require_loras(adapted.spec, genome)
  supports = nn.meta.unbox(variables[COLLECTION])
  check_storage(adapted.groups, supports, genome)
  params = {
    path_name(path): np.asarray(nn.meta.unbox(value))
    for path, value in flatten(adapted.full_precision(variables['params'])).items()
  }
  naming, params = naming_to_write(names, adapted, params, transformers)
  named = list(_loras(adapted, supports, genome, naming))
  require_distinct(name for name, _ in named)
  loras = dict(named)
  heads: Flat = {}
  for path in sorted(adapted.head_paths):
    heads |= naming.write_head(path, params)
  factors = {name: np.concatenate([lora.down, lora.up.T]) for name, lora in loras.items()}
  require_finite(folder, {**factors, **heads})
  peft_file.write(folder, loras, heads, base)


def _require_loras(spec: Spec, genome: np.ndarray) -> None:
  """Raises ValueError unless the genome has LoRAs in B and nothing else."""
  for layer, alleles in zip(spec, genome.tolist(), strict=True):
    forms = {
      tensor: layer.space.names(tensor)[code]
      for tensor, code in zip(TENSORS, alleles, strict=True)
      if code and (tensor != 'B' or code < len(FLAT_FORMS['B']))
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


def _loras(
  adapted: Adapted, supports: Any, genome: np.ndarray, naming: Naming
) -> Iterator[tuple[str, LowRank]]:
  """The LoRA of every torch module that has one, by its name."""
  for group in adapted.groups:
    members = list(group.of_members(get(supports, group.path)))
    for index, row in group.slices():
      if not genome[row, _B]:
        continue
      rank = group.space.ranks[genome[row, _B] - len(FLAT_FORMS['B'])]
      for site, arrays in members:
        if site.is_convolution:
          raise ValueError(
            f'{site.name} is a convolution, and only linear layers are written as LoRAs of PEFT; '
            'fold the subnet (adapted.fold) and save the model with weights.save instead.'
          )
        down = np.asarray(arrays['B_down'])[index][:, :rank]
        up = np.asarray(arrays['B_up'])[index][:rank]
        modules = naming.modules(site, index)
        if up.shape[1] % len(modules):
          raise ValueError(
            f'names: the {up.shape[1]} outputs of {site.name} are not divisible among '
            f'{", ".join(modules)}.'
          )
        for module, part in zip(modules, np.split(up, len(modules), axis=1), strict=True):
          yield module, LowRank(down, part)


def load_peft(
  folder: Path, adapted: Adapted, params: Any, names: Names | None = None
) -> tuple[dict[str, Any], np.ndarray]:
  """Reads an adapter of PEFT's LoRA or GLoRA as a subnet of an adapted model.

  What PEFT scales by alpha is scaled once and for all. Where queries, keys and values are one layer
  here and three there, the layer's LoRA has the rank of all that differ in `lora_A` together, 3r in
  general, which its space must offer; three constants become a vector, and three different C, which
  one C cannot say, their part of E.

  Args:
    folder: path of the adapter's folder, or its name on the hub, `hf:owner/name[@revision]`.
    adapted: the same model as the base, adapted; its heads are those that the adapter trains.
    params: the base's parameters; heads that the adapter has are replaced, and of a quantized base
      all heads are in full precision, as `adapted.init` gives them.
    names: as of `save_peft`; None finds out which format fits.

  Returns:
    (variables, genome), ready for `adapted.apply` and `adapted.fold`; supports that the genome does
    not use are zero.

  Raises:
    FileNotFoundError: there is no adapter.
    ValueError: it is damaged, of another kind, or belongs to another model; or the space does not
      offer the ranks that it needs, and the sentence says which these are.

  Example:
    >>> import tempfile, jax.numpy as jnp
    >>> from glora_jax import adapt, preset
    >>> adapted, names = adapt(nn.Dense(3), jnp.zeros((1, 4))), {'Dense': 'layers.0.fc'}
    >>> params = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}
    >>> variables = adapted.init(jax.random.key(0), params)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   save_peft(folder, adapted, variables, preset(adapted.spec, 'lora:4'), names)
    ...   variables, genome = load_peft(folder, adapted, params, names)
    >>> genome.tolist()
    [[0, 3, 0, 0, 0]]
  """
  check_type(adapted, Adapted, 'adapted')
  adapted.check_params(params)
  file = peft_file.read(folder)
  if not file.modules:
    raise ValueError(f'{file.path} adapts no module; give the folder of an adapter of PEFT.')
  naming = naming_to_read(names, adapted, file.modules)
  layers = match_layers(file, adapted, naming)
  params = full_precision(params, adapted.param_shapes, only=adapted.head_paths)  # as init does
  whole = adapted.full_precision(params)
  forms = [combine(layer, whole) for layer in layers]
  _require_ranks(file.path, adapted.spec, layers, forms)
  shapes = shapes_of_fresh(adapted, params)[COLLECTION]
  supports = jax.tree.map(lambda value: np.zeros(value.shape, value.dtype), shapes)
  genome = np.zeros((len(adapted.spec), len(TENSORS)), np.int8)
  for layer, of_layer in zip(layers, forms, strict=True):
    arrays = nn.meta.unbox(get(supports, layer.group.path))
    for tensor, form in of_layer.items():
      genome[layer.row, TENSORS.index(tensor)] = fill(arrays, layer, tensor, form)
  variables = {'params': _with_heads(file, adapted, params, naming), COLLECTION: supports}
  return variables, genomes.canonicalize(adapted.spec, genome)


def _require_ranks(
  path: str, spec: Spec, layers: Sequence[AdaptedLayer], forms: Sequence[Forms]
) -> None:
  """Raises ValueError unless every layer's space offers the ranks of its LoRAs."""
  needed = []
  lacking = []
  for layer, of_layer in zip(layers, forms, strict=True):
    for tensor, form in of_layer.items():
      if not isinstance(form, LowRank):
        continue
      rank = form.down.shape[1]
      needed.append(rank)
      if rank not in layer.group.space.ranks:
        lacking.append((layer, tensor, rank))
  if not lacking:
    return
  layer, tensor, rank = lacking[0]
  offered = ', '.join(map(str, layer.group.space.ranks))
  ranks = ', '.join(map(str, sorted(set(needed))))
  together = f' ({len(layer.parts)} modules of the adapter together)' if layer.parts[1:] else ''
  raise ValueError(
    f'{path} needs a LoRA of rank {rank} for {tensor} in {spec.layers[layer.row].name}{together}, '
    f'and its space offers {offered}; adapt with a SearchSpace whose ranks are those of the '
    f'adapter: {ranks}.'
  )


def _with_heads(file: AdapterFile, adapted: Adapted, params: Any, naming: Naming) -> Any:
  """The params with the heads that an adapter has."""
  remaining = dict(file.others)
  for path in sorted(adapted.head_paths):
    expected = adapted.param_shapes[path].shape
    value = naming.read_head(path, remaining, expected[0])
    if value is None:
      continue
    if value.shape != expected:
      raise ValueError(
        f'{file.path} is of another model: its {path_name(path)} is {value.shape}, and {expected} '
        'here.'
      )
    params = replace(params, path, value)
  if remaining:
    raise ValueError(
      f'{file.path} has {grouped(remaining)}, which no head of this model is; adapt with '
      'heads that the adapter trains in full, or take these tensors out.'
    )
  return params
