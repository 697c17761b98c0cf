"""The losses: which subnets a step takes, several paths, distillation, one fixed subnet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import randomized

import glora_jax
from glora_jax.method import presets
from glora_jax.method.genomes import largest_genome, random_genomes, sample_genome
from glora_jax.models.vit import ViT
from glora_jax.training import loop, losses
from glora_jax.training.losses import Consistency, Sampling
from glora_jax.training.recipe import Recipe, used_only


@pytest.fixture(scope='module')
def problem():
  model = ViT(3, patch_size=8, width=12, depth=2, num_heads=2)
  images, labels = jax.random.normal(jax.random.key(0), (12, 16, 16, 3)), jnp.arange(12) % 3
  adapted = glora_jax.adapt(model, images[:1], space=glora_jax.SearchSpace((2, 4)))
  variables = adapted.init(
    jax.random.key(1), randomized(model.init(jax.random.key(2), images[:1])['params'], 3)
  )
  return adapted, {**variables, 'glora': randomized(variables['glora'], 4, 0.1)}, images, labels


def loss_of(problem, sample, differentiated=True, **options):
  """A function `(trainable, labels, images) -> (loss, gradient)`, or the loss alone, and the trainable half that it starts from."""
  adapted, variables, images, labels = problem
  halves = adapted.split(variables)
  loss = losses.supernet_loss(adapted, lambda key, x: x, sample, train=True, **options)
  value = lambda trainable, labels=labels, images=images: loss(
    trainable, halves[1], images, labels, jax.random.key(5)
  )[0]
  return jax.jit(jax.value_and_grad(value) if differentiated else value), halves[0]


def test_genes_take_their_largest_allele_as_often_as_asked(problem):
  spec = problem[0].spec
  for largest in (0.0, 0.5, 1.0):
    genomes = jax.vmap(lambda key, p=largest: Sampling(largest=p).draw(key, spec))(
      jax.random.split(jax.random.key(0), 500)
    )
    share = np.mean(np.asarray(genomes) == spec.num_codes - 1, axis=(0, 1))
    np.testing.assert_allclose(share, largest + (1 - largest) / spec.num_codes[0], atol=0.03)


def test_the_papers_sampling_is_one_uniform_genome(problem):
  spec, key = problem[0].spec, jax.random.key(7)
  np.testing.assert_array_equal(Sampling().draw(key, spec), sample_genome(key, spec))


def test_a_sandwich_has_the_largest_and_the_smallest_and_others_at_random(problem):
  spec = problem[0].spec
  genomes = np.asarray(Sampling(paths=4, sandwich=True).draw(jax.random.key(0), spec))
  assert genomes.shape == (4, len(spec), 5)
  np.testing.assert_array_equal(genomes[0], spec.num_codes - 1)
  assert not genomes[1].any()
  assert genomes[2].any()
  assert not np.array_equal(genomes[2], genomes[3])


def test_several_paths_are_the_mean_of_their_groups_losses(problem):
  _, _, images, labels = problem
  genomes = random_genomes(np.random.default_rng(0), problem[0].spec, 3)
  together, trainable = loss_of(problem, lambda key: jnp.asarray(genomes))
  loss, grads = together(trainable)
  apart = []
  for group, genome in enumerate(genomes):
    one, _ = loss_of(problem, lambda key, genome=genome: jnp.asarray(genome))
    part = slice(4 * group, 4 * group + 4)
    apart.append(one(trainable, labels[part], images[part]))
  np.testing.assert_allclose(loss, np.mean([value for value, _ in apart]), rtol=1e-5)
  mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *[grad for _, grad in apart])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads, mean)


def test_a_batch_that_cannot_be_cut_into_paths_is_explained(problem):
  loss, trainable = loss_of(problem, lambda key: Sampling(paths=5).draw(key, problem[0].spec))
  with pytest.raises(ValueError, match='batch of 12 images cannot be cut into 5 equal paths'):
    loss(trainable)


def test_distillation_alone_sees_no_labels_and_asks_nothing_of_the_largest_subnet(problem):
  largest = jnp.asarray(largest_genome(problem[0].spec))
  loss, trainable = loss_of(problem, lambda key: largest, distillation=1.0)
  value, grads = loss(trainable)
  assert value == loss(trainable, (problem[3] + 1) % 3)[0]
  assert (
    max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) < 1e-5
  )  # imitating oneself is done
  _, others = loss_of(problem, lambda key: jnp.zeros_like(largest), distillation=1.0)[0](trainable)
  assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(others)) > 1e-3


def test_the_loss_of_a_fixed_subnet_is_the_supernets_with_that_genome(problem):
  adapted, variables, images, labels = problem
  for genome in random_genomes(np.random.default_rng(1), adapted.spec, 2):
    subnet = adapted.fix(genome)
    trainable, frozen = subnet.split(variables)
    alone = losses.subnet_loss(subnet, lambda key, x: x, train=True)
    value, grads = jax.jit(
      jax.value_and_grad(lambda t: alone(t, frozen, images, labels, jax.random.key(5))[0])
    )(trainable)  # noqa: B023
    expected, whole = loss_of(problem, lambda key, genome=genome: jnp.asarray(genome))
    expected, expected_grads = expected(whole)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    flat = dict(jax.tree_util.tree_leaves_with_path(expected_grads))
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
      np.testing.assert_allclose(leaf, flat[path], rtol=1e-3, atol=1e-5)


def test_numbers_that_are_not_used_stay_only_if_asked(problem):
  adapted, variables, images, labels = problem
  halves = adapted.split(variables)
  loss = losses.supernet_loss(
    adapted, lambda key, x: x, lambda key: jnp.zeros((len(adapted.spec), 5), jnp.int8), train=True
  )
  for asked in (False, True):
    recipe = Recipe(
      epochs=1,
      batch_size=4,
      warmup_epochs=0,
      learning_rate=1e-2,
      weight_decay=0.1,
      update_used_only=asked,
    )
    state = loop.fit(loss, *halves, images, labels, recipe, jax.random.key(0), progress=False)
    same = jax.tree.map(
      lambda a, b: bool((a == b).all()), halves[0]['glora'], state.trainable['glora']
    )
    assert all(jax.tree.leaves(same)) == asked
    assert not np.array_equal(
      halves[0]['params']['head']['kernel'], state.trainable['params']['head']['kernel']
    )


def test_used_only_equals_the_optimizer_where_everything_is_used():
  params, recipe = (
    {'w': jnp.arange(1.0, 5.0)},
    Recipe(epochs=2, batch_size=1, warmup_epochs=0, learning_rate=0.1),
  )
  plain, masked = recipe.optimizer(4), used_only(recipe.optimizer(4))
  plain_state, masked_state = plain.init(params), masked.init(params)
  for step in range(3):
    grads = {'w': jnp.sin(jnp.arange(4.0) + step + 1)}
    expected, plain_state = plain.update(grads, plain_state, params)
    found, masked_state = masked.update(grads, masked_state, params)
    np.testing.assert_array_equal(found['w'], expected['w'])


def test_accumulated_parts_make_the_step_of_the_whole_batch(problem):
  adapted, variables, images, labels = problem
  subnet = adapted.fix(presets.preset(adapted.spec, 'full'))
  halves = subnet.split(variables)
  loss = losses.subnet_loss(subnet, lambda key, x: x, train=True)
  states = []
  for accumulate in (1, 3):
    recipe = Recipe(
      epochs=1, batch_size=6, warmup_epochs=0, learning_rate=1e-3, accumulate=accumulate
    )
    optimizer = recipe.optimizer(12)
    steps = loop.make_steps(loss, optimizer, recipe.accumulate)
    copy = jax.tree.map(jnp.copy, halves[0])
    states.append(
      steps(
        copy,
        optimizer.init(copy),
        0,
        halves[1],
        images,
        labels,
        jnp.arange(6)[None],
        jax.random.key(0),
      )
    )
  np.testing.assert_allclose(states[0][3]['loss'], states[1][3]['loss'], rtol=1e-5)
  # AdamW's first moments are a tenth of the first gradient.
  first, second = (state[1][0].mu for state in states)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), first, second)


def test_noise_multiplies_what_the_supports_contribute(problem):
  adapted, variables, *_ = problem
  noisy = {
    **variables,
    'glora': Consistency(sigma=0.5).perturb(jax.random.key(3), variables['glora']),
  }
  for preset in ('linear', 'lora', 'ssf'):
    genome, base = presets.preset(adapted.spec, preset), variables['params']['blocks']['mlp']['fc1']
    clean, other = (adapted.fold(v, genome)['blocks']['mlp']['fc1'] for v in (variables, noisy))
    for name in ('kernel', 'bias'):
      contribution, changed = clean[name] - base[name], other[name] - base[name]
      if np.abs(contribution).max() < 1e-6:
        np.testing.assert_array_equal(clean[name], other[name])
        continue
      factor = changed / np.where(
        np.abs(contribution) > 1e-3, contribution, np.nan
      )  # [block, (in,) out]
      by_output = np.nanmedian(factor, axis=1, keepdims=True) if name == 'kernel' else factor
      assert np.nanmax(np.abs(factor / by_output - 1)) < 0.02
      assert 0.2 < np.nanstd(by_output) < 0.9


def test_consistency_without_noise_is_the_plain_loss_and_with_it_adds_the_squared_difference(
  problem,
):
  genome = jnp.asarray(presets.preset(problem[0].spec, 'full'))
  value = lambda consistency: (lambda loss, start: float(loss(start)))(
    *loss_of(problem, lambda key: genome, differentiated=False, consistency=consistency)
  )
  plain = value(Consistency())
  np.testing.assert_allclose(value(Consistency(weight=3.0, sigma=0.0)), plain, rtol=1e-5)
  one, two, three = (
    value(Consistency(weight=weight, sigma=0.3)) for weight in (1e-9, 100.0, 200.0)
  )  # large beside the rounding of the loss
  assert two > one + 1e-3
  np.testing.assert_allclose(three - two, two - one, rtol=1e-3)


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'largest': 1.5}, r'sampling.largest=1.5 must be between 0 and 1'),
    ({'paths': 0}, 'paths=0 must be at least 1'),
    ({'paths': 2, 'sandwich': True}, 'paths=2 must be at least 3'),
    ({'distillation': -1}, 'sampling.distillation=-1'),
  ],
)
def test_wrong_samplings_are_explained(fields, message):
  with pytest.raises(ValueError, match=message):
    Sampling(**fields)


def test_parts_that_do_not_divide_the_batch_are_explained():
  with pytest.raises(ValueError, match='accumulate=3 must be at least 1 and divide batch_size=64'):
    Recipe(accumulate=3)
