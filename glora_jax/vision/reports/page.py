"""Pages: self-contained HTML files of a head and sections, with nothing to download or run.

A section has sentences, tables, charts and other blocks with a macro in `templates/parts.html`.
Below are those that are not charts, and how sentences and tables write names and numbers. The
templates escape everything, since names of classes, files and tasks are untrusted, and the page's
policy forbids downloads and scripts.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import html
import io
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from glora_jax.files import write_bytes
from glora_jax.vision.reports.charts import Chart

Result = Mapping[str, Any]  # the content of a run's `result.json`
Blocks = list[Any]  # the content of a section: sentences, tables, charts, and classes below

NAME = 'report.html'
LONG = 20  # rows of a table that is folded
# On light and on dark paper. The four accents can be told apart with protanopia and deuteranopia,
# and so can the series.
COLORS = {
  'paper': ('#ffffff', '#16191d'),  # background
  'ink': ('#222222', '#f0f0f0'),  # text and axes
  'dim': ('#555555', '#b4b8be'),  # secondary: means, a budget
  'grey': ('#aaaaaa', '#72777e'),  # a crowd of points
  'rule': ('#e4e4e4', '#33383e'),  # hairlines of a grid
  'blank': ('#ebebeb', '#2a2f35'),  # an empty cell
  'teal': ('#2a9d9d', '#3fb8a8'),  # structures, right answers; the form 'vector'
  'red': ('#c8321f', '#e8503a'),  # the choice, and errors
  'purple': ('#6f4fa8', '#9d85e6'),  # fixed structures; the form 'LoRA'
  'yellow': ('#f5c04a', '#fbe08a'),  # fills only, too faint for lines; the form 'constant'
}
# For any number of curves, in this order: the colors of Okabe and Ito without yellow.
SERIES = (
  ('#0072b2', '#4a7fe0'),
  ('#e69f00', '#e69f00'),
  ('#009e73', '#00b386'),
  ('#d55e00', '#d55e00'),
  ('#cc79a7', '#e08fbd'),
  ('#56b4e9', '#7cc8f2'),
  ('#222222', '#f0f0f0'),
)
PALETTES = {
  theme: {
    **{name: pair[at] for name, pair in COLORS.items()},
    **{f'series-{number}': pair[at] for number, pair in enumerate(SERIES)},
  }
  for at, theme in enumerate(('light', 'dark'))
}
# On the pages of a run and of a suite. Test images are decoded at each start, to find copies.
TEST_LIST = Markup(
  'Everything tested is in <code>test_list.json</code>, written before any of it was evaluated on '
  'the test images.'
)
_SECTION = re.compile('<section id="([^"]+)".*?</section>', re.DOTALL)
_WARNING = re.compile('<p class="warning">.*?</p>', re.DOTALL)


class Section(NamedTuple):
  """A part of a page.

  Attributes:
    id: its name in links and for `show`.
    title: its heading.
    blocks: its content; empty blocks are left out, and so is a section without others.
  """

  id: str
  title: str
  blocks: Sequence[Any]


class Heading(NamedTuple):
  """The heading of a part of a section."""

  text: str


class Items(NamedTuple):
  """Sentences in a list."""

  texts: Sequence[str]


class Code(NamedTuple):
  """Lines for a terminal or a program."""

  text: str


class Facts(NamedTuple):
  """Terms with their values."""

  facts: Sequence[tuple[str, str]]


class Table(NamedTuple):
  """A table of a page and of the terminal.

  Attributes:
    caption: its title.
    titles: the heading of every column.
    rows: the cells of every row, as many as there are titles.
    text_columns: how many columns are text, the first ones; the others are numbers.
    strong: numbers of the rows that stand out.
    is_folded: whether a page shows it on request.
  """

  caption: str
  titles: Sequence[str]
  rows: Sequence[Sequence[object]]
  text_columns: int = 1
  strong: Collection[int] = ()
  is_folded: bool = False

  def __str__(self) -> str:
    """Markdown, without a line break at the end.

    Example:
      >>> rows = [('LoRA', 96.2), ('BitFit', 93.5)]
      >>> print(Table('', ('method', 'accuracy'), rows, strong=[0]))
      | method | accuracy |
      |---|---:|
      | **LoRA** | **96.2** |
      | BitFit | 93.5 |
    """
    numbers = len(self.titles) - self.text_columns
    texts = [
      [' '.join(str(cell).split()).replace('|', r'\|') for cell in line]
      for line in (self.titles, *self.rows)
    ]
    for row in self.strong:
      texts[row + 1] = [text and f'**{text}**' for text in texts[row + 1]]
    lines = [f'| {" | ".join(cells)} |' for cells in texts]
    lines.insert(1, f'|{"---|" * self.text_columns}{"---:|" * numbers}')
    return '\n'.join(lines)


class Pair(NamedTuple):
  """Charts side by side where there is room."""

  charts: Sequence[Chart]


def path(workdir: str) -> str:
  """The path of a workdir's page."""
  return os.path.join(workdir, NAME)


