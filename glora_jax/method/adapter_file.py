"""A trained structure as one small safetensors file."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import TypedDict

from glora_jax.files import Path, damaged, read_tensors, write_tensors
from glora_jax.limits import check_path, check_type, printable, shown
from glora_jax.method.adapted import Adapted
from glora_jax.method.genomes import (
  NamedAlleles,
  canonicalize,
  genome_from_json,
  genome_to_json,
)
from glora_jax.method.quantized import full_precision
from glora_jax.method.sample import split_arrays
from glora_jax.method.space import Spec
from glora_jax.method.supports import COLLECTION
from glora_jax.records import check_shape
from glora_jax.tree import differences, fingerprint, flatten, path_name, replace

_AGAIN = 'get it again, or save it again from the training that it came of'
# Metadata with an item for each row.
_BY_ROW = ('spec', 'tied', 'scale', 'genome', 'layers', 'parameters')
_LONGEST_LAYER = 400  # characters that a sentence quotes
_ROUNDED = ('bfloat16', 'float16')  # types that a base may be cast to before or after the training


class _Metadata(TypedDict):
  """What the metadata of an adapter must say."""

  spec: list[str]
  tied: list[bool]
  scale: list[float]
  base: str
  rounded: list[str]
  genome: list[list[int]]
  layers: list[NamedAlleles]
  parameters: list[list[dict[str, Any]]]


class _UsedPart(NamedTuple):
  """A part of a support that a genome reads.

  Attributes:
    name: name of the tensor in the file.
    support: the support of the module, with the stack's axes first.
    index: where the part is in it.
  """

  name: str
  support: Any
  index: tuple[int | slice, ...]


def save_adapter(
  path: Path, adapted: Adapted, variables: Any, genome: Any = None, **metadata: Any
) -> None:
  """Writes the supports of one structure as one safetensors file.

  It holds only the numbers that the structure reads, the heads, and the model's other collections.
  Tensors are named `glora/<layer>/<support>`, `params/<path>` and, batch statistics for instance,
  `<collection>/<path>`. The metadata holds the genome, for every layer its sizes, the parameter
  that it lies in, the axes there and the scale of its LoRA, and fingerprints of the frozen
  parameters, as they are and rounded to 16 bits, so that `load_adapter` knows what the file belongs
  to, in whatever order layers are found.

  Args:
    path: path of the safetensors file.
    adapted: the adapted model.
    variables: its variables, after training.
    genome: of a free structure, int [rows, 5].
    **metadata: more to remember, JSON types, or numbers and arrays of NumPy and JAX.

  Raises:
    ValueError: the variables are those of another model, were cut to a structure with lower ranks,
      are not finite or are random keys, metadata have a name that the file needs itself or are not
      what JSON can say, the path is none, or a genome is missing or one too many.

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
  check_type(adapted, Adapted, 'adapted')
  adapted, genome = adapted.fixed(genome, 'save_adapter')
  adapted.check_variables(variables)
  trainable, frozen = adapted.split(variables)
  frozen.pop(COLLECTION)
  described = {
    'spec': _described(adapted),
    'parameters': _parameters(adapted),
    **_storage(adapted.spec),
    'base': fingerprint(frozen['params']),
    'rounded': [fingerprint(frozen['params'], kind) for kind in _ROUNDED],
    **genome_to_json(adapted.spec, genome),
  }
  if reserved := described.keys() & metadata.keys():
    raise ValueError(f'The name {min(reserved)!r} of metadata is taken; give it another.')
  others = {name: value for name, value in frozen.items() if name != 'params'}
  tensors = {
    '/'.join(p): nn.meta.unbox(value)
    for p, value in flatten({'params': trainable['params'], **others}).items()
  }
  for name, support, index in _used(adapted, trainable[COLLECTION]):
    tensors[name] = np.asarray(nn.meta.unbox(support))[index]
  _require_no_keys(path, tensors)
  require_finite(path, tensors)
  write_tensors(path, tensors, 'adapter', {**described, **metadata})


