"""Small files: whole or not there, and damage explained. Folders that one process holds."""

import os
import re
import signal
import subprocess

import numpy as np
import pytest
from disks import small_disk
from places import program

from glora_jax import files
from glora_jax.runs import workdir


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
  assert [path.name for path in tmp_path.iterdir()] == ['x.json']


def test_a_full_disk_is_a_sentence_and_leaves_the_old_file(tmp_path):
  with small_disk(tmp_path, '64k'):
    files.write_arrays(tmp_path / 'x.npz', {'a': np.arange(3)})
    big = {'a': np.zeros(10**5)}
    for path, write in (
      (tmp_path / 'x.npz', lambda path: files.write_arrays(path, big)),
      (tmp_path / 'y.json', lambda path: files.write_json(path, 'y' * 10**5)),
      (tmp_path / 'z.safetensors', lambda path: files.write_safetensors(path, big, {})),
    ):
      with pytest.raises(
        OSError, match=re.escape(str(path)) + r' cannot be written \(.*No space left on device'
      ):
        write(path)
    assert [path.name for path in tmp_path.iterdir()] == ['x.npz']
    np.testing.assert_array_equal(files.read_arrays(tmp_path / 'x.npz')['a'], np.arange(3))


def test_a_folder_is_held_until_its_holder_ends_however_it_ends(tmp_path):
  folder = tmp_path / 'new' / 'run'
  holder = subprocess.Popen(
    [*program('hold_folder'), str(folder)], stdout=subprocess.PIPE, text=True
  )
  assert holder.stdout.readline() == 'held\n'
  with pytest.raises(
    ValueError, match=rf'The workdir .*run is in use by process {holder.pid} on .*another --workdir'
  ):
    workdir.claim(folder).__enter__()
  # What a kill leaves while `whole` is writing, and a file of somebody else.
  (folder / f'x.json.{holder.pid}.partial').write_text('half')
  (folder / 'mine.partial').write_text('not ours')
  holder.send_signal(signal.SIGKILL)
  holder.communicate()
  with workdir.claim(folder):
    assert f'process {os.getpid()} ' in (folder / 'lock').read_text()
    with pytest.raises(ValueError, match='is in use'):
      workdir.claim(folder).__enter__()
  with workdir.claim(folder):
    assert {path.name for path in folder.iterdir()} == {'lock', 'mine.partial'}


def test_a_folder_that_cannot_be_written_is_refused_in_a_sentence(tmp_path):
  with (
    small_disk(tmp_path, '64k', 'ro'),
    pytest.raises(OSError, match=r'run cannot be written \(Read-only file system\)'),
  ):
    workdir.claim(tmp_path / 'run').__enter__()
