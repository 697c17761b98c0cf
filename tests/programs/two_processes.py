"""One of two processes that wait for each other, share arrays and read a stream."""

import pathlib
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_array_equal

import glora_jax
from glora_jax import mesh as meshes
from glora_jax.training.checkpoints import TrainingCheckpoints
from glora_jax.training.loop import TrainState, minimize
from glora_jax.training.recipe import Recipe
from glora_jax.tree import on_host

port, process, folder = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
jax.distributed.initialize(f'localhost:{port}', 2, process)
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
mesh = meshes.make_mesh(jax.devices())
assert dict(mesh.shape) == {'candidate': 2, 'data': 1}
rows = meshes.local_rows(mesh, 6)
assert rows.tolist() == [[0, 1, 2], [3, 4, 5]][process]
shared = meshes.from_hosts(mesh, 10 * rows)
assert not shared.is_fully_addressable
assert_array_equal(on_host(shared), 10 * np.arange(6))
placed = meshes.replicate(mesh, np.arange(3.0))
assert placed.dtype == np.float32
assert_array_equal(placed, np.arange(3))
assert not meshes.on_any(False)
assert meshes.on_any(process == 1)
assert meshes.least_of_all(process + 5) == 5

# A stream: each reads the rows of its own device, and training that goes on amid an epoch ends
# exactly where it would have ended.
points = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
labels = np.arange(20) % 2


class Stream:
  """Points and their labels, which knows how many it was asked for."""

  read = 0

  def __len__(self):
    return len(labels)

  def batches(self, indices):
    for index in indices:
      self.read += len(index)
      yield points[index], labels[index]


def loss_fn(trainable, frozen, batch, key):
  points, labels = batch
  del frozen, key
  errors = points @ trainable - labels
  return jnp.mean(errors**2)


def train(state=None):
  """All states, and how many points were read for them."""
  stream, states = Stream(), []
  recipe = Recipe(epochs=3, batch_size=6, learning_rate=0.1, warmup=0.0)
  options = {'state': state, 'every': 2, 'progress': False, 'mesh': mesh}
  options['look'] = lambda state, _: states.append(jax.tree.map(on_host, state))
  minimize(loss_fn, jnp.ones(3), {}, stream, recipe, jax.random.key(0), **options)
  return states, stream.read


states, read = train()
assert read == 9 * 6 // 2
amid = next(state for state in states if state.step % 3)
resumed, read = train(amid._replace(step=int(amid.step)))
assert read == (9 - int(amid.step)) * 6 // 2
jax.tree.map(assert_array_equal, resumed[-1], states[-1])

# Both go on from the state before a damaged one, which one of them renames.
saved = TrainState({'w': meshes.replicate(mesh, np.arange(3.0))}, (), 5)
with TrainingCheckpoints(folder / 'states') as checkpoints:
  checkpoints.save(saved)
  checkpoints.save(saved._replace(step=9))
with meshes.primary_first('damage'):
  if meshes.primary():
    (folder / 'states/9/default/manifest.ocdbt').write_bytes(b'')
with TrainingCheckpoints(folder / 'states') as checkpoints:
  restored = checkpoints.latest(saved)
  assert restored
  assert restored.step == 5
  assert (folder / 'states/9.damaged').exists()
  checkpoints.save(saved._replace(step=9))
assert sorted(path.name for path in (folder / 'states').glob('*9*')) == ['9', '9.damaged']

# An adapter of a base of which each process has a part, and of one that each has whole.
model, x = nn.Dense(4), jnp.ones((1, 2))
params = {'kernel': np.arange(8.0).reshape(2, 4), 'bias': np.zeros(4)}
adapted = glora_jax.adapt(model, x, structure='lora:1')
variables = adapted.init(jax.random.key(0), jax.tree.map(jnp.float32, params))
parts = {**meshes.replicate(mesh, variables)}
kernel = jax.make_array_from_callback(
  (2, 4), meshes.split_over(mesh), lambda index: np.float32(params['kernel'])[index]
)
parts['params'] = {**parts['params'], 'kernel': kernel}
assert not kernel.is_fully_addressable
own = folder / f'adapter{process}'
glora_jax.save_adapter(own, adapted, parts)
in_parts = own.read_bytes()
glora_jax.save_adapter(own, adapted, variables)
assert own.read_bytes() == in_parts
_, loaded = glora_jax.load_adapter(own, adapted, parts['params'])
assert_array_equal(loaded['glora']['B_down'], variables['glora']['B_down'])
