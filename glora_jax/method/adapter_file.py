"""One trained subnet as one small safetensors file."""

from __future__ import annotations

from typing import Any

import flax
import flax.linen as nn
import jax
import numpy as np

from glora_jax.files import Path, read_tensors, write_tensors
from glora_jax.method import equation, genomes
from glora_jax.method.adapted import COLLECTION, Adapted
from glora_jax.tree import fingerprint, flatten, get, replace


def save_adapter(
  path: Path, adapted: Adapted, variables: Any, genome: Any, **metadata: Any
) -> None:
  """Writes one subnet as one safetensors file: only the numbers that its genome uses, the heads, and the model's other collections.

  Tensors are named `glora/<layer>/<support>`, `params/<path>` and, batch statistics for instance, `<collection>/<path>`. The
  metadata holds genome, spec and a fingerprint of the frozen parameters, so that `load_adapter` knows what the file belongs to.

  Args:
    path: of the file.
    adapted, variables, genome: the subnet; one genome [rows, 5].
    **metadata: more to remember, JSON types.
  """
  genome = genomes.canonicalize(adapted.spec, genome)
  trainable, frozen = adapted.split(variables)
  others = {name: value for name, value in frozen.items() if name != 'params'}
  tensors = {
    '/'.join(p): nn.meta.unbox(value)
    for p, value in flatten({'params': trainable['params'], **others}).items()
  }
  for name, index, parts, supports in _used(adapted, trainable[COLLECTION], genome):
    for support, part in parts.items():
      tensors[f'glora/{name}/{support}'] = np.asarray(nn.meta.unbox(supports[support]))[
        (*index, *part)
      ]
  described = {
    'spec': [repr(layer) for layer in adapted.spec],
    'base': fingerprint(frozen['params']),
    **genomes.genome_to_json(adapted.spec, genome),
    **metadata,
  }
  write_tensors(path, tensors, 'adapter', described)


def load_adapter(path: Path, adapted: Adapted, params: Any) -> tuple[dict[str, Any], np.ndarray]:
  """Reads what `save_adapter` wrote onto the base that it was trained on.

  Args:
    path: of the file.
    adapted: the same model, adapted with the same space.
    params: the base's parameters; their heads are replaced.

  Returns:
    (variables, genome), ready for `adapted.apply` and `adapted.fold`; supports that the genome does not use are zero, and the
    model's other collections are those that were saved.

  Raises:
    ValueError: the file is damaged, or belongs to another model, space or base; the sentence says which.
  """
  tensors, metadata = read_tensors(path, 'adapter')
  theirs, ours = metadata['spec'], [repr(layer) for layer in adapted.spec]
  if theirs != ours:
    row = next(
      (n for n, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1]),
      min(len(theirs), len(ours)),
    )
    at = lambda layers: layers[row] if row < len(layers) else 'no such layer'
    raise ValueError(
      f'The adapter {path} belongs to another model or search space. It has {len(theirs)} layers, and this '
      f'model {len(ours)}; the first that differs is layer {row}: {at(theirs)} there, {at(ours)} here.'
    )
  genome = genomes.genome_from_json(adapted.spec, metadata)
  variables = adapted.init(jax.random.key(0), params)
  trainable, frozen = adapted.split(variables)
  if (found := fingerprint(frozen['params'])) != metadata['base']:
    raise ValueError(
      f'The adapter {path} was trained on other base weights (SHA-256 {metadata["base"][:12]}..., and these are '
      f'{found[:12]}...); load it onto those.'
    )
  supports = jax.tree.map(lambda value: np.zeros(value.shape, value.dtype), trainable[COLLECTION])
  for name, index, parts, module in _used(adapted, nn.meta.unbox(supports), genome):
    for support, part in parts.items():
      module[support][(*index, *part)] = tensors.pop(f'glora/{name}/{support}')
  others = flax.traverse_util.unflatten_dict(tensors, sep='/')
  heads, expected = flatten(others.pop('params', {})), nn.meta.unbox(flatten(trainable['params']))
  if heads.keys() != expected.keys() or any(heads[p].shape != expected[p].shape for p in heads):
    raise ValueError(
      f'The adapter {path} has the heads {_shapes(heads)}, and this model has {_shapes(expected)}.'
    )
  new = trainable['params']
  for p, value in heads.items():
    new = replace(new, p, value)
  return adapted.join({'params': new, COLLECTION: supports}, {**frozen, **others}), genome


def _shapes(flat):
  return (
    ', '.join(f'{"/".join(path)} {value.shape}' for path, value in sorted(flat.items())) or 'none'
  )


def _used(adapted, supports, genome):
  """(name of the layer, index in its stack, used parts, supports of its module) for every row."""
  for group in adapted.groups:
    for index, row in group.slices():
      parts = equation.used_parts(
        genome[row].tolist(), group.space.ranks, group.has_bias, group.space.tied
      )
      yield adapted.spec.layers[row].name, index, parts, get(supports, group.path)
