"""Files that a run or `save_adapter` wrote, changed afterwards, and read back."""

import functools
import json
import os
import random
from typing import Any

import numpy as np

import glora_jax
from benchmarks.fuzz.models import SPECS, dense
from benchmarks.fuzz.oracle import Case, Fault, same
from benchmarks.fuzz.place import Place
from benchmarks.fuzz.spoiling import (
  changed_arrays,
  spoil_bytes,
  spoil_header,
  spoil_tensors,
  write,
  write_json,
)
from benchmarks.fuzz.values import changed_json, damaged, shown
from glora_jax import files
from glora_jax.files import STAMP, write_arrays
from glora_jax.method.draws import random_genomes
from glora_jax.records import read_lines, read_record
from glora_jax.runs.config import check_config, default_config
from glora_jax.runs.stages.results import Result
from glora_jax.runs.stages.search import read_archive
from glora_jax.runs.workdir import changes_of, read_config
from glora_jax.search.archive import Archive

SPEC = SPECS[0]


def config_file(rng: random.Random, place: Place) -> Case:
  """The `config.json` of a workdir, compared with a config and read."""
  config = default_config()
  content = {STAMP: {'kind': 'config', 'format': 1}, **json.loads(config.to_json())}
  done = write_json(rng, os.path.join(_workdir(place), 'config.json'), content)

  def attempt() -> list:
    changes = changes_of(config, place.workdir)
    return [changes, repr(check_config(read_config(place.workdir)))]

  return Case(done, attempt)


def record(rng: random.Random, place: Place) -> Case:
  """A JSON record of a run."""
  name, shape, content = rng.choice(_records())
  path = os.path.join(_workdir(place), f'{name}.json')
  done = write_json(rng, path, {STAMP: {'kind': name, 'format': 1}, **content})

  def attempt() -> Any:
    found = read_record(path, name, shape)
    is_record = isinstance(found, dict)
    known = {field: found[field] for field in found if field in content} if is_record else found
    return [known, repr(found)]  # what nobody reads may be anything

  def check(_: Any) -> None:
    value = read_record(path, name, shape)
    copy = os.path.join(place.workdir, 'copy.json')
    files.write_json(copy, value, name if isinstance(value, dict) else None)
    if repr(read_record(copy, name, shape)) != repr(value):
      raise Fault('written again it reads otherwise')

  return Case(done, attempt, check)


def lines(rng: random.Random, place: Place) -> Case:
  """A file with JSON in every line, of which damaged ones are left out."""
  rows = [{'step': number, 'loss': 0.5} for number in range(5)]
  content = ''.join(f'{json.dumps(row)}\n' for row in rows).encode()
  path = os.path.join(_workdir(place), 'metrics.jsonl')
  content = damaged(rng, content)
  write(rng, path, content)

  def attempt() -> list:
    return read_lines(path, 'metrics', dict[str, float])

  return Case(f'lines {content!r:.300}', attempt)


def archive(rng: random.Random, place: Place) -> Case:
  """The archive of a search."""
  path = os.path.join(_workdir(place), 'archive.npz')
  found = _found()
  arrays = changed_arrays(rng, found.arrays()) if rng.random() < 0.7 else found.arrays()
  write_arrays(path, arrays, 'archive')
  if rng.random() < 0.4:
    spoil_bytes(rng, path, most=2)

  def attempt() -> dict[str, np.ndarray]:
    return read_archive(path, SPEC).arrays()

  def check(arrays: dict[str, np.ndarray]) -> None:
    read = Archive.from_arrays(arrays, SPEC)
    best = read.best()
    if best.shape != (len(SPEC), 5) or best.dtype != np.int8:
      raise Fault(f'best is {best.dtype} {best.shape}')
    if any(values.dtype != found.arrays()[name].dtype for name, values in arrays.items()):
      raise Fault('an array has another dtype')

  changed = {name: f'{x.dtype} {x.shape}' for name, x in arrays.items()}
  return Case(f'archive {changed}', attempt, check)


def adapter(rng: random.Random, place: Place) -> Case:
  """An adapter's file, loaded onto its base."""
  adapted, variables, genome, inputs = dense()
  path = os.path.join(place.given, 'adapter.safetensors')
  glora_jax.save_adapter(path, adapted, variables, genome, note='x')
  done = rng.choice([spoil_bytes, spoil_header, spoil_tensors])(rng, path)

  def attempt() -> list:
    return list(glora_jax.load_adapter(path, adapted, variables['params']))

  def check(loaded: list) -> None:
    output = adapted.apply(loaded[0], inputs, genome=loaded[1])
    if output.shape != (2, 3) or output.dtype != np.float32 or not np.isfinite(output).all():
      raise Fault(f'what it answers is {output.dtype} {output.shape}')
    copy = place.path('given', 'copy.safetensors')
    glora_jax.save_adapter(copy, adapted, *loaded)
    again = list(glora_jax.load_adapter(copy, adapted, variables['params']))
    os.remove(copy)
    if not same(again, loaded):
      raise Fault('saved again it reads otherwise')

  return Case(f'adapter {done}', attempt, check)


def genome_file(rng: random.Random, place: Place) -> Case:
  """A genome as JSON, as text or read already."""
  spec = rng.choice(SPECS)
  genome = random_genomes(np.random.default_rng(rng.randrange(100)), spec, 1)[0]
  content = changed_json(rng, glora_jax.genome_to_json(spec, genome))
  if rng.random() < 0.3:
    content = changed_json(rng, content)
  given = content if rng.random() < 0.5 else json.dumps(content)
  if isinstance(given, str) and rng.random() < 0.3:
    given = damaged(rng, given.encode(errors='replace')).decode(errors='replace')

  def attempt() -> np.ndarray:
    return glora_jax.genome_from_json(spec, given)

  def check(read: np.ndarray) -> None:
    if read.dtype != np.int8 or read.shape != (len(spec), 5):
      raise Fault(f'it is {read.dtype} {read.shape}')
    again = glora_jax.genome_from_json(spec, glora_jax.genome_to_json(spec, read))
    if not same(again, read):
      raise Fault('written again it reads otherwise')

  return Case(f'genome {shown(given)}', attempt, check)


Recorded = tuple[str, Any, dict[str, Any]]


@functools.cache
def _records() -> tuple[Recorded, ...]:
  """Kind, shape and content of records."""
  seconds = {'supernet': 12.5, 'test': 1}
  result = dict.fromkeys(Result.__annotations__)
  return (
    ('seconds', dict[str, float], seconds),
    ('result', Result, result),
    ('format', dict[str, Any], {}),
    ('lists', list[dict[str, int | None]], {'a': 1}),
  )


@functools.cache
def _found() -> Archive:
  rng = np.random.default_rng(0)
  found = Archive.empty(SPEC)
  for generation in range(3):
    genomes = random_genomes(rng, SPEC, 4)
    found = found.extended(genomes, rng.integers(0, 9, 4), rng.random(4), generation)
  return found


def _workdir(place: Place) -> str:
  os.makedirs(place.workdir)
  return place.workdir
