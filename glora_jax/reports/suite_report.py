"""What a suite says of itself: `table.md`, `table.csv` and `table.png`, from its scoreboard alone."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from typing import Any

from glora_jax.files import whole
from glora_jax.reports.drawing import panels, save
from glora_jax.reports.run_report import PAPER_LABEL
from glora_jax.reports.scoreboard import (
  OURS,
  PAPER,
  Board,
  Row,
  columns,
  lines,
  own_rows,
  paper_protocol,
  published,
  published_rows,
  summary,
)

_TITLES = {'vtab': 'VTAB-1k', 'fewshot': 'Few-shot', 'generalization': 'Domain generalization'}
_BACKBONE = 'ViT-B/16 pretrained on ImageNet-21k'  # of the published rows


def write(board: Board, workdir: str) -> None:
  """Writes `table.md`, `table.csv` and `table.png` into the workdir."""
  rows = own_rows(board) + published_rows(board.tasks)
  with whole(os.path.join(workdir, 'table.md')) as temporary, open(temporary, 'w') as file:
    file.write(markdown(board, rows))
  with (
    whole(os.path.join(workdir, 'table.csv')) as temporary,
    open(temporary, 'w', newline='') as file,
  ):
    csv.writer(file).writerows(csv_lines(board, rows))
  draw(os.path.join(workdir, 'table.png'), board, rows)


def table(board: Board, rows: Sequence[Row]) -> str:
  """The accuracies as a Markdown table."""
  heading = lambda row: (
    row.method
    + ('' if row.params is None else f' ({row.params:.2g} M{_star(row, "params_million")})')
  )
  text = ['| | ' + ' | '.join(map(heading, rows)) + ' |', '|---|' + '---:|' * len(rows)]
  for title, is_mean, cells in lines(board, rows):
    stars = [_star(row, 'group_mean') if title == 'mean of groups' else '' for row in rows]
    shown = [f'{cell}{star}' for cell, star in zip(cells, stars, strict=True)]
    text.append(
      '| ' + ' | '.join(f'**{one}**' if is_mean else one for one in (title, *shown)) + ' |'
    )
  return '\n'.join(text)


def _star(row, field):
  return r'\*' if field in row.from_memory else ''


def markdown(board: Board, rows: Sequence[Row]) -> str:
  """The content of `table.md`."""
  results, kind = board.results, board.tasks[0].partition('/')[0]
  of_all = lambda name: (
    ', '.join(
      f'`{value}`' for value in dict.fromkeys(str(result[name]) for result in results.values())
    )
    or 'none yet'
  )
  protocol = (
    f'**{PAPER_LABEL}**'
    if paper_protocol(board)
    else (
      'Ours were searched on validation images; the test images were read once, at the end of every run.'
    )
  )
  percent = lambda value: 'trained on' if value is None else f'{100 * value:.1f}'
  text = f"""# {_TITLES[kind]}: {len(results)} of {len(board.tasks)} tasks of `{board.suite}`

{protocol}

Test accuracy in percent; trained parameters in millions, heads not counted. Ours: weights {of_all('weights')}, normalization
{of_all('normalization')}, seed {of_all('seed')}. The other columns were published, for a {_BACKBONE}.
A number such as 71.2 (5 of 19) is the mean of those 5 alone. Figures with \\* were quoted from memory.

{table(board, rows)}

![The same as bars](table.png)

## Tasks

