"""The palette of every picture, and figures that know of no display.

A picture names its colours by the palette that is active, so that a `with` around it draws it dark:

    def draw(path, x, y):
      figure, axis = drawing.panels(figsize=(6, 4))
      axis.plot(x, y, color=drawing.palette().teal)
      drawing.save(figure, path)

    draw('light.png', x, y)
    with drawing.theme('dark'):
      draw('dark.png', x, y)

Drawing a figure leaves matplotlib's backend, a notebook's for instance, as it is.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib import colors, patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import ColorType

from glora_jax.files import Path, whole
from glora_jax.limits import listed

log = logging.getLogger(__name__)

# One of matplotlib's warnings; until 3.8 the font was the current one.
_LACKS_LETTER = r'Glyph (\d+) .* missing from (?:current )?font'

Theme = Literal['light', 'dark']


@dataclasses.dataclass(frozen=True)
class Palette:
  """Colours that can be told apart without seeing red or green as others do.

  The four accents stay far from each other under protanopia and deuteranopia, and so do the series.

  Attributes:
    paper: background.
    ink: text and axes.
    dim: what stands back: bars of counts, means, a budget.
    grey: a crowd of points, none of which matters by itself.
    rule: hairlines of a grid.
    blank: a cell that holds nothing.
    teal: the run's own: its subnets, its right answers, its front; the form 'vector'.
    red: what was chosen, and errors.
    purple: what it is compared with; the form 'LoRA'.
    yellow: fills only, too faint for lines on white paper; the form 'constant'.
    series: for any number of curves, in this order; those of Okabe and Ito without their yellow.
  """

  paper: str
  ink: str
  dim: str
  grey: str
  rule: str
  blank: str
  teal: str
  red: str
  purple: str
  yellow: str
  series: tuple[str, ...]


LIGHT = Palette(
  paper='#ffffff',
  ink='#222222',
  dim='#555555',
  grey='#aaaaaa',
  rule='#e4e4e4',
  blank='#f2f2f2',
  teal='#2a9d9d',
  red='#c8321f',
  purple='#6f4fa8',
  yellow='#f5c04a',
  series=('#0072b2', '#e69f00', '#009e73', '#d55e00', '#cc79a7', '#56b4e9', '#222222'),
)
DARK = Palette(
  paper='#16191d',
  ink='#f0f0f0',
  dim='#b4b8be',
  grey='#72777e',
  rule='#33383e',
  blank='#23272c',
  teal='#3fb8a8',
  red='#e8503a',
  purple='#9d85e6',
  yellow='#fbe08a',
  series=('#4a7fe0', '#e69f00', '#00b386', '#d55e00', '#e08fbd', '#7cc8f2', '#f0f0f0'),
)
PALETTES: dict[Theme, Palette] = {'light': LIGHT, 'dark': DARK}

_active = contextvars.ContextVar('palette', default=LIGHT)


def palette() -> Palette:
  """The palette that pictures are drawn with: `LIGHT`, or that of the `theme` around the call."""
  return _active.get()


@contextlib.contextmanager
def theme(name: Theme) -> Iterator[Palette]:
  """Draws with a theme's palette within a `with` block, and leaves matplotlib's settings as before.

  Args:
    name: 'light' or 'dark'.

  Yields:
    The palette of the theme.

  Example:
    >>> with theme('dark'):
    ...   palette().paper
    '#16191d'
    >>> palette().paper
    '#ffffff'
  """
  chosen = PALETTES[name]
  token = _active.set(chosen)
  try:
    with matplotlib.rc_context(_settings(chosen)):
      yield chosen
  finally:
    _active.reset(token)


def _settings(palette: Palette) -> dict[str, str]:
  """Settings of matplotlib for all that a picture does not colour itself."""
  backgrounds = ('figure.facecolor', 'axes.facecolor')
  foregrounds = (
    'text.color',
    'axes.edgecolor',
    'axes.labelcolor',
    'xtick.color',
    'ytick.color',
    'patch.edgecolor',
  )
  return {
    **dict.fromkeys(backgrounds, palette.paper),
    **dict.fromkeys(foregrounds, palette.ink),
    'grid.color': palette.rule,
  }


def blend(color: ColorType, toward: ColorType, share: float) -> str:
  """A colour between two others.

  Args:
    color: the colour where `share` is 0.
    toward: the colour where `share` is 1.
    share: how much of `toward`, between 0 and 1.

  Returns:
    The colour as '#rrggbb'.

  Example:
    >>> blend('#ff0000', '#0000ff', 0.2)
    '#cc0033'
  """
  ends = np.array([colors.to_rgb(color), colors.to_rgb(toward)])
  return colors.to_hex((1 - share) * ends[0] + share * ends[1])


def readable_on(background: ColorType) -> str:
  """The palette's ink or its paper, whichever can be read better on a background."""
  return max(palette().ink, palette().paper, key=lambda text: contrast(text, background))


