"""Tables, names and numbers as pages and the terminal show them."""

from __future__ import annotations

import math
import statistics
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from glora_jax.vision.reports.charts import DotPlot, Dots, Mark, axis

PAPER_LABEL = (
  "PROTOCOL 'paper': the structure was SEARCHED ON THE TEST SET and trained on train+val. "
  'The test accuracies below reproduce how the paper was probably made; '
  'they do not estimate the accuracy on unseen images.'
)
PAPER = PAPER_LABEL.partition(':')[0]  # the short form
_STAGES = {
  'head': 'head alone',
  'tuning': 'learning rates',
}


def stage_title(stage: str, labels: Mapping[str, str]) -> str:
  """The title of a stage.

  Args:
    stage: its name, 'supernet' or 'training/lora' for instance.
    labels: those of the structures, by name.

  Example:
    >>> stage_title('training/lora', {'lora': 'lora:4'}), stage_title('head', {})
    ('lora:4', 'head alone')
  """
  structure = structure_of(stage)
  if stage == 'finetune':
    return labels.get(structure, 'finetuning')
  return labels.get(structure) or structure or _STAGES.get(stage, stage)


def structure_of(stage: str) -> str:
  """The name of the structure that a stage trains; empty for other stages.

  Example:
    >>> structure_of('training/lora@blocks%2F3'), structure_of('finetune'), structure_of('head')
    ('lora@blocks/3', 'search', '')
  """
  return 'search' if stage == 'finetune' else urllib.parse.unquote(stage.partition('/')[2])


class Table(NamedTuple):
  """A table of a page and of the terminal.

  Attributes:
    caption: what it shows.
    titles: the heading of every column.
    rows: the cells of every row, as many as there are titles.
    text_columns: how many columns are text, the first ones; the others are numbers.
    strong: numbers of the rows that stand out.
  """

  caption: str
  titles: Sequence[str]
  rows: Sequence[Sequence[object]]
  text_columns: int = 1
  strong: Collection[int] = ()

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
    lines = [self.titles, *self.rows]
    texts = [[' '.join(str(cell).split()).replace('|', r'\|') for cell in line] for line in lines]
    for row in self.strong:
      texts[row + 1] = [text and f'**{text}**' for text in texts[row + 1]]
    lines = [f'| {" | ".join(cells)} |' for cells in texts]
    lines.insert(1, f'|{"---|" * self.text_columns}{"---:|" * numbers}')
    return '\n'.join(lines)


def paragraph(*sentences: Any) -> Markup:
  """Sentences joined to a paragraph, escaped unless they are markup; false ones are left out.

  Example:
    >>> paragraph('A < B.', '', code('folded/'))
    Markup('A &lt; B. <code>folded/</code>')
  """
  return Markup(' ').join(Markup(' ').join(filter(None, sentences)).split())


def code(text: str) -> Markup:
  """The name of a file or a field as code."""
  return Markup('<code>{}</code>').format(text)


def sentence_case(text: str) -> str:
  """Text with a capital first letter, except a preset with its rank, 'lora:2'."""
  return text if ':' in text else text[:1].upper() + text[1:]


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


def weights_name(result: Mapping[str, Any]) -> Markup:
  """The weights of a result, with the commit if they are on the hub.

  Example:
    >>> str(weights_name({'weights': 'hf:google/vit', 'weights_revision': '0123456789abcdef'}))
    '<code>hf:google/vit</code> (commit 0123456789ab)'
  """
  revision = result.get('weights_revision')
  return code(result['weights']) + (f' (commit {revision[:12]})' if revision else '')