| task | state | budget | trained params | val | test, as searched | test, finetuned | test, linear probe |
|---|---|---:|---:|---:|---:|---:|---:|
"""
  for name in board.tasks:
    cells = [name, board.state(name)] + [''] * 6
    if name in results:
      result, winner = results[name], results[name]['winner']
      cells[2:] = [
        'none' if result['budget'] is None else f'{result["budget"]:,}',
        f'{winner["params"]:,}',
        percent(winner['val_accuracy']),
        *(
          percent(result[entry]['test_accuracy'])
          for entry in ('winner_supernet', 'winner', 'linear')
        ),
      ]
    text += '| ' + ' | '.join(cells) + ' |\n'
  for title, sentences in (('Failed', board.failed), ('Not ready', board.missing)):
    if sentences:
      text += f'\n## {title}\n\n' + ''.join(
        f'- {name}: {" ".join(sentence.split())}\n' for name, sentence in sentences.items()
      )
  if board.missing:
    text += '\nWhat needs no manual download is fetched with `--config.suite.prepare=True`.\n'
  text += (
    '\n## Images\n\n'
    + ''.join(
      f'- {name}: {" ".join((result["data"]["origin"] + ".", *result["data"]["notes"]))}\n'
      for name, result in results.items()
    )
    + ('' if results else 'None yet.\n')
  )
  text += '\n## Sources of the published rows\n\n' + ''.join(
    f'- {row.method}: {row.source}\n' for row in rows if row.source
  )
  text += f'\nThe figures were seen in {"; ".join(published()["seen_in"])}.\n'
  for row in rows:
    computed = summary(row, board.tasks, quoted=False).get('mean of groups')
    if (
      row.quoted is not None
      and computed.complete
      and abs(computed.value - row.quoted) > 0.05 + 1e-9
    ):
      text += f'The mean of groups that was published for {row.method} is {row.quoted}; that of its accuracies here is {computed.value:.2f}.\n'
  return text


def csv_lines(board: Board, rows: Sequence[Row]) -> list[list[Any]]:
  """A line for each method; an accuracy or mean of which a part is missing stays empty."""
  names = [column.name for column in columns(board.tasks)]
  means = list(summary(rows[0], board.tasks))
  protocols = ' and '.join(dict.fromkeys(result['protocol'] for result in board.results.values()))
  exact = lambda cell: f'{cell.value:.2f}'.removesuffix('0') if cell.complete else ''
  text = [
    [
      'method',
      'protocol',
      'params_million',
      *names,
      *(name.replace(' ', '_') for name in means),
      'complete',
      'of',
      'from_memory',
      'source',
    ]
  ]
  for row in rows:
    found = summary(row, board.tasks)
    text.append(
      [
        row.method,
        protocols if row.ours else 'published',
        '' if row.params is None else f'{row.params:.4g}',
        *(exact(row.cells[name]) for name in names),
        *(exact(found[name]) for name in means),
        sum(cell.complete for cell in row.cells.values()),
        len(names),
        ' '.join(row.from_memory),
        row.source,
      ]
    )
  return text


def draw(path: str, board: Board, rows: Sequence[Row]) -> None:
  """Ours as bars, the published rows as marks on them; a mean of which a part is missing is hatched and says so."""
  table, others = lines(board, rows), [number for number, row in enumerate(rows) if not row.ours]
  linear = next(number for number, row in enumerate(rows) if row.method.endswith(OURS['linear']))
  figure, axis = panels(figsize=(8, 1.6 + 0.27 * len(table)))
  for y, (_, is_mean, cells) in enumerate(table):
    ours = cells[0]
    if ours.value is not None:
      axis.barh(
        y,
        ours.value,
        color=('#2f6f6f' if is_mean else '#5aa7a7') if ours.complete else '#d5e6e6',
        height=0.72,
        hatch='' if ours.complete else '///',
        edgecolor='white',
        zorder=1,
      )
    axis.text(
      101.5, y, str(ours), va='center', fontsize=8, fontweight='bold' if is_mean else 'normal'
    )
  marks = {
    'LoRA': ('D', '#8e6bb0', 22),
    'GLoRA': ('*', '#c0392b', 70),
    rows[linear].method: ('|', '#222222', 70),
  }
  labelled = set()
  for number in (*others, linear):
    method = rows[number].method
    marker, color, size = marks.get(method, ('o', '#aaaaaa', 9))
    points = [
      (cells[number].value, y) for y, (*_, cells) in enumerate(table) if cells[number].complete
    ]
    label = (
      method
      if number == linear
      else method + ', published'
      if method in marks
      else 'other published rows'
    )
    axis.scatter(
      *zip(*points, strict=True) if points else ((), ()),
      marker=marker,
      color=color,
      s=size,
      zorder=3,
      linewidths=1.5 if marker == '|' else 0,
      label=None if label in labelled else label,
    )
    labelled.add(label)
  axis.barh([0], [0], color='#5aa7a7', label=rows[0].method)
  axis.set_yticks(range(len(table)), [title for title, *_ in table], fontsize=8)
  for label, (_, is_mean, _) in zip(axis.get_yticklabels(), table, strict=True):
    label.set_fontweight('bold' if is_mean else 'normal')
  axis.set(xlabel='test accuracy in %', xlim=(0, 100), ylim=(len(table) - 0.4, -0.6))
  axis.spines[['top', 'right']].set_visible(False)
  figure.legend(loc='outside lower center', ncols=3, frameon=False, fontsize=8)
  warning = f'\n{PAPER}: ours were searched on the test set' if paper_protocol(board) else ''
  axis.set_title(
    f'{_TITLES[board.tasks[0].partition("/")[0]]}: {len(board.results)} of {len(board.tasks)} tasks{warning}',
    loc='left',
  )
  save(figure, path, dpi=130, bbox_inches='tight')
