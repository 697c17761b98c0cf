"""One of two processes of a run, which hear of a signal to one."""

import os
import signal
import sys

import jax
import pytest

from glora_jax import mesh as meshes
from glora_jax.vision.runs import processes

port, process = sys.argv[1], int(sys.argv[2])
signals = []
signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))

for _ in range(2):  # the second call does nothing
  processes.initialize(f'localhost:{port}', 2, process)
assert jax.process_count() == 2
assert dict(processes.over_devices().shape) == {'candidate': 2, 'data': 1}
with pytest.raises(ValueError, match='does not fit 2 processes'):
  processes.over_devices('one')

assert not meshes.on_any(bool(signals))
if process == 1:
  os.kill(os.getpid(), signal.SIGTERM)
assert meshes.on_any(bool(signals))
