"""Folders of classes with whatever a file system can hold: links, FIFOs, devices, odd names."""

import contextlib
import os
import random
import shutil
from typing import Any

import numpy as np

from benchmarks.fuzz.oracle import Case, Fault
from benchmarks.fuzz.pictures import PNG
from benchmarks.fuzz.place import Place
from benchmarks.fuzz.values import damaged
from glora_jax.data import pipeline
from glora_jax.data.catalog import expand, find, report
from glora_jax.data.image_check import with_readable_images
from glora_jax.data.task import Source, Task

NAMES = (
  *('a', 'b', 'train', 'val', 'test', 'Train', 'valid', 'TEST', '.hidden', 'x y', 'ü', 'a,b'),
  *('e\u0301', '$x_', '-x', 'x' * 250, 'a\nb', 'c\x1b[2J', '\udcff\udcfe', '~', '%s', '{x}', "'"),
)
TOPS = (
  *(['a', 'b'], ['a', 'b', 'c x'], ['train', 'val', 'test'], ['train'], ['Train', 'test']),
  *(['train', 'extra'], ['train', 'bus'], ['val', 'test'], ['train', 'validation', 'test']),
)
TARGETS = (
  *('.', '..', 'none.png', '0.png', '../a', '/dev/zero', '/dev/null', '/etc', '../../a/0.png'),
  *('/dev/stdin', '/dev/tty', '/proc/self/mem', '/proc/self/environ', '/proc/kmsg'),
)
SIZE = 4
PIECES = (
  *('digits', 'vtab', 'cifar100', '/', ':', 'folder', 'csv', 'tfds', 'fewshot', 'food101', '4'),
  *('0', 'generalization', '²', '..', '\0', '\n', ' ', 'all', 'mnist', 'x' * 300, '~', '-1'),
  *('9' * 5000, '\ud800'),
)


def classes(rng: random.Random, place: Place) -> Case:
  """A task from a folder, all of its images read."""
  plan = _tree(rng)
  folder = os.path.join(place.given, 'photos')
  _build(folder, plan)
  skips = rng.random() < 0.6

  def attempt() -> dict[str, Any]:
    task = find(f'folder:{folder}', workdir=place.workdir)
    try:
      return read_task(task, place, skips)
    except (OSError, ValueError):  # a run takes back what `find` wrote, and nothing else
      with contextlib.suppress(OSError):
        os.remove(os.path.join(place.workdir, 'split.json'))
      with contextlib.suppress(OSError):
        os.rmdir(place.workdir)
      raise

  def built_backwards() -> dict[str, Any]:
    shutil.rmtree(folder)
    _build(folder, plan[::-1])
    shutil.rmtree(place.workdir, ignore_errors=True)
    return attempt()

  def check(splits: dict[str, Any]) -> None:
    names = [name for split in splits.values() for name in split['names']]
    if splits.keys() != {'train', 'val', 'test'} or len(names) != len(set(names)):
      raise Fault('an image is in two splits, or a split is missing')
    inside = os.path.realpath(folder)
    if not all(os.path.realpath(os.path.dirname(name)).startswith(inside) for name in names):
      raise Fault('an image lies in a folder elsewhere')

  alike = {'the same files, made in another order': built_backwards}
  return Case(f'folder {[(path, kind) for path, kind, _ in plan]!r:.1500}', attempt, check, alike)


def task_names(rng: random.Random, place: Place) -> Case:
  """The name of a task, which need not be ready."""
  name = ''.join(rng.choice(PIECES) for _ in range(rng.randrange(1, 7)))
  source = Source(dir=os.path.join(place.workdir, 'tfds'))

  def attempt() -> list:
    names = expand(name)
    if len(names) < 3:
      report(names[0], source)
    task = find(names[0], source)
    return [names, task.name, task.classes, sorted(task.splits)]

  return Case(f'task {name[:200]!r}', attempt)


def read_task(task: Task, place: Place, skips: bool, cache: str | None = None) -> dict[str, Any]:
  """Everything of a task, its images decoded, and kept in a cache if there is one."""
  os.makedirs(place.workdir, exist_ok=True)
  record = os.path.join(place.workdir, 'images.npz')
  readable = with_readable_images(task, record, skip_broken=skips)
  splits = {}
  for name in readable.splits:
    examples = readable.open(name)
    images, labels = pipeline.load(examples, SIZE, cache=cache)
    if images.shape != (len(labels), SIZE, SIZE, 3) or images.dtype != np.uint8:
      raise Fault(f'images of {name} are {images.dtype} {images.shape}')
    if len(np.unique(labels)) < 2 or labels.max() >= task.num_classes:
      raise Fault(f'labels of {name} are {labels}, of {task.num_classes} classes')
    names = [examples.name(index) for index in range(len(labels))]
    splits[name] = {'names': names, 'images': images, 'labels': labels}
  return splits


Item = tuple[str, str, Any]  # path, kind, content or target


def _tree(rng: random.Random) -> list[Item]:
  """A plan of a folder: mostly one that could be a task."""
  items: list[Item] = []
  if rng.random() < 0.7:
    for top in rng.choice(TOPS):
      is_split = top.lower() in ('train', 'val', 'test', 'validation')
      for name in ['a', 'b', rng.choice(['c', 'a'])] if is_split else ['']:
        folder = os.path.join(top, name)
        items += [_leaf(rng, folder, number, 0.03) for number in range(rng.randint(3, 6))]
    return _unique(items)
  for top in {rng.choice(NAMES) for _ in range(rng.randrange(6))}:
    if rng.random() < 0.1:
      items.append((top, 'link', rng.choice((*TARGETS, top))))
      continue
    items.append((top, 'folder', None))
    items += [_leaf(rng, top, number, 0.25) for number in range(rng.randrange(8))]
    if rng.random() < 0.4:
      inner = os.path.join(top, rng.choice(NAMES))
      items += [_leaf(rng, inner, number, 0.1) for number in range(rng.randrange(7))]
  return _unique(items)


def _unique(items: list[Item]) -> list[Item]:
  return list({path: (path, kind, content) for path, kind, content in items}.values())


def _leaf(rng: random.Random, folder: str, number: int, oddness: float) -> Item:
  ending = rng.choice(['.PNG', '.jpg', '.txt', '\udcff.png']) if rng.random() < 0.1 else '.png'
  path = os.path.join(folder, f'{number}{ending}')
  if rng.random() >= oddness:
    return path, 'file', PNG
  kind = rng.choice(['fifo', 'link', 'link', 'file', 'file', 'folder', 'empty', 'socket'])
  if kind == 'link':
    return path, kind, rng.choice((*TARGETS, f'{number}.png', os.path.basename(path)))
  return path, 'file' if kind == 'empty' else kind, b'' if kind == 'empty' else damaged(rng, PNG)


def _build(folder: str, plan: list[Item]) -> None:
  """Makes what a plan says, as far as the file system lets it; equal plans make equal files."""
  for name, kind, content in plan:
    path = os.path.join(folder, name)
    try:
      os.makedirs(path if kind == 'folder' else os.path.dirname(path), exist_ok=True)
      if kind == 'fifo':
        os.mkfifo(path)
      elif kind == 'link':
        os.symlink(content, path)
      elif kind == 'socket':
        os.mknod(path, 0o140644)
      elif kind == 'file':
        with open(path, 'wb') as file:
          file.write(content)
      if kind != 'folder':
        os.utime(path, (1, 1), follow_symlinks=False)
    except (OSError, UnicodeError):
      continue
