"""One of two processes of a run, which hear of a signal to one, and agree on what is finished."""

import os
import signal
import sys

import jax
import pytest
import tiny_runs

from glora_jax import mesh as meshes
from glora_jax.vision.runs import experiment, processes

port, process, weights, *workdirs = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
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

# The second process does not see the result yet, as in the cache of a network's folder.
config = tiny_runs.make_config(weights)
if process == 0:
  assert experiment.run(config, workdirs[0])['result'] == 'search'
else:
  with pytest.raises(FileNotFoundError, match=r'result\.json'):
    experiment.run(config, workdirs[1])
meshes.barrier('the end')
