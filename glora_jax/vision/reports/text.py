"""Tables, names and times as pages and the terminal show them."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

PAPER_LABEL = (
  "PROTOCOL 'paper': the structure was SEARCHED ON THE TEST SET and trained on train+val. "
  'The test accuracies below reproduce how the paper was probably made; '
  'they do not estimate the accuracy on unseen images.'
)
PAPER = PAPER_LABEL.partition(':')[0]  # the short form


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
  return labels.get(structure) or structure or {'head': 'head alone'}.get(stage, stage)


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
