"""Arrays and streams: the same pixels in the same order, from the same seed, after a restart, and on any number of devices."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import program
from PIL import Image

from glora_jax.data import pipeline
from glora_jax.data.examples import Files, Joined, Part
from glora_jax.training import loop, recipe


@pytest.fixture(scope='module')
def examples(tmp_path_factory):
  folder = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  paths = []
  for n in range(70):
    paths.append(str(folder / f'{n}.png'))
    Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8)).save(paths[-1])
  return Files(paths, (np.arange(70) % 3).tolist())


def test_streams_give_the_pixels_of_resident_arrays(examples):
  whole, stream = pipeline.load(examples, 8), pipeline.Stream(examples, 8)
  indices = np.random.default_rng(1).permutation(70)[:60].reshape(-1, 12)
  for rows, batch in zip(indices, stream.batches(indices), strict=True):
    np.testing.assert_array_equal(batch.images, whole.images[rows])
    np.testing.assert_array_equal(batch.labels, whole.labels[rows])
  blocks = list(stream.blocks(32))
  assert [len(block.labels) for block in blocks] == [32, 32, 6]
  np.testing.assert_array_equal(np.concatenate([block.images for block in blocks]), whole.images)


def test_worker_processes_give_the_same(examples):
  indices = np.arange(24).reshape(2, 12)
  several = list(pipeline.Stream(examples, 8, workers=2).batches(indices))
  np.testing.assert_array_equal(
    np.concatenate([batch.images for batch in several]), pipeline.load(examples, 8).images[:24]
  )


def test_the_cache_is_used_keyed_and_survives_damage(examples, tmp_path, monkeypatch):
  read = []
  original = Files.image
  monkeypatch.setattr(
    Files, 'image', lambda self, index: read.append(index) or original(self, index)
  )
  first = pipeline.load(examples, 8, cache=str(tmp_path))
  assert len(read) == 70
  np.testing.assert_array_equal(
    pipeline.load(examples, 8, cache=str(tmp_path)).images, first.images
  )
  assert len(read) == 70
  for changed in ({'image_size': 10}, {'image_size': 8, 'rule': 'crop'}):
    pipeline.load(examples, cache=str(tmp_path), **changed)
  pipeline.load(Part(examples, np.arange(5)), 8, cache=str(tmp_path))
  assert len(read) == 70 * 3 + 5
  for path in tmp_path.iterdir():
    path.write_bytes(path.read_bytes()[:100])  # a disk that was full
  np.testing.assert_array_equal(
    pipeline.load(examples, 8, cache=str(tmp_path)).images, first.images
  )


def test_a_writer_killed_in_the_middle_leaves_no_cache(examples, tmp_path):
  code = (
    'import sys, os, numpy as np\nfrom glora_jax.data import pipeline\nfrom glora_jax.data.examples import Files\n'
    'np.savez = lambda file, **arrays: (file.write(b"half"), file.flush(), os._exit(9))\n'
    'pipeline.load(Files(sys.argv[2:], [0] * len(sys.argv[2:])), 8, cache=sys.argv[1])'
  )
  ran = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path), *examples.paths[:5]], capture_output=True
  )
  assert ran.returncode == 9
  assert not [path for path in tmp_path.iterdir() if path.suffix == '.npz']


def test_an_image_that_changes_is_read_again(examples, tmp_path):
  copy = str(tmp_path / 'copy.png')
  Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(copy)
  files = Files([copy], [0])
  assert pipeline.load(files, 4, cache=str(tmp_path / 'cache')).images.max() == 0
  Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).save(copy)
  os.utime(copy, ns=(1, 1))
  assert pipeline.load(files, 4, cache=str(tmp_path / 'cache')).images.max() == 9


def test_joined_examples_are_one_after_another(examples):
  joined = Joined([Part(examples, np.array([5, 2])), Part(examples, np.array([9]))])
  assert [joined.name(n) for n in range(3)] == [examples.name(n) for n in (5, 2, 9)]
  np.testing.assert_array_equal(
    pipeline.load(joined, 8).images, pipeline.load(examples, 8).images[[5, 2, 9]]
  )


def test_a_broken_image_in_a_stream_is_named(examples, tmp_path):
  (tmp_path / 'broken.png').write_bytes(b'x')
  stream = pipeline.Stream(Files([examples.paths[0], str(tmp_path / 'broken.png')], [0, 1]), 8)
  with pytest.raises(OSError, match=r'broken\.png.*skip_broken'):
    list(stream.blocks(2))


def loss(trainable, frozen, images, labels, key):
  del frozen, key
  value = (images.astype(jnp.float32).mean((1, 2, 3)) / 255 * trainable['w'] - labels) ** 2
  return value.mean(), {}


RECIPE = recipe.Recipe(epochs=3, batch_size=8, learning_rate=0.1, warmup_epochs=0)


def fit(images, labels, **options):
  return loop.fit(
    loss,
    {'w': jnp.float32(0)},
    {},
    images,
    labels,
    RECIPE,
    jax.random.key(3),
    progress=False,
    **options,
  )


def test_training_on_a_stream_is_training_on_the_arrays(examples):
  whole, stream = pipeline.load(examples, 8), pipeline.Stream(examples, 8)
  resident = fit(jnp.asarray(whole.images), jnp.asarray(whole.labels))
  streamed = fit(stream, stream.labels)
  assert streamed.step == resident.step == 24
  np.testing.assert_allclose(streamed.trainable['w'], resident.trainable['w'], rtol=1e-6)


def test_a_stream_resumes_in_the_middle_of_an_epoch(examples):
  stream = pipeline.Stream(examples, 8)
  states = []
  whole = fit(
    stream,
    stream.labels,
    steps_per_dispatch=3,
    on_dispatch=lambda state, _: states.append(jax.tree.map(jnp.copy, state)),
  )
  middle = next(state for state in states if state.step % 8)
  resumed = fit(
    stream, stream.labels, steps_per_dispatch=3, state=middle._replace(step=int(middle.step))
  )
  np.testing.assert_array_equal(resumed.trainable['w'], whole.trainable['w'])


def test_the_order_of_two_epochs_is_the_same_after_a_restart_and_on_eight_devices():
  printed = []
  for devices, first in ((1, 0), (8, 0), (1, 13)):
    environment = {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}',
    }
    ran = subprocess.run(
      [*program('stream_order'), str(devices), str(first)],
      env=environment,
      capture_output=True,
      text=True,
      check=True,
    )
    printed.append(json.loads(ran.stdout))
  assert printed[0] == printed[1]
  assert printed[0][13:] == printed[2]
  first, second = (
    [index for batch in printed[0][start : start + 10] for index in batch] for start in (0, 10)
  )
  assert len(set(first)) == len(set(second)) == 80
  assert first != second
