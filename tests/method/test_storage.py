"""A fixed subnet stores the ranks that it uses, and is the same subnet."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import model_zoo
import numpy as np
import pytest
from comparing import assert_folds, assert_refused, assert_trees_close, random_variables, ready
from numpy.testing import assert_array_equal
from small_models import Mlp

from glora_jax import SearchSpace, adapt, load_adapter, preset, random_genomes, save_adapter
from glora_jax.method.genomes import canonicalize

SPACE = SearchSpace(ranks=(1, 2, 4))
X = jnp.linspace(-1, 1, 8).reshape(2, 4)


@functools.cache
def mlp(space=SPACE):
  """(adapted, variables with random supports)."""
  return ready(Mlp(), X, space=space, heads=None)


def genomes_of(spec, number):
  """Random genomes without the largest rank, so that storage can be cut."""
  drawn = random_genomes(np.random.default_rng(1), spec, number)
  limit = spec.num_codes.astype(np.int8) - 1
  limit[:, 3:] = 3  # D and E have no ranks
  return canonicalize(spec, np.minimum(drawn, limit - 1))


def rejoined(subnet, variables):
  return subnet.join(*subnet.split(variables))


def shapes(tree):
  return jax.tree.map(lambda x: x.shape, nn.meta.unbox(tree))


def test_storage_is_cut_to_the_largest_rank_of_each_tensor():
  adapted, variables = mlp()
  genome = np.array([[0, 4, 1, 0, 0], [2, 0, 0, 0, 0]], np.int8)  # B r2, C vector; A vector
  subnet = adapted.fix(genome)
  trainable, frozen = subnet.split(variables)
  assert shapes(trainable['glora']) == {
    'fc': {'B_down': (4, 2), 'B_up': (2, 6), 'C_down': (4, 1)},
    'head': {'A_up': (1, 3)},
  }
  assert frozen['glora']['fc']['C_up'].shape == (1, 1)
  assert frozen['glora']['head']['B_down'].shape == (6, 1)


def boxed_in_a_scan():
  example = model_zoo.EXAMPLES['with_partitioning']
  adapted = adapt(example.model, *example.inputs, space=SPACE)
  return *example.inputs, adapted, random_variables(adapted, example.variables()['params'])


@pytest.mark.parametrize(
  'make',
  [
    boxed_in_a_scan,
    lambda: (X, *mlp(SearchSpace((1, 2, 4), shared=False))),
    lambda: (X, *mlp(SearchSpace.distinct((1, 2, 4)))),
  ],
)
def test_cut_storage_holds_less_is_not_cut_again_and_is_the_same_subnet(make):
  inputs, adapted, variables = make()
  [genome] = genomes_of(adapted.spec, 1)
  subnet = adapted.fix(genome)
  narrow = rejoined(subnet, variables)
  assert shapes(narrow['glora']) != shapes(variables['glora'])
  jax.tree.map(assert_array_equal, rejoined(subnet, narrow), narrow)
  assert_folds(subnet, narrow, inputs)
  assert_trees_close(jax.jit(subnet.fold)(narrow), jax.jit(subnet.fold)(variables), 1e-2)


def test_a_subnet_with_a_higher_rank_is_refused_in_cut_storage(tmp_path):
  adapted, variables = mlp()
  narrow = rejoined(adapted.fix('lora:1'), variables)
  higher = preset(adapted.spec, 'lora:2')
  for use in (
    lambda: adapted.apply(narrow, X, genome=higher),
    lambda: adapted.fix(higher).split(narrow),
    lambda: save_adapter(tmp_path / 'adapter.safetensors', adapted.fix(higher), narrow),
  ):
    assert_refused('a LoRA of rank 2 for B in fc, but these variables store rank 1', use)


def test_an_adapter_of_cut_storage_is_that_of_the_whole(tmp_path):
  adapted, variables = mlp()
  [genome] = genomes_of(adapted.spec, 1)
  narrow = rejoined(adapted.fix(genome), variables)
  for name, content in (('whole', variables), ('narrow', narrow)):
    save_adapter(tmp_path / name, adapted.fix(genome), content)
  assert (tmp_path / 'narrow').read_bytes() == (tmp_path / 'whole').read_bytes()
  fixed, loaded = load_adapter(tmp_path / 'narrow', adapted, variables['params'])
  assert_array_equal(fixed.genome, genome)
  assert shapes(loaded['glora']) == shapes(variables['glora'])
