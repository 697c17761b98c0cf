"""Files of ours say their kind and format, and one of a later format is refused in a sentence."""

import numpy as np
import pytest
from comparing import assert_says_kind_and_format

from glora_jax import files


@pytest.mark.parametrize('writer', ['write_json', 'write_tensors'])
def test_what_a_later_version_wrote_or_is_of_another_kind_is_refused(writer, tmp_path, monkeypatch):
  path = tmp_path / 'file'
  write, read = {
    'write_json': (lambda: files.write_json(path, {}, 'order'), files.read_json),
    'write_tensors': (
      lambda: files.write_tensors(path, {'a': np.ones(1)}, 'order', {}),
      files.read_tensors,
    ),
  }[writer]
  assert_says_kind_and_format(path, write, read, monkeypatch)
