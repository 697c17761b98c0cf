"""Arrays and streams: the same pixels in the same order, also after a restart."""

import json
import os
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from places import program

from glora_jax.data import pipeline
from glora_jax.data.examples import Files, Joined, Part
from glora_jax.training import loop, recipe
from glora_jax.training.batches import batch_indices


@pytest.fixture(scope='module')
def examples(tmp_path_factory):
  folder = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  paths = []
  for n in range(70):
    paths.append(str(folder / f'{n}.png'))
    Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8)).save(paths[-1])
  return Files(paths, (np.arange(70) % 3).tolist())


@pytest.mark.parametrize('workers', [0, 2])
def test_streams_give_the_pixels_of_resident_arrays(examples, workers):
  whole, stream = pipeline.load(examples, 8), pipeline.Stream(examples, 8, workers=workers)
  indices = np.random.default_rng(1).permutation(70)[:60].reshape(-1, 12)
  for rows, batch in zip(indices, stream.batches(indices), strict=True):
    np.testing.assert_array_equal(batch.images, whole.images[rows])
    np.testing.assert_array_equal(batch.labels, whole.labels[rows])
  blocks = list(stream.blocks(32))
  assert [len(block.labels) for block in blocks] == [32, 32, 6]
  np.testing.assert_array_equal(np.concatenate([block.images for block in blocks]), whole.images)


def test_the_cache_is_used_keyed_and_survives_damage(examples, tmp_path, monkeypatch, caplog):
  read = []
  read_image = Files.image

  def count_and_read(self, index, **options):
    read.append(index)
    return read_image(self, index, **options)

  monkeypatch.setattr(Files, 'image', count_and_read)
  cache = {'cache': str(tmp_path)}
  first = pipeline.load(examples, 8, **cache)
  assert len(read) == 70
  np.testing.assert_array_equal(pipeline.load(examples, 8, **cache).images, first.images)
  assert len(read) == 70
  pipeline.load(examples, 10, **cache)
  pipeline.load(examples, 8, rule='crop', **cache)
  pipeline.load(Part(examples, np.arange(5)), 8, **cache)
  assert len(read) == 70 * 3 + 5
  two = {'images': np.zeros((2, 8, 8, 3), np.uint8), 'labels': np.array([0, 1], np.int32)}
  for damage in (
    lambda path: path.write_bytes(path.read_bytes()[:100]),  # a disk that was full
    lambda path: np.savez(path, a=np.zeros(3)),
    lambda path: np.savez(path, **two),
  ):
    caplog.clear()
    for path in tmp_path.iterdir():
      damage(path)
    np.testing.assert_array_equal(pipeline.load(examples, 8, **cache).images, first.images)
    assert 'is damaged; its images are read again' in caplog.text


def test_a_writer_killed_in_the_middle_leaves_no_cache(examples, tmp_path):
  command = [*program('write_half_a_cache'), str(tmp_path), *examples.paths[:5]]
  assert subprocess.run(command).returncode == 9
  assert not list(tmp_path.glob('*.npz'))


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


def loss(trainable, frozen, images, labels, key):
  del frozen, key
  means = images.astype(jnp.float32).mean((1, 2, 3)) / 255
  return ((means * trainable['w'] - labels) ** 2).mean(), {}


RECIPE = recipe.Recipe(epochs=3, batch_size=8, learning_rate=0.1, warmup_epochs=0)


def fit(images, labels, **options):
  start = {'w': jnp.float32(0)}
  key = jax.random.key(3)
  return loop.fit(loss, start, {}, images, labels, RECIPE, key, progress=False, **options)


def test_training_on_a_stream_is_that_on_arrays_and_resumes_in_the_middle_of_an_epoch(examples):
  arrays, stream = pipeline.load(examples, 8), pipeline.Stream(examples, 8)
  states = []

  def keep(state, _):
    states.append(jax.tree.map(jnp.copy, state))

  options = {'steps_per_dispatch': 3}
  whole = fit(stream, stream.labels, on_dispatch=keep, **options)
  resident = fit(jnp.asarray(arrays.images), jnp.asarray(arrays.labels))
  assert whole.step == resident.step == 24
  np.testing.assert_allclose(whole.trainable['w'], resident.trainable['w'], rtol=1e-6)
  middle = next(state for state in states if state.step % 8)
  middle = middle._replace(step=int(middle.step))
  resumed = fit(stream, stream.labels, state=middle, **options)
  np.testing.assert_array_equal(resumed.trainable['w'], whole.trainable['w'])


def test_the_order_is_the_same_after_a_restart_and_on_eight_devices():
  key = jax.random.key(7)
  batches = batch_indices(key, 0, 20, 83, 8).tolist()
  assert batch_indices(key, 13, 20, 83, 8).tolist() == batches[13:]
  first, second = np.reshape(batches, (2, 80)).tolist()  # epochs
  assert len(set(first)) == len(set(second)) == 80
  assert first != second
  restarted_at = 3
  flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=8'
  ran = subprocess.run(
    [*program('stream_order'), '8', str(restarted_at)],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags},
    capture_output=True,
    text=True,
    check=True,
  )
  assert json.loads(ran.stdout) == batches[restarted_at:]
