"""Chooses what is adapted in a model: names of modules, and the user's patterns for them."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from glora_jax.checks import shown, validate
from glora_jax.files import first_line
from glora_jax.method.space import SearchSpace
from glora_jax.tree import KeyPath, path_name

Pattern = str | re.Pattern[str]
Selector = Pattern | Sequence[Pattern] | Callable[[str], bool]


def matches(selector: Selector, name: str) -> bool:
  """Whether a name is chosen, by a regular expression (searched), several of them, or a function.

  Raises:
    ValueError: an expression is no regular expression.
  """
  if callable(selector):
    return selector(name)
  try:
    return any(re.search(pattern, name) for pattern in _patterns(selector))
  except (re.error, TypeError) as error:
    raise ValueError(
      f'{shown(selector)} is not a regular expression, or a list of them: {first_line(error)}.'
    ) from error


def _named(pattern: Selector, names: Sequence[str]) -> list[str]:
  """The names that are chosen; an expression that is a name, or the end of a path, is only that."""
  text = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
  ends = [name for name in names if f'/{name}'.endswith(f'/{text}')]
  return ends or [name for name in names if matches(pattern, name)]


def unmatched(selector: Selector | None, names: Sequence[str]) -> list[str]:
  """The expressions of a selector that are found in none of the names."""
  return [str(p) for p in _patterns(selector) if not any(matches(p, name) for name in names)]


def _patterns(selector: Selector | None) -> Sequence[Pattern]:
  """The expressions of a selector; a function has none."""
  if selector is None or callable(selector):
    return ()
  return [selector] if isinstance(selector, str | re.Pattern) else selector


def _is_list(value: Any, *types: type) -> bool:
  """Whether a value is a list, tuple or the like, all of whose items are of some types."""
  is_list = isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)
  return is_list and all(isinstance(item, types) for item in value)


class Heads(NamedTuple):
  """What is trained in full.

  Attributes:
    modules: names of the modules, or of parameters that stand alone.
    paths: paths of all their parameters.
    unmatched: the expressions of the selector that match nothing.
  """

  modules: tuple[str, ...]
  paths: frozenset[KeyPath]
  unmatched: tuple[str, ...] = ()


class Selection:
  """The choices among a model's modules; see `adapt` for what they mean.

  Args:
    space: one search space for all layers, or spaces by regular expression.
    scale: that of all spaces; None for their own.
    select: the layers to adapt; None for all that are not heads.
    heads: the modules and parameters to train in full; None for none.
    ties: the layers to adapt as one, by ends of their paths.
    convs: whether convolutions count as linear layers.
    embeddings: whether tables that are looked up do.

  Attributes:
    spaces: spaces by regular expression; a single space's expression is found in every name.

  Raises:
    ValueError: one of them is of another type.
  """

  def __init__(
    self,
    space: SearchSpace | Mapping[str, SearchSpace],
    scale: float | None,
    select: Selector | None,
    heads: Selector | None,
    ties: Sequence[Sequence[str]],
    convs: bool,
    embeddings: bool,
  ):
    spaces = dict(space) if isinstance(space, Mapping) else {'': space}
    if not spaces or not all(
      isinstance(pattern, str | re.Pattern) and isinstance(own, SearchSpace)
      for pattern, own in spaces.items()
    ):
      raise TypeError(
        f'space={shown(space)} must be a SearchSpace, SearchSpace(ranks=(2, 4)) for instance, or a '
        'dictionary of one or more by regular expression.'
      )
    if scale is not None:
      spaces = {name: dataclasses.replace(own, scale=scale) for name, own in spaces.items()}
    for name, selector in (('select', select), ('heads', heads)):
      if not _is_list(_patterns(selector), str, re.Pattern):
        raise TypeError(
          f'{name}={shown(selector)} must be a regular expression, several of them, a function, or '
          'None.'
        )
    if not _is_list(ties, object) or not all(_is_list(tie, str) for tie in ties):
      raise TypeError(f'ties={shown(ties)} must be a list of lists of names.')
    self.spaces = spaces
    self.select, self.heads, self.ties = select, heads, ties
    validate(convs, bool, 'convs')
    self.embeddings = validate(embeddings, bool, 'embeddings')

  def heads_among(self, paths: Iterable[KeyPath]) -> Heads:
    """The modules and parameters that are trained in full.

    Args:
      paths: paths of all parameters.
    """
    owners = {path: [path_name(path[:end]) for end in range(1, len(path) + 1)] for path in paths}
    names = list(dict.fromkeys(name for own in owners.values() for name in own))
    patterns = [self.heads] if callable(self.heads) else _patterns(self.heads)
    named = [_named(pattern, names) for pattern in patterns]
    taken = set(itertools.chain(*named))
    found = {path: name for path, own in owners.items() for name in reversed(own) if name in taken}
    absent = (str(pattern) for pattern, own in zip(patterns, named, strict=True) if not own)
    return Heads(tuple(dict.fromkeys(found.values())), frozenset(found), tuple(absent))

  def space_of(self, name: str) -> SearchSpace | None:
    """The space of a layer, of the first expression that is found in its name.

    None if the layer is left alone.
    """
    if self.select is not None and not matches(self.select, name):
      return None
    return next((space for pattern, space in self.spaces.items() if matches(pattern, name)), None)
