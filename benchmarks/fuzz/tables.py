"""CSV files and lists of images with labels, most of them wrong in a row or two."""

import csv
import functools
import io
import os
import random

import numpy as np

from benchmarks.fuzz.oracle import Case, Fault
from benchmarks.fuzz.pictures import PNG
from benchmarks.fuzz.place import Place
from benchmarks.fuzz.values import damaged
from glora_jax.data.catalog import canonical, find
from glora_jax.data.label_files import read_list
from glora_jax.data.task import Task

CLASSES, EACH = 'ab', 5
CELLS = (
  *('a/0.png', 'a/1.png', 'b/0.png', './a/0.png', 'a//0.png', 'a/../a/0.png', 'none.png', 'a', ''),
  *('path', 'label', 'file', '"', '""', 'x,y', '"a/2.png"', ' ', '\ufeff', '1', '01', '²', '-1'),
  *('9' * 5000, 'cat', 'dog', '\0', 'a\tb', '\r', 'a/2.png', 'b/4.png', 'ü', 'e\u0301', '\ud800'),
  *('/dev/null', 'x' * 140_000),
)
HEADERS = ('path,label', 'label,path', 'Path, Label', 'path,label,id', 'file,class', 'path', 'id')
LINES = (
  *('a/0.png 0', 'a/1.png 1', 'b/0.png 2', 'b/0.png', '  ', 'a/2.png -1', 'a/2.png  1', 'x 1'),
  *('a/2.png 1 ', '\t', 'a/3.png ²', 'a/3.png ' + '9' * 5000, './a/0.png 0', 'a/4.png 1.0'),
)
ENCODINGS = (*['utf-8'] * 8, 'utf-8-sig', 'utf-16', 'latin-1')


def comma_separated(rng: random.Random, place: Place) -> Case:
  """A task from a CSV, whose split is written down."""
  write_images(place)
  content = _csv_text(rng).encode(rng.choice(ENCODINGS), errors='replace')
  if rng.random() < 0.2:
    content = damaged(rng, content)
  path = place.write('labels.csv', content=content)
  link = os.path.join(place.given, 'link')
  os.symlink(place.given, link)
  written = {
    'a path with a dot': os.path.join(place.given, '.', 'labels.csv'),
    'a path with two slashes': path.replace('/labels', '//labels'),
    'a relative path': os.path.relpath(path),
  }

  def attempt() -> dict:
    return splits_of(find(f'csv:{path}', workdir=place.workdir))

  def check(splits: dict) -> None:
    names = [name for split in splits.values() for name in split['names']]
    if len(names) != len({os.path.normpath(name) for name in names}):
      raise Fault('an image is in two splits, or twice in one')
    if len(names) != _rows_of(content):
      raise Fault(f'{len(names)} images of a CSV with {_rows_of(content)} rows')

  alike = {
    title: functools.partial(_same_task, name, path, place) for title, name in written.items()
  }
  return Case(f'csv {content[:300]!r}', attempt, check, alike)


def _same_task(name: str, path: str, place: Place) -> dict:
  """The task of a path that is written otherwise."""
  if canonical(f'csv:{name}') != f'csv:{path}':
    raise Fault('its path is not the same task on resume')
  return splits_of(find(f'csv:{name}', workdir=place.workdir))


def list_of_images(rng: random.Random, place: Place) -> Case:
  """A list of paths and numbers, as the benchmarks' files have them."""
  write_images(place)
  lines = [rng.choice(LINES[:3] if rng.random() < 0.7 else LINES) for _ in range(rng.randrange(5))]
  content = '\n'.join(lines).encode()
  if rng.random() < 0.3:
    content = damaged(rng, content)
  path = place.write('list.txt', content=content)

  def attempt() -> list:
    files = read_list(path, place.given, 3)
    return [*files.paths, files.labels]

  return Case(f'list {content[:300]!r}', attempt)


def splits_of(task: Task) -> dict:
  """What a task has of each split: names, labels, and what its identity is."""
  found = {}
  for split in task.splits:
    examples = task.open(split)
    labels = examples.labels
    if labels.dtype != np.int32 or labels.ndim != 1 or labels.max() >= task.num_classes:
      raise Fault(f'labels of {split} are {labels.dtype} {labels.shape}, up to {labels.max()}')
    names = [examples.name(index) for index in range(len(labels))]
    found[split] = {'names': names, 'labels': labels}
  return found


def _rows_of(content: bytes) -> int:
  """The rows of a CSV that hold something, as Python reads it, without its header."""
  text = io.StringIO(content.decode('utf-8-sig'), newline='')
  rows = [[cell.strip().lower() for cell in row] for row in csv.reader(text) if any(row)]
  return len(rows) - (bool(rows) and {'path', 'label'} <= set(rows[0]))


def write_images(place: Place) -> None:
  """The images of two classes."""
  for name in CLASSES:
    for number in range(EACH):
      place.write(name, f'{number}.png', content=PNG)


def _csv_text(rng: random.Random) -> str:
  rows = [rng.choice(HEADERS if rng.random() < 0.3 else HEADERS[:2])] if rng.random() < 0.5 else []
  good = [f'{name}/{number}.png,{name}' for name in CLASSES for number in range(EACH)]
  rows += [row for row in good if rng.random() < 0.95]
  for _ in range(rng.choice([0, 0, 1, 2, 3])):
    at = rng.randrange(len(rows))
    action = rng.randrange(4)
    if action == 0:
      rows[at] = ','.join(rng.choice(CELLS) for _ in range(rng.randrange(5)))
    elif action == 1:
      rows.insert(at, rng.choice(rows))
    elif action == 2:
      rows[at] = rows[at].replace(rng.choice([',', '/', '.', 'a']), rng.choice(CELLS), 1)
    else:
      rows[at] = rows[at].rpartition(',')[0] + ',' + rng.choice(CELLS)
  return rng.choice(['\n', '\r\n', '\r']).join(rows) + rng.choice(['', '\n', '\n\n'])
