"""Compilations, kept by their program's hash, so that none is done twice."""

import hashlib
import importlib.metadata
import json
import os
import time
from typing import Any

import jax

from benchmarks.tpu_programs.cases import Case, build
from benchmarks.tpu_programs.collectives import collectives
from glora_jax.method.equation import made_for
from glora_jax.runs.planning.costs import Line, bytes_by_kind, count

Record = dict[str, Any]


class Kept:
  """Records of compilations in a file of JSON lines.

  Args:
    path: where it is, or will be.
  """

  def __init__(self, path: str):
    self._path = path
    self._records: dict[str, Record] = {}
    if os.path.exists(path):
      with open(path) as file:
        records = [json.loads(line) for line in file if line.endswith('\n')]
      self._records = {record['hash']: record for record in records}

  def get(self, key: str) -> Record | None:
    """The record of a hash, if it is there."""
    return self._records.get(key)

  def add(self, record: Record) -> None:
    """Keeps a record."""
    os.makedirs(os.path.dirname(self._path) or '.', exist_ok=True)
    with open(self._path, 'a') as file:
      file.write(json.dumps(record) + '\n')
    self._records[record['hash']] = record


def compiled(case: Case, kept: Kept) -> Record:
  """What the compiler says of a case, now or from an earlier time.

  Returns:
    The case, bytes by kind, collectives by kind, operations, seconds by the clock and of all cores
    (`cpu_seconds`). A program that the compiler
    refuses, as it does where memory is short, has its sentence as 'error' instead.
  """
  with made_for('tpu'):
    program = build(case)
    traced = program.function.trace(*program.arguments)
    lowered = traced.lower()
  versions = [jax.__version__, importlib.metadata.version('libtpu')]
  text = '\n'.join([*versions, case.topology, lowered.as_text()])
  key = hashlib.sha256(text.encode()).hexdigest()
  found = kept.get(key)
  if found is not None:
    return {**found, **case._asdict()}
  operations = count(traced.jaxpr)
  record = {
    'hash': key,
    **case._asdict(),
    'products': operations.products,
    'operations': operations.total,
  }
  start, cpu_start = time.perf_counter(), time.process_time()
  try:
    executable = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    kept.add({**record, 'error': str(error).splitlines()[0][:300]})
    return kept.get(key) or {}
  record |= {
    'seconds': round(time.perf_counter() - start, 1),
    'cpu_seconds': round(time.process_time() - cpu_start, 1),
    **bytes_by_kind(executable),
  }
  kept.add({**record, 'collectives': collectives(executable.as_text())})
  return kept.get(key) or {}


def held(record: Record) -> int:
  """Bytes of a chip, all kinds together."""
  return sum(record[kind] for kind in ('arguments', 'temporaries', 'outputs', 'code'))


def largest(record: Record, half: Record | None, memory: int) -> int | None:
  """How much fits into a chip's memory at once, by a line through two compilations.

  Args:
    record: of a case.
    half: of the same with half as much.
    memory: bytes of a chip.

  Returns:
    Candidates, or images for each chip; None where nothing grows, or a compilation failed.
  """
  if half is None or 'error' in record or 'error' in half:
    return None
  amount = Case(*(record[name] for name in Case._fields)).amount
  line = Line.through(amount // 2, held(half), amount, held(record))
  return line.most(memory) if line.each > 0 else None
