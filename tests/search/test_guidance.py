"""First-order estimates of every allele, from one backward pass, against the losses themselves."""

import jax
import numpy as np
import pytest
from conftest import randomized

import glora_jax
from glora_jax.method.genomes import check_genome, count_params, random_genomes, smallest_genome
from glora_jax.models.vit import ViT
from glora_jax.search import evolution, guidance, scoring


@pytest.fixture(scope='module', params=['fused', 'tied'])
def problem(request):
  model = ViT(4, patch_size=8, width=12, depth=2, num_heads=2)
  images = jax.random.normal(jax.random.key(0), (30, 16, 16, 3))
  labels = jax.random.randint(jax.random.key(1), (30,), 0, 4)
  params = randomized(model.init(jax.random.key(2), images[:1])['params'], 1)
  options = {'space': glora_jax.SearchSpace((2, 4), tied=request.param == 'fused')}
  adapted = glora_jax.adapt(model, images[:1], **options)
  variables = adapted.init(jax.random.key(3), params)
  # Small supports, since first-order estimates are exact in the limit only.
  return (
    adapted,
    {**variables, 'glora': randomized(variables['glora'], 2, scale=3e-3)},
    images,
    labels,
  )


def test_estimates_are_the_changes_of_the_loss_to_first_order(problem):
  adapted, variables, images, labels = problem
  rng = np.random.default_rng(0)
  genome = random_genomes(rng, adapted.spec, 1)[0]
  values = np.asarray(
    guidance.make_guide(adapted, fitness='loss', block=16)(variables, genome, images, labels)
  )
  assert values.shape == (len(adapted.spec), 5, adapted.spec.num_codes.max())
  changed = np.repeat(genome[None], 80, 0)
  for one in changed:
    row, tensor = rng.integers(len(genome)), rng.integers(5)
    one[row, tensor] = rng.integers(adapted.spec.num_codes[row, tensor])
  index = lambda genomes: np.take_along_axis(values[None], genomes[..., None].astype(int), -1).sum(
    (1, 2, 3)
  )
  estimates = index(changed) - index(genome[None])
  losses = np.asarray(
    scoring.make_scorer(adapted)(
      variables, np.concatenate([genome[None], changed]), images, labels
    )[1],
    np.float64,
  )
  changes = losses[1:] - losses[0]
  assert np.abs(changes).max() > 1e-3
  assert np.corrcoef(estimates, changes)[0, 1] > 0.999
  assert np.abs(estimates - changes).max() < 0.05 * np.abs(changes).max()


def test_proposals_stay_within_the_budget_and_prefer_what_promises_more(problem):
  adapted, variables, images, labels = problem
  genome = smallest_genome(adapted.spec)
  values = np.asarray(guidance.make_guide(adapted)(variables, genome, images, labels))[None]
  children = evolution.propose_guided(
    np.random.default_rng(0), adapted.spec, genome[None], values, 60, 300
  )
  check_genome(adapted.spec, children)
  assert count_params(adapted.spec, children).max() <= 300
  expected = lambda genomes: (
    np.take_along_axis(values, genomes[..., None].astype(int), -1).sum((1, 2, 3)).mean()
  )
  chance = random_genomes(np.random.default_rng(1), adapted.spec, 200, 300)
  assert expected(children) < expected(chance)


def test_giving_up_takes_what_is_worth_least_first(problem):
  adapted, *_ = problem
  spec = adapted.spec
  full, values = (spec.num_codes - 1).astype(np.int8), np.zeros(spec.cost_table.shape)
  values[0, :, -1] = values[
    0, np.arange(5), spec.num_codes[0] - 1
  ] = -1000.0  # the first layer's largest alleles are worth a lot
  offered = np.zeros(spec.cost_table.shape, bool)
  np.put_along_axis(offered, spec.offered_table.astype(int), True, -1)
  budget = int(count_params(spec, full) // 3)
  kept = evolution.give_up(spec, full, values, budget, offered)
  assert count_params(spec, kept) <= budget
  np.testing.assert_array_equal(kept[0], full[0])
