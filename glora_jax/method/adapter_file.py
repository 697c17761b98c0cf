"""Saves and loads an adapter as one small safetensors file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypedDict

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.checks import check_path, printable, shown, validate
from glora_jax.files import Path, damaged, read_tensors, write_tensors
from glora_jax.mesh import place_like
from glora_jax.method.adapted import (
  Adapted,
  check_params,
  check_variables,
  dequantize_heads,
  fixed_genome,
)
from glora_jax.method.adapter import ADAPTER, COLLECTION, RANK_AXES
from glora_jax.method.genomes import (
  NamedForms,
  canonicalize,
  genome_from_json,
  genome_to_json,
)
from glora_jax.method.groups import parts_read
from glora_jax.method.sample import is_array
from glora_jax.method.selection import exactly
from glora_jax.method.site import TABLE
from glora_jax.method.space import is_scale
from glora_jax.tree import (
  by_name,
  differences,
  fingerprints,
  flatten,
  on_host,
  partition,
  path_name,
  update,
)

AGAIN = 'get it again, or save it again from its training'
# Metadata with an item for each layer.
_BY_ROW = ('spec', 'scale', 'ids', 'genome', 'layers')
EXTEND = 'if words were added there, extend the base first: glora_jax.extend'
_LONGEST_LAYER = 400  # characters that a sentence quotes
_ROUNDED = ('bfloat16', 'float16')  # types that a base may be cast to before or after the training


class _Row(TypedDict):
  """A layer: its sizes, and where its kernel is in the model.

  That is the path of the kernel, the kernel's axes and the index in the stack, and whether it is a
  convolution or a table. A layer is identified by them, and not by its row. A table whose rows are
  chosen says so, but not which: these are another item of the metadata.
  """

  name: str
  in_features: int
  out_features: int
  bias: bool
  kernel: dict[str, Any]


class _Metadata(TypedDict):
  """The required metadata of an adapter."""

  spec: list[_Row]
  scale: list[float]
  ids: list[list[int]]
  base: str
  rounded: list[str]
  shapes: dict[str, list[int]]
  genome: list[list[int]]
  layers: list[NamedForms]


def save_adapter(path: Path, adapted: Adapted, variables: Any, **metadata: Any) -> None:
  """Writes the adapter of a fixed structure as one safetensors file.

  The file holds only the numbers that the structure reads, the heads, and the model's other
  collections. Tensors are named `glora/<layer>/<array>`, `params/<path>` and `<collection>/<path>`
  (batch statistics, for instance). The metadata has the genome. Of every layer it has the sizes,
  the scale of the LoRA, the ids of chosen rows, and the path and axes of the parameter. Of the
  frozen parameters it has the shapes, and fingerprints, exact and rounded to 16 bits. From these
  `load_adapter` knows which model the file belongs to, even if the layers are found in another
  order.

  Args:
    path: path of the safetensors file.
    adapted: the adapted model.
    variables: its variables, after training. If processes hold parts of them, all must call this.
    **metadata: more to store, JSON types, or numbers and arrays of NumPy and JAX.

  Raises:
    ValueError: the variables are those of another model, were cut to a structure with lower ranks,
      are not finite or are random keys, metadata have a reserved name or are not JSON, the path is
      invalid, or the structure is free.

  Example:
    >>> import tempfile, flax.linen as nn, jax, jax.numpy as jnp, safetensors.numpy
    >>> from glora_jax import adapt, save_adapter
    >>> adapted = adapt(nn.Dense(3), jnp.zeros((1, 4)), structure='ssf')
    >>> params = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}
    >>> variables = adapted.init(jax.random.key(0), params)
    >>> with tempfile.NamedTemporaryFile(suffix='.safetensors') as file:
    ...   save_adapter(file.name, adapted, variables, accuracy=0.9)
    ...   tensors = safetensors.numpy.load_file(file.name)
    >>> {name: value.shape for name, value in sorted(tensors.items())}
    {'glora/Dense/A_up': (1, 3), 'glora/Dense/D': (3,), 'glora/Dense/E': (3,)}
  """
  path = check_path(path)
  validate(adapted, Adapted, 'adapted')
  genome = fixed_genome(adapted, 'save_adapter')
  check_variables(adapted, variables)
  trainable, frozen = adapted.split(variables)
  base, trained = frozen.pop('params'), nn.meta.unbox(trainable[COLLECTION])
  exact, *rounded = base_fingerprints(base)
  described = {
    'spec': _rows(adapted),
    'scale': [layer.space.scale for layer in adapted.spec],
    'ids': [list(layer.ids) for layer in adapted.spec],
    'base': exact,
    'rounded': rounded,
    'shapes': _frozen_shapes(adapted),
    **genome_to_json(adapted.spec, genome),
  }
  if reserved := described.keys() & metadata.keys():
    raise ValueError(f'The metadata name {min(reserved)!r} is reserved; choose another.')
  tensors = {
    name: array[part]
    for name, array, part in numbers_read(adapted, genome, jax.tree.map(on_host, trained))
  }
  others = {**frozen, COLLECTION: {}, 'params': trainable['params']}
  others = by_name(flatten(others))
  for name, value in others.items():
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
      raise ValueError(
        f'{printable(path)} is not written: {name} is a random key, and safetensors files hold '
        f'only numbers; leave the collection {name.split("/")[0]} out of the variables.'
      )
  tensors |= {name: on_host(value) for name, value in others.items()}
  require_finite(path, tensors)
  write_tensors(path, tensors, 'adapter', {**described, **metadata})


def numbers_read(
  adapted: Adapted, genome: np.ndarray, adapter: Any
) -> Iterator[tuple[str, np.ndarray, tuple[int | slice, ...]]]:
  """The numbers that a structure reads: a tensor's name in a file, an array, and the part of it.

  A file always has the names and axes of shared storage, so that it does not depend on
  `SearchSpace.shared`: within one structure no two forms of a tensor share anything. An array that
  the space stores separately (`A_vector` [out]) becomes a view with the axes of the shared one
  (`A_up` [1, out]).

  Args:
    adapted: the adapted model.
    genome: the structure, int [rows, 5].
    adapter: the `glora` collection, out of its boxes.
  """
  for layer, name, array, part in parts_read(adapted.places.groups, adapted.spec, genome, adapter):
    shared = ADAPTER[name].within
    if shared is not None:
      index_in_stack = part[: -len(ADAPTER[name].axes)]
      name, part = shared.name, (*index_in_stack, *shared.index)
      array = np.expand_dims(array, RANK_AXES[name]) if name in RANK_AXES else array
    yield f'{COLLECTION}/{layer}/{name}', array, part


def _rows(adapted: Adapted) -> list[_Row]:
  """Describes the layers, in the order of the genome's rows."""
  rows = {}
  for group in adapted.places.groups:
    site = group.site
    for index, row in group.slices():
      layer = adapted.spec.layers[row]
      kernel: dict[str, Any] = {
        'path': path_name(site.kernel_path),
        'stack': list(site.layout.stack),
        'index': list(index),
        'in': list(site.layout.inputs),
        'out': list(site.layout.outputs),
      }
      if site.is_convolution or site.kind == TABLE:
        kernel['used'] = 'convolution' if site.is_convolution else 'table'
      if layer.ids:
        kernel['rows'] = 'chosen'
      rows[row] = _Row(
        name=layer.name,
        in_features=layer.in_features,
        out_features=layer.out_features,
        bias=layer.bias,
        kernel=kernel,
      )
  return [rows[row] for row in range(len(rows))]


