"""Small files: whole or not there, and damage explained. Folders that one process holds."""

import os
import platform
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from disks import small_disk
from places import digests, program

from glora_jax import files
from glora_jax.runs import workdir


def test_json_and_arrays_round_trip_and_damage_is_explained(tmp_path):
  texts, arrays = tmp_path / 'x.json', tmp_path / 'x.npz'
  files.write_json(texts, {'a': (1, float('nan')), 'b': np.float64('inf')}, 'tuning')
  assert files.read_json(texts, 'tuning') == {'a': [1, None], 'b': None}
  files.write_arrays(arrays, {'a': np.arange(3)})
  np.testing.assert_array_equal(files.read_arrays(arrays)['a'], np.arange(3))
  for path, read in ((texts, files.read_json), (arrays, files.read_arrays)):
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(ValueError, match=f'{path.name} is damaged'):
      read(path)
  assert {path.name for path in tmp_path.iterdir()} == {'x.json', 'x.npz'}


def test_a_writer_that_dies_leaves_the_old_file(tmp_path):
  files.write_json(tmp_path / 'x.json', 1)

  with (  # noqa: PT012
    pytest.raises(KeyboardInterrupt),
    files.whole(tmp_path / 'x.json') as temporary,
    open(temporary, 'w') as file,
  ):
    file.write('half')
    raise KeyboardInterrupt
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
    for name, write, *arguments in (
      ('x.npz', files.write_arrays, big),
      ('y.json', files.write_json, 'y' * 10**5),
      ('z.safetensors', files.write_safetensors, big, {}),
    ):
      with pytest.raises(OSError, match=rf'{name} cannot be written \(.*No space left on device'):
        write(tmp_path / name, *arguments)
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


@pytest.mark.parametrize('before', [None, set(), {'mine', 'lock'}])
@pytest.mark.parametrize('written', [set(), {'result.json'}])
def test_a_folder_whose_holder_fails_before_it_writes_is_as_it_was(before, written, tmp_path):
  folder = tmp_path / 'run'
  if before is not None:
    folder.mkdir()
  for name in before or ():
    (folder / name).write_text('process 1 on host\n' if name == 'lock' else 'mine')
  with pytest.raises(ValueError, match='of another config'), workdir.claim(folder):  # noqa: PT012
    for name in written:
      (folder / name).touch()
    raise ValueError('of another config')
  names = workdir.names_in(folder)
  assert names == (before if not written else {*(before or ()), 'lock', 'result.json'})


@pytest.mark.parametrize('make', [os.symlink, os.link, shutil.copy, shutil.copytree])
def test_a_lock_that_is_something_else_is_left_alone(make, tmp_path):
  precious, folder = tmp_path / 'precious', tmp_path / 'run'
  folder.mkdir()
  precious.mkdir() if make is shutil.copytree else precious.write_text('precious')
  make(precious, folder / 'lock')
  before = digests(tmp_path)
  with pytest.raises(ValueError, match='lock is not a lock of glora_jax'):
    workdir.claim(folder).__enter__()
  assert digests(tmp_path) == before


def test_cleaning_up_stays_inside_and_takes_nobody_elses_files(tmp_path):
  """Half-written files are removed where a run writes, and nowhere else."""
  outside, folder = tmp_path / 'outside', tmp_path / 'run'
  for path in (outside, folder / 'training' / 'lora', folder / 'notes'):
    path.mkdir(parents=True)
    (path / 'x.host.7.glora_jax.partial').touch()
  ours = (
    'result.json.host.name.of.it.7.glora_jax.partial',
    'training/x.json..8.glora_jax.partial',  # of a machine without a name
  )
  others = (
    *('download.123.partial', 'training.5.partial', 'training/lora/y.4.partial'),
    *('training/6.glora_jax.partial', 'training/x.json.host.glora_jax.partial'),
    'training/x.json.host.6.glora_jax.partial.gz',
  )
  for name in (*ours, *others):
    (folder / name).touch()
  (folder / 'lock').write_text('process 1 on host\n')
  os.symlink(outside, folder / 'out')
  os.symlink(outside / 'x.host.7.glora_jax.partial', folder / 'y.host.7.glora_jax.partial')
  with workdir.claim(folder, names=['training']):
    assert (outside / 'x.host.7.glora_jax.partial').exists()
    assert (folder / 'notes' / 'x.host.7.glora_jax.partial').exists()
    assert os.path.islink(folder / 'y.host.7.glora_jax.partial')
    assert not (folder / 'training' / 'lora' / 'x.host.7.glora_jax.partial').exists()
    assert [name for name in (*ours, *others) if (folder / name).exists()] == [*others]


@pytest.mark.parametrize('name', ['folded', 'food101/4'])
def test_a_folder_that_leads_out_of_a_workdir_is_refused(name, tmp_path):
  outside, folder = tmp_path / 'outside', tmp_path / 'run'
  outside.mkdir()
  (folder / name).parent.mkdir(parents=True)
  os.symlink(outside, folder / name)
  with pytest.raises(ValueError, match=rf'run/{name} is a link, and a run writes only within'):
    workdir.claim(folder, [str(folder / 'food101' / '4' / '0')]).__enter__()
  assert not os.listdir(outside)
  assert not (folder / 'lock').exists()


@pytest.mark.parametrize('length', [200, 230, 255])
def test_a_file_has_any_name_that_the_system_allows(length, tmp_path):
  path = tmp_path / ('é' * (length // 2) + 'x' * (length % 2))
  for content in (1, 2):
    files.write_json(path, content)
    assert files.read_json(path) == content
  assert [*tmp_path.iterdir()] == [path]


def test_a_folder_that_cannot_be_written_is_refused_in_a_sentence(tmp_path):
  with (
    small_disk(tmp_path, '64k', 'ro'),
    pytest.raises(OSError, match=r'run cannot be written \(Read-only file system\)'),
  ):
    workdir.claim(tmp_path / 'run').__enter__()


def test_a_pipe_or_a_device_makes_no_room_for_a_file(tmp_path):
  path = tmp_path / 'pipe'
  os.mkfifo(path)
  with pytest.raises(OSError, match=r'pipe cannot be written \(not a regular file\)'):
    files.write_json(path, 1)
  assert path.is_fifo()
  assert [path.name for path in tmp_path.iterdir()] == ['pipe']
