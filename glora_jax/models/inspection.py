"""A page about a checkpoint, for people."""

from __future__ import annotations

import dataclasses

import flax

from glora_jax.models.load import Checkpoint
from glora_jax.models.metadata import OURS
from glora_jax.models.vit import describe


def inspection(checkpoint: Checkpoint) -> str:
  """A page about a checkpoint.

  It says what the file was read as, the fields of the model, and a line for each parameter.
  """
  model, params, metadata = checkpoint
  origin = metadata.get('source')
  facts = {
    'format': f'{origin.format} ({origin.container})' if origin else OURS,
    **(dataclasses.asdict(origin.variant) if origin else {}),
    'image_size': metadata['image_size'],
    'normalization': metadata.get('normalization'),
  }
  fields = describe(model)
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  size = sum(value.nbytes for value in flat.values())
  lines = [
    *(_fact(name, value) for name, value in facts.items()),
    *(_fact(name, value) for name, value in fields.items()),
    '',
    _row('parameter', 'shape', 'type', 'numbers'),
  ]
  for name, value in flat.items():
    shape = ' x '.join(map(str, value.shape))
    lines.append(_row(name, shape, value.dtype.name, f'{value.size:,}'))
  lines.append(_row('all', '', '', f'{sum(value.size for value in flat.values()):,}'))
  return '\n'.join([*lines, '', f'{size / 2**20:.1f} MiB'])


def _fact(name: str, value: object) -> str:
  return f'{name:14} {value}'


def _row(name: str, shape: str, dtype: str, numbers: str) -> str:
  return f'{name:26} {shape:>24} {dtype:>9} {numbers:>13}'
