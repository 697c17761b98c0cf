"""Every file of ours says its kind and format, and one of a later format is refused in a sentence.

Which files there are is read off the code: whoever writes a new one without a kind fails here.
"""

import ast
import json

import numpy as np
import pytest
from places import ROOT

from glora_jax import files, records

PLACES = {'write_json': 2, 'write_arrays': 2, 'write_tensors': 2, 'stamp_folder': 1, 'stamp_of': 0}
# They write files of other people's formats, too.
OTHERS = {'models/checkpoint.py', 'models/weights.py', 'models/peft.py'}


def test_all_that_is_written_says_its_kind():
  said = {True: [], False: []}
  for path in (ROOT / 'glora_jax').rglob('*.py'):
    name = str(path.relative_to(ROOT / 'glora_jax'))
    for node in ast.walk(ast.parse(path.read_text())):
      place = PLACES.get(getattr(getattr(node, 'func', None), 'id', None))
      if place is not None and name not in ('files.py', 'records.py'):
        said[len(node.args) > place].append(name)
  assert {*said[False]} == OTHERS
  assert len(said[True]) > 20


@pytest.mark.parametrize('writer', PLACES)
def test_what_a_later_version_wrote_or_is_of_another_kind_is_refused(writer, tmp_path, monkeypatch):
  path = tmp_path / 'file'
  write, read = {
    'write_json': (lambda: files.write_json(path, {}, 'order'), files.read_json),
    'write_arrays': (lambda: files.write_arrays(path, {}, 'order'), files.read_arrays),
    'write_tensors': (
      lambda: files.write_tensors(path, {'a': np.ones(1)}, 'order', {}),
      files.read_tensors,
    ),
    'stamp_folder': (
      lambda: records.stamp_folder(tmp_path, 'order'),
      lambda path, kind: records.check_folder(path.parent, kind),
    ),
    'stamp_of': (
      lambda: path.write_text(json.dumps({files.STAMP: files.stamp_of('order')}) + '\n'),
      lambda path, kind: records.read_lines(path, kind, dict[str, int]),
    ),
  }[writer]
  write()
  read(path, 'order')
  with pytest.raises(ValueError, match="of the kind 'order'"):
    read(path, 'archive')
  with monkeypatch.context() as later:
    later.setattr(files, 'FORMATS', {'order': 2})
    write()
  with pytest.raises(files.LaterVersionError, match=r"by a later version .*format 2 of 'order'"):
    read(path, 'order')
