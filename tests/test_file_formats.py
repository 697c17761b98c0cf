"""Files of ours say their kind and format, and one of a later format is refused in a sentence."""

import json

import numpy as np
import pytest

from glora_jax import files, records

WRITERS = ('write_json', 'write_tensors', 'stamp_folder', 'stamp_of')


@pytest.mark.parametrize('writer', WRITERS)
def test_what_a_later_version_wrote_or_is_of_another_kind_is_refused(writer, tmp_path, monkeypatch):
  path = tmp_path / 'file'
  write, read = {
    'write_json': (lambda: files.write_json(path, {}, 'order'), files.read_json),
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
  with pytest.raises(ValueError, match="of kind 'order'"):
    read(path, 'archive')
  with monkeypatch.context() as later:
    later.setattr(files, 'FORMATS', {'order': 2})
    write()
  with pytest.raises(files.LaterVersionError, match=r"by a later version .*format 2 of 'order'"):
    read(path, 'order')