def write(
  workdir: str,
  *,
  what: str,
  heading: str,
  verdict: Sequence[str],
  sections: Sequence[Section],
  warnings: Sequence[str] = (),
  figures: Sequence[tuple[str, str, str]] = (),
) -> None:
  """Writes `report.html`, whole or not at all.

  Args:
    workdir: folder for it.
    what: the kind of page, for example 'a run'.
    heading: the name of its task.
    verdict: sentences on the result.
    sections: the rest of the page.
    warnings: sentences above everything else.
    figures: (name, number, note) of the most important numbers.
  """
  text = _template().render(
    what=what,
    heading=heading,
    verdict=verdict,
    sections=[section for section in sections if any(section.blocks)],
    warnings=warnings,
    figures=figures,
  )
  # Names that are not valid Unicode are shown with backslashes.
  write_bytes(path(workdir), text.encode('utf-8', 'backslashreplace'))


@dataclasses.dataclass(frozen=True)
class Shown:
  """A page, or a part of one, that a notebook displays in a frame of its height.

  Attributes:
    workdir: whose page it is.
    text: HTML.
  """

  workdir: str
  text: str = dataclasses.field(repr=False)

  def _repr_html_(self) -> str:
    return (
      f'<iframe srcdoc="{html.escape(self.text)}" title="{NAME}" '
      'style="width: 100%; height: 40rem; border: 0" '
      'onload="this.style.height = this.contentDocument.body.offsetHeight + \'px\'"></iframe>'
    )


def show(workdir: str, *sections: str) -> Shown:
  """The page of a run or a suite, for a notebook.

  Args:
    workdir: its folder.
    *sections: names of sections, for example 'accuracy' and 'structure'; none for all.

  Raises:
    OSError: there is no page.
    ValueError: the page has no section of this name; the message lists those that it has.
  """
  with open(path(workdir), encoding='utf-8') as file:
    text = file.read()
  found = {match[1]: match[0] for match in _SECTION.finditer(text)}
  if unknown := [name for name in sections if name not in found]:
    raise ValueError(f'The page has no section {unknown[0]!r}; it has {", ".join(found)}.')
  if sections:
    head, _, body = text.partition('<header>')
    text = '\n'.join([head, *_WARNING.findall(body), *(found[name] for name in sections)])
  return Shown(workdir, text)


@functools.cache
def _template() -> jinja2.Template:
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('glora_jax.vision.reports'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {'macro': lambda block: type(block).__name__.lower(), 'png': png}
  environment.globals['palettes'] = PALETTES  # pyrefly: ignore
  return environment.get_template('page.html')


def png(pixels: np.ndarray) -> str:
  """An image as a data URL.

  Args:
    pixels: uint8 [height, width, 3].

  Example:
    >>> png(np.zeros((1, 1, 3), np.uint8))[:30]
    'data:image/png;base64,iVBORw0K'
  """
  buffer = io.BytesIO()
  Image.fromarray(np.asarray(pixels)).save(buffer, 'PNG', optimize=True)
  return f'data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def paragraph(*sentences: Any) -> Markup:
  """Sentences joined to a paragraph, escaped unless they are markup; empty ones are left out.

  Example:
    >>> paragraph('A < B.', '', Markup('See <code>folded/</code>.'))
    Markup('A &lt; B. See <code>folded/</code>.')
  """
  return Markup(' ').join(Markup(' ').join(filter(None, sentences)).split())


def sentence_case(text: str) -> str:
  """Text with a capital first letter, unless that is a preset's with its rank, or a path's.

  Example:
    >>> sentence_case('lora:2 is best'), sentence_case('the best is lora:2')
    ('lora:2 is best', 'The best is lora:2')
    >>> sentence_case('a/genome.json is best')
    'a/genome.json is best'
  """
  is_name = not {':', '/', '.'}.isdisjoint(text.partition(' ')[0])
  return text if is_name else text[:1].upper() + text[1:]


def duration(seconds: float) -> str:
  """A readable time.

  Example:
    >>> duration(7.25), duration(59.97), duration(98), duration(7500)
    ('7.2 s', '1 min 0 s', '1 min 38 s', '2 h 5 min')
  """
  if round(seconds, 1) < 60:
    return f'{seconds:.1f} s'
  minutes, rest = divmod(round(seconds), 60)
  return f'{minutes} min {rest} s' if minutes < 60 else f'{minutes // 60} h {minutes % 60} min'


def percent(share: float | None) -> str:
  """An accuracy in percent; None stands for images that were trained on.

  Example:
    >>> percent(0.875), percent(None)
    ('87.5', 'trained on')
  """
  return 'trained on' if share is None else f'{100 * share:.1f}'


def group_by(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
  """Items by a key, in order.

  Example:
    >>> group_by(['ape', 'bee', 'ant'], lambda word: word[0])
    {'a': ['ape', 'ant'], 'b': ['bee']}
  """
  found: dict[Any, list[Any]] = {}
  for item in items:
    found.setdefault(key(item), []).append(item)
  return found
