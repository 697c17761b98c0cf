"""Every file of ours says its kind and format, and one of a later format is refused in a sentence.

Which files there are is read off the code: whoever writes a new one without a kind fails here.
"""

import ast
import importlib
import json

import numpy as np
import pytest
from places import ROOT

from glora_jax import files, records

WRITERS = {'write_json': 2, 'write_arrays': 2, 'write_tensors': 2, 'stamp_folder': 1, 'stamp_of': 0}
READERS = {
  'read_json': 1,
  'read_record': 1,
  'read_arrays': 1,
  'read_array_record': 1,
  'read_if_whole': 1,
  'read_lines': 1,
  'check_metadata': 2,
  'read_tensors': 1,
  'check_folder': 1,
  'check_stamp': 2,
}
OTHERS = {'models/save.py', 'models/peft.py'}  # write files of other people's formats, too
FOR_PEOPLE = {'rates'}  # no stage reads them
MACHINERY = {'files.py', 'records.py'}


def kinds(functions):
  """(file, name of a function, kind or None) of all calls of some functions in the package."""
  for path in sorted((ROOT / 'glora_jax').rglob('*.py')):
    name = str(path.relative_to(ROOT / 'glora_jax'))
    if name in MACHINERY:
      continue
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Call) and getattr(node.func, 'id', None) in functions:
        place = functions[node.func.id]
        kind = node.args[place] if len(node.args) > place else None
        yield name, node.func.id, kind_of(kind, name)


def kind_of(node, name):
  if isinstance(node, ast.Constant):
    return node.value
  if isinstance(node, ast.Name):
    return getattr(importlib.import_module(f'glora_jax.{name[:-3].replace("/", ".")}'), node.id)
  return None


WRITTEN = {(writer, kind) for _, writer, kind in kinds(WRITERS) if kind is not None}


def test_all_that_is_written_says_its_kind_and_all_that_is_read_is_asked_for_it():
  silent = {name for name, _, kind in kinds(WRITERS) if kind is None}
  assert silent == OTHERS
  read = {kind for _, _, kind in kinds(READERS) if kind is not None}
  assert {kind for _, kind in WRITTEN} - read == FOR_PEOPLE
  assert len(WRITTEN) > 20


@pytest.mark.parametrize('writer, kind', sorted(WRITTEN))
def test_what_a_later_version_wrote_is_refused(writer, kind, tmp_path, monkeypatch):
  path = tmp_path / 'file'
  write, read = {
    'write_json': (lambda: files.write_json(path, {}, kind), files.read_json),
    'write_arrays': (lambda: files.write_arrays(path, {}, kind), files.read_arrays),
    'write_tensors': (
      lambda: files.write_tensors(path, {'a': np.ones(1)}, kind, {}),
      files.read_tensors,
    ),
    'stamp_folder': (lambda: records.stamp_folder(tmp_path, kind), check_folder_of),
    'stamp_of': (
      lambda: path.write_text(json.dumps({files.STAMP: files.stamp_of(kind)}) + '\n'),
      read_lines,
    ),
  }[writer]
  write()
  read(path, kind)
  with monkeypatch.context() as later:
    later.setattr(files, 'FORMATS', {kind: files.FORMATS.get(kind, 1) + 1})
    write()
  with pytest.raises(files.LaterVersionError, match=rf"by a later version .*format \d of '{kind}'"):
    read(path, kind)


def check_folder_of(path, kind):
  records.check_folder(path.parent, kind)


def read_lines(path, kind):
  assert records.read_lines(path, kind, dict[str, int]) == []
