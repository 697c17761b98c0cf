"""One of two processes that wait for each other, share arrays, and hear of a signal to one."""

import os
import signal
import sys
import time

import jax
import numpy as np

from glora_jax import mesh as meshes

asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
process, folder = int(sys.argv[2]), sys.argv[3]
for _ in range(2):
  meshes.initialize(f'localhost:{sys.argv[1]}', 2, process)
assert (jax.process_count(), meshes.primary()) == (2, process == 0)
for name in 'ab':
  with meshes.primary_first('same'):
    if meshes.primary():
      time.sleep(0.2)
      open(os.path.join(folder, name), 'w').close()
    assert os.path.exists(os.path.join(folder, name))

mesh = meshes.over_devices()
assert dict(mesh.shape) == {'candidate': 2, 'data': 1}
rows = meshes.local_rows(mesh, 6)
assert rows.tolist() == [[0, 1, 2], [3, 4, 5]][process]
whole = meshes.from_hosts(mesh, 10 * rows)
assert not whole.is_fully_addressable
np.testing.assert_array_equal(meshes.on_host(whole), 10 * np.arange(6))
placed = meshes.replicate(mesh, np.arange(3.0))
assert placed.dtype == np.float32
np.testing.assert_array_equal(placed, np.arange(3))
try:
  meshes.over_devices('one')
except ValueError as error:
  assert 'does not fit 2 processes' in str(error)
else:
  raise AssertionError('two processes took one device')

assert not meshes.on_any(bool(asked))
if process == 1:
  os.kill(os.getpid(), signal.SIGTERM)
assert meshes.on_any(bool(asked))
