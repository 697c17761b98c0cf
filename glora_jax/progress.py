"""Progress bars, which only a person who watches should see."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm

SOON = 1.0  # seconds; work that is done by then needs no bar


def is_watched() -> bool:
  """Whether somebody sees a bar: on a terminal, or in a notebook.

  In a log file, each of its updates would be a line.
  """
  return sys.stderr.isatty() or 'ipykernel' in sys.modules


def progress_bar(*arguments: Any, wanted: bool = True, **options: Any) -> tqdm:
  """A bar of tqdm's, which shows nothing unless somebody sees it.

  Args:
    *arguments: see `tqdm.tqdm`.
    wanted: whether to show it.
    **options: see `tqdm.tqdm`.
  """
  return tqdm(*arguments, delay=SOON, disable=not (wanted and is_watched()), **options)
