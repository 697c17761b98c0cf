"""Inspects or converts a checkpoint.

  python -m glora_jax.convert IN [OUT] [--format NAME] [--overwrite]

IN is a file, a folder (also a run's), a URL, a name on the hub (`hf:owner/name`), a shortcut or
`embedded`, as in `model.weights`. Without OUT, its format, sizes and layers are printed. OUT is
one file if it ends in .safetensors, else a folder, which also gets the `config.json` that
transformers, timm and this package read. If OUT ends in .jax_export, it is the whole computation,
from uint8 images to logits, for `jax.export.deserialize`. Files are replaced only with --overwrite,
and IN never.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import flax
import jax
import jax.export
import jax.numpy as jnp

from glora_jax.errors import MissingPackageError, UserError
from glora_jax.files import write_bytes

try:
  from glora_jax.vision.data.normalization import NORMALIZATIONS, normalize
  from glora_jax.vision.files import require_free
  from glora_jax.vision.models import weights
  from glora_jax.vision.models.checkpoint import locate
  from glora_jax.vision.models.fetch import fetch, known_normalization
  from glora_jax.vision.models.formats.table import WRITTEN
  from glora_jax.vision.models.metadata import OURS, check_agreement
  from glora_jax.vision.models.vit import ViT, describe, sides
  from glora_jax.vision.models.weights import Checkpoint
  from glora_jax.vision.runs.processes import require_devices
  from glora_jax.vision.runs.terminal import reported, run_program, user_errors
except MissingPackageError as error:
  sys.exit(f'error: {error}')

EXPORTED = '.jax_export'
PLATFORMS = ('cpu', 'cuda', 'tpu')


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the command.

  Args:
    arguments: command-line arguments; None for those of the process.
  """
  parser = _parser()
  given = parser.parse_args(arguments)
  if given.format is not None and (given.output is None or given.output.endswith(EXPORTED)):
    parser.error('--format needs a checkpoint as OUT; give the path of a file or a folder')
  logging.basicConfig(format='%(message)s', level=logging.WARNING, stream=sys.stderr)
  with reported(debug=given.debug), user_errors():
    path = fetch(given.input, given.sha256)
    if given.output is not None:
      _require_free(given.output, given.overwrite, path)
    checkpoint = _read(path, given)
    if given.output is None:
      print(_inspection(checkpoint))
    elif given.output.endswith(EXPORTED):
      print(_export(given.output, checkpoint))
    else:
      print(_convert(given.output, checkpoint, given.format))


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    'python -m glora_jax.convert',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('input', metavar='IN')
  parser.add_argument('output', metavar='OUT', nargs='?')
  parser.add_argument(
    '--format',
    choices=(OURS, *WRITTEN),
    help=f'format to write; by default the format of IN if it is one of these, else {OURS}',
  )
  parser.add_argument('--overwrite', action='store_true', help='replace existing files')
  parser.add_argument('--sha256', help='checksum of the file IN')
  parser.add_argument('--image-size', type=int, help='resize the position embedding')
  parser.add_argument('--patch-size', type=int, help='resize the patch embedding')
  parser.add_argument('--normalization', choices=NORMALIZATIONS, help='if the file has none')
  parser.add_argument('--num-heads', type=int, help='if the file has none')
  parser.add_argument('--key', help='of the state dict, if a PyTorch file holds several')
  parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
  return parser


def _require_free(output: str, overwrite: bool, path: str) -> None:
  """Raises FileExistsError if files exist, or with `overwrite` if the input is among them."""
  inputs = (path, locate(path))
  names = os.listdir(output) if os.path.isdir(output) else None
  require_free(output, overwrite or names == [], inputs)
  for name in names or ():
    require_free(os.path.join(output, name), True, inputs)


def _read(path: str, given: argparse.Namespace) -> Checkpoint:
  normalization = known_normalization(given.input) or given.normalization
  loaded = weights.load(path, key=given.key, normalization=normalization, num_heads=given.num_heads)
  check_agreement(given.input, loaded.metadata, {'normalization': given.normalization})
  return weights.refit(*loaded, image_size=given.image_size, patch_size=given.patch_size)


def _inspection(checkpoint: Checkpoint) -> str:
  """Format of the file, fields of the model, and a line for each parameter."""
  model, params, metadata = checkpoint
  source = metadata.get('source')
  facts = {
    'format': _format_of(checkpoint),
    **({'class_pos': source.class_pos} if source else {}),
    'image_size': metadata['image_size'],
    'normalization': metadata.get('normalization'),
  }
  if isinstance(model, ViT):
    fields = describe(model)
  else:
    fields = {'model': model.__name__, 'num_classes': model.num_classes}
  flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep='/')
  rows = [('parameter', 'shape', 'type', 'numbers')]
  for name, value in flat.items():
    shape = ' x '.join(map(str, value.shape))
    rows.append((name, shape, value.dtype.name, f'{value.size:,}'))
  rows.append(('all', '', '', f'{sum(value.size for value in flat.values()):,}'))
  lines = [
    *(f'{name:14} {value}' for name, value in (facts | fields).items()),
    '',
    *(f'{name:26} {shape:>24} {dtype:>9} {numbers:>13}' for name, shape, dtype, numbers in rows),
    '',
    f'{sum(value.nbytes for value in flat.values()) / 2**20:.1f} MiB',
  ]
  return '\n'.join(lines)


def _export(path: str, checkpoint: Checkpoint) -> str:
  """Writes the computation, for any batch size; returns a line about it.

  It includes the parameters and the normalization, so images are uint8. Without a normalization
  they are float32, already normalized.
  """
  require_devices()
  model, params, metadata = checkpoint
  if not isinstance(model, ViT):  # torchax needs a known batch size
    raise UserError(
      f'{path} is not written: {model.__name__} runs as a PyTorch module of {model.library}, which '
      'cannot be exported.'
    )
  normalization = metadata.get('normalization')
  params = jax.tree.map(jnp.asarray, params)

  def logits(images: jax.Array) -> Any:
    if normalization is not None:
      images = normalize(images, normalization)
    return model.apply({'params': params}, images)

  shape = (*jax.export.symbolic_shape('batch'), *sides(metadata['image_size']), 3)
  images = jax.ShapeDtypeStruct(shape, jnp.float32 if normalization is None else jnp.uint8)
  exported = jax.export.export(jax.jit(logits), platforms=PLATFORMS)(images)
  write_bytes(path, exported.serialize())
  shapes = [shape.str_short() for shape in (*exported.in_avals, *exported.out_avals)]
  return f'{path}: {" -> ".join(shapes)} on {", ".join(PLATFORMS)}'


def _convert(path: str, checkpoint: Checkpoint, format: str | None) -> str:
  """Writes a checkpoint, by default in its format; returns a line about it."""
  model, params, metadata = checkpoint
  source = metadata.get('source')
  weights.save(path, model, params, metadata, format or source)
  read = OURS if source and not source.is_written else _format_of(checkpoint)
  return f'{path}: {format or read}'


def _format_of(checkpoint: Checkpoint) -> str:
  model, _, metadata = checkpoint
  source = metadata.get('source')
  return source.name if source else getattr(model, 'library', OURS)


def command() -> None:
  """Runs the command: `glora-convert` or `python -m glora_jax.convert`."""
  run_program(main)


if __name__ == '__main__':
  command()
