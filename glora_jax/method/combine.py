"""Combines adapters into one, from their files.

The equation is linear in A, B, C, D and E. So the weighted sum of the adapters' tensors changes a
base by the weighted sum of their changes, whatever their forms, ranks and scales. Flat forms
(constant and vector) stay flat. LoRAs are concatenated to one whose rank is the sum of theirs. If a
tensor has both, the flat ones become one more rank: ones times a row. A table of which rows are
chosen gets the rows of all adapters.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from glora_jax.checks import check_path, printable, shown, validate
from glora_jax.files import Path, reading, require_other_than, write_tensors
from glora_jax.method.adapter import ADAPTER, COLLECTION, adapter_shapes, used_parts
from glora_jax.method.adapter_file import AGAIN, check_tensors, read_adapter, require_finite
from glora_jax.method.genomes import genome_from_json, genome_to_json
from glora_jax.method.presets import smallest_space
from glora_jax.method.space import TENSORS, Layer, Spec, Tensor

_LARGEST_WEIGHT = float(np.finfo(np.float32).max)
# The array of a file that stores a flat form, and its shape; D and E are stored as vectors.
_FLAT = {'A': ('A_up', (1, -1)), 'B': ('B_up', (1, -1)), 'C': ('C_down', (-1, 1))}

# A tensor of the equation in a layer. (row,) is a flat form, [1] or [features]. (down, up) is a
# LoRA, [in, rank] and [rank, out]. () is none.
Term = tuple[np.ndarray, ...]


class _Adapter(NamedTuple):
  """The content of a file; B's LoRAs are multiplied by their scale."""

  tensors: dict[str, np.ndarray]
  metadata: dict[str, Any]
  layers: dict[str, Layer]


def combine(
  adapters: Mapping[Path, float],
  out_path: Path,
  *,
  rank: int | None = None,
  head: Path | None = None,
) -> dict[str, float]:
  """Combines adapters of one base, of any structures, and writes the result as an adapter file.

  The result is the weighted sum of what the adapters do to the base, exact up to rounding.

  Args:
    adapters: the weight of each file that `save_adapter` wrote, by its path.
    out_path: path of the safetensors file to write; see `save_adapter`.
    rank: largest rank of a LoRA; higher ones are cut by singular values. None for the sum of the
      ranks.
    head: the one of `adapters` whose heads and other collections, batch statistics for instance,
      the result has; these are not added. None writes none: `load_adapter` keeps the base's heads.

  Returns:
    The loss by cutting ranks, by layer and tensor (`blocks/fc1[0]/B`): the Frobenius norm of the
    lost part, relative to the whole. Tensors that are exact in float32 are left out: {} is an exact
    sum.

  Raises:
    FileNotFoundError: there is no such file.
    FileExistsError: the result would replace one of the adapters.
    TypeError: an argument has another type.
    ValueError: no adapter, a weight that is not finite, a rank below 1, a head that is not among
      the adapters or that has none, a damaged file, adapters of different bases or layers, or a
      result that is not finite; nothing is written.

  Example:
    >>> import os, tempfile, flax.linen as nn, jax, jax.numpy as jnp
    >>> from glora_jax import adapt, combine, load_adapter, save_adapter
    >>> model, x = nn.Dense(3), jnp.zeros((1, 4))
    >>> params = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}
    >>> folder = tempfile.mkdtemp()
    >>> a, b, both = (os.path.join(folder, f'{name}.safetensors') for name in ('a', 'b', 'both'))
    >>> for path, structure in ((a, 'lora:1'), (b, 'scale_shift_lora:2')):
    ...   adapted = adapt(model, x, structure=structure)
    ...   save_adapter(path, adapted, adapted.init(jax.random.key(0), params))
    >>> combine({a: 0.7, b: 0.3}, both)
    {}
    >>> adapted, variables = load_adapter(both, adapt(model, x, structure=both), params)
    >>> adapted.spec.layers[0].space.names('B')[adapted.genome[0, 1]]
    'lora:3'
  """
  out_path, weights = check_path(out_path), _read_weights(adapters)
  rank = validate(rank, int | None, 'rank', least=1)
  head = None if head is None else check_path(head)
  if head not in (None, *weights):
    raise ValueError(
      f'head={shown(head)} is not one of the adapters that are combined; choose one of them.'
    )
  require_other_than(out_path, weights)
  files = {path: _read(path) for path in weights}
  _check_alike(files)
  first = files[next(iter(files))]
  others = {} if head is None else _others(head, files)
  layers = []
  for name, layer in first.layers.items():
    rows = {row for file in files.values() for row in file.layers[name].ids}
    layers.append(dataclasses.replace(layer, ids=tuple(sorted(rows))))

  tensors, forms, errors = {}, [], {}
  for layer in layers:
    forms.append({})
    for tensor in TENSORS:
      with np.errstate(over='ignore', invalid='ignore'):  # `require_finite` raises below
        terms = [_term(file, layer, tensor, weights[path]) for path, file in files.items()]
        term, error = _sum([term for term in terms if term], rank)
        arrays, forms[-1][tensor] = _to_arrays(tensor, term)
      if layer.ids:
        arrays = {name: value.reshape(len(layer.ids), -1) for name, value in arrays.items()}
      tensors |= {f'{COLLECTION}/{layer.name}/{name}': value for name, value in arrays.items()}
      if error > np.finfo(np.float32).eps:
        errors[f'{layer.name}/{tensor}'] = error
  require_finite(out_path, tensors, 'the weights are too large')
  space = smallest_space({'genome': [], 'layers': forms})
  spec = Spec(tuple(dataclasses.replace(layer, space=space) for layer in layers))
  described = {
    **{name: first.metadata[name] for name in ('spec', 'base', 'rounded', 'shapes')},
    'scale': [1.0] * len(spec),
    'ids': [list(layer.ids) for layer in spec],
    **genome_to_json(spec, genome_from_json(spec, {'layers': forms})),
  }
  write_tensors(out_path, {**tensors, **others}, 'adapter', described)
  return errors


