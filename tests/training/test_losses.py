"""The losses: which subnets a step trains, several paths, one fixed subnet, what is dropped."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from comparing import assert_trees_equal, ready
from numpy.testing import assert_allclose, assert_array_equal

import glora_jax
from glora_jax.method import presets
from glora_jax.method.dropout import Dropout, drop_components
from glora_jax.method.forward import Forward
from glora_jax.method.genomes import largest_genome
from glora_jax.training import losses
from glora_jax.training.consistency import Consistency
from glora_jax.training.fit import step_loss
from glora_jax.training.losses import classification, cross_entropy
from glora_jax.training.sampling import Sampling

KEY = jax.random.key(5)
problem = functools.partial(tiny.problem, drop=0.0)


def test_logits_that_are_not_finite_are_no_right_answers():
  logits = jnp.array([[0.0, 1.0], [jnp.nan, 0.0], [jnp.inf, 0.0], [0.0, -jnp.inf]])
  labels = jnp.array([1, 0, 0, 0])
  for targets in (labels[:3], jax.nn.one_hot(labels[:3], 2)):
    assert_allclose(cross_entropy(logits[:3], targets)[1]['accuracy'], 1 / 3)
  # A class that is no answer is -inf.
  assert cross_entropy(logits, labels)[1]['accuracy'] == 0.5


@functools.partial(jax.jit, static_argnames=('consistency', 'component_dropout'))
def compiled_loss(trainable, genomes, **options):
  """A supernet's loss for genomes that are given."""
  loss = classification(train=True, **options)
  loss_fn = step_loss(problem().adapted, loss, lambda key: genomes)
  return loss_fn(trainable, problem().split()[1], problem().data, KEY)[0]


def test_one_loss_checks_the_labels_of_each_model_by_its_own_classes():
  loss, x = classification(), jnp.ones((10, 4))
  recipe = glora_jax.Recipe(epochs=1, batch_size=5, warmup=0.0)

  def fit(classes, labels):
    adapted, variables = ready(nn.Dense(classes), x, structure='bitfit', heads=None)
    data = x, np.array(labels)
    glora_jax.fit(adapted, variables, loss, data, recipe, key=KEY, progress=False)

  fit(5, [0, 1, 2, 3, 4] * 2)
  fit(10, range(10))
  with pytest.raises(ValueError, match=r'label 5 of example 5 .* from 0 to 4'):
    fit(5, range(10))


def test_what_mixes_images_has_no_key_that_augmentation_splits_off():
  keys = {}

  def preprocess(images, key):
    keys['augmentation'] = key
    return images

  def mix(key, images, targets):
    keys['mixing'] = key
    return images, targets

  adapted, _, images, labels = problem()
  forward = Forward(adapted, problem().variables, largest_genome(adapted.spec))
  classification(preprocess, mix=mix, train=True)(forward, (images, labels), KEY)
  split = jax.random.split(keys['augmentation'], 1000)
  assert not (jax.random.key_data(split) == jax.random.key_data(keys['mixing'])).all(-1).any()


@pytest.mark.parametrize('label', [-1, 5])
def test_the_loss_of_a_label_that_is_not_a_class_is_not_a_number(label):
  loss, metrics = cross_entropy(jnp.zeros((2, 5)), jnp.array([4, label]))
  assert jnp.isnan(loss)
  assert metrics['accuracy'] == 0


def test_labels_and_their_distribution_have_the_same_loss_whatever_stands_before_the_classes():
  logits = jax.random.normal(KEY, (2, 3, 5))
  labels = jnp.array([[0, 1, 4], [2, 2, 3]])
  expected = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1).mean()
  for targets in (labels, jax.nn.one_hot(labels, 5)):
    loss, metrics = cross_entropy(logits, targets)
    assert_allclose(loss, expected, rtol=1e-6)
    assert_allclose(metrics['accuracy'], jnp.mean(logits.argmax(-1) == labels))


@pytest.mark.parametrize('largest', [0.0, 0.5])
def test_genes_take_their_largest_form_as_often_as_asked(largest):
  spec = problem().adapted.spec
  draw = functools.partial(Sampling(largest=largest).draw, spec=spec)
  genomes = jax.jit(jax.vmap(draw))(jax.random.split(KEY, 500))
  assert genomes.shape == (500, len(spec), 5)
  share = np.mean(np.asarray(genomes) == spec.num_codes - 1, axis=(0, 1))
  assert_allclose(share, largest + (1 - largest) / spec.num_codes[0], atol=0.03)


