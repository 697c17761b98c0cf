"""Metadata of a checkpoint, and their valid values: sizes, normalization, class names."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from glora_jax.checks import expected, shown, validate
from glora_jax.files import Path, load_json
from glora_jax.vision.data.image import CROP, ResizeRule
from glora_jax.vision.data.normalization import NORMALIZATIONS, Normalization, statistics
from glora_jax.vision.models.vit import Activation, Pool, sides

REMEMBERED = ('image_size', 'normalization', 'resize', 'crop', 'classes')  # in `config.json`
OURS = 'glora_jax'  # the format of this project, and the key of its metadata in other files

Metadata = dict[str, Any]
"""Facts of a checkpoint by name.

'image_size': side of the images, `[height, width]` if they are not square.
'normalization': see `data.normalization.statistics`.
'resize': how images become square, see `data.image.resize`.
'crop': share of the shorter side that the rule 'crop' keeps, if it is not `data.image.CROP`.
'classes': names of the classes, in the order of the head's outputs.
'source': the `formats.format.Format` of a foreign file; never written.
"""


def shortest(height: int, width: int) -> int | list[int]:
  """An image size for metadata: one number if the image is square."""
  return height if height == width else [height, width]


def share_kept(metadata: Metadata, rule: ResizeRule | None) -> float | None:
  """The `share` of `image.resize`, from a rule or, if that is None, from the metadata."""
  return (metadata.get('crop') or CROP) if (rule or metadata.get('resize')) == 'crop' else None


def normalization_of(mean: Sequence[float], deviation: Sequence[float]) -> str | list[list[float]]:
  """The name of a normalization, or its `statistics` if it has none."""
  given = tuple(mean), tuple(deviation)
  for name, known in NORMALIZATIONS.items():
    if np.allclose(known, given, atol=2e-3):
      return name
  return [list(numbers) for numbers in statistics(given)]  # as in JSON


def require_normalization(
  path: Path, normalization: Normalization | None, setting: str
) -> Normalization:
  """The normalization of a checkpoint's images; our format may be written without one.

  Args:
    path: path of the checkpoint.
    normalization: the one from the checkpoint or its user; None if neither has it.
    setting: name of the user's setting.

  Raises:
    ValueError: neither has it.
  """
  if normalization is None:
    raise ValueError(
      f'{path} does not have the normalization of images; set {setting} to one of '
      f'{", ".join(NORMALIZATIONS)}.'
    )
  return normalization


def read_json(path: Path) -> Any:
  """The contents of a JSON file next to a checkpoint; empty if it does not exist.

  Raises:
    OSError: it cannot be read, or is not a regular file.
    ValueError: it is damaged.
  """
  return load_json(path, 'get it again, or remove it') if os.path.exists(path) else {}


MOST_PIXELS = 2**16  # of a side


# Kinds and limits of facts.
FACTS: Mapping[str, tuple[Any, dict[str, float]]] = {
  'num_heads': (int, {'least': 1}),
  'norm_eps': (float, {'above': 0, 'below': 1}),
  'activation': (Activation, {}),
  'pool': (Pool, {}),
  'patch_size': (int, {'least': 1}),
  'classes': (tuple[str, ...], {}),
  'resize': (ResizeRule, {}),
  'crop': (float, {'above': 0.01, 'most': 1}),
}


def check_facts(facts: Mapping[str, Any]) -> None:
  """Checks the known facts of a checkpoint.

  Args:
    facts: facts by name; None if one is missing.

  Raises:
    TypeError: a fact has another type.
    ValueError: a fact is invalid.

  Example:
    >>> check_facts({'image_size': [28, 14], 'resize': 'squash'})
    >>> check_facts({'resize': 'stretch'})
    Traceback (most recent call last):
    ValueError: resize='stretch' must be 'squash' or 'crop'.
  """
  for name, value in facts.items():
    if value is None:
      continue
    if name in _IN_ONE_FORM:
      _IN_ONE_FORM[name](value)
    elif name in FACTS:
      kind, limits = FACTS[name]
      # Unlike settings, metadata are written again unchanged: 2.0 is not a valid number of heads.
      if kind in (int, float) and type(value) not in (int, kind):
        raise TypeError(f'{name}={shown(value)} must be {expected(kind)}.')
      validate(value, kind, name, **limits)


def _checked_sides(value: Any) -> tuple[int, int]:
  is_pair = isinstance(value, list | tuple) and len(value) == 2
  for side in value if is_pair else [value]:
    if type(side) is not int or not 0 < side <= MOST_PIXELS:
      raise ValueError(
        f'image_size={shown(value)} must be 1 to {MOST_PIXELS:,} pixels, or height and width.'
      )
  return sides(value)


# Facts that may have several forms: a check, which returns one of them.
_IN_ONE_FORM: Mapping[str, Callable[[Any], Any]] = {
  'image_size': _checked_sides,
  'normalization': statistics,
}


def check_agreement(path: Path, stated: Mapping[str, Any], given: Mapping[str, Any]) -> None:
  """Checks that a caller's values do not differ from those of a checkpoint.

  Args:
    path: path of the checkpoint.
    stated: its facts and fields, by name; None if one is missing.
    given: the caller's values; None if one is missing.

  Raises:
    ValueError: both have a value, and these differ.

  Example:
    >>> check_agreement('a.npz', {'num_heads': 3, 'pool': None}, {'num_heads': 3, 'pool': 'gap'})
    >>> check_agreement('a', {'num_heads': 3}, {'num_heads': 1})
    Traceback (most recent call last):
    ValueError: a has num_heads=3, but num_heads=1 was given; leave it out, or correct the file.
  """
  for name, value in given.items():
    own = stated.get(name)
    if value is None or own is None:
      continue
    form = _IN_ONE_FORM.get(name)
    if (form(own) != form(value)) if form else own != value:
      raise ValueError(
        f'{path} has {name}={shown(own)}, but {name}={shown(value)} was given; leave it out, or '
        'correct the file.'
      )


def check_metadata_of(metadata: Mapping[str, Any], num_classes: int) -> None:
  """Checks the metadata of a whole checkpoint.

  Args:
    metadata: facts by name.
    num_classes: number of the model's classes; 0 if it has no head.

  Raises:
    ValueError: a fact is missing or invalid, or there are not as many names as classes.
  """
  if metadata.get('image_size') is None:
    raise ValueError(
      "The metadata have no 'image_size'; set it to the side of the images in pixels."
    )
  check_facts(metadata)
  classes = metadata.get('classes')
  if classes and len(classes) != num_classes:
    raise ValueError(
      f'The head has {num_classes} outputs, but there are {len(classes)} names of classes; pass '
      'one for each.'
    )