def require_finite(
  path: Path,
  tensors: Mapping[str, Any],
  why: str = 'the training diverged, lower its learning rate',
) -> None:
  """Raises ValueError if tensors that are to be written have numbers that are not finite."""
  name = _not_finite(tensors)
  if name is not None:
    raise ValueError(f'{printable(path)} is not written: {name} is not finite; {why}.')


def _not_finite(tensors: Mapping[str, Any]) -> str | None:
  """The name of the first tensor that has numbers that are not finite."""
  floats = (name for name in tensors if jnp.issubdtype(tensors[name].dtype, jnp.floating))
  return next((name for name in floats if not np.isfinite(tensors[name]).all()), None)


def init_shapes(adapted: Adapted, params: Any) -> dict[str, Any]:
  """The shapes of the variables from `init` for parameters; some leaves may not be arrays."""
  are_arrays = {path: is_array(nn.meta.unbox(leaf)) for path, leaf in flatten(params).items()}
  if not all(are_arrays.values()):
    params, _ = partition(params, are_arrays.__getitem__)
  return jax.eval_shape(adapted.init, jax.random.key(0), params)


def load_adapter(
  path: Path, adapted: Adapted, params: Any, *, strict: bool = True
) -> tuple[Adapted, dict[str, Any]]:
  """Loads a file of `save_adapter` onto the base that the adapter was trained on.

  Args:
    path: path of the safetensors file.
    adapted: the same model, adapted with a space that has the file's structure, or with that
      structure: `adapt(model, x, structure=path)`.
    params: the base's parameters, which may have been cast between float32 and a 16-bit type since;
      their heads are replaced, unless the file has none (see `combine`).
    strict: whether to raise for another base. Bases match if their values are equal, exactly or
      after rounding to bfloat16 or float16: smaller differences go unnoticed, and a base in
      bfloat16 differs from one in float16.

  Returns:
    (adapted, variables): the model with the file's structure fixed, and its adapter, heads and
    other collections. They lie on the devices of `params`, replicated. If `adapted` had a free
    structure, the variables fit that as well: arrays that the file's structure does not read are
    zero. A LoRA saved with another scale than the model's is rescaled.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the path is invalid, the file is damaged or belongs to another model, structure or
      base, or the space does not have its structure.

  Example:
    >>> import tempfile, flax.linen as nn, jax, jax.numpy as jnp
    >>> from glora_jax import adapt, load_adapter, save_adapter
    >>> model, x = nn.Dense(3), jnp.zeros((1, 4))
    >>> adapted = adapt(model, x, structure='lora:8')
    >>> params = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}
    >>> with tempfile.NamedTemporaryFile(suffix='.safetensors') as file:
    ...   save_adapter(file.name, adapted, adapted.init(jax.random.key(0), params))
    ...   adapted, variables = load_adapter(file.name, adapt(model, x, structure=file.name), params)
    >>> adapted
    <Adapted Dense: 1 layer, 56 parameters>
  """
  validate(adapted, Adapted, 'adapted')
  path, tensors, metadata = read_adapter(path)
  if strict:
    check_sizes(path, metadata, adapted)
  order_layers(path, metadata, adapted)
  for layer, ids in zip(adapted.spec, metadata['ids'], strict=True):
    if list(layer.ids) != ids:
      raise ValueError(
        f'The adapter {printable(path)} trains the rows {shown(ids)} of {layer.name}, and this '
        f'model {shown(list(layer.ids))}; adapt it with the same embeddings=.'
      )
  check_params(adapted, params)
  params = dequantize_heads(adapted, params)
  shapes = init_shapes(adapted, params)
  trainable, frozen = adapted.split({**shapes, 'params': params})
  genome, adapter, others = unpack(path, tensors, metadata, adapted, trainable[COLLECTION])
  if strict:
    check_base(path, metadata, _fingerprints_in_turn(frozen['params']))
  heads = flatten(others.pop('params', {}))
  if heads:  # a sum of adapters may have none
    check_heads(path, heads, flatten(trainable['params']))
  adapter, heads, others = place_like(params, (adapter, heads, others))
  trained = {'params': update(trainable['params'], heads), COLLECTION: adapter}
  return adapted.fix(genome), adapted.join(trained, {**frozen, **others})


