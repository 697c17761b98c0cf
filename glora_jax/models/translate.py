"""Between the tensors of a file, as a format names and lays them out, and the parameters of the ViT."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import flax
import jax
import numpy as np

from glora_jax.models import formats
from glora_jax.models.containers import Tensors
from glora_jax.models.formats import FORMATS, Format, grouped
from glora_jax.models.vit import ViT

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Source:
  """What a file was read as, so that it can be written back in the same way.

  Attributes:
    format: name in `formats.FORMATS`.
    container: 'npz', 'safetensors' or 'torch'.
    prefix: of all names.
    wrapper: key that holds the tensors of a PyTorch file.
    variant: see `formats.Format`.
    unused: tensors the model has no use for.
  """

  format: str
  container: str
  prefix: str = ''
  wrapper: str | None = None
  variant: formats.Variant = dataclasses.field(default_factory=dict)
  unused: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)


def _layout(format, model, variant, expected):
  """(rules by path of ours, names in the file -> shapes) for a model; parameters without a rule are left out."""
  rules = {rule.ours: rule for rule in format.rules(model, variant) if rule.ours in expected}
  shapes = {}
  for path, rule in rules.items():
    stacked, shape = path.startswith('blocks/'), expected[path].shape
    one = np.broadcast_to(np.float32(0), shape[1:] if stacked else shape)
    for name, part in zip(rule.theirs, rule.to_theirs(one), strict=True):
      if not stacked:
        shapes[name] = part.shape
      elif '{}' in name:
        shapes.update({name.format(block): part.shape for block in range(model.depth)})
      else:
        shapes[name] = (model.depth, *part.shape)
  return rules, shapes


def read_params(
  tensors: Tensors,
  format: Format,
  model: ViT,
  variant: formats.Variant,
  names: Mapping[str, str],
  expected: Mapping[str, jax.ShapeDtypeStruct],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """All parameters of the model, each written at once to where it stays.

  Args:
    tensors, format, variant: what is read, and as what.
    model, expected: what is made of it; its parameters' shapes by path.
    names: as the format knows them -> in the file.

  Returns:
    (nested parameters, the tensors that the format knows and the model has no use for).

  Raises:
    ValueError: the names of all tensors that are missing, unexpected, misshaped; the first that is damaged or not finite.
  """
  rules, shapes = _layout(format, model, variant, expected)
  unused = [name for name in names if name not in shapes and re.match(format.unused, name)]
  used = {name: tensors.specs[there] for name, there in names.items() if name not in unused}
  require(tensors, {name: spec.shape for name, spec in used.items()}, shapes)
  if odd := [name for name in shapes if used[name].dtype is None]:
    raise ValueError(f'{tensors.path}: {grouped(odd)} hold no floating-point numbers.')
  read = lambda name: finite(tensors.path, name, tensors.read(names[name]))
  params = {}
  for path, spec in expected.items():
    rule = rules[path]
    if not rule.theirs:
      params[path] = rule.to_ours(spec.shape)
    elif not path.startswith('blocks/'):
      params[path] = np.asarray(rule.to_ours(*map(read, rule.theirs)), order='C')
    elif '{}' in rule.theirs[0]:  # a tensor for each block
      every = [[name.format(number) for name in rule.theirs] for number in range(model.depth)]
      dtype = np.result_type(*(used[name].dtype for block in every for name in block))
      params[path] = stack(spec.shape, dtype, (rule.to_ours(*map(read, block)) for block in every))
    else:  # one tensor for all blocks
      blocks = zip(*(read_blocks(tensors, names[name]) for name in rule.theirs), strict=True)
      dtype = np.result_type(*(used[name].dtype for name in rule.theirs))
      params[path] = stack(spec.shape, dtype, (rule.to_ours(*parts) for parts in blocks))
  return flax.traverse_util.unflatten_dict(params, sep='/'), {
    name: tensors.read(names[name]) for name in unused
  }


def read_blocks(tensors: Tensors, name: str) -> Iterator[np.ndarray]:
  """The entries of a tensor's first axis, one at a time."""
  for block in tensors.blocks(name):
    yield finite(tensors.path, name, block)


def stack(shape: tuple[int, ...], dtype: np.dtype, blocks: Iterable[np.ndarray]) -> np.ndarray:
  """`np.stack` without ever holding the blocks twice."""
  stacked = np.empty(shape, dtype)
  for number, block in enumerate(blocks):
    stacked[number] = block
  return stacked


def finite(path: str, name: str, array: np.ndarray) -> np.ndarray:
  """The array; ValueError where it is not finite."""
  if not np.isfinite(np.sum(array, dtype=np.float64)) and not np.isfinite(array).all():
    raise ValueError(
      f'{path}: the tensor {name} is not finite; the checkpoint comes from a run that diverged, or is damaged.'
    )
  return array


