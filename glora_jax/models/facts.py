"""Which facts of a checkpoint can be: heads, sizes, normalization, resizing, class names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from glora_jax.data.image import RULES
from glora_jax.data.normalization import NORMALIZATIONS, statistics
from glora_jax.files import Path
from glora_jax.limits import MOST_COUNTED, is_finite, shown
from glora_jax.models.metadata import sides
from glora_jax.models.vit import ACTIVATIONS, POOLS

MOST_PIXELS = 2**16  # of a side


class _Fact(NamedTuple):
  """What a fact must be.

  Attributes:
    can_be: whether a value is one of the fact's.
    expected: the same in words.
  """

  can_be: Callable[[Any], bool]
  expected: str


def _is_count(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST_COUNTED


def _is_count_or_0(value: Any) -> bool:
  return _is_count(value) or (type(value) is int and value == 0)


def _is_side(value: Any) -> bool:
  return _is_count(value) and value <= MOST_PIXELS


def _is_epsilon(value: Any) -> bool:
  return isinstance(value, float) and 0 < value < 1


def _is_share(value: Any) -> bool:
  return isinstance(value, int | float) and 0 <= value < 1


def _is_kept(value: Any) -> bool:
  return _is_number(value) and 0.01 < value <= 1


def _is_image_size(value: Any) -> bool:
  is_pair = isinstance(value, list | tuple) and len(value) == 2
  return _is_side(value) or (is_pair and all(map(_is_side, value)))


def _are_names(value: Any) -> bool:
  return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _is_normalization(value: Any) -> bool:
  try:
    statistics(value)
  except (ValueError, TypeError):
    return False
  return True


def _is_activation(value: Any) -> bool:
  return isinstance(value, str) and value in ACTIVATIONS


def _is_pool(value: Any) -> bool:
  return isinstance(value, str) and value in POOLS


def _is_truth(value: Any) -> bool:
  return isinstance(value, bool)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)


def _is_dtype(value: Any) -> bool:
  try:
    return jnp.issubdtype(jnp.dtype(value), jnp.floating)
  except (TypeError, ValueError):
    return False


def _is_policy(value: Any) -> bool:
  return isinstance(value, str) and hasattr(jax.checkpoint_policies, value)


def _is_rule(value: Any) -> bool:
  return isinstance(value, str) and value in RULES


_COUNT = _Fact(_is_count, f'a whole number, 1 to {MOST_COUNTED:,}')
_FACTS: Mapping[str, _Fact] = {
  'num_heads': _COUNT,
  'norm_eps': _Fact(_is_epsilon, 'a number between 0 and 1'),
  'activation': _Fact(_is_activation, f'one of {", ".join(ACTIVATIONS)}'),
  'pool': _Fact(_is_pool, f'one of {", ".join(POOLS)}'),
  'patch_size': _COUNT,
  'image_size': _Fact(_is_image_size, f'1 to {MOST_PIXELS:,} pixels, or height and width'),
  'classes': _Fact(_are_names, 'a list of names'),
  'normalization': _Fact(
    _is_normalization,
    f'one of {", ".join(NORMALIZATIONS)}, or mean and deviation, three finite numbers each, the '
    'deviation above 0',
  ),
  'resize': _Fact(_is_rule, f'one of {", ".join(RULES)}'),
  'crop': _Fact(_is_kept, 'above 0.01 and at most 1'),
}
_TRUTH = _Fact(_is_truth, 'True or False')
# What else a caller may say of the ViT.
_FIELDS: Mapping[str, _Fact] = {
  **_FACTS,
  **dict.fromkeys(('patch_size', 'width', 'depth', 'mlp_dim', 'pre_logits'), _COUNT),
  **dict.fromkeys(('class_token', 'pre_norm', 'norm_after_pool'), _TRUTH),
  'num_classes': _Fact(_is_count_or_0, 'a whole number of 0 or more'),
  'layer_scale': _Fact(_is_number, 'a finite number'),
  'drop_path': _Fact(_is_share, 'at least 0 and below 1'),
  'dtype': _Fact(_is_dtype, 'a floating-point type'),
  'remat': _Fact(_is_policy, 'the name of a policy in jax.checkpoint_policies'),
  'unroll': _COUNT,
}


def check_facts(facts: Mapping[str, Any]) -> None:
  """Checks what a checkpoint's metadata say, where it is a fact that is known here.

  Args:
    facts: facts by name; None is one that is left open.

  Raises:
    ValueError: a fact cannot be; the sentence says which, and what it must be.

  Example:
    >>> check_facts({'image_size': [28, 14], 'resize': 'squash'})
    >>> check_facts({'resize': 'stretch'})
    Traceback (most recent call last):
    ValueError: resize='stretch' cannot be; it must be one of squash, crop.
  """
  _check(facts, _FACTS)


def check_vit_fields(fields: Mapping[str, Any]) -> None:
  """Checks what a caller says of a ViT; see `check_facts`.

  Raises:
    ValueError: a field cannot be.
  """
  _check(fields, _FIELDS)


def _check(facts: Mapping[str, Any], known: Mapping[str, _Fact]) -> None:
  for name, value in facts.items():
    if value is not None and name in known and not known[name].can_be(value):
      raise ValueError(f'{name}={shown(value)} cannot be; it must be {known[name].expected}.')


# Facts that have more than one form.
_IN_ONE_FORM: Mapping[str, Callable[[Any], Any]] = {
  'image_size': sides,
  'normalization': statistics,
}


def check_agreement(path: Path, stated: Mapping[str, Any], given: Mapping[str, Any]) -> None:
  """Checks that a caller says nothing else than a checkpoint.

  Args:
    path: path of the checkpoint.
    stated: facts and fields that it states, by name; None is one that it leaves open.
    given: what the caller gives, None for nothing.

  Raises:
    ValueError: both give a value, and these differ.

  Example:
    >>> check_agreement('a.npz', {'num_heads': 3, 'pool': None}, {'num_heads': 3, 'pool': 'gap'})
    >>> check_agreement('a', {'num_heads': 3}, {'num_heads': 1})
    Traceback (most recent call last):
    ValueError: a says num_heads=3, but num_heads=1 was given; leave it out, or correct the file.
  """
  for name, value in given.items():
    own = stated.get(name)
    if value is None or own is None:
      continue
    form = _IN_ONE_FORM.get(name)
    if (form(own) != form(value)) if form else own != value:
      raise ValueError(
        f'{path} says {name}={shown(own)}, but {name}={shown(value)} was given; leave it out, or '
        'correct the file.'
      )


def check_metadata_of(metadata: Mapping[str, Any], num_classes: int) -> None:
  """Checks the metadata of a whole checkpoint.

  Args:
    metadata: facts by name.
    num_classes: number of the model's classes; 0 where it has no head.

  Raises:
    ValueError: a fact is missing or cannot be, or there are not as many names as classes.
  """
  if metadata.get('image_size') is None:
    raise ValueError("The metadata have no 'image_size'; give the side of the images in pixels.")
  check_facts(metadata)
  classes = metadata.get('classes')
  if classes and len(classes) != num_classes:
    raise ValueError(
      f'There are {len(classes)} names of classes for the {num_classes} outputs of the head; there '
      'must be one for each.'
    )
