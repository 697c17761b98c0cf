"""Small files: whole or not there, and damage explained."""

import numpy as np
import pytest

from glora_jax import files


def test_json_and_arrays_round_trip_and_damage_is_explained(tmp_path):
  files.write_json(tmp_path / 'x.json', {'a': [1, None]})
  assert files.read_json(tmp_path / 'x.json') == {'a': [1, None]}
  files.write_arrays(tmp_path / 'x.npz', {'a': np.arange(3)})
  np.testing.assert_array_equal(files.read_arrays(tmp_path / 'x.npz')['a'], np.arange(3))
  for name, read in (('x.json', files.read_json), ('x.npz', files.read_arrays)):
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:10])
    with pytest.raises(ValueError, match=f'{name} is damaged'):
      read(tmp_path / name)
  assert {path.name for path in tmp_path.iterdir()} == {'x.json', 'x.npz'}


def test_a_writer_that_dies_leaves_the_old_file(tmp_path):
  files.write_json(tmp_path / 'x.json', 1)

  def die_halfway():
    with files.whole(tmp_path / 'x.json') as temporary, open(temporary, 'w') as file:
      file.write('half')
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    die_halfway()
  assert files.read_json(tmp_path / 'x.json') == 1