def grouped(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
  """Items by a key, in order.

  Example:
    >>> grouped(['ape', 'bee', 'ant'], lambda word: word[0])
    {'a': ['ape', 'ant'], 'b': ['bee']}
  """
  found: dict[Any, list[Any]] = {}
  for item in items:
    found.setdefault(key(item), []).append(item)
  return found


class Cell(NamedTuple):
  """A number in a table: the mean of the available values.

  Attributes:
    value: the mean; nan without values.
    done: number of values.
    total: number of values once all are done.
    deviation: their sample standard deviation; None if that means nothing, nan if a value is not
      finite.
    digits: format of the number.
    ends: of an interval around an accuracy, if one other than the deviation's is known.
    note: text instead of a missing value.

  Example:
    >>> str(Cell(71.23, 5, 19)), str(Cell(71.23, 2, 2, 0.5)), str(Cell(math.nan, 0, 19))
    ('71.2 (5 of 19)', '71.2 ± 0.5', '')
  """

  value: float
  done: int = 1
  total: int = 1
  deviation: float | None = None
  digits: str = '.1f'
  ends: Sequence[float] = ()
  note: str = ''

  @property
  def complete(self) -> bool:
    """Whether all values are there."""
    return 0 < self.done == self.total

  def __str__(self) -> str:
    if not self.done:
      return self.note
    spread = '' if self.deviation is None else f' ± {self.deviation:{self.digits}}'
    known = '' if self.complete else f' ({self.done} of {self.total})'
    return f'{self.value:{self.digits}}{spread}{known}'


def mean(values: Sequence[float], total: int | None = None) -> Cell:
  """The mean of values, and their spread if there are several.

  Args:
    values: the available values.
    total: number of values once all are done; None if they are.

  Example:
    >>> mean([1, 2, 3])[:4]
    (2, 3, 3, 1.0)
  """
  found = statistics.mean(values) if values else math.nan
  deviation = None
  if len(values) > 1:
    deviation = statistics.stdev(values) if math.isfinite(found) else math.nan
  return Cell(found, len(values), len(values) if total is None else total, deviation)


def share_cell(share: float | None) -> Cell:
  """An accuracy in percent; None stands for images that were trained on."""
  return Cell(math.nan, 0, note='trained on') if share is None else Cell(100 * share)


class Method(NamedTuple):
  """A method, or a structure.

  Attributes:
    name: its name in headings.
    lines: all of its measurements, as in `table.csv`.
    cells: its numbers, by column.
    style: (name of its kind in a legend, color, shape) of its mark.
    is_strong: whether it stands out.
  """

  name: str
  lines: Sequence[Mapping[str, Any]]
  cells: dict[str, Cell]
  style: tuple[str, str, str] = ('', 'purple', 'dot')
  is_strong: bool = False


def accuracies(methods: Sequence[Method], heading: str) -> Table:
  """The numbers of methods, in all columns that any of them has; `heading` is for names."""
  shown = [name for name in methods[0].cells if any(str(each.cells[name]) for each in methods)]
  rows = [(method.name, *(method.cells[name] for name in shown)) for method in methods]
  strong = [at for at, method in enumerate(methods) if method.is_strong]
  return Table('Accuracy in percent', (heading, *shown), rows, strong=strong)


def accuracy_plot(caption: str, methods: Sequence[Method]) -> DotPlot:
  """The test accuracy of methods, with its spread over seeds or a known interval.

  Args:
    caption: what the intervals are.
    methods: with cells 'test' and 'parameters'.
  """
  drawn = []
  for method in methods:
    cell, params = method.cells['test'], str(method.cells['parameters'])
    around = cell.deviation or 0.0
    ends = cell.ends or (max(0.0, cell.value - around), min(100.0, cell.value + around))
    exactly = f'{cell.value:.2f}%, {ends[0]:.1f} to {ends[1]:.1f}; {params} trained parameters'
    mark = Mark((cell.value,), exactly, *method.style[1:])
    drawn.append(Dots(method.name, str(cell), [mark], params, ends, method.is_strong))
  legend = dict.fromkeys(method.style for method in methods if method.style[0])
  scale = axis('', [end for dots in drawn for end in dots.ends], most=100)
  shown = list(legend) if len(legend) > 1 else []
  return DotPlot(f'Test accuracy in %{caption}, and parameters', scale, drawn, shown)
