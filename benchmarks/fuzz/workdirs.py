"""What a workdir has of its preparation, changed before the run goes on."""

import contextlib
import glob
import os
import random
from typing import Any
from unittest import mock

from benchmarks.fuzz.folders import read_task
from benchmarks.fuzz.oracle import Case, Fault, same
from benchmarks.fuzz.place import Place
from benchmarks.fuzz.spoiling import changed_arrays, spoil_bytes, spoil_json, write, write_json
from benchmarks.fuzz.tables import splits_of, write_images
from glora_jax.data.catalog import find
from glora_jax.files import STAMP, read_arrays, sha256_of, write_arrays
from glora_jax.limits import shown
from glora_jax.models import hub
from glora_jax.runs.sections import ModelSettings
from glora_jax.runs.weights_record import FILE, find_weights, recorded

COMMITS = ('1' * 40, '2' * 40)


def split_file(rng: random.Random, place: Place) -> Case:
  """The `split.json` of a folder of classes."""
  write_images(place)
  images = splits_of(find(f'folder:{place.given}', workdir=place.workdir))
  done = spoil_json(rng, os.path.join(place.workdir, 'split.json'))

  def attempt() -> dict:
    return splits_of(find(f'folder:{place.given}', workdir=place.workdir))

  def check(splits: dict) -> None:
    if _names(splits) != _names(images):
      raise Fault('the splits do not have every image once')

  return Case(done, attempt, check)


def _names(splits: dict) -> list[str]:
  return sorted(name for split in splits.values() for name in split['names'])


def weights_file(rng: random.Random, place: Place) -> Case:
  """The `weights.json` of a run whose weights are a name on a hub, here of two commits."""
  paths = [place.write('hub', commit, 'x', content=commit.encode()) for commit in COMMITS]
  os.makedirs(place.workdir)
  record = {'weights': 'hf:me/vit', 'revision': COMMITS[1], 'sha256': sha256_of(paths[1])}
  content = {STAMP: {'kind': 'weights', 'format': 1}, **record}
  done = write_json(rng, os.path.join(place.workdir, FILE), content)

  def snapshot(name: str) -> hub.Snapshot:
    revision = hub.parse(name).revision or COMMITS[0]
    if revision not in COMMITS:
      raise FileNotFoundError(f'The hub has no revision {shown(revision)}.')
    path = paths[COMMITS.index(revision)]
    return hub.Snapshot(os.path.dirname(path), path, revision)

  def attempt() -> list:
    with mock.patch.object(hub, 'snapshot', snapshot):
      folder = find_weights(ModelSettings(weights='hf:me/vit'), place.workdir)
    return [os.path.basename(folder), recorded(place.workdir)]

  def check(result: Any) -> None:
    if result[1].get('weights_revision') != result[0]:
      raise Fault('the commit is not the one that is recorded')

  return Case(done, attempt, check)


def image_files(rng: random.Random, place: Place) -> Case:
  """What remembers images: which can be decoded, and decoded ones; without it all is the same."""
  write_images(place)
  if rng.random() < 0.3:
    place.write('a', '0.png', content=b'x')
  skips = rng.random() < 0.6

  def attempt() -> dict[str, Any]:
    task = find(f'folder:{place.given}', workdir=place.workdir)
    return read_task(task, place, skips, os.path.join(place.workdir, 'cache'))

  expected = None
  with contextlib.suppress(OSError, ValueError):
    expected = attempt()
  done = [
    _spoil(rng, path) for path in sorted(glob.glob(f'{place.workdir}/**/*.npz', recursive=True))
  ]

  def check(splits: Any) -> None:
    if expected is None or not same(splits, expected):
      raise Fault('with what is remembered the images are others')

  return Case(f'images {done}', attempt, check)


def _spoil(rng: random.Random, path: str) -> str:
  """Damages a file of arrays, or leaves it; what was done."""
  name, action = os.path.basename(path), rng.random()
  if action < 0.4:
    return spoil_bytes(rng, path)
  if name != 'images.npz':
    return ''
  if action < 0.6:  # numbers of pixels could be any
    write_arrays(path, changed_arrays(rng, read_arrays(path)), 'checked images')
    return f'arrays of {name}'
  if action < 0.7:
    with open(path, 'rb') as file:
      content = file.read()
    return f'{name} {write(rng, path, content)}'
  return ''
