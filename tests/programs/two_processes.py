"""One of two processes that wait for each other, share arrays, and hear of a signal to one."""

import os
import pathlib
import signal
import sys
import time

import jax
import numpy as np
import pytest

from glora_jax import mesh as meshes

port, process, folder = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
signals = []
signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))

for _ in range(2):  # the second call does nothing
  meshes.initialize(f'localhost:{port}', 2, process)
assert jax.process_count() == 2
assert meshes.primary() == (process == 0)

# The others find what the primary process prepares, each time.
for name in 'ab':
  with meshes.primary_first('same'):
    if meshes.primary():
      time.sleep(0.2)
      (folder / name).touch()
    assert (folder / name).exists()

# Arrays.
mesh = meshes.over_devices()
assert dict(mesh.shape) == {'candidate': 2, 'data': 1}
rows = meshes.local_rows(mesh, 6)
assert rows.tolist() == [[0, 1, 2], [3, 4, 5]][process]
shared = meshes.from_hosts(mesh, 10 * rows)
assert not shared.is_fully_addressable
np.testing.assert_array_equal(meshes.on_host(shared), 10 * np.arange(6))
placed = meshes.replicate(mesh, np.arange(3.0))
assert placed.dtype == np.float32
np.testing.assert_array_equal(placed, np.arange(3))
with pytest.raises(ValueError, match='does not fit 2 processes'):
  meshes.over_devices('one')
assert meshes.least_of_all(process + 5) == 5

# Signals.
assert not meshes.on_any(bool(signals))
if process == 1:
  os.kill(os.getpid(), signal.SIGTERM)
assert meshes.on_any(bool(signals))
