"""Image files to classes, by a plain model."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from glora_jax.data import image
from glora_jax.data.normalization import NORMALIZATIONS, Normalization, normalize
from glora_jax.data.tasks.own import EXTENSIONS
from glora_jax.models import weights


def find_images(paths: Iterable[str]) -> list[str]:
  """Paths of images: files as they are given, in place of a folder all below it that end as images do, in the order of their names.

  Raises:
    FileNotFoundError: no such path, or a folder without images.
  """
  found = []
  for path in paths:
    if os.path.isdir(path):
      inside = sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if name.lower().endswith(EXTENSIONS) and not name.startswith('.')
      )
      if not inside:
        raise FileNotFoundError(
          f'There are no images in the folder {path}; an image is a file ending in {", ".join(EXTENSIONS)}.'
        )
      found += inside
    elif os.path.exists(path):
      found.append(path)
    else:
      raise FileNotFoundError(
        f'There is no file or folder {path}; give images, or folders with images.'
      )
  return found


class Classifier:
  """A plain model that says what is in image files.

  Attributes:
    classes: names of the classes; their numbers where the checkpoint has no names.
    rule: how images become square, see `data.image.resize`.
  """

  def __init__(
    self,
    path: str,
    *,
    rule: str | None = None,
    normalization: Normalization | None = None,
    **fields: Any,
  ):
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
      raise FileNotFoundError(
        f'There is no model {path}; give the folder folded/ of a run, or another checkpoint.'
      )
    model, params, metadata = weights.load(path, normalization=normalization, **fields)
    if not model.num_classes:
      raise ValueError(
        f'{path} has no head, so no classes to choose from; give the folder folded/ of a run, or a checkpoint with a head.'
      )
    if (normalization := metadata.get('normalization') or normalization) is None:
      raise ValueError(
        f'{path} does not say how images are normalized; give normalization, one of {", ".join(NORMALIZATIONS)}.'
      )
    if not isinstance(metadata['image_size'], int):
      raise ValueError(
        f'{path} is for images of {metadata["image_size"]}; only models of square images are supported here.'
      )
    self.classes = tuple(metadata.get('classes') or map(str, range(model.num_classes)))
    self.rule, self.image_size = rule or metadata.get('resize', 'squash'), metadata['image_size']
    self._params = jax.tree.map(jax.numpy.asarray, params)
    self._forward = jax.jit(
      lambda params, pixels: jax.nn.softmax(
        model.apply({'params': params}, normalize(pixels, normalization)).astype(np.float32)
      )
    )

  def __call__(
    self, images: Sequence[str], *, batch_size: int = 64
  ) -> Iterator[tuple[str, np.ndarray | str]]:
    """(path, probabilities float32 [classes]) of every image in their order; where one cannot be decoded, (path, what is wrong).

    Args:
      images: paths.
      batch_size: images at a time; the last batch is padded, so that one compilation serves all.
    """
    batch_size = max(1, min(batch_size, len(images)))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      for start in range(0, len(images), batch_size):
        names = images[start : start + batch_size]
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


def answer(
  classes: Sequence[str], shares: np.ndarray, top: int | None = None
) -> list[dict[str, Any]]:
  """[{'class': name, 'probability': number}, ...] of the `top` most probable classes, or of all; the most probable first."""
  return [
    {'class': classes[number], 'probability': float(shares[number])}
    for number in np.argsort(-shares, kind='stable')[:top]
  ]
