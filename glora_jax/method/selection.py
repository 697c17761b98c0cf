"""The layers to adapt and the parameters to train in full, selected by patterns for names."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from glora_jax.checks import listed, shown, validate
from glora_jax.files import first_line
from glora_jax.method.space import SearchSpace, Spaces
from glora_jax.tree import KeyPath, path_name

Pattern = str | re.Pattern[str]
Selector = Pattern | Sequence[Pattern] | Callable[[str], bool]
Ids = Sequence[int] | np.ndarray | jax.Array  # of rows: their numbers, or a mask of all
Embeddings = bool | Ids | Mapping[str, Ids]

_TO_WORDS = r'\b(lm_head|output_projection)\b'


def matches(selector: Selector, name: str) -> bool:
  """Whether a regular expression (searched), one of several, or a function chooses a name.

  Raises:
    ValueError: an expression is invalid.
  """
  if callable(selector):
    return selector(name)
  try:
    return any(re.search(pattern, name) for pattern in _patterns(selector))
  except (re.error, TypeError) as error:
    raise ValueError(
      f'{shown(selector)} is not a regular expression, or a list of them: {first_line(error)}.'
    ) from error


def exactly(name: str) -> str:
  """The regular expression that matches this name and no other."""
  return f'^{re.escape(name)}$'


def is_to_words(name: str) -> bool:
  """Whether a layer is an output layer to words, which is adapted only if `select` names it."""
  return matches(_TO_WORDS, name)


def _named(pattern: Selector, names: Sequence[str]) -> list[str]:
  """The names that a pattern chooses; one that is a name, or the end of one, chooses only those."""
  text = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
  ends = [name for name in names if f'/{name}'.endswith(f'/{text}')]
  return ends or [name for name in names if matches(pattern, name)]


def unmatched(selector: Selector | None, names: Sequence[str]) -> list[str]:
  """The expressions of a selector that match none of the names."""
  return [str(p) for p in _patterns(selector) if not any(matches(p, name) for name in names)]


def _patterns(selector: Selector | None) -> Sequence[Pattern]:
  """The expressions of a selector; () of a function."""
  if selector is None or callable(selector):
    return ()
  return [selector] if isinstance(selector, str | re.Pattern) else selector


def _is_list(value: Any, *types: type) -> bool:
  """Whether a value is a list, tuple or the like, all of whose items are of some types."""
  is_list = isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)
  return is_list and all(isinstance(item, types) for item in value)


class Heads(NamedTuple):
  """The parameters that are trained in full.

  Attributes:
    modules: names of the modules, or of single parameters.
    paths: paths of all their parameters.
    unmatched: the expressions of the selector that match nothing.
  """

  modules: tuple[str, ...]
  paths: frozenset[KeyPath]
  unmatched: tuple[str, ...] = ()


class Selection:
  """The arguments of `adapt` that choose among a model's layers, validated.

  Args:
    space: one search space for all layers, or spaces by regular expression.
    scale: factor on LoRAs of B in all spaces; None for the spaces' own.
    select: the layers to adapt; None for all that are not heads.
    heads: the modules and parameters to train in full; None for none.
    convs: whether convolutions count as linear layers.
    embeddings: whether tables that are looked up do; or which rows of them are trained.

  Attributes:
    spaces: spaces by regular expression; that of a single space matches every name.
    ids: ids or masks by regular expression, those of all tables by ''; {} if none are given.

  Raises:
    TypeError: one of them has another type.
  """

  def __init__(
    self,
    space: Spaces,
    scale: float | None,
    select: Selector | None,
    heads: Selector | None,
    convs: bool,
    embeddings: Embeddings,
  ):
    spaces = dict(space) if isinstance(space, Mapping) else {'': space}
    if not spaces or not all(
      isinstance(pattern, str | re.Pattern) and isinstance(value, SearchSpace)
      for pattern, value in spaces.items()
    ):
      raise TypeError(
        f'space={shown(space)} must be a SearchSpace, SearchSpace(ranks=(2, 4)) for instance, or a '
        'dictionary of one or more by regular expression.'
      )
    if scale is not None:
      spaces = {name: dataclasses.replace(value, scale=scale) for name, value in spaces.items()}
    for name, selector in (('select', select), ('heads', heads)):
      if not _is_list(_patterns(selector), str, re.Pattern):
        raise TypeError(
          f'{name}={shown(selector)} must be a regular expression, several of them, a function, or '
          'None.'
        )
    self.spaces = spaces
    self.select, self.heads = select, heads
    validate(convs, bool, 'convs')
    ids: Any = embeddings if isinstance(embeddings, Mapping) else {'': embeddings}
    self.ids: Mapping[str, Ids] = {} if isinstance(embeddings, bool) else ids
    self.embeddings = bool(self.ids) or validate(embeddings, bool, 'embeddings')

  def heads_among(self, paths: Iterable[KeyPath]) -> Heads:
    """The modules and parameters that are trained in full.

    Args:
      paths: paths of all parameters.
    """
    # Of each parameter its own name and those of the modules that contain it, outermost first.
    names_of = {path: [path_name(path[:end]) for end in range(1, len(path) + 1)] for path in paths}
    names = list(dict.fromkeys(itertools.chain(*names_of.values())))
    patterns = [self.heads] if callable(self.heads) else _patterns(self.heads)
    matched = [_named(pattern, names) for pattern in patterns]
    chosen = set(itertools.chain(*matched))
    heads = {}  # the outermost module that is chosen, by path of the parameter
    for path, own_names in names_of.items():
      modules = [name for name in own_names if name in chosen]
      if modules:
        heads[path] = modules[0]
    absent = (str(pattern) for pattern, found in zip(patterns, matched, strict=True) if not found)
    return Heads(tuple(dict.fromkeys(heads.values())), frozenset(heads), tuple(absent))

  def space_of(self, name: str) -> SearchSpace | None:
    """The space of a layer: that of the first expression that matches its name.

    None if the layer is not adapted.
    """
    is_selected = not is_to_words(name) if self.select is None else matches(self.select, name)
    if not is_selected:
      return None
    return next((space for pattern, space in self.spaces.items() if matches(pattern, name)), None)

  def rows_of(self, tables: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The chosen rows of tables, ascending, by the tables' names; {} if rows are not chosen.

    Args:
      tables: the number of rows of each table, by its name.

    Raises:
      TypeError: ids are not integers.
      ValueError: an expression matches no table, a table lacks a row, or ids are given for tables
        of different sizes.
    """
    wrong = unmatched([*self.ids], [*tables])
    if wrong or ('' in self.ids and len(set(tables.values())) > 1):
      sizes = ', '.join(f'{name} ({size:,} rows)' for name, size in tables.items())
      raise ValueError(
        f'embeddings: ids are given for {listed(wrong) or "all tables"}, but the tables that can '
        f'have them are {sizes or "none"}; pass ids by name of table.'
      )
    rows = {}
    for name, size in tables.items():
      pattern = next((pattern for pattern in self.ids if matches(pattern, name)), None)
      if pattern is not None:
        rows[name] = _chosen_rows(name, size, self.ids[pattern])
    return rows


def _chosen_rows(table: str, size: int, ids: Ids) -> tuple[int, ...]:
  """The numbers of chosen rows, ascending, of their numbers in any order or a mask."""
  array = np.asarray(ids)
  if array.dtype == bool and array.shape == (size,):
    array = np.flatnonzero(array)
  if array.ndim != 1 or (array.dtype.kind not in 'iu' and array.size):
    raise TypeError(
      f'embeddings: {shown(ids)} must be a list of integers, the ids of tokens, or a mask with '
      f'True or False for each of the {size:,} rows of {table}.'
    )
  rows, counts = np.unique(array, return_counts=True)
  wrong = rows[(rows < 0) | (rows >= size) | (counts > 1)]
  if wrong.size or not rows.size:
    raise ValueError(
      f'embeddings: the ids of {table} are 0 to {size - 1} (glora_jax.extend adds words), one or '
      f'more, each at most once; got {listed(map(str, wrong)) or "none"}.'
    )
  return tuple(rows.tolist())
