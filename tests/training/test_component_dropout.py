"""Component dropout: which rank-one parts it takes, its mean, and that the key decides."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from tiny import problem, unchanged
from trees import randomized

from glora_jax.method import presets
from glora_jax.method.draws import sample_genome
from glora_jax.training.losses import drop_components, make_loss

KEY = jax.random.key(5)


def loss_of(name, drop=0.1, sample=None, **options):
  """The loss of a preset's subnet, or of the supernet, and the halves of what it takes."""
  adapted, variables, *_ = problem(drop)
  variables = {**variables, 'glora': randomized(variables['glora'], 4)}
  if name == 'supernet':
    sample = sample or functools.partial(sample_genome, spec=adapted.spec)
    loss_fn = make_loss(adapted, unchanged, sample, train=True, **options)
    return loss_fn, *adapted.split(variables)
  subnet = adapted.fix(presets.preset(adapted.spec, name))
  return make_loss(subnet, unchanged, train=True, **options), *subnet.split(variables)


def loss_at(name, key=KEY, **options):
  loss_fn, *halves = loss_of(name, **options)
  return float(jax.jit(loss_fn)(*halves, problem()[2:], key)[0])


def test_the_mean_over_many_masks_is_what_is_not_dropped():
  adapted, variables, *_ = problem()
  supports = randomized(variables['glora'], 4)
  genome = presets.preset(adapted.spec, 'full')
  drop = jax.vmap(lambda key: drop_components(key, supports, adapted.groups, genome, 0.3))
  means = jax.tree.map(lambda leaf: leaf.mean(0), jax.jit(drop)(jax.random.split(KEY, 2000)))
  five_deviations = 5 * np.sqrt(0.3 / 0.7 / 2000)
  chex.assert_trees_all_close(means, supports, rtol=five_deviations)


def test_only_up_factors_of_rows_with_a_lora_change_and_no_type_is_promoted_by_itself():
  adapted, variables, *_ = problem()
  supports = randomized(variables['glora'], 4)
  genome = np.zeros((len(adapted.spec), 5), np.int8)
  genome[:, 0] = 2  # vectors for A, which lie in its up factor
  genome[1, 1] = 4  # a LoRA for B in the second layer
  with jax.numpy_dtype_promotion('strict'):
    dropped = drop_components(KEY, supports, adapted.groups, jnp.asarray(genome), 0.5)
  where = dropped['blocks']['dense'].pop('B_up') != supports['blocks']['dense'].pop('B_up')
  chex.assert_trees_all_equal(dropped, supports)
  assert not where[0].any()
  assert where[1].all()  # zero or doubled


def test_without_dropout_the_loss_keeps_its_bits_and_with_it_the_key_decides():
  before = loss_at('supernet')
  assert loss_at('supernet', component_dropout=0.0) == before
  first, again = (loss_at('supernet', component_dropout=0.5) for _ in range(2))
  assert first == again != before


def test_every_path_of_a_supernet_is_dropped_by_its_own_genome():
  lora, vectors = (presets.preset(problem().adapted.spec, name) for name in ('lora', 'ssf'))

  def change(*genomes):
    options = {'drop': 0.0, 'sample': lambda key: jnp.asarray(genomes)}
    dropped, whole = (loss_at('supernet', component_dropout=p, **options) for p in (0.5, 0.0))
    return abs(dropped - whole)

  assert change(lora, vectors) > 1e-3
  assert change(vectors, lora) > 1e-3
  assert change(vectors, vectors) < 1e-6
