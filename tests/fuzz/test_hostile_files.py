"""Files that are spoilt, foreign or none at all: read right, or refused in one line."""

import functools
import json
import shutil
from typing import NamedTuple
from unittest import mock

import flax
import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from judging import REFUSED, cases, judged, new_place, same
from places import ROOT
from spoiling import spoilt_copy
from trees import randomized

import glora_jax
from glora_jax import Archive, Layer, SearchSpace, Spec
from glora_jax.files import sha256_of, write_arrays, write_json
from glora_jax.models import hub, weights
from glora_jax.models.formats.table import FORMATS
from glora_jax.models.metadata import OURS
from glora_jax.models.peft import load_peft, save_peft
from glora_jax.models.vit import ViT, expected_params
from glora_jax.records import read_lines, read_record
from glora_jax.runs.config import check_config, default_config
from glora_jax.runs.origins import find_weights, recorded_weights
from glora_jax.runs.sections import ModelSettings
from glora_jax.runs.stages.search import read_archive
from glora_jax.runs.workdir import changes_of, read_config
from glora_jax.training.checkpoints import TrainingCheckpoints
from glora_jax.training.loop import TrainState

SPEC = Spec((Layer('attn/qkv', 8, 24), Layer('mlp/fc1', 8, 32, bias=False)))
INPUTS = jnp.ones((2, 4))
LORA = np.array([[0, 3, 0, 0, 0]], np.int8)
NAMES = {'Dense': 'layers.0.fc'}
METADATA = {'image_size': 8, 'normalization': 'imagenet', 'classes': list('abcde')}
STEPS = (5, 9)
COMMITS = {'1' * 40: ROOT / 'README.md', '2' * 40: ROOT / 'LICENSE'}


class Kind(NamedTuple):
  """A kind of file.

  Attributes:
    make: writes one, or several, into a folder.
    read: what a folder, spoilt or not, gives.
    check: asserts, of the result and the folder, what must hold.
    is_workdir: whether reading may change the folder.
  """

  make: object
  read: object
  check: object = lambda result, folder: None
  is_workdir: bool = False


@functools.cache
def dense():
  """One linear layer, adapted, with its variables."""
  adapted = glora_jax.adapt(nn.Dense(3, name='Dense'), INPUTS, space=SearchSpace(ranks=(2, 4)))
  params = {'kernel': np.ones((4, 3), np.float32), 'bias': np.zeros(3, np.float32)}
  return adapted, randomized(adapted.init(jax.random.key(0), params))


@functools.cache
def attached():
  """The same in NNX."""
  linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
  return glora_jax.nnx.attach(linear, INPUTS, space=SearchSpace(ranks=(1, 2)))


def stamped(folder, kind, content):
  write_json(str(folder / f'{kind}.json'), content, kind)


def make_checkpoints(folder):
  """One in every format that has a place for the model and needs no other framework."""
  model = ViT(5, patch_size=4, width=12, depth=2, num_heads=2)
  images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
  params = randomized(jax.eval_shape(model.init, jax.random.key(0), images)['params'])
  for name in (OURS, *FORMATS):
    try:
      weights.save(str(folder / name), model, params, METADATA, name)
    except (ValueError, ImportError):
      shutil.rmtree(folder / name, ignore_errors=True)


def read_checkpoint(folder):
  model, params, metadata = weights.load(str(folder))
  return [str(model), params, str(metadata)]


def check_checkpoint(result, folder):
  model, params, metadata = weights.load(str(folder))
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  expected = expected_params(model, metadata['image_size'])
  shapes = {name: spec.shape for name, spec in expected.items()}
  assert {name: array.shape for name, array in flat.items()} == shapes
  copy = str(folder / 'copy.safetensors')
  weights.save(copy, model, params, metadata)
  again = weights.load(copy)
  assert str(again.model) == str(model)
  assert same(again.params, params)


def make_adapter(folder):
  glora_jax.save_adapter(str(folder / 'adapter.safetensors'), *dense(), LORA, note='x')


def read_adapter(folder):
  adapted, variables = dense()
  path = str(folder / 'adapter.safetensors')
  return list(glora_jax.load_adapter(path, adapted, variables['params']))


def check_adapter(result, folder):
  assert np.isfinite(dense()[0].apply(result[0], INPUTS, genome=result[1])).all()
  glora_jax.save_adapter(str(folder / 'adapter.safetensors'), dense()[0], *result)
  assert same(read_adapter(folder), result)


def make_live(folder):
  glora_jax.nnx.save_adapter(str(folder / 'adapter.safetensors'), attached(), note='x')


def read_live(folder):
  """A model with the adapter; one that refuses it must not have changed."""
  model = nnx.clone(attached())
  before = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]
  try:
    glora_jax.nnx.load_adapter(str(folder / 'adapter.safetensors'), model)
  except Exception:
    assert same([np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))], before)
    raise
  return [glora_jax.nnx.get_genome(model), model(INPUTS)]


def make_peft(folder):
  save_peft(str(folder / 'adapter'), *dense(), LORA, NAMES)


def read_peft(folder):
  adapted, variables = dense()
  return list(load_peft(str(folder / 'adapter'), adapted, variables['params'], NAMES))


def check_peft(result, folder):
  variables, genome = result
  assert (genome.dtype, genome.shape) == (np.int8, (1, 5))
  folded = dense()[0].fold(variables, genome)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(folded))
  if np.array_equal(genome, LORA):
    shutil.rmtree(folder / 'adapter')
    save_peft(str(folder / 'adapter'), dense()[0], variables, genome, NAMES)
    assert same(read_peft(folder), result)