def require(
  tensors: Tensors, given: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
  """Raises ValueError naming every missing, unexpected and misshaped tensor, grouped over the blocks."""
  unexpected = sorted(given.keys() - expected.keys())
  misshaped = [
    f'{name} is {given[name]} and should be {expected[name]}'
    for name in sorted(expected.keys() & given.keys())
    if given[name] != expected[name]
  ]
  kinds = {
    'missing': grouped(expected.keys() - given.keys()),
    'unexpected': grouped(unexpected),
    'misshaped': grouped(misshaped),
  }
  if problems := '; '.join(f'{kind}: {names}' for kind, names in kinds.items() if names):
    raise ValueError(
      f'{tensors.path} does not hold the tensors of its model. {problems}. '
      'Check that the file is whole and of the model that is asked for.'
    )


def fit_to_format(
  model: ViT, flat: formats.Flat, source: Source
) -> tuple[ViT, formats.Flat, dict[str, formats.Rule]]:
  """An equal model that the format has room for, its parameters, and their rules; see `to_tensors`, which it is the first half of."""
  model, flat = _represent(model, dict(flat), source)
  rules, _ = _layout(FORMATS[source.format], model, source.variant, flat)
  if homeless := sorted(flat.keys() - rules.keys()):
    raise ValueError(
      f'The format {source.format} has no place for {", ".join(homeless)}; choose another format.'
    )
  return model, flat, rules


def to_tensors(model: ViT, flat: formats.Flat, source: Source) -> tuple[ViT, dict[str, np.ndarray]]:
  """The tensors of a file, by name, and the model as that format's code base will build it.

  What a format has no place for is folded into what it has, where that changes nothing: LayerScale into the layers before it,
  the class token's position into the class token.

  Raises:
    ValueError: the format has no room for the model.
  """
  format = FORMATS[source.format]
  model, flat, rules = fit_to_format(model, flat, source)
  prefix = source.prefix
  if format.name.startswith('hf_') and model.num_classes:
    prefix = 'dinov2.' if 'dinov2' in format.name else 'vit.'
  outside = re.compile(format.outside)
  tensors = {}
  for path, rule in rules.items():
    if not path.startswith('blocks/'):
      parts = rule.to_theirs(flat[path])
    else:
      blocks = [rule.to_theirs(block) for block in flat[path]]
      if '{}' in rule.theirs[0]:
        tensors.update(
          {
            name.format(i): part
            for i, block in enumerate(blocks)
            for name, part in zip(rule.theirs, block, strict=True)
          }
        )
        continue
      parts = [np.stack(column) for column in zip(*blocks, strict=True)]
    tensors.update(zip(rule.theirs, parts, strict=True))
  tensors = {
    name if outside.match(name) else prefix + name: value
    for name, value in {**tensors, **source.unused}.items()
  }
  return model, tensors


def _represent(model, flat, source):
  """An equal model that the format has room for."""
  name, refuse = (
    source.format,
    lambda what: ValueError(
      f'The format {source.format} cannot say {what}; choose another format.'
    ),
  )
  dinov2, hf, npz = 'dinov2' in name, name.startswith('hf_'), FORMATS[name].container == 'npz'
  if (npz or name.startswith('hf_vit')) and model.layer_scale is not None:
    for scale, layer in (('scale1', 'attn/proj'), ('scale2', 'mlp/fc2')):
      gamma = flat.pop(f'blocks/{scale}/gamma')
      flat[f'blocks/{layer}/kernel'] = flat[f'blocks/{layer}/kernel'] * gamma[:, None, :]
      flat[f'blocks/{layer}/bias'] = flat[f'blocks/{layer}/bias'] * gamma
    model = model.clone(layer_scale=None)
  if dinov2 and model.layer_scale is None:
    for scale in ('scale1', 'scale2'):
      flat[f'blocks/{scale}/gamma'] = np.ones(
        (model.depth, model.width), flat['cls'].dtype if 'cls' in flat else np.float32
      )
    model = model.clone(layer_scale=1.0)
  if hf and not model.class_token:
    raise refuse('a model without class token')
  if (hf or npz) and model.norm_after_pool:
    raise refuse('that the last LayerNorm stands after pooling')
  if dinov2 and model.num_classes and model.pool != 'token+gap':
    head = flat['head/kernel']
    halves = [head, np.zeros_like(head)]
    flat['head/kernel'] = np.concatenate(halves if model.pool == 'token' else halves[::-1])
    model = model.clone(pool='token+gap')
  pools = ('token', 'gap')
  if npz:
    pools = ('token',) if model.class_token else ('gap',)
  elif hf:
    pools = ('token+gap',) if dinov2 and model.num_classes else ('token',)
  if model.pool not in pools:
    raise refuse(f"pool='{model.pool}'" + (' with a class token' if model.class_token else ''))
  if hf and model.num_classes and model.pre_logits is not None:
    raise refuse('pre-logits and a head together')
  if npz and model.activation != 'gelu_tanh':
    log.warning(
      "%s computes GELU by its tanh approximation, and this model has activation='%s': logits will differ slightly.",
      name,
      model.activation,
    )
  if name == 'timm' and model.norm_eps not in (1e-5, 1e-6):
    log.warning(
      "timm's LayerNorms add 1e-6, or 1e-5 in CLIP's models, and this model's add %g: logits will differ slightly.",
      model.norm_eps,
    )
  if not source.variant.get('class_pos', True) and model.class_token:
    flat['cls'] = flat['cls'] + flat['pos_embed'][:, :1]
    flat['pos_embed'] = np.concatenate(
      [np.zeros_like(flat['pos_embed'][:, :1]), flat['pos_embed'][:, 1:]], axis=1
    )
  if npz and source.variant.get('position', True) is None:
    computed = formats.sincos_2d(flat['pos_embed'].shape, model.class_token)
    if computed.shape != flat['pos_embed'].shape or not np.array_equal(computed, flat['pos_embed']):
      raise refuse('a position embedding that is not the computed one')
  return model, flat
