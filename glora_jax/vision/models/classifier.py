"""Classification of image files with a plain model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from glora_jax.checks import validate
from glora_jax.errors import UserError
from glora_jax.vision.data import image, pipeline
from glora_jax.vision.data.normalization import Normalization, normalize
from glora_jax.vision.data.task import Files
from glora_jax.vision.models import weights
from glora_jax.vision.models.metadata import check_agreement, require_normalization, share_kept


def find_images(paths: Sequence[str]) -> list[str]:
  """Finds images, in the order of the paths, and sorted by name within a folder.

  Args:
    paths: paths of images; or of folders, which stand for all files below them with the extension
      of an image.

  Raises:
    TypeError: it is one path, and not a list of them.
    FileNotFoundError: a path does not exist, or a folder has no image.
  """
  found = []
  for path in validate(paths, list, 'paths'):  # letters of a text are paths, too: '.' and '/'
    if os.path.isdir(path):
      images = sorted(filter(image.is_image, image.files_below(path)))
      if not images:
        raise FileNotFoundError(
          f'There are no images in the folder {path}; an image is a file ending in '
          f'{", ".join(image.EXTENSIONS)}.'
        )
      found += images
    elif os.path.exists(path):
      found.append(path)
    else:
      raise FileNotFoundError(
        f'There is no file or folder {path}; pass images, or folders with images.'
      )
  return found


class Prediction(NamedTuple):
  """A model's answer for an image.

  Attributes:
    path: path of the image.
    outcome: probabilities, float32 [classes]; or the reason why a file cannot be decoded.
  """

  path: str
  outcome: np.ndarray | str


class Classifier:
  """A plain model that classifies image files.

  Attributes:
    classes: names of the classes; their numbers if the checkpoint has no names.
    share: how images become square, see `data.image.resize`.
    image_size: side of the images that the model sees, in pixels.

  Example:
    >>> import tempfile
    >>> from PIL import Image
    >>> classifier = Classifier(weights.EMBEDDED_FILE)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   Image.new('L', (28, 28)).save(os.path.join(folder, 'black.png'))
    ...   (prediction,) = classifier(find_images([folder]))
    >>> os.path.basename(prediction.path), prediction.outcome.shape, len(classifier.classes)
    ('black.png', (10,), 10)
  """

  def __init__(
    self,
    path: str,
    *,
    rule: image.ResizeRule | None = None,
    normalization: Normalization | None = None,
    **fields: Any,
  ):
    """Loads a checkpoint.

    Args:
      path: path of a checkpoint, file or folder, or of the folder of a whole run; or a name on the
        hub, `hf:owner/name[@revision]`.
      rule: how images become square; None for the rule in the checkpoint, or for 'squash', a run's
        default, if it has none.
      normalization: normalization of images, if the checkpoint does not have it. If both differ, it
        is an error.
      **fields: `key`, or fields of the ViT, see `weights.load`.

    Raises:
      FileNotFoundError: the checkpoint does not exist.
      ValueError: the rule is unknown; or the checkpoint cannot be read, has no head, or is for
        images that are not square.
    """
    validate(rule, image.ResizeRule | None, 'rule')
    model, params, metadata = weights.load(path, normalization=normalization, **fields)
    check_agreement(path, metadata, {'normalization': normalization})
    if not model.num_classes:
      raise ValueError(
        f'{path} has no head, so no classes to choose from; pass the folder folded/ of a run, or a '
        'checkpoint with a head.'
      )
    if not isinstance(metadata['image_size'], int):
      raise ValueError(
        f'{path} is for images of {metadata["image_size"]}; only models of square images are '
        'supported here.'
      )
    normalization = require_normalization(path, metadata.get('normalization'), 'normalization')
    self.classes = tuple(metadata.get('classes') or map(str, range(model.num_classes)))
    self.share = share_kept(metadata, rule)
    self.image_size = metadata['image_size']
    self._path = path
    self._params = jax.tree.map(jax.numpy.asarray, params)

    def forward(params: Any, pixels: jax.Array) -> jax.Array:
      logits: Any = model.apply({'params': params}, normalize(pixels, normalization))
      return jax.nn.softmax(logits.astype(np.float32))

    self._forward = jax.jit(forward)

  def __call__(self, images: Sequence[str], *, batch_size: int = 64) -> Iterator[Prediction]:
    """Classifies images, in their order.

    Args:
      images: paths of images.
      batch_size: images at a time; the last batch is padded, so that one compilation serves all.

    Raises:
      TypeError: the images are not a list of paths.
      UserError: the model's answers are not finite.
    """
    images = validate(images, list, 'images')
    batch_size = max(1, min(batch_size, len(images)))
    for start in range(0, len(images), batch_size):
      paths = list(images[start : start + batch_size])
      files = Files(paths, [0] * len(paths))
      pixels, faults = pipeline.decode(files, self.image_size, 'images', share=self.share)
      padded = np.pad(pixels, [(0, batch_size - len(paths)), (0, 0), (0, 0), (0, 0)])
      batch = np.asarray(self._forward(self._params, padded))  # [batch, classes]
      if not np.isfinite(batch).all():
        raise UserError(
          f'{self._path} returns logits that are not finite; its weights or its normalization '
          'are damaged, get it again.'
        )
      for path, fault, probabilities in zip(paths, faults, batch, strict=False):
        yield Prediction(path, fault or probabilities)


def most_probable(
  classes: Sequence[str], probabilities: np.ndarray, count: int | None = None
) -> list[dict[str, Any]]:
  """The most probable classes, the most probable first.

  Args:
    classes: names of the classes.
    probabilities: their probabilities, [classes].
    count: number of classes; None for all.

  Returns:
    'class' and 'probability' of each.

  Example:
    >>> most_probable(['cat', 'dog'], np.array([0.25, 0.75]), count=1)
    [{'class': 'dog', 'probability': 0.75}]
  """
  return [
    {'class': classes[number], 'probability': float(probabilities[number])}
    for number in np.argsort(-probabilities, kind='stable')[:count]
  ]
