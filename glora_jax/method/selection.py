"""What of a model is adapted: names of modules, and what a user wrote to choose among them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

from glora_jax.method.space import SearchSpace
from glora_jax.method.validation import check_spaces

Selector = str | Sequence[str] | Callable[[str], bool]


def matches(selector: Selector, name: str) -> bool:
  """Whether a name is chosen, by a regular expression (searched), several of them, or a function.

  Raises:
    ValueError: an expression is no regular expression.
  """
  if callable(selector):
    return selector(name)
  patterns = [selector] if isinstance(selector, str) else selector
  try:
    return any(re.search(pattern, name) for pattern in patterns)
  except re.error as error:
    raise ValueError(
      f'{selector!r} is not a regular expression, or a list of them: {error}.'
    ) from error


@dataclasses.dataclass(frozen=True)
class Selection:
  """The choices among a model's modules; see `adapt` for what they mean.

  Attributes:
    space: one search space for all layers, or spaces by regular expression.
    select: the layers to adapt; None for all that are not heads.
    heads: the modules to train in full; None for none.
    ties: the layers to adapt as one, by ends of their paths.
  """

  space: SearchSpace | Mapping[str, SearchSpace] = SearchSpace()
  select: Selector | None = None
  heads: Selector | None = None
  ties: Sequence[Sequence[str]] = ()

  def __post_init__(self):
    check_spaces(self.space)

  @property
  def spaces(self) -> Mapping[str, SearchSpace]:
    """Spaces by regular expression; a single space's expression is found in every name."""
    return self.space if isinstance(self.space, Mapping) else {'': self.space}

  def is_head(self, name: str) -> bool:
    """Whether a module is trained in full."""
    return self.heads is not None and matches(self.heads, name)

  def space_of(self, name: str) -> SearchSpace | None:
    """The space of a layer, of the first expression that is found in its name.

    None if the layer is left alone.
    """
    if self.select is not None and not matches(self.select, name):
      return None
    return next((space for pattern, space in self.spaces.items() if matches(pattern, name)), None)
