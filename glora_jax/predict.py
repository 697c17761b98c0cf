"""Classes of images by a plain model: `python -m glora_jax.predict --model runs/x/folded IMAGE_OR_FOLDER ...`.

The model is what a run left in `folded/` (the run's own folder will do), or any checkpoint with a head that `weights.load` reads. Folders
are searched for images, with all their subfolders. An image that cannot be decoded is named on stderr, the others are answered, and
the exit code is 1. `--json` prints one JSON object a line, for the next program.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

from glora_jax.data import augment, image
from glora_jax.data.folder import EXTENSIONS
from glora_jax.models import weights

MANY = 200  # images, from which on there is a progress bar
SHOWN = 3  # classes a line, where nothing else is asked for


def find_images(paths: Iterable[str]) -> list[str]:
  """Paths of images: files as they are given, in place of a folder all below it that end as images do, in the order of their names.

  Raises:
    FileNotFoundError: no such path, or a folder without images.
  """
  found = []
  for path in paths:
    if os.path.isdir(path):
      inside = sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names
                      if name.lower().endswith(EXTENSIONS) and not name.startswith('.'))
      if not inside:
        raise FileNotFoundError(f'There are no images in the folder {path}; an image is a file ending in {", ".join(EXTENSIONS)}.')
      found += inside
    elif os.path.exists(path):
      found.append(path)
    else:
      raise FileNotFoundError(f'There is no file or folder {path}; give images, or folders with images.')
  return found


class Classifier:
  """A plain model that says what is in image files.

  Attributes:
    classes: names of the classes; their numbers where the checkpoint has no names.
    rule: how images become square, see `data.image.resize`.
  """

  def __init__(self, path: str, *, rule: str | None = None, normalization: augment.Normalization | None = None, **fields: Any):
    """Loads a checkpoint.

    Args:
      path: of a file or a folder, also that of a whole run.
      rule: how images become square; None: as the checkpoint remembers, and 'squash', as a run does by default, where it does not.
      normalization: of images, where the checkpoint does not say.
      **fields: of the ViT, see `weights.load`.

    Raises:
      FileNotFoundError, ValueError: no such checkpoint; it cannot be read, has no head, or is for images that are not square.
    """
    folded = os.path.join(path, 'folded')
    path = folded if os.path.isdir(folded) else path
    if not os.path.exists(path):
      raise FileNotFoundError(f'There is no model {path}; give the folder folded/ of a run, or another checkpoint.')
    model, params, metadata = weights.load(path, normalization=normalization, **fields)
    if not model.num_classes:
      raise ValueError(f'{path} has no head, so no classes to choose from; give the folder folded/ of a run, or a checkpoint with a head.')
    if (normalization := metadata.get('normalization') or normalization) is None:
      raise ValueError(f'{path} does not say how images are normalized; give normalization, one of {", ".join(augment.NORMALIZATIONS)}.')
    if not isinstance(metadata['image_size'], int):
      raise ValueError(f'{path} is for images of {metadata["image_size"]}; only models of square images are supported here.')
    self.classes = tuple(metadata.get('classes') or map(str, range(model.num_classes)))
    self.rule, self.image_size = rule or metadata.get('resize', 'squash'), metadata['image_size']
    self._params = jax.tree.map(jax.numpy.asarray, params)
    self._forward = jax.jit(lambda params, pixels: jax.nn.softmax(
        model.apply({'params': params}, augment.normalize(pixels, normalization)).astype(np.float32)))

  def __call__(self, images: Sequence[str], *, batch_size: int = 64) -> Iterator[tuple[str, np.ndarray | str]]:
    """(path, probabilities float32 [classes]) of every image in their order; where one cannot be decoded, (path, what is wrong).

    Args:
      images: paths.
      batch_size: images at a time; the last batch is padded, so that one compilation serves all.
    """
    batch_size = max(1, min(batch_size, len(images)))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      for start in range(0, len(images), batch_size):
        names = images[start:start + batch_size]
        pixels, errors = np.zeros((batch_size, self.image_size, self.image_size, 3), np.uint8), {}
        for number, read in enumerate(pool.map(self._read, names)):
          if isinstance(read, str):
            errors[number] = read
          else:
            pixels[number] = read
        shares = np.asarray(self._forward(self._params, pixels))
        for number, name in enumerate(names):
          yield name, errors.get(number, shares[number])

  def _read(self, path):
    try:
      return image.resize(image.decode(path), self.image_size, self.rule)
    except OSError as error:
      return str(error)


def answer(classes: Sequence[str], shares: np.ndarray, top: int | None = None) -> list[dict[str, Any]]:
  """[{'class': name, 'probability': number}, ...] of the `top` most probable classes, or of all; the most probable first."""
  return [{'class': classes[number], 'probability': float(shares[number])} for number in np.argsort(-shares, kind='stable')[:top]]


def main(arguments: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser('python -m glora_jax.predict', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('images', metavar='IMAGE_OR_FOLDER', nargs='+')
  parser.add_argument('--model', required=True, help='folded/ of a run, or another checkpoint with a head')
  parser.add_argument('--top', type=_positive, metavar='N', help=f'classes an image; {SHOWN} by default, and all with --json')
  parser.add_argument('--json', action='store_true', help='one JSON object a line')
  parser.add_argument('--batch-size', type=_positive, default=64, metavar='N', help='images at a time, 64 by default')
  parser.add_argument('--resize', choices=image.RULES, help="in place of what the model remembers; 'squash' where it does not")
  parser.add_argument('--normalization', choices=augment.NORMALIZATIONS, help='where the checkpoint does not say')
  parser.add_argument('--num-heads', type=_positive, metavar='N', help='where the checkpoint does not say')
  given = parser.parse_args(arguments)
  logging.basicConfig(format='%(message)s', level=logging.WARNING, stream=sys.stderr)
  fields = {} if given.num_heads is None else {'num_heads': given.num_heads}
  try:
    images = find_images(given.images)
    classifier = Classifier(given.model, rule=given.resize, normalization=given.normalization, **fields)
  except (ValueError, OSError, ImportError) as error:
    sys.exit(f'error: {error}')
  unreadable = 0
  # Where the answers themselves can be watched coming, a bar would be in their way.
  with tqdm(total=len(images), unit='image', disable=len(images) < MANY or sys.stdout.isatty()) as bar:
    for path, found in classifier(images, batch_size=given.batch_size):
      bar.update()
      if isinstance(found, str):
        unreadable += 1
        bar.write(f'error: {path}: {found}', file=sys.stderr)
        said = {'image': path, 'error': found}
      else:
        best = answer(classifier.classes, found, given.top or (None if given.json else SHOWN))
        said = {'image': path, **best[0], 'classes': best}
      if given.json:
        print(json.dumps(said))
      elif 'error' not in said:
        print(f'{path}:', ', '.join('{class} ({probability:.1%})'.format(**one) for one in best))
  if unreadable:
    sys.exit(f'error: {unreadable} of {len(images)} images cannot be read; the others were answered.')


def _positive(text):
  if not text.isdecimal() or not int(text):
    raise argparse.ArgumentTypeError(f'{text} must be a whole number above 0')
  return int(text)


if __name__ == '__main__':
  try:
    main()
    sys.stdout.flush()
  except BrokenPipeError:  # `| head` has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