def test_noise_is_a_factor_for_each_output_that_all_supports_of_a_layer_share():
  ones = jax.tree.map(jnp.ones_like, problem().variables['glora'])
  noisy = Consistency(sigma=0.5).perturb(KEY, ones)['blocks']['dense']
  factors = noisy['D']  # [block, out]
  assert 0.3 < factors.std() < 0.7
  for name in ('A_up', 'B_up', 'E'):
    expected = factors if name == 'E' else factors[:, None]
    assert_array_equal(noisy[name], jnp.broadcast_to(expected, noisy[name].shape))


def test_consistency_adds_the_squared_difference_of_two_noisy_passes():
  genome = presets.preset(problem().adapted.spec, 'full')

  def loss(**fields):
    consistency = Consistency(**fields)
    return float(compiled_loss(problem().split()[0], genome, consistency=consistency))

  # Without noise there is no difference.
  assert_allclose(loss(weight=3.0, sigma=0.0), loss(), rtol=1e-5)
  # The weights are large beside the rounding of the loss.
  none, simple, double = (loss(weight=weight, sigma=0.3) for weight in (1e-9, 100.0, 200.0))
  assert simple > none + 1e-3
  assert_allclose(double - simple, simple - none, rtol=1e-3)


def test_consistency_has_the_mean_loss_and_metrics_of_both_passes(monkeypatch):
  passes = iter([(1.0, {'accuracy': 0.0}), (3.0, {'accuracy': 1.0})])
  monkeypatch.setattr(losses, 'cross_entropy', lambda *_: next(passes))
  adapted, variables, *batch = problem()
  forward = Forward(adapted, variables, largest_genome(adapted.spec))
  loss = classification(train=True, consistency=Consistency(weight=1e-9, sigma=0.3))
  mean, metrics = loss(forward, batch, KEY)
  assert_allclose(mean, 2.0, rtol=1e-3)
  assert metrics == {'accuracy': 0.5}


def test_the_mean_over_many_masks_is_what_is_not_dropped():
  adapted, adapter = problem().adapted, problem().variables['glora']
  genome = presets.preset(adapted.spec, 'full')
  drop = jax.vmap(
    lambda key: drop_components(Dropout(key, 0.3), adapter, adapted.places.groups, genome)
  )
  means = jax.tree.map(lambda leaf: leaf.mean(0), jax.jit(drop)(jax.random.split(KEY, 2000)))
  five_deviations = 5 * np.sqrt(0.3 / 0.7 / 2000)
  jax.tree.map(functools.partial(assert_allclose, rtol=five_deviations), means, adapter)


def test_only_up_factors_of_rows_with_a_lora_change_and_no_type_is_promoted_by_itself():
  adapted, adapter = problem().adapted, problem().variables['glora']
  genome = np.zeros((len(adapted.spec), 5), np.int8)
  genome[:, 0] = 2  # vectors for A, which lie in its up factor
  genome[1, 1] = 4  # a LoRA for B in the second layer
  with jax.numpy_dtype_promotion('strict'):
    dropped = drop_components(
      Dropout(KEY, 0.5), adapter, adapted.places.groups, jnp.asarray(genome)
    )
  before = jax.tree.map(jnp.copy, adapter)
  where = dropped['blocks']['dense'].pop('B_up') != before['blocks']['dense'].pop('B_up')
  assert_trees_equal(dropped, before)
  assert not where[0].any()
  assert where[1].all()  # zero or doubled


def test_every_path_of_a_supernet_is_dropped_by_its_own_genome():
  lora, vectors = (presets.preset(problem().adapted.spec, name) for name in ('lora', 'ssf'))

  def change(*genomes):
    arguments = problem().split()[0], jnp.asarray(genomes)
    return abs(compiled_loss(*arguments, component_dropout=0.5) - compiled_loss(*arguments))

  assert change(lora, vectors) > 1e-5
  assert change(vectors, lora) > 1e-5
  assert change(vectors, vectors) < 1e-6