def _read_weights(adapters: Any) -> dict[str, float]:
  """Validates the weights: a finite Python float for each path."""
  weights = {}
  for path, weight in validate(adapters, Mapping, 'adapters').items():
    limits = {'least': -_LARGEST_WEIGHT, 'most': _LARGEST_WEIGHT}
    name = f'adapters[{printable(check_path(path))}]'
    weights[check_path(path)] = validate(weight, float, name, **limits)
  if not 0 < len(set(map(os.path.realpath, weights))) == len(adapters):
    raise ValueError(f'adapters={shown(adapters)} must name one or more files, each once.')
  return weights


def _read(path: str) -> _Adapter:
  """Reads an adapter, and checks it without the model that it belongs to."""
  _, tensors, metadata = read_adapter(path)
  with reading(path, AGAIN):
    space = smallest_space(metadata)
    layers = [
      Layer(row['name'], row['in_features'], row['out_features'], row['bias'], space, tuple(ids))
      for row, ids in zip(metadata['spec'], metadata['ids'], strict=True)
    ]
    genome = genome_from_json(Spec(tuple(layers)), metadata).tolist()
  expected = {}
  for layer, forms in zip(layers, genome, strict=True):
    sides, rows = (layer.in_features, layer.out_features), len(layer.ids)
    shapes = adapter_shapes(*sides, space.ranks, layer.bias, rows=rows)
    for name, part in used_parts(forms, space.ranks, layer.bias, rows=rows).items():
      zeros = np.broadcast_to(np.float32(0), shapes[name])  # takes no memory, whatever its size
      expected[f'{COLLECTION}/{layer.name}/{name}'] = zeros[part]
  check_tensors(path, tensors, expected)
  for layer, scale in zip(layers, metadata['scale'], strict=True):
    down = f'{COLLECTION}/{layer.name}/B_down'
    if down in tensors:
      tensors[down] = tensors[down] * np.float64(scale)  # so 16 bits are not rounded again
  return _Adapter(tensors, metadata, {layer.name: layer for layer in layers})