def read_adapter(path: Path) -> tuple[Path, dict[str, np.ndarray], dict[str, Any]]:
  """Reads an adapter file: its path, its tensors and its metadata, which are checked."""
  path = check_path(path)
  tensors, metadata = read_tensors(path, 'adapter')
  _check_metadata(path, metadata)
  return path, tensors, metadata


def choices_of(path: Path) -> dict[str, Any]:
  """The arguments of `adapt` with which a model gets the layers, heads and structure of a file."""
  _, tensors, metadata = read_adapter(path)
  rows, ids = metadata['spec'], metadata['ids']
  places = {row['name'] for row in rows}
  for row in rows:  # a layer is called as its kernel, or its kernel's module
    places |= {row['kernel']['path'], row['kernel']['path'].rpartition('/')[0]}
  chosen = {exactly(row['name']): each for row, each in zip(rows, ids, strict=True) if each}
  uses = {row['kernel'].get('used') for row in rows}
  heads = [name.removeprefix('params/') for name in tensors if name.startswith('params/')]
  return {
    'structure': metadata,
    'select': places.__contains__,
    'heads': [exactly(name) for name in heads] or None,
    'convs': 'convolution' in uses,
    'embeddings': chosen or 'table' in uses,
  }


def _frozen_shapes(adapted: Adapted) -> dict[str, list[int]]:
  """The shapes of the parameters that are not trained in full, by name."""
  places = adapted.places
  frozen = places.param_shapes.keys() - places.head_paths
  return {path_name(path): list(places.param_shapes[path].shape) for path in sorted(frozen)}