def _require_no_keys(path: Path, tensors: Mapping[str, Any]) -> None:
  """Raises ValueError where a tensor that is to be written is a random key."""
  for name, value in tensors.items():
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
      raise ValueError(
        f'{printable(path)} is not written: {name} is a random key, and a safetensors file holds '
        f'numbers alone; leave the collection {name.split("/")[0]} out of the variables.'
      )


def require_finite(path: Path, tensors: Mapping[str, Any]) -> None:
  """Raises ValueError where tensors that are to be written have numbers that are not finite."""
  for name, value in tensors.items():
    if jnp.issubdtype(value.dtype, jnp.floating) and not np.isfinite(value).all():
      raise ValueError(
        f'{printable(path)} is not written: {name} has numbers that are not finite; the training '
        'diverged, lower its learning rate.'
      )


def shapes_of_fresh(adapted: Adapted, params: Any) -> dict[str, Any]:
  """The shapes of what `init` makes of parameters, of which some may be no arrays."""
  arrays, _ = split_arrays(params)
  return jax.eval_shape(adapted.init, jax.random.key(0), arrays)


def load_adapter(
  path: Path, adapted: Adapted, params: Any, *, strict: bool = True
) -> tuple[Adapted, dict[str, Any]]:
  """Reads what `save_adapter` wrote onto the base that it was trained on.

  Args:
    path: path of the safetensors file.
    adapted: the same model, adapted with a space that has the file's structure, or with that
      structure: `adapt(model, x, structure=path)`.
    params: the base's parameters, which may have been cast between float32 and a 16-bit type since;
      their heads are replaced.
    strict: whether to refuse another base. Bases are the same if their values are, as they are or
      all rounded to bfloat16, or to float16: smaller differences are not seen, and a base in
      bfloat16 counts as another than one in float16.

  Returns:
    (adapted, variables): the model with the file's structure fixed, and its supports, heads and
    other collections. Where `adapted` had a free structure, they are variables of that, too:
    supports that the file's does not read are zero. A LoRA that was saved with another scale than
    the model has is rescaled.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the path is none, or the file is damaged, or belongs to another model, structure or
      base, or the space does not have its structure; the sentence says which.

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
  path = check_path(path)
  check_type(adapted, Adapted, 'adapted')
  tensors, metadata = read_tensors(path, 'adapter')
  _check_metadata(path, metadata)
  metadata = _in_order(path, metadata, adapted)
  fixed = _with_structure_of(path, adapted, metadata)
  adapted.check_params(params)
  params = full_precision(params, adapted.param_shapes, only=adapted.head_paths)  # as init does
  shapes = shapes_of_fresh(adapted, params)
  trainable, frozen = adapted.split({**shapes, 'params': params})
  if strict:
    _check_base(path, {metadata['base'], *metadata['rounded']}, frozen['params'])

  supports = jax.tree.map(lambda value: np.zeros(value.shape, value.dtype), trainable[COLLECTION])
  used = list(_used(fixed, nn.meta.unbox(supports)))
  _check_tensors(path, tensors, {name: support[index] for name, support, index in used})
  for name, support, index in used:
    support[index] = tensors.pop(name)
  _rescale(adapted, supports, metadata['scale'])
  others = flax.traverse_util.unflatten_dict(tensors, sep='/')
  heads = flatten(others.pop('params', {}))
  _check_heads(path, heads, nn.meta.unbox(flatten(trainable['params'])))
  head_params = trainable['params']
  for head_path, value in heads.items():
    head_params = replace(head_params, head_path, value)
  variables = adapted.join({'params': head_params, COLLECTION: supports}, {**frozen, **others})
  return fixed, variables


def _with_structure_of(path: Path, adapted: Adapted, metadata: Mapping[str, Any]) -> Adapted:
  """The model with the structure that a file's metadata say.

  Raises:
    ValueError: its space does not have that structure, or it is fixed to another.
  """
  try:
    genome = canonicalize(adapted.spec, genome_from_json(adapted.spec, metadata))
  except ValueError as error:
    raise ValueError(
      f'The adapter {printable(path)} has a structure that this model does not offer ({error}); '
      'adapt with structure= its path, or with a space that has it.'
    ) from error
  if adapted.genome is not None and (adapted.genome != genome).any():
    row = int((adapted.genome != genome).any(axis=1).argmax())
    raise ValueError(
      f'The adapter {printable(path)} has another structure than this model is fixed to: '
      f'{genome[row].tolist()} for A to E of {adapted.spec.layers[row].name}, and not '
      f'{adapted.genome[row].tolist()}; load it into adapted.fix(None).'
    )
  return adapted.fix(genome)


def _rescale(adapted: Adapted, supports: Any, scales: Sequence[float]) -> None:
  """Makes LoRAs that were saved with other scales than the spaces have the same LoRAs."""
  for group in adapted.groups:
    if (down := group.own(supports).get('B_down')) is None:
      continue
    for index, row in group.slices():
      if scales[row] != group.space.scale:
        down[index] *= scales[row] / group.space.scale


def _check_metadata(path: Path, metadata: dict[str, Any]) -> None:
  """Raises ValueError unless metadata say what those of an adapter must, of each row."""
  try:
    check_shape(metadata, _Metadata)
  except ValueError as error:
    raise damaged(path, f'of its metadata {error}', _AGAIN) from None
  lengths = [len(metadata[name]) for name in _BY_ROW]
  if len(set(lengths)) > 1:
    raise damaged(path, f'{", ".join(_BY_ROW)} are of {lengths} layers', _AGAIN)
  if not all(scale > 0 for scale in metadata['scale']):
    raise damaged(path, f'scale={shown(metadata["scale"])} are not all above 0', _AGAIN)


def _check_tensors(
  path: Path, tensors: Mapping[str, np.ndarray], supports: Mapping[str, np.ndarray]
) -> None:
  """Checks the tensors of a file.

  Args:
    path: path of the file.
    tensors: its tensors by name.
    supports: the parts of supports that its genome reads, by the names that they have in it.

  Raises:
    ValueError: a support is missing, of a layer or an allele that there is not, or misshaped; or
      numbers are not finite, or no floating-point numbers.
  """
  given = {name: value for name, value in tensors.items() if name.startswith(f'{COLLECTION}/')}
  if problems := differences(given, supports):
    raise damaged(path, f'its genome needs other supports: {"; ".join(problems)}', _AGAIN)
  inner = {name[:end] for name in tensors for end, letter in enumerate(name) if letter == '/'}
  if odd := inner & tensors.keys() or {name for name in tensors if '/' not in name}:
    raise damaged(path, f'{min(odd)} is no name of a tensor in a collection', _AGAIN)
  for name, value in tensors.items():
    is_learned = name.startswith((f'{COLLECTION}/', 'params/'))
    if is_learned and not jnp.issubdtype(value.dtype, jnp.floating):
      raise damaged(path, f'{name} is {value.dtype} and no floating-point numbers', _AGAIN)
    if jnp.issubdtype(value.dtype, jnp.floating) and not np.isfinite(value).all():
      raise damaged(path, f'{name} has numbers that are not finite', _AGAIN)


def _described(adapted: Adapted) -> list[str]:
  return [
    f'{layer.name}, {layer.in_features} to {layer.out_features}'
    + (' with bias' if layer.bias else '')
    for layer in adapted.spec
  ]


def _storage(spec: Spec) -> dict[str, list]:
  """How supports are to be read that a file holds, for every row."""
  spaces = [layer.space for layer in spec]
  return {'tied': [space.tied for space in spaces], 'scale': [space.scale for space in spaces]}


def _parameters(adapted: Adapted) -> list[list[dict[str, Any]]]:
  """For every row the parameters that it lies in, one but for ties, with their axes."""
  found: list[list[dict[str, Any]]] = [[] for _ in adapted.spec]
  for group in adapted.groups:
    for index, row in group.slices():
      found[row] = [
        {
          'kernel': path_name(site.kernel_path),
          'stack': list(site.layout.stack),
          'index': list(index),
          'in': list(site.layout.inputs),
          'out': list(site.layout.outputs),
        }
        for site in group.members
      ]
  return found


def _in_order(path: Path, metadata: Mapping[str, Any], adapted: Adapted) -> dict[str, Any]:
  """A file's genome with its rows in the order of the model's.

  Rows belong together whose parameters and axes are equal.

  Raises:
    ValueError: the layers are not the model's.
  """
  rows = {name: metadata[name] for name in _BY_ROW if name != 'parameters'}
  theirs, ours = metadata['parameters'], _parameters(adapted)
  numbers = {json.dumps(key): row for row, key in enumerate(theirs)}
  order = [numbers.get(json.dumps(key)) for key in ours]
  if len(ours) == len(theirs) and None not in order:
    rows = {name: [values[row] for row in order] for name, values in rows.items()}
  _check_spec(path, rows['spec'], _described(adapted))
  for layer, key, number in zip(adapted.spec, ours, order, strict=True):
    if number is None:
      raise ValueError(
        f'The adapter {printable(path)} belongs to another model: it has no layer {layer.name} in '
        f'the parameters and axes {key}.'
      )
  return {**metadata, **rows}


def _used(fixed: Adapted, supports: Any) -> Iterator[_UsedPart]:
  """The parts of the `glora` collection that a fixed structure reads, layer by layer."""
  assert fixed.genome is not None
  for group in fixed.groups:
    module = group.own(supports)
    for index, row in group.slices():
      layer = fixed.spec.layers[row].name
      for name, part in group.used_parts(fixed.genome[row].tolist()).items():
        yield _UsedPart(f'glora/{layer}/{name}', module[name], (*index, *part))


def _check_spec(path: Path, theirs: Sequence[str], ours: Sequence[str]) -> None:
  """Raises ValueError unless the file's layers are the model's, and names the first that is not."""
  if theirs == ours:
    return
  equal = (a == b for a, b in zip(theirs, ours, strict=False))
  row = next((n for n, same in enumerate(equal) if not same), min(len(theirs), len(ours)))
  their, our = (
    printable(layers[row])[:_LONGEST_LAYER] if row < len(layers) else 'no such layer'
    for layers in (theirs, ours)
  )
  raise ValueError(
    f'The adapter {printable(path)} belongs to another model. It has '
    f'{len(theirs)} layers, and this model {len(ours)}; the first that differs is layer {row}: '
    f'{their} there, {our} here.'
  )


def _check_base(path: Path, theirs: Container[str], params: Any) -> None:
  """Raises ValueError unless frozen parameters have one of the fingerprints of the file's."""
  if not any(fingerprint(params, kind) in theirs for kind in (None, *_ROUNDED)):
    raise ValueError(
      f'The adapter {printable(path)} was trained on other base weights; load it onto those, or '
      'pass strict=False to use these anyway.'
    )


def _check_heads(path: Path, theirs: Mapping[Any, Any], ours: Mapping[Any, Any]) -> None:
  """Raises ValueError unless the file's heads have the names and shapes of the model's."""
  if _shapes(theirs) != _shapes(ours):
    raise ValueError(
      f'The adapter {printable(path)} has the heads {_listed(theirs)}, and this model has '
      f'{_listed(ours)}.'
    )


def _shapes(flat: Mapping[Any, Any]) -> dict[str, tuple[int, ...]]:
  return {path_name(path): value.shape for path, value in sorted(flat.items())}


def _listed(flat: Mapping[Any, Any]) -> str:
  return ', '.join(f'{name} {shape}' for name, shape in _shapes(flat).items()) or 'none'