def contrast(color: ColorType, other: ColorType) -> float:
  """Contrast of two colours as the Web Content Accessibility Guidelines define it, 1 to 21.

  Example:
    >>> contrast('black', 'white')
    21.0
  """
  darker, lighter = sorted((_luminance(color), _luminance(other)))
  return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: ColorType) -> float:
  """Relative luminance of a colour of sRGB."""
  encoded = np.array(colors.to_rgb(color))
  linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
  return float(linear @ (0.2126, 0.7152, 0.0722))


def halo() -> list[patheffects.AbstractPathEffect]:
  """An outline of text in the colour of the paper, so that it can be read on top of marks."""
  return [patheffects.withStroke(linewidth=2, foreground=palette().paper)]


def shorten(name: str, length: int = 24) -> str:
  """A name of at most `length` characters, the last of them '…' where it was longer.

  Example:
    >>> shorten('Egyptian Mau', 9)
    'Egyptian…'
  """
  return name if len(name) <= length else name[: length - 1] + '…'


def panels(
  rows: int = 1,
  columns: int = 1,
  *,
  figsize: tuple[float, float],
  frame: bool = False,
  mosaic: str | None = None,
  **options: Any,
) -> tuple[Figure, Any]:
  """A figure and its axes.

  Args:
    rows: number of rows of axes.
    columns: number of columns of axes.
    figsize: width and height in inches.
    frame: whether axes have a line on all four sides, or on the left and below alone.
    mosaic: in place of rows and columns, as 'ab;cb': a letter for each place, equal ones joined.
    **options: of `matplotlib.figure.Figure.subplots`, or of its `subplot_mosaic`.

  Returns:
    The figure, and its axes as `matplotlib.pyplot.subplots` gives them: alone, or an array; those
    of a mosaic in the order of the alphabet.
  """
  figure = Figure(figsize=figsize, layout='constrained')
  if mosaic is None:
    axes = figure.subplots(rows, columns, **options)
  else:
    named = figure.subplot_mosaic(mosaic, **options)
    axes = [named[letter] for letter in sorted(named)]
  if not frame:
    for axis in figure.axes:
      axis.spines[['top', 'right']].set_visible(False)
  return figure, axes


def outline_cells(axis: Axes, shape: tuple[int, int], **line: Any) -> None:
  """Draws a line around every cell of an image of a few cells, in place of ticks and frame.

  Args:
    axis: where the image is, a cell at each whole number.
    shape: rows and columns of the image.
    **line: of `matplotlib.axes.Axes.grid`.
  """
  rows, columns = shape
  axis.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
  axis.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
  axis.grid(which='minor', **line)
  axis.tick_params(which='both', length=0)
  axis.spines[:].set_visible(False)


def save(figure: Figure, path: Path, *, dpi: int = 150, **options: Any) -> None:
  """Writes a figure as a PNG, whole or not at all.

  Args:
    figure: what was drawn.
    path: path of the PNG.
    dpi: pixels an inch.
    **options: of `matplotlib.figure.Figure.savefig`.
  """
  with whole(path) as temporary, warnings.catch_warnings(record=True) as caught:
    warnings.filterwarnings('always', _LACKS_LETTER)
    figure.savefig(temporary, format='png', dpi=dpi, **options)
  lacks = [re.match(_LACKS_LETTER, str(warning.message)) for warning in caught]
  for warning, lack in zip(caught, lacks, strict=True):
    if lack is None:
      warnings.warn_explicit(
        warning.message, warning.category, warning.filename, warning.lineno, source=warning.source
      )
  if letters := sorted({chr(int(lack[1])) for lack in lacks if lack is not None}):
    log.warning(
      '%s has boxes in place of letters that the font of pictures lacks: %s.', path, listed(letters)
    )