def check_sizes(path: Path, metadata: Mapping[str, Any], adapted: Adapted) -> None:
  """Raises ValueError if an adapter was trained on a base with other shapes than the model has."""
  there = metadata['shapes']
  for name, here in _frozen_shapes(adapted).items():
    if there.get(name, here) != here:
      raise ValueError(
        f'The adapter {printable(path)} was trained on a base whose {name} is '
        f'{shown(there[name])}, and it is {here} here; {EXTEND}. Or pass '
        'strict=False to use this base unchanged, if the layers fit.'
      )


def base_fingerprints(base: Any) -> list[str]:
  """Fingerprints of frozen parameters, exact and rounded, which adapters name their base by."""
  return fingerprints(base, None, *_ROUNDED)


def _fingerprints_in_turn(base: Any) -> Iterator[str]:
  """The same, the rounded ones in a second pass that an equal base does not need."""
  yield from fingerprints(base, None)
  yield from fingerprints(base, *_ROUNDED)


def check_base(path: Path, metadata: Mapping[str, Any], base: Iterable[str]) -> None:
  """Raises ValueError unless an adapter was trained on the base with these fingerprints."""
  if {metadata['base'], *metadata['rounded']}.isdisjoint(base):
    raise ValueError(
      f'The adapter {printable(path)} was trained on other base weights; load it onto those, or '
      'pass strict=False to use these anyway.'
    )


def check_heads(path: Path, heads: Mapping[Any, Any], expected: Mapping[Any, Any]) -> None:
  """Raises ValueError unless an adapter's heads have the names and shapes of the model's."""
  if problems := differences(by_name(heads), by_name(expected)):
    raise ValueError(
      f'The adapter {printable(path)} has the heads of another model. {"; ".join(problems)}; '
      f'{EXTEND}.'
    )


def unpack(
  path: Path,
  tensors: dict[str, np.ndarray],
  metadata: dict[str, Any],
  adapted: Adapted,
  stored: Any,
) -> tuple[np.ndarray, Any, dict[str, Any]]:
  """Turns the result of `read_adapter` into variables of an adapted model.

  Args:
    path: path of the file.
    tensors: its tensors; those of the adapter are removed.
    metadata: its metadata, after `order_layers`.
    adapted: the model, whose space has the structure.
    stored: the arrays that the model's adapter stores, or their shapes.

  Returns:
    (genome, adapter, others): an adapter like `stored`, zero in arrays that the structure does not
    read; and the file's other collections, with the heads among `params`.

  Raises:
    ValueError: the file is damaged, or the space lacks its structure.
  """
  genome = _read_genome(path, metadata, adapted)
  adapter = jax.tree.map(lambda value: np.zeros(value.shape, value.dtype), stored)
  parts = {name: (array, part) for name, array, part in numbers_read(adapted, genome, adapter)}
  check_tensors(path, tensors, {name: array[part] for name, (array, part) in parts.items()})
  for name, (array, part) in parts.items():
    array[part] = tensors.pop(name)
  # A LoRA that was saved with another scale stays the same LoRA.
  for group in adapted.places.groups:
    down = group.arrays(adapter).get('B_down')
    for index, row in group.slices():
      if down is not None and metadata['scale'][row] != group.space.scale:
        down[index] *= metadata['scale'][row] / group.space.scale
  return genome, adapter, flax.traverse_util.unflatten_dict(tensors, sep='/')