def make_archive(folder):
  rng, found = np.random.default_rng(0), Archive.empty(SPEC)
  for generation in range(3):
    genomes = glora_jax.random_genomes(rng, SPEC, 4)
    found = found.extended(genomes, rng.integers(0, 9, 4), rng.random(4), generation)
  write_arrays(str(folder / 'archive.npz'), found.arrays(), 'archive')


def read_found(folder):
  return read_archive(str(folder / 'archive.npz'), SPEC).arrays()


def check_archive(result, folder):
  assert Archive.from_arrays(result, SPEC).best().shape == (len(SPEC), 5)
  assert result['genomes'].dtype == np.int8


def make_genome(folder):
  content = glora_jax.genome_to_json(SPEC, glora_jax.preset(SPEC, 'lora'))
  (folder / 'genome.json').write_text(json.dumps(content))


def read_genome(folder):
  path = folder / 'genome.json'
  text = path.read_text(errors='replace') if path.is_file() else ''
  return glora_jax.genome_from_json(SPEC, text)


def check_genome(result, folder):
  assert (result.dtype, result.shape) == (np.int8, (len(SPEC), 5))
  again = glora_jax.genome_from_json(SPEC, glora_jax.genome_to_json(SPEC, result))
  assert same(again, result)


def make_config(folder):
  stamped(folder, 'config', json.loads(default_config().to_json()))


def read_configs(folder):
  return [changes_of(default_config(), str(folder)), repr(check_config(read_config(str(folder))))]


def make_records(folder):
  stamped(folder, 'seconds', {'supernet': 12.5, 'test': 1})
  rows = ''.join(f'{json.dumps({"step": step, "loss": 0.5})}\n' for step in range(5))
  (folder / 'metrics.jsonl').write_text(rows)


def read_records(folder):
  rows = read_lines(str(folder / 'metrics.jsonl'), 'metrics', dict[str, float])
  return [rows, read_record(str(folder / 'seconds.json'), 'seconds', dict[str, float])]


def state_of(step):
  numbers = np.random.default_rng(step).normal(size=(4, 3)).astype(np.float32)
  return TrainState({'head': jnp.asarray(numbers)}, {'trace': jnp.arange(3) + step}, step)


def make_states(folder):
  with TrainingCheckpoints(str(folder)) as checkpoints:
    for step in STEPS:
      checkpoints.save(state_of(step))


def read_states(folder):
  with TrainingCheckpoints(str(folder)) as checkpoints:
    state = checkpoints.latest(state_of(0))
  return [] if state is None else [state.step, state.trainable, state.opt_state]


def check_states(result, folder):
  assert result, 'all states were overlooked'
  expected = state_of(result[0])
  assert result[0] in STEPS
  assert same(result[1:], [expected.trainable, expected.opt_state])
  with TrainingCheckpoints(str(folder)) as checkpoints:
    checkpoints.save(state_of(STEPS[-1] + 1))
  assert read_states(folder)[0] == STEPS[-1] + 1


def make_hub(folder):
  digest = sha256_of(COMMITS['2' * 40])
  stamped(folder, 'weights', {'weights': 'hf:me/vit', 'revision': '2' * 40, 'sha256': digest})


def read_hub(folder):
  """What a run has recorded of its weights, which are on a hub of two commits."""

  def snapshot(name):
    revision = hub.parse(name).revision or '1' * 40
    if revision not in COMMITS:
      raise FileNotFoundError(2, 'The hub has no such revision', revision)
    return hub.Snapshot(str(ROOT), str(COMMITS[revision]), revision)

  with mock.patch.object(hub, 'snapshot', snapshot):
    find_weights(ModelSettings(weights='hf:me/vit'), str(folder))
  return recorded_weights(str(folder))


KINDS = {
  'checkpoint': Kind(make_checkpoints, read_checkpoint, check_checkpoint),
  'adapter': Kind(make_adapter, read_adapter, check_adapter),
  'adapter of a live model': Kind(make_live, read_live),
  'adapter of PEFT': Kind(make_peft, read_peft, check_peft),
  'archive': Kind(make_archive, read_found, check_archive),
  'genome': Kind(make_genome, read_genome, check_genome),
  'config.json': Kind(make_config, read_configs),
  'records': Kind(make_records, read_records),
  'weights.json': Kind(make_hub, read_hub, is_workdir=True),
  'training states': Kind(make_states, read_states, check_states, is_workdir=True),
}


@pytest.fixture(scope='module')
def originals(tmp_path_factory):
  """Folders of each kind, as the library writes them."""
  folders = {}
  for name, kind in KINDS.items():
    folder = tmp_path_factory.mktemp('originals')
    kind.make(folder)
    folders[name] = sorted(folder.iterdir()) if name == 'checkpoint' else [folder]
  return folders


@pytest.mark.parametrize('name', KINDS)
def test_an_unspoilt_file_is_read(name, originals, tmp_path):
  for number, folder in enumerate(originals[name]):
    copy = shutil.copytree(folder, tmp_path / str(number))
    result = judged(functools.partial(KINDS[name].read, copy))
    assert result is not REFUSED, folder
    KINDS[name].check(result, copy)


@pytest.mark.parametrize('name', KINDS)
@cases(0.4)
@given(data=st.data())
def test_a_spoilt_file_is_read_right_or_refused(name, data, originals):
  kind = KINDS[name]
  with new_place() as place:
    folder = place.work if kind.is_workdir else place.given
    spoilt_copy(data.draw, data.draw(st.sampled_from(originals[name])), folder)
    result = judged(lambda: kind.read(folder), place)
    if result is not REFUSED:
      kind.check(result, folder)
