"""Our ViT against the official one: answers with all forms, and what the official code saves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_refused
from places import ROOT

import glora_jax
from glora_jax.vision.models.official import load_official_supernet
from glora_jax.vision.models.vit import ViT

pytestmark = pytest.mark.accelerator

OFFICIAL = ('Au', 'Ad', 'Bu', 'Bd', 'Cu', 'Cd', 'D', 'E')


@pytest.fixture(scope='module')
def saved(golden_vit, tmp_path_factory):
  """(tensors that the official code saves, path of a file of them, our ViT, its images)."""
  with np.load(ROOT / 'tests' / 'golden' / 'official_vit.npz') as file:
    state = {name.removeprefix('param/'): file[name] for name in file if name.startswith('param/')}
  adapter = {name for name in state if name.rsplit('.', 1)[-1] in OFFICIAL}
  tensors = {name: state[name] for name in (*adapter, 'head.weight', 'head.bias')}
  path = tmp_path_factory.mktemp('official') / 'supernet.npz'
  np.savez(path, **tensors)
  model = ViT(len(state['head.bias']), **golden_vit['shape'])
  return tensors, path, model, golden_vit['x'].astype(np.float32)


def adapt(model, images, **space):
  return glora_jax.adapt(model, images, space=glora_jax.SearchSpace((4,), **space))


def test_supports_and_head_find_their_places(golden_vit, saved):
  _, path, model, images = saved
  adapted = adapt(model, images)
  base = jax.tree.map(np.asarray, golden_vit['params'])
  base['head'] = jax.tree.map(np.zeros_like, base['head'])
  variables = load_official_supernet(path, adapted, base)
  jax.tree.map(
    lambda ours, golden: np.testing.assert_array_equal(ours, golden.astype(ours.dtype)),
    variables['glora'],
    golden_vit['glora'],
  )
  jax.tree.map(np.testing.assert_array_equal, variables['params'], golden_vit['params'])


def test_what_a_file_lacks_is_named_and_only_a_tied_vit_with_a_head_takes_it(
  golden_vit, saved, tmp_path
):
  tensors, path, model, images = saved
  lacking = {name: value for name, value in tensors.items() if not name.endswith('mlp.fc1.D')}
  np.savez(tmp_path / 'lacking.npz', **lacking)
  load, params = load_official_supernet, golden_vit['params']
  assert_refused('mlp.fc1.D', load, tmp_path / 'lacking.npz', adapt(model, images), params)
  assert_refused('shared SearchSpace', load, path, adapt(model, images, shared=False), params)


@pytest.mark.parametrize('dtype, tolerance', [('float64', 1e-12), ('float32', 1e-5)])
def test_all_golden_genomes_give_the_official_logits_and_counts(golden_vit, dtype, tolerance):
  with jax.enable_x64(dtype == 'float64'):
    variables, images = jax.tree.map(
      lambda value: jnp.asarray(value, dtype),
      ({name: golden_vit[name] for name in ('params', 'glora')}, golden_vit['x']),
    )
    adapted = adapt(ViT(7, **golden_vit['shape']), images)
    apply = jax.vmap(lambda genome: adapted.apply(variables, images, genome=genome))
    logits = np.asarray(jax.jit(apply)(golden_vit['genomes']))
  assert logits.dtype == dtype
  official = golden_vit['logits']
  assert np.abs(logits - official).max() <= tolerance * np.abs(official).max()
  np.testing.assert_array_equal(
    glora_jax.count_params(adapted.spec, golden_vit['genomes']), golden_vit['param_count']
  )
