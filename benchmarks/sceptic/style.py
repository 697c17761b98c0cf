"""Colours and tables of the sceptic's report."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from matplotlib import colors

from glora_jax.reports.drawing import panels, save

__all__ = ['blend', 'palette', 'panels', 'save', 'table']


class Palette(NamedTuple):
  """Colours by their part in a picture."""

  teal: str = '#2a9d9d'
  red: str = '#c8321f'
  grey: str = '#aaaaaa'
  purple: str = '#6f4fa8'
  yellow: str = '#f5c04a'
  dim: str = '#555555'
  ink: str = '#222222'


def palette() -> Palette:
  """The colours that pictures are drawn with."""
  return Palette()


def blend(color: str, toward: str, share: float) -> str:
  """A colour between two others."""
  ends = zip(colors.to_rgb(color), colors.to_rgb(toward), strict=True)
  return colors.to_hex([(1 - share) * start + share * end for start, end in ends])


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A Markdown table; the first column is text."""
  lines = [titles, ['---', *['---:'] * (len(titles) - 1)], *rows]
  return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)
