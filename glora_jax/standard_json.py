"""JSON as its standard has it, which knows no NaN and no infinity: other programs refuse them."""

from __future__ import annotations

import json
import math
from typing import Any


def to_text(content: Any, indent: int | None = None) -> str:
  """What `json.dumps` gives, with null for numbers that are not finite.

  Args:
    content: what `json` can write.
    indent: spaces before what lies a level deeper; None for all on one line.

  Example:
    >>> to_text({'val_accuracy': 0.5, 'val_loss': float('nan')})
    '{"val_accuracy": 0.5, "val_loss": null}'
  """
  try:
    return json.dumps(content, indent=indent, allow_nan=False)
  except ValueError:  # rare, so that most files are gone through once
    return json.dumps(_with_nulls(content), indent=indent, allow_nan=False)


def _with_nulls(content: Any) -> Any:
  """The content with None for numbers that are not finite."""
  if isinstance(content, dict):
    return {name: _with_nulls(value) for name, value in content.items()}
  if isinstance(content, list | tuple):
    return [_with_nulls(value) for value in content]
  return None if isinstance(content, float) and not math.isfinite(content) else content


def default(value: Any) -> Any:
  """What `json` writes of a value that it does not know: of arrays their numbers."""
  return value.tolist() if hasattr(value, 'tolist') else json.JSONEncoder().default(value)


def number(value: float | None) -> float:
  """A number of a file of ours, which is null there where it was not finite.

  Example:
    >>> number(0.5), number(None)
    (0.5, nan)
  """
  return math.nan if value is None else value
