"""What pages are made of: sentences, tables, numbers, and the paper protocol's warning."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

PAPER_LABEL = (
  "PROTOCOL 'paper': the subnet was SEARCHED ON THE TEST SET and trained on train+val. "
  'The test accuracies below reproduce how the paper was probably made; '
  'they estimate nothing unseen.'
)
PAPER = PAPER_LABEL.partition(':')[0]  # where there is little room
_SPECIAL = r'[\\`*_{}\[\]<>#|$~]'  # characters that mean something to Markdown


class Table(NamedTuple):
  """A table that is told as Markdown and as a page alike.

  Attributes:
    titles: the heading of every column.
    rows: the cells of every row, as many as there are titles; text is Markdown's, as in sentences.
    text_columns: how many columns are text, the first ones; the others are numbers.
  """

  titles: Sequence[str]
  rows: Sequence[Sequence[object]]
  text_columns: int = 1

  def __str__(self) -> str:
    """Markdown, without a line break at the end.

    Example:
      >>> print(Table(('method', 'accuracy'), [('LoRA', 96.2), ('BitFit', 93.5)]))
      | method | accuracy |
      |---|---:|
      | LoRA | 96.2 |
      | BitFit | 93.5 |
    """
    numbers = len(self.titles) - self.text_columns
    lines = [f'| {" | ".join(map(str, cells))} |' for cells in (self.titles, *self.rows)]
    lines.insert(1, f'|{"---|" * self.text_columns}{"---:|" * numbers}')
    return '\n'.join(lines)


def paragraph(*sentences: str) -> str:
  r"""Sentences on one line, whatever line breaks they were written with; empty ones are left out.

  Example:
    >>> paragraph('The first one.', '', 'The second, which is\n  longer.')
    'The first one. The second, which is longer.'
  """
  return ' '.join(' '.join(sentences).split())


def sentence_case(text: str) -> str:
  """Text that begins as a sentence does."""
  return text[:1].upper() + text[1:]


def percent(share: float | None) -> str:
  """An accuracy in percent, '96.2'; None is the accuracy on images that were trained on."""
  return 'trained on' if share is None else f'{100 * share:.1f}'


def plain(text: str) -> str:
  r"""Text on one line that Markdown shows as it is.

  Example:
    >>> print(plain('a_b|c'))
    a\_b\|c
  """
  return re.sub(f'({_SPECIAL})', r'\\\1', ' '.join(text.split()))


class Span(NamedTuple):
  """A part of a sentence.

  Attributes:
    kind: 'text', 'code', or 'strong'.
    text: what it says, without Markdown's signs.
  """

  kind: str
  text: str


_SPAN = re.compile(
  r'`(?P<code>[^`]*)`'
  rf'|\*\*(?P<strong>(?:\\{_SPECIAL}|[^*\\])+)\*\*'
  rf'|(?P<text>(?:\\{_SPECIAL}|[^`*\\])+|.)',
  re.DOTALL,
)


def spans(text: str) -> list[Span]:
  r"""What the sentences of reports are made of: text, `code`, **strong**, and escapes of `plain`.

  Example:
    >>> [tuple(span) for span in spans(r'of a\_b, see `c_d`')]
    [('text', 'of a_b, see '), ('code', 'c_d')]
  """
  matches = ((match.lastgroup or '', match[match.lastgroup or 0]) for match in _SPAN.finditer(text))
  return [
    Span(kind, content if kind == 'code' else re.sub(rf'\\({_SPECIAL})', r'\1', content))
    for kind, content in matches
  ]


def weights_name(result: Mapping[str, Any]) -> str:
  """The weights that a result is of, with the commit of a name on the hub.

  Example:
    >>> weights_name({'weights': 'hf:google/vit-base', 'weights_revision': '0123456789abcdef'})
    '`hf:google/vit-base` (commit 0123456789ab)'
  """
  revision = result.get('weights_revision')
  return f'`{result["weights"]}`' + (f' (commit {revision[:12]})' if revision else '')


class Spread(NamedTuple):
  """How values lie.

  Attributes:
    mean: their mean.
    deviation: their standard deviation, as that of a sample; 0 of a single value, and no number
      where one of them is not finite.
  """

  mean: float
  deviation: float


def spread(values: Sequence[float]) -> Spread:
  """Mean and standard deviation of at least one value.

  Example:
    >>> spread([1, 2, 3])
    Spread(mean=2, deviation=1.0)
  """
  mean = statistics.mean(values)
  if len(values) == 1:
    return Spread(mean, 0.0)
  return Spread(mean, statistics.stdev(values) if math.isfinite(mean) else math.nan)
