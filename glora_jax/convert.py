"""Looks into a checkpoint, and converts it: `python -m glora_jax.convert IN [OUT] [--format NAME]`.

IN is a file, a folder, an address or a shortcut, as `model.weights` takes it. Without OUT its layers, sizes and variant are printed.
OUT ending in .npz, .safetensors, .pth is one file; else a folder, which also gets the `config.json` that transformers, timm and this
package read. OUT ending in .jax_export is the whole computation, from uint8 images to logits, for `jax.export.deserialize`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

import flax

from glora_jax.models import weights
from glora_jax.models.export import export, save_exported
from glora_jax.models.fetch import fetch, known_normalization
from glora_jax.models.formats import FORMATS
from glora_jax.models.vit import describe

EXPORTED = '.jax_export'


def inspection(model, params, metadata) -> str:
  """A page about a loaded checkpoint: what it was read as, the model's fields, a line for each parameter."""
  source = metadata.get('source')
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  total = sum(value.size for value in flat.values())
  lines = [
    f'format         {source.format if source else weights.OURS}'
    + (f' ({source.container})' if source else ''),
    *(f'{name:14} {value}' for name, value in (source.variant if source else {}).items()),
    f'image_size     {metadata["image_size"]}',
    f'normalization  {metadata.get("normalization")}',
    *(f'{name:14} {value}' for name, value in describe(model).items()),
    '',
    f'{"parameter":26} {"shape":>24} {"type":>9} {"numbers":>13}',
  ]
  for name, value in flat.items():
    shape = ' x '.join(map(str, value.shape))
    lines.append(f'{name:26} {shape:>24} {value.dtype.name:>9} {value.size:>13,}')
  size = sum(value.nbytes for value in flat.values())
  return '\n'.join(
    [*lines, f'{"all":26} {"":>24} {"":>9} {total:>13,}', '', f'{size / 2**20:.1f} MiB']
  )


def main(arguments: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    'python -m glora_jax.convert',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('input', metavar='IN')
  parser.add_argument('output', metavar='OUT', nargs='?')
  parser.add_argument(
    '--format', choices=(weights.OURS, *FORMATS), help='to write; by default the one that was read'
  )
  parser.add_argument('--sha256', help='of IN, where it is an address')
  parser.add_argument('--image-size', type=int, help='resizes the position embedding')
  parser.add_argument('--patch-size', type=int, help='resizes the patch embedding')
  parser.add_argument('--num-heads', type=int, help='where the file does not say')
  given = parser.parse_args(arguments)
  logging.basicConfig(format='%(message)s', level=logging.WARNING, stream=sys.stderr)
  try:
    fields = {} if given.num_heads is None else {'num_heads': given.num_heads}
    loaded = weights.load(
      fetch(given.input, given.sha256), normalization=known_normalization(given.input), **fields
    )
    model, params, metadata = weights.refit(
      *loaded, image_size=given.image_size, patch_size=given.patch_size
    )
    if given.output is None:
      return print(inspection(model, params, metadata))
    if given.output.endswith(EXPORTED):
      exported = export(model, params, metadata['image_size'], metadata.get('normalization'))
      save_exported(given.output, exported)
      print(
        f'{given.output}: {exported.in_avals[0].str_short()} -> {exported.out_avals[0].str_short()} on {", ".join(exported.platforms)}'
      )
      return None
    format = given.format or metadata.get('source')
    weights.save(given.output, model, params, metadata, format)
    print(f'{given.output}: {given.format or (format.format if format else weights.OURS)}')
  except (ValueError, OSError, ImportError) as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  main()
