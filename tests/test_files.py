"""Small files: whole or not there, and damage explained. Folders that one process holds."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from disks import small_disk
from places import program

from glora_jax import files
from glora_jax.runs import workdir


def test_json_has_null_for_numbers_that_are_not_finite(tmp_path):
  """JSON.parse of a browser and jq know no NaN."""
  rows = ({'loss': float('nan')}, {'loss': -np.inf}, {'loss': np.float64('inf')}, {'loss': 1.5})
  files.write_json(tmp_path / 'x.json', {'rows': rows}, 'tuning')
  text = (tmp_path / 'x.json').read_text()
  content = json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is no JSON'))
  assert [row['loss'] for row in content['rows']] == [None, None, None, 1.5]
  assert text == f'{json.dumps(content, indent=2)}\n'


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


def test_what_a_killed_writer_left_goes_with_the_next_write_and_nothing_else_does(tmp_path):
  with subprocess.Popen(['true']) as ended:
    pass
  node, hour_ago = platform.node(), time.time() - 3600
  abandoned = f'x.json.{node}.{ended.pid}.glora_jax.partial'
  kept = {
    f'x.json.{node}.{os.getppid()}.glora_jax.partial',  # of a process that is there
    f'x.json.other-{node}.{ended.pid}.glora_jax.partial',
    f'y.json.{node}.{ended.pid}.glora_jax.partial',
    f'x.json.{node}.{10**30}.glora_jax.partial',
    f'x.json.{node}.mine.glora_jax.partial',
    f'x.json.{node}.{ended.pid}.partial',
  }
  for name in (abandoned, *kept):
    (tmp_path / name).touch()
    os.utime(tmp_path / name, (hour_ago, hour_ago))
  files.write_json(tmp_path / 'x.json', 1)
  assert set(os.listdir(tmp_path)) == {'x.json', *kept}
  # The writer's process may be in a container, where it cannot be seen.
  (tmp_path / abandoned).touch()
  files.write_json(tmp_path / 'x.json', 2)
  assert set(os.listdir(tmp_path)) == {'x.json', *kept, abandoned}


def test_a_writer_leaves_alone_what_another_writes_meanwhile(tmp_path):
  """Two processes of this machine write the same file; each is whole, and the last one counts."""
  with files.whole(tmp_path / 'x.json') as temporary:
    os.utime(temporary, (0, 0))
    other = 'from glora_jax import files; import sys; files.write_json(sys.argv[1], "other")'
    subprocess.run([sys.executable, '-c', other, str(tmp_path / 'x.json')], check=True)
    assert files.read_json(tmp_path / 'x.json') == 'other'
    with open(temporary, 'w') as file:
      file.write('"own"')
  assert files.read_json(tmp_path / 'x.json') == 'own'
  assert os.listdir(tmp_path) == ['x.json']


@pytest.mark.skipif(os.name != 'posix', reason='Windows has no such permissions')
def test_files_of_every_kind_may_be_read_by_whom_the_umask_lets(tmp_path):
  before = os.umask(0o027)
  try:
    files.write_json(tmp_path / 'x.json', 1)
    files.write_arrays(tmp_path / 'x.npz', {'a': np.arange(3)})
    files.write_safetensors(tmp_path / 'x.safetensors', {'a': np.arange(3)}, {})
  finally:
    os.umask(before)
  assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


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
  (folder / f'x.json.elsewhere.{holder.pid}.glora_jax.partial').write_text('half')
  (folder / 'mine.partial').write_text('not ours')
  holder.send_signal(signal.SIGKILL)
  holder.communicate()
  with workdir.claim(folder):
    assert f'process {os.getpid()} ' in (folder / 'lock').read_text()
    with pytest.raises(ValueError, match='is in use'):
      workdir.claim(folder).__enter__()
  with workdir.claim(folder):
    assert {path.name for path in folder.iterdir()} == {'lock', 'mine.partial'}


def make_workdir(folder, names):
  """A folder with some files; none at all where the names are None."""
  if names is not None:
    folder.mkdir()
  for name in names or ():
    (folder / name).write_text('process 1 on host\n' if name == 'lock' else 'mine')


@pytest.mark.parametrize('before', [None, set(), {'mine', 'lock'}])
def test_a_folder_that_is_abandoned_is_as_it_was(before, tmp_path):
  folder = tmp_path / 'run'
  make_workdir(folder, before)
  names = workdir.names_in(folder)
  with workdir.claim(folder):
    workdir.abandon(folder, names)
  assert workdir.names_in(folder) == (None if before is None else set(before))
  with workdir.claim(folder):
    (folder / 'result.json').touch()
    workdir.abandon(folder, names)
  assert workdir.names_in(folder) == {*(before or ()), 'lock', 'result.json'}


def hold_and_fail(folder, *written):
  with workdir.claim(folder):
    for name in written:
      (folder / name).touch()
    raise ValueError('of another config')


@pytest.mark.parametrize('before', [None, set(), {'mine', 'lock'}])
def test_a_folder_whose_holder_fails_before_it_writes_is_as_it_was(before, tmp_path):
  folder = tmp_path / 'run'
  make_workdir(folder, before)
  with pytest.raises(ValueError, match='of another config'):
    hold_and_fail(folder)
  assert workdir.names_in(folder) == before
  with pytest.raises(ValueError, match='of another config'):
    hold_and_fail(folder, 'result.json')
  assert workdir.names_in(folder) == {*(before or ()), 'lock', 'result.json'}


@pytest.mark.parametrize('make', [os.symlink, os.link])
def test_a_lock_that_is_a_link_overwrites_nothing(make, tmp_path):
  precious = tmp_path / 'precious'
  precious.write_text('precious')
  folder = tmp_path / 'run'
  folder.mkdir()
  make(precious, folder / 'lock')
  with pytest.raises(ValueError, match=r'run/lock is no lock that glora_jax wrote; remove it'):
    workdir.claim(folder).__enter__()
  assert precious.read_text() == 'precious'


def test_a_lock_that_is_something_else_is_left_alone(tmp_path):
  lock = tmp_path / 'lock'
  lock.mkdir()
  with pytest.raises(ValueError, match='is no lock that glora_jax wrote'):
    workdir.claim(tmp_path).__enter__()
  lock.rmdir()
  lock.write_text('the key is under the mat')
  with pytest.raises(ValueError, match='is no lock that glora_jax wrote'):
    workdir.claim(tmp_path).__enter__()
  assert lock.read_text() == 'the key is under the mat'


def test_cleaning_up_stays_inside(tmp_path):
  """Half-written files are removed where a run writes, and nowhere else."""
  outside, folder = tmp_path / 'outside', tmp_path / 'run'
  for path in (outside, folder / 'baselines' / 'lora', folder / 'notes'):
    path.mkdir(parents=True)
    (path / 'x.host.7.glora_jax.partial').touch()
  (folder / 'lock').write_text('process 1 on host\n')
  os.symlink(outside, folder / 'out')
  os.symlink(outside / 'x.host.7.glora_jax.partial', folder / 'y.host.7.glora_jax.partial')
  with workdir.claim(folder):
    assert (outside / 'x.host.7.glora_jax.partial').exists()
    assert (folder / 'notes' / 'x.host.7.glora_jax.partial').exists()
    assert os.path.islink(folder / 'y.host.7.glora_jax.partial')
    assert not (folder / 'baselines' / 'lora' / 'x.host.7.glora_jax.partial').exists()


@pytest.mark.parametrize('name', ['folded', 'supernet', 'search', 'food101/4'])
def test_a_folder_that_leads_out_of_a_workdir_is_refused(name, tmp_path):
  outside, folder = tmp_path / 'outside', tmp_path / 'run'
  outside.mkdir()
  (folder / name).parent.mkdir(parents=True)
  os.symlink(outside, folder / name)
  with pytest.raises(ValueError, match=rf'run/{name} is a link; a run writes into no folder'):
    workdir.claim(folder, [str(folder / 'food101' / '4' / '0')]).__enter__()
  assert not os.listdir(outside)
  assert not (folder / 'lock').exists()


def test_a_folder_that_cannot_be_written_is_refused_in_a_sentence(tmp_path):
  with (
    small_disk(tmp_path, '64k', 'ro'),
    pytest.raises(OSError, match=r'run cannot be written \(Read-only file system\)'),
  ):
    workdir.claim(tmp_path / 'run').__enter__()


def test_a_pipe_or_a_device_makes_no_room_for_a_file(tmp_path):
  path = tmp_path / 'pipe'
  os.mkfifo(path)
  with pytest.raises(OSError, match=r'pipe cannot be written \(it is no regular file\)'):
    files.write_json(path, 1)
  assert path.is_fifo()
  assert [path.name for path in tmp_path.iterdir()] == ['pipe']
