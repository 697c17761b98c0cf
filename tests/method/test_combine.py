"""Adapters added up: the sum of what they do to a base, cut to a rank."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_refused, assert_trees_close, random_params, random_variables

import glora_jax
from glora_jax.files import read_tensors, write_tensors
from glora_jax.method.draws import random_genomes


class Layer(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    key, query = (nn.Dense(4, use_bias=False, name=name)(x) for name in ('key', 'query'))
    return nn.Dense(6, name='out')(jnp.concatenate([key, query], -1)), None


class Net(nn.Module):
  """A stack of layers with a tie and without bias, and a layer with one output."""

  @nn.compact
  def __call__(self, x):
    x, _ = nn.scan(Layer, {'params': 0}, split_rngs={'params': True}, length=2)(name='layers')(
      x, None
    )
    return nn.Dense(2, name='head')(nn.Dense(1, name='narrow')(x))


X = jnp.ones((1, 6))
PARAMS = random_params(Net(), X)
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)  # on which what is changed is all there is
SPACES = [
  glora_jax.SearchSpace((1, 2)),
  glora_jax.SearchSpace((2, 3), shared=False),
  glora_jax.SearchSpace((1, 3), scale=0.5),
]


def saved(path, base=PARAMS, seed=0, structure=None, space=None, **options):
  """Saves an adapter with random numbers; returns the parameters that it makes of the base."""
  adapted = glora_jax.adapt(Net(), X, structure=structure, space=space, **options)
  if structure is None:
    adapted = adapted.fix(random_genomes(np.random.default_rng(seed), adapted.spec, 1)[0])
  head = jax.tree.map(lambda value: value + seed, base['head'])
  variables = random_variables(adapted, {**base, 'head': head}, seed)
  glora_jax.save_adapter(path, adapted, variables)
  return jax.device_get(adapted.fold(variables))


def loaded(path, base=PARAMS):
  """The parameters that the adapter of a file makes of the base."""
  adapted = glora_jax.adapt(Net(), X, structure=path)
  adapted, variables = glora_jax.load_adapter(path, adapted, base)
  return adapted.fold(variables)


@pytest.mark.parametrize('seed', range(3))
def test_a_sum_changes_a_base_by_the_weighted_sum_of_what_its_adapters_change(tmp_path, seed):
  weights = {tmp_path / f'{number}': w for number, w in enumerate((0.7, -0.4, 1.5))}
  folded = [
    saved(path, seed=3 * seed + number, space=SPACES[number]) for number, path in enumerate(weights)
  ]
  assert glora_jax.combine(weights, tmp_path / 'sum') == {}
  expected = jax.tree.map(
    lambda base, *own: (
      base + sum(w * (x - base) for w, x in zip(weights.values(), own, strict=True))
    ),
    PARAMS,
    *folded,
  )
  assert_trees_close(loaded(tmp_path / 'sum'), {**expected, 'head': PARAMS['head']})
  arrays = read_tensors(tmp_path / 'sum', 'adapter')[0].items()
  ups = [value.shape for name, value in arrays if name.endswith('_up') and value.ndim == 2]
  assert all(rank <= outputs for rank, outputs in ups)  # no more than the kernel has


def test_a_rank_is_cut_to_the_best_of_it_and_the_error_is_the_true_one(tmp_path):
  a, b, out = (tmp_path / name for name in ('a', 'b', 'c'))
  folded = [saved(path, ZEROS, seed, 'lora:2') for seed, path in enumerate((a, b))]
  errors = glora_jax.combine({a: 1, b: -2}, out, rank=3)
  kernels = [
    np.asarray(tree['layers']['out']['kernel'], np.float64)
    for tree in (*folded, loaded(out, ZEROS))
  ]
  whole, cut = kernels[0] - 2 * kernels[1], kernels[2]
  left, values, right = np.linalg.svd(whole)
  best = (left[..., :3] * values[:, None, :3]) @ right[:, :3]
  np.testing.assert_allclose(cut, best, atol=1e-6)
  for row in range(2):
    error = np.linalg.norm(whole[row] - best[row]) / np.linalg.norm(whole[row])
    assert errors[f'layers/out[{row}]/B'] == pytest.approx(error, rel=1e-4)
  assert glora_jax.combine({a: 1, b: -2}, out, rank=4) == {}


def test_heads_are_those_of_one_adapter(tmp_path):
  a, b, out = (tmp_path / name for name in ('a', 'b', 'c'))
  saved(a, seed=1)
  folded = saved(b, seed=2)
  glora_jax.combine({a: 1, b: 1}, out, head=b)
  assert_trees_close(loaded(out)['head'], folded['head'], 0)


REFUSED = [
  ('one or more files', {}, {}),
  ("head='b' is not", {'a': 1}, {'head': 'b'}),
  ('headless', {'a': 1, 'headless': 1}, {'head': 'headless'}),
  (['a and moved', 'base'], {'a': 1, 'moved': 1}, {}),
  (['a and fewer', 'narrow'], {'a': 1, 'fewer': 1}, {}),
  ('adapters[a]=1e+300 must be at most', {'a': 1e300}, {}),
  ('not finite', {'a': 3e38, 'headless': 3e38}, {'rank': 1}),
  (['odd is damaged', 'lora:0'], {'a': 1, 'odd': 1}, {}),
]


def rewritten(path, change):
  tensors, metadata = read_tensors(path, 'adapter')
  change(tensors, metadata)
  write_tensors(path, tensors, 'adapter', metadata)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('adapters')
  saved(path / 'a')
  saved(path / 'moved', ZEROS)
  saved(path / 'fewer', select='layers')
  glora_jax.combine({path / 'a': 1}, path / 'headless')
  saved(path / 'odd', structure='lora:2')
  rewritten(path / 'odd', lambda tensors, metadata: metadata['layers'][0].update(B='lora:0'))
  return path


@pytest.mark.parametrize('named, adapters, options', REFUSED)
def test_what_cannot_be_added_up_leaves_the_file_that_is_there(
  folder, monkeypatch, named, adapters, options
):
  monkeypatch.chdir(folder)
  (folder / 'out').write_text('before')
  assert_refused(named, glora_jax.combine, adapters, 'out', **options)
  assert (folder / 'out').read_text() == 'before'


def test_a_file_counts_once_however_its_path_is_spelled(folder, monkeypatch):
  monkeypatch.chdir(folder)
  (folder / 'link').symlink_to('a')
  for spelled in ('./a', str(folder / 'a'), 'link'):
    assert_refused('each once', glora_jax.combine, {'a': 1, spelled: 1}, 'out')


def test_a_folder_that_is_missing_is_to_be_made(folder):
  with pytest.raises(OSError, match=r'no/out cannot be written .* make its folder'):
    glora_jax.combine({folder / 'a': 1}, folder / 'no' / 'out')


def test_an_adapter_is_not_replaced_by_the_sum(folder):
  with pytest.raises(FileExistsError, match='an input'):
    glora_jax.combine({folder / 'a': 1}, folder / 'a')
