"""Calls of the library with wrong values: what the documentation says, or one line."""

import functools

import flax.linen as nn
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import assume, given
from judging import REFUSED, cases, judged
from spoiling import NASTY
from test_hostile_files import INPUTS, LORA, METADATA, SPEC, attached, dense, vit

import glora_jax
from glora_jax import Evolution, Layer, Recipe, Sampling, SearchSpace, Spec
from glora_jax.data.augment import Augmentation
from glora_jax.method.draws import check_budget
from glora_jax.models import weights
from glora_jax.nnx import live

KEY = jax.random.key(0)
DENSE = Spec((Layer('Dense', 4, 3, space=SearchSpace(ranks=(2, 4))),))  # as that of `dense`
IMAGES, LABELS = np.ones((2, 4), np.float32), np.array([0, 2])
ODD = (
  *(*NASTY, 2, 4, np.int64(2), 4.0, '40'),
  *('lora:2@qkv', 'lora:0', 'hira@(', 'Dense', '('),
  *((1, 2), (4, 2), (1.5,), range(1, 4), ['Dense'], {'.*': {'A': 'lora'}}, {'(': 'lora'}),
  *(SearchSpace(ranks=(1, 2)), SPEC, nn.Dense(3), np.ones((3, 4)), np.array([0.5, 1])),
  *(LORA - 1, LORA + 9, LORA[0], LORA[None], LORA[:0], LORA[:, :4], LORA.tolist()),
  *(LORA.astype(kind) for kind in ('int64', 'float32', 'bool', 'complex64', 'object', 'U3')),
)


def is_genome(genome, spec=DENSE, number=None, budget=None, **_):
  assert (genome.dtype, genome.shape[-2:]) == (np.int8, (len(spec), 5))
  assert number is None or len(genome) == int(number)
  if check_budget(budget) is not None:
    assert np.max(glora_jax.count_params(spec, genome), initial=0) <= check_budget(budget)


def count(spec, genome):
  number = glora_jax.count_params(spec, genome)
  assert np.shape(number) == np.shape(genome)[:-2]
  return number


def to_json(spec, genome):
  content = glora_jax.genome_to_json(spec, genome)
  assert np.array_equal(glora_jax.genome_from_json(spec, content), np.asarray(genome))
  return content


def fold(genome):
  adapted, variables = dense()
  output = adapted.apply(variables, INPUTS, genome=genome)
  folded = nn.Dense(3).apply({'params': adapted.fold(variables, genome)}, INPUTS)
  assert np.allclose(folded, output, atol=1e-5)
  return [output, adapted.summary(genome)]


def evolve(correct, loss, budget, initial):
  """A search among genomes whose score is the same, and may be something odd."""

  def judge(genomes):
    return np.array([correct] * len(genomes)), np.array([loss] * len(genomes))

  settings = Evolution(population=4, generations=2, parents=2, mutations=2, crossovers=2)
  arrays = glora_jax.evolve(
    SPEC, judge, KEY, settings, budget=budget, initial=initial, progress=False
  ).arrays()
  is_genome(arrays['genomes'], SPEC, budget=budget)
  return arrays


def score(genomes, labels):
  scores = glora_jax.make_scorer(dense()[0])(dense()[1], genomes, IMAGES, labels)
  assert [x.dtype for x in scores] == ['int32', 'float32']
  return [np.asarray(x) for x in scores]


def cloned(model):
  """The attached model where a string stands; whatever else is drawn is taken for one."""
  return nnx.clone(attached()) if isinstance(model, str) else model


def set_genome(model, genome):
  model = cloned(model)
  glora_jax.nnx.set_genome(model, genome)
  assert isinstance(genome, dict) or np.array_equal(live.get_genome(model), np.asarray(genome))
  assert np.allclose(glora_jax.nnx.fold(model)(INPUTS), model(INPUTS), atol=1e-4)
  return [model(INPUTS), glora_jax.nnx.fix(model, genome)(INPUTS)]


def attach(**options):
  model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
  return live.spec(glora_jax.nnx.attach(model, INPUTS, **options))


# A function, and arguments that are right.
SELECTED = {'space': SearchSpace(), 'select': None, 'heads': None}
CALLS = {
  'preset': (glora_jax.preset, {'spec': SPEC, 'name': 'lora'}),
  'count_params': (count, {'spec': DENSE, 'genome': LORA}),
  'genome_to_json': (to_json, {'spec': DENSE, 'genome': LORA}),
  'random_genomes': (
    lambda **options: glora_jax.random_genomes(np.random.default_rng(0), **options),
    {'spec': SPEC, 'number': 3, 'budget': None},
  ),
  'sample_genome': (
    functools.partial(glora_jax.sample_genome, KEY),
    {'spec': SPEC, 'largest': 0.1},
  ),
  'SearchSpace': (SearchSpace, {'ranks': (2, 4), 'A': 'none', 'E': ('none',)}),
  'Layer': (Layer, {'name': 'a', 'in_features': 4, 'out_features': 3, 'space': SearchSpace()}),
  **{kind.__name__: (kind, vars(kind())) for kind in (Recipe, Sampling, Evolution, Augmentation)},
  'adapt': (
    lambda **options: glora_jax.adapt(nn.Dense(3), INPUTS, **options).spec,
    {**SELECTED, 'convs': False, 'structure': {'.*': {'A': 'vector'}}},
  ),
  'init': (
    lambda **params: dense()[0].init(KEY, params),
    {'kernel': np.ones((4, 3), np.float32), 'bias': np.zeros(3, np.float32)},
  ),
  'fold': (fold, {'genome': LORA}),
  'evolve': (evolve, {'correct': 1, 'loss': 0.5, 'budget': None, 'initial': None}),
  'score': (score, {'genomes': LORA[None], 'labels': LABELS}),
  'refit': (
    lambda **sizes: list(weights.refit(*vit(), METADATA, **sizes)[:2]),
    {'num_classes': 5, 'image_size': 12},
  ),
  'nnx.attach': (attach, SELECTED),
  'nnx.set_genome': (set_genome, {'model': '', 'genome': LORA}),
}


@pytest.mark.parametrize('name', CALLS)
@cases(0.12)
@given(data=st.data())
def test_a_call_gives_what_it_documents_or_refuses(name, data):
  function, right = CALLS[name]
  wrong = data.draw(st.lists(st.sampled_from(sorted(right)), max_size=2, unique=True))
  arguments = {**right, **{name: data.draw(st.sampled_from(ODD)) for name in wrong}}
  # What a user's own function raises is no refusal of ours.
  assume(not any(callable(arguments.get(name)) for name in ('select', 'heads')))
  result = judged(lambda: function(**arguments))
  assert wrong or result is not REFUSED
  if getattr(result, 'dtype', None) == np.int8:
    is_genome(result, **arguments)
