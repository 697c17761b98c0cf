"""What scorers and the evolution refuse, before anything wrong is believed."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import problem
from toy_search import SMALL, SPEC, Judge, assert_same, search

import glora_jax
from glora_jax.method.genomes import largest_genome
from glora_jax.search import scoring


@pytest.mark.parametrize('make', [scoring.make_scorer, scoring.make_image_scorer])
@pytest.mark.parametrize('value', [0, -1, 1.5, True])
def test_chunks_and_blocks_are_whole_numbers_above_0(make, value):
  adapted = problem('mlp', 'up_front')[0]
  for name in ('chunk', 'block'):
    with pytest.raises(ValueError, match=f'{name}={value} must be (at least 1|a whole number)'):
      make(adapted, **{name: value})


def test_counts_and_budgets_may_be_scalars_of_any_library():
  adapted, variables, genomes, images, labels = problem('mlp', 'up_front')
  expected = scoring.make_scorer(adapted, chunk=2, block=4)(variables, genomes, images, labels)
  score = scoring.make_scorer(adapted, chunk=jnp.int32(2), block=4.0)
  jax.tree.map(np.testing.assert_array_equal, score(variables, genomes, images, labels), expected)
  archive, _ = search(budget=40)
  for budget in (40.0, np.float32(40), jnp.int32(40)):
    assert_same(archive, search(budget=budget)[0])
    np.testing.assert_array_equal(archive.best(spec=SPEC, budget=budget), archive.best())


def test_a_scorer_refuses_what_it_cannot_score():
  adapted, variables, genomes, images, labels = problem('mlp', 'up_front')
  score = scoring.make_scorer(adapted)
  wrong_code = np.array(genomes)
  wrong_code[0, 0, 0] = 99
  other_class = np.array(labels)
  other_class[2] = 7
  cases = [
    ((wrong_code, images, labels), 'The genome says 99 for A of layer 0'),
    ((genomes[0], images, labels), 'a population is'),
    ((genomes, images[:0], labels[:0]), r'There are no images \(0\)'),
    ((genomes, images, labels[:3]), 'there must be one label for each image'),
    ((genomes, images, other_class), 'The label 7 of image 2 is no class'),
    ((genomes, images, -np.array(labels) - 1), 'of image 0 is no class'),
    ((genomes, images, np.array(labels, np.float32)), 'The labels are float32'),
    (
      (genomes, images, np.stack([labels] * 2, 1)),
      r'The labels are \[23, 2\], and scores are of one',
    ),
  ]
  for arguments, sentence in cases:
    with pytest.raises(ValueError, match=sentence):
      score(variables, *arguments)
  with pytest.raises(ValueError, match="The variables have no 'glora'"):
    score({'params': variables['params']}, genomes, images, labels)


def test_a_predictor_refuses_what_it_cannot_answer_for():
  adapted, variables, genomes, images, _ = problem('mlp', 'up_front')
  predict = scoring.make_predictor(adapted)
  largest = largest_genome(adapted.spec)
  without_loras = adapted.fix(np.minimum(largest, 1))
  cut = without_loras.join(*without_loras.split(variables))
  cases = [
    ((variables, np.full_like(genomes[0], 99), images), 'The genome says 99 for A of layer 0'),
    ((variables, genomes, images), 'The predictor takes one genome'),
    ((variables, genomes[0], images[:0]), r'The images are \[0, 4, 4, 3\]; they must be'),
    ((variables, genomes[0], 'x'), "The images are 'x'; they must be an array of numbers"),
    (({'params': variables['params']}, genomes[0], images), "The variables have no 'glora'"),
    ((cut, largest, images), 'these variables store rank 1: they were cut to a smaller subnet'),
  ]
  for arguments, sentence in cases:
    with pytest.raises(ValueError, match=sentence):
      predict(*arguments)


def test_a_scorer_of_images_refuses_the_same():
  adapted, variables, genomes, images, labels = problem('mlp', 'up_front')
  score_images = functools.partial(scoring.make_image_scorer(adapted), variables)
  wrong, other = np.full_like(genomes, 99), np.array(labels) + 4
  calls = [
    (lambda: score_images(wrong, images, labels), 'The genome says 99'),
    (lambda: score_images(genomes[0], images, labels), 'a population is'),
    (lambda: score_images(genomes, images, other), 'is no class'),
  ]
  for call, sentence in calls:
    with pytest.raises(ValueError, match=sentence):
      call()


def test_genomes_may_be_lists():
  adapted, variables, genomes, images, _ = problem('mlp', 'up_front')
  predict = scoring.make_predictor(adapted)
  found = predict(variables, genomes[0].tolist(), images)
  jax.tree.map(np.testing.assert_array_equal, found, predict(variables, genomes[0], images))


def test_a_search_needs_a_random_key():
  for key in (None, 3, jnp.arange(2)):
    with pytest.raises(ValueError, match='must be one random key'):
      glora_jax.evolve(SPEC, Judge(), key)


@dataclasses.dataclass
class Shifted:
  """A judge of which some answers are changed."""

  correct: float = 0.0
  loss: float = 0.0
  most: int | None = None

  def __call__(self, genomes):
    correct, loss = Judge()(genomes)
    return (correct + self.correct)[: self.most], (loss + self.loss)[: self.most]


@pytest.mark.parametrize(
  'judge, sentence',
  [
    (Shifted(correct=0.5), 'must be whole numbers of 0 or more. Give numbers of right answers'),
    (Shifted(correct=-100), 'right answers; correct must be whole numbers'),
    (Shifted(correct=np.nan), 'score gave nan right answers'),
    (Shifted(loss=np.nan), 'score gave a loss of nan for subnet 0'),
    (Shifted(loss=np.inf), 'score gave a loss of inf for subnet 0'),
    (lambda genomes: (['1'] * 20, [0.0] * 20), r'The scores are .* must be an array of numbers'),
    (Shifted(most=3), r'score gave correct as float64 \[3\]; it must be a number for each'),
  ],
)
def test_scores_that_cannot_be_ranked_are_refused(judge, sentence):
  with pytest.raises(ValueError, match=sentence):
    search(judge=judge)


def test_whole_numbers_in_a_float_array_are_counts():
  archive, _ = search(dataclasses.replace(SMALL, generations=0), judge=Shifted(correct=1.0))
  assert archive.correct.min() >= 1


@pytest.mark.parametrize('array', [list, jnp.asarray, lambda x: jnp.asarray(x, jnp.bfloat16)])
def test_scores_of_any_type_are_ranked_by_their_values(array):
  def score(genomes):
    correct, loss = Judge()(genomes)
    return array(correct), array(loss)

  found, expected = search(judge=score)[0], search()[0]
  for name, values in expected.arrays().items():
    np.testing.assert_array_equal(values, found.arrays()[name])


@pytest.mark.parametrize(
  'name, sentence', [('correct', 'nan right answers'), ('loss', 'a loss of nan for subnet 1')]
)
def test_masked_scores_are_refused(name, sentence):
  def score(genomes):
    scores = dict(zip(('correct', 'loss'), Judge()(genomes), strict=True))
    masked = np.ma.array(scores[name], mask=np.arange(len(genomes)) == 1)
    return tuple({**scores, name: masked}.values())

  with pytest.raises(ValueError, match=f'score gave {sentence}'):
    search(judge=score)


def test_genomes_of_another_spec_are_no_beginning_of_a_search():
  with pytest.raises(ValueError, match=f'this model has {len(SPEC)} adapted layers'):
    search(initial=np.zeros((1, 3, 5), np.int8))
  with pytest.raises(ValueError, match='a population is'):
    search(initial=jnp.zeros((len(SPEC), 5), jnp.int8))


@pytest.mark.parametrize(
  'options, sentence',
  [
    ({'score': None}, 'score=None is no function'),
    ({'score': lambda genomes: genomes}, r'it must give the pair \(correct, loss\)'),
    ({'settings': {'population': 4}}, r"settings=\{'population': 4\} is no Evolution"),
    ({'archive': []}, r'archive=\[\] is no Archive'),
    ({'on_generation': 5}, 'on_generation=5 is no function'),
  ],
)
def test_what_is_no_search_is_refused(options, sentence):
  arguments = {'score': Judge(), 'settings': SMALL, **options}
  with pytest.raises(ValueError, match=sentence):
    glora_jax.evolve(SPEC, key=jax.random.key(0), progress=False, **arguments)


@pytest.mark.parametrize(
  'options, sentence',
  [
    ({'adapted': None}, 'adapted=None is no Adapted'),
    ({'preprocess': None}, 'preprocess=None is no function'),
    ({'classes': 'ab'}, "classes='ab' must be True or False for each class"),
    ({'classes': [0, 1]}, r'classes=\[0, 1\] must be True or False for each class'),
    ({'classes': np.zeros(4, bool)}, 'True for one at least'),
    ({'classes': [True, True]}, 'classes has 2 truths, and the model answers with 4'),
    ({'memory': '1GB'}, "memory='1GB' must be a number, or None"),
    ({'mesh': 'x'}, "mesh='x' must be a jax.sharding.Mesh"),
    ({'mesh': jax.make_mesh((1,), ('data',))}, 'The axes data of the mesh must be automatic'),
  ],
)
def test_scorers_of_what_cannot_be_are_refused(options, sentence):
  adapted, variables, genomes, images, labels = problem('mlp', 'up_front')

  def score():
    scorer = glora_jax.make_scorer(**{'adapted': adapted, **options})
    return scorer(variables, genomes, images, labels)

  with pytest.raises(ValueError, match=sentence):
    score()


class TwoOutputs(nn.Module):
  """Logits, and what they were made of."""

  @nn.compact
  def __call__(self, images):
    return nn.Dense(3, name='dense')(images), images


class OfTokens(nn.Module):
  """Logits of every row of an image."""

  @nn.compact
  def __call__(self, images):
    return nn.Dense(3, name='dense')(images[:, None])


@pytest.mark.parametrize(
  'model, given', [(TwoOutputs(), 'a tuple'), (OfTokens(), r'an array \[4, 1, 3\]')]
)
def test_answers_that_are_no_logits_of_images_are_refused(model, given):
  images, labels = jnp.eye(4), jnp.array([0, 1, 2, 0])
  adapted = glora_jax.adapt(model, images)
  variables = adapted.init(jax.random.key(0), model.init(jax.random.key(0), images)['params'])
  genome = glora_jax.preset(adapted.spec, 'lora')
  sentence = f'The model gives {given}, and answers are read off logits'
  with pytest.raises(ValueError, match=sentence):
    glora_jax.score(adapted, variables, genome[None], images, labels)
  with pytest.raises(ValueError, match=sentence):
    scoring.make_predictor(adapted)(variables, genome, images)


def test_functions_among_the_params_are_refused_by_what_compiles():
  images, labels = jnp.eye(4), jnp.array([0, 1, 2, 0])
  params = {'w': jnp.ones((4, 4)), 'activation': jax.nn.relu, 'head': jnp.ones((4, 3))}

  def model(params, images):
    return params['activation'](images @ params['w']) @ params['head']

  adapted = glora_jax.adapt_function(model, params, images)
  variables, key = adapted.init(jax.random.key(0), params), jax.random.key(1)
  genome, recipe = glora_jax.preset(adapted.spec, 'lora'), glora_jax.Recipe(1, 4, warmup_epochs=0)
  subnet = adapted.fix(genome)
  halves = subnet.split(variables)
  loss = glora_jax.subnet_loss(subnet, lambda key, images: images)
  runs = [glora_jax.Training(loss, *halves, key)]
  calls = [
    lambda: glora_jax.score(adapted, variables, genome[None], images, labels),
    lambda: glora_jax.allocate(adapted, variables, loss, [images] * 8, key=key),
    lambda: glora_jax.warm_head(
      adapted, variables, images, labels, recipe, key, preprocess=jnp.asarray
    ),
    lambda: glora_jax.fit(loss, *halves, images, labels, recipe, key),
    lambda: glora_jax.train_many(runs, images, labels, recipe),
  ]
  for call in calls:
    with pytest.raises(ValueError, match='activation, and compiled functions take arrays alone'):
      call()