def _check_metadata(path: Path, metadata: dict[str, Any]) -> None:
  """Raises ValueError unless an adapter's metadata are complete, for every layer."""
  try:
    validate(metadata, _Metadata, '')
  except (TypeError, ValueError) as error:
    raise damaged(path, f'in its metadata {error}', AGAIN) from None
  lengths = [len(metadata[name]) for name in _BY_ROW]
  if len(set(lengths)) > 1:
    raise damaged(path, f'{", ".join(_BY_ROW)} are of {lengths} layers', AGAIN)
  if not all(map(is_scale, metadata['scale'])):
    raise damaged(path, f'scale={shown(metadata["scale"])} are not all scales', AGAIN)


def order_layers(path: Path, metadata: dict[str, Any], adapted: Adapted) -> None:
  """Sorts the layers of a file's metadata, in place, in the order of the model's.

  Raises:
    ValueError: they are not those of the model.
  """
  ours, theirs = _rows(adapted), metadata['spec']
  rows = {json.dumps(layer['kernel']): row for row, layer in enumerate(theirs)}
  order = [rows.get(json.dumps(layer['kernel'])) for layer in ours]
  if len(order) == len(theirs) and None not in order:  # else the first that differs is named
    metadata |= {name: [metadata[name][row] for row in order] for name in _BY_ROW}
    theirs = metadata['spec']
  pairs = itertools.zip_longest(theirs, ours, fillvalue='no such layer')
  for row, (there, here) in enumerate(pairs):
    if there != here:
      there, here = (printable(str(layer))[:_LONGEST_LAYER] for layer in (there, here))
      raise ValueError(
        f'The adapter {printable(path)} belongs to another model, or one adapted with another '
        f'embeddings=, convs=, select= or heads=. It has {len(theirs)} layers, and this model '
        f'{len(ours)}; the first that differs is layer {row}: {there} there, {here} here.'
      )


def _read_genome(path: Path, metadata: Mapping[str, Any], adapted: Adapted) -> np.ndarray:
  """The genome in a file's metadata.

  Raises:
    ValueError: the model's space does not have it, or the model is fixed to another.
  """
  try:
    genome = canonicalize(adapted.spec, genome_from_json(adapted.spec, metadata))
  except ValueError as error:
    raise ValueError(
      f"The adapter {printable(path)} has a structure that is not in this model's search space "
      f'({error}); adapt with its path as structure=, or with a space that has its forms.'
    ) from error
  if adapted.genome is not None and (adapted.genome != genome).any():
    row = int((adapted.genome != genome).any(axis=1).argmax())
    raise ValueError(
      f'The adapter {printable(path)} has another structure than this model is fixed to: '
      f'{genome[row].tolist()} for A to E of {adapted.spec.layers[row].name}, not '
      f'{adapted.genome[row].tolist()}; load it into adapted.fix(None).'
    )
  return genome


def check_tensors(
  path: Path, tensors: Mapping[str, np.ndarray], adapter: Mapping[str, np.ndarray]
) -> None:
  """Checks the tensors of a file.

  Args:
    path: path of the file.
    tensors: its tensors by name.
    adapter: the parts of the adapter that its genome reads, by their names in the file.

  Raises:
    ValueError: an array of the adapter is missing, misshaped or not read by the genome, a name is
      not that of a tensor in a collection, or numbers are not finite or not floating-point.
  """
  arrays = {name: value for name, value in tensors.items() if name.startswith(f'{COLLECTION}/')}
  if problems := differences(arrays, adapter):
    raise damaged(path, f'its genome needs other arrays: {"; ".join(problems)}', AGAIN)
  # Names become nested dictionaries: none may lie outside of a collection, or be both a tensor and
  # a dictionary of others.
  parents = {name[:end] for name in tensors for end, letter in enumerate(name) if letter == '/'}
  if wrong := parents & tensors.keys() or {name for name in tensors if '/' not in name}:
    raise damaged(path, f'{min(wrong)} is not the name of a tensor in a collection', AGAIN)
  for name, value in tensors.items():
    is_learned = name.startswith((f'{COLLECTION}/', 'params/'))
    if is_learned and not jnp.issubdtype(value.dtype, jnp.floating):
      raise damaged(path, f'{name} is {value.dtype}, not floating-point', AGAIN)
  name = _not_finite(tensors)
  if name is not None:
    raise damaged(path, f'{name} is not finite', AGAIN)