def _check_alike(files: Mapping[str, _Adapter]) -> None:
  """Raises ValueError if two adapters belong to different bases or layers."""
  first, *others = files
  for other in others:
    both = f'{printable(first)} and {printable(other)}'
    ours, theirs = files[first].metadata, files[other].metadata
    if {ours['base'], *ours['rounded']}.isdisjoint([theirs['base'], *theirs['rounded']]):
      raise ValueError(
        f'{both} were trained on different base weights; combine adapters of one base.'
      )
    # Layers are compared with their sizes and with the paths and axes of their parameters.
    unlike = set(map(json.dumps, ours['spec'])) ^ set(map(json.dumps, theirs['spec']))
    if unlike:
      raise ValueError(
        f'{both} adapt different layers; combine adapters of one model: {min(unlike)[:400]}.'
      )


def _others(path: str, files: Mapping[str, _Adapter]) -> dict[str, np.ndarray]:
  """The heads and other collections of an adapter."""
  tensors = files[path].tensors.items()
  others = {name: value for name, value in tensors if not name.startswith(f'{COLLECTION}/')}
  if not others:
    raise ValueError(f'head={path!r} has no heads; choose another, or None.')
  return others


def _term(file: _Adapter, layer: Layer, tensor: Tensor, weight: float) -> Term:
  """An adapter's tensor of a layer, times a weight; () if it is none or the weight is 0.

  Chosen rows are one flat form: all their numbers, zero in rows that only others have.
  """
  arrays = [name for name, entry in ADAPTER.items() if entry.tensor == tensor]
  paths = [f'{COLLECTION}/{layer.name}/{name}' for name in arrays]
  stored = [file.tensors[path].astype(np.float64) for path in paths if path in file.tensors]
  if not stored or not (weight or layer.ids):
    return ()
  if layer.ids:
    rows = np.zeros((len(layer.ids), layer.out_features))
    rows[np.searchsorted(layer.ids, file.layers[layer.name].ids)] = stored[0]
    stored = [rows]
  stored[-1] *= weight
  if tensor == 'C':  # as a vector, which is smaller than any LoRA
    stored = [functools.reduce(np.matmul, stored)]
  return tuple(stored) if len(stored) == 2 else (stored[0].ravel(),)


def _sum(terms: Sequence[Term], rank: int | None) -> tuple[Term, float]:
  """The sum of a tensor's terms, cut to a rank, and the error of the cut."""
  if not terms:
    return (), 0.0
  flat = [term[0] for term in terms if len(term) == 1]
  factors = [term for term in terms if len(term) == 2]
  row = functools.reduce(np.add, flat, np.zeros(1))
  if not factors:
    return (row,), 0.0
  if flat:  # all of them together are one more rank
    down, up = factors[0]
    factors.append((np.ones_like(down[:, :1]), np.zeros_like(up[:1]) + row))
  down = np.concatenate([term[0] for term in factors], 1)
  up = np.concatenate([term[1] for term in factors])
  most = min(len(down), up.shape[1], rank or len(up))
  if len(up) <= most:
    return (down, up), 0.0
  # Singular values of the product need only the small factors: down = Q1 R1, up = R2^T Q2^T.
  (q_down, r_down), (q_up, r_up) = np.linalg.qr(down), np.linalg.qr(up.T)
  (down, up), error = _low_rank(r_down @ r_up.T, most)
  return (q_down @ down, up @ q_up.T), error


def _low_rank(matrix: np.ndarray, rank: int) -> tuple[Term, float]:
  """A matrix cut to its largest singular values, and the norm of the others relative to all."""
  u, values, v = np.linalg.svd(matrix, full_matrices=False)
  error = np.linalg.norm(values[rank:]) / (np.linalg.norm(values) or 1)
  return (u[:, :rank], values[:rank, None] * v[:rank]), float(error)


def _to_arrays(tensor: Tensor, term: Term) -> tuple[dict[str, np.ndarray], str]:
  """A tensor's arrays as a file stores them, by name, and the name of its form."""
  arrays = [array.astype(np.float32) for array in term]
  if not arrays:
    return {}, 'none'
  if len(arrays) == 2:
    return {f'{tensor}_down': arrays[0], f'{tensor}_up': arrays[1]}, f'lora:{len(arrays[1])}'
  form = 'constant' if arrays[0].size == 1 and tensor != 'C' else 'vector'
  name, shape = _FLAT.get(tensor, (tensor, (-1,)))
  return {name: arrays[0].reshape(shape)}, form
