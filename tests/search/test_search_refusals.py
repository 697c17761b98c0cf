"""What scorers, searches and allocations refuse, before anything wrong is believed."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_refused
from test_allocate import allocated, mixed
from test_choice import random_scores, spec_of
from tiny_models import problem
from toy_search import SMALL, SPEC, search

import glora_jax
from glora_jax.search import choice, scoring, transfer
from glora_jax.search.errors import NoGradientError, NonFiniteError
from glora_jax.search.evolution import Evolution
from glora_jax.search.transfer import Transfer


def scored(changes=(), loss=None, **options):
  """Scores a problem of which some parts are changed."""
  adapted, variables, genomes, images, labels = {
    **problem('mlp')._asdict(),
    **dict(changes),
  }.values()
  loss = loss or glora_jax.classification()
  return scoring.make_scorer(adapted, loss, **options)(variables, genomes, (images, labels))


def scored_by(*args, **options):
  return scored(loss=glora_jax.classification(*args, **options))


def evolved(score):
  return glora_jax.evolve(SPEC, score, jax.random.key(0), SMALL, progress=False)


def allocating(**changes):
  """`allocate` with arguments of which some are changed."""
  given = dict(zip(('adapted', 'variables', 'batches'), mixed(), strict=True)) | changes
  return allocated([given.pop(name) for name in ('adapted', 'variables', 'batches')], **given)


def without_gradient(forward, batch, key):
  logits = forward(batch[0])
  return jnp.sqrt(jnp.square(logits - jax.lax.stop_gradient(logits)).sum())  # 0, whatever x is


def allocating_label():
  """`allocate` with an iterator, in whose second batch a label is no class."""
  first, (images, labels), *others = mixed()[2]
  batches = iter([first, (images, labels.at[1].set(9)), *others])
  return allocating(loss=glora_jax.classification(), batches=batches)


def with_a_wider_layer():
  own = allocating()
  first, *others = own.spec.layers
  spec = glora_jax.Spec((dataclasses.replace(first, in_features=99), *others))
  return dataclasses.replace(own, spec=spec)


def transfer_written(*losses, spec=SPEC):
  transfer.write(os.devnull, spec, losses)


SCORES = random_scores(0, SPEC, positive=True)
NO_FORM = glora_jax.SearchSpace(A='none', B=('none', 'constant'), C='none', E='none')


@pytest.mark.parametrize(
  'named, call',
  [
    ('99', lambda: scored({'genomes': np.full((7, 2, 5), 99)})),
    ('label 7 of example 0', lambda: scored({'labels': np.full(23, 7)})),
    ('3 values', lambda: scored_by(classes=np.ones(3, bool))),
    ('axes data', lambda: scored(mesh=jax.make_mesh((1,), ('data',)))),
    # Every image would get the answer of the first.
    ('Logits [1, 4]', lambda: scored_by(lambda images, key: images[:1])),
    ('[[23, 4, 4, 3], [22]]', lambda: scored({'labels': np.zeros(22, int)})),
    ('[23, 4]', lambda: scored(loss=lambda forward, batch, key: forward(batch[0]))),
    ("metric 'accuracy'", lambda: evolved(lambda genomes: (None, np.ones(20)))),
    ('prior=3', lambda: allocating(prior=lambda: 3)),
    ('99 x', lambda: allocating(prior=with_a_wider_layer())),
    ('finite', lambda: allocating(prior=Transfer(mixed()[0].spec, SCORES))),
    ('One batch', lambda: allocating(prior=allocating(), batches=mixed()[2][:1])),
    ('(correct, loss)', lambda: evolved(lambda genomes: genomes)),
    ('integers', lambda: evolved(lambda genomes: (np.full(20, 0.5), np.ones(20)))),
    (
      'finite numbers',
      lambda: transfer_written(SCORES._replace(C_vector=SCORES.C_vector * np.nan)),
    ),
    ('2 layers', lambda: transfer_written(SCORES, spec=glora_jax.Spec(SPEC.layers[:2]))),
    ('at least one', transfer_written),
    ('mutations=40', lambda: Evolution(mutations=40)),
    ("'glora'", lambda: allocating(variables={'params': {}, 'glora': {}})),
    ('no batches', lambda: allocating(batches=iter([]))),
    ('data set (tuple), but allocate', lambda: allocating(batches=mixed()[2][0])),
    ('differ in their number of axes', lambda: allocating(batches=[*mixed()[2][0]])),
    ('budget=2 is too small', lambda: allocating(budget=2)),
    ('batch 0', lambda: allocating(loss=without_gradient)),
    ('label 9 of example 1', allocating_label),
    ('at most 0', lambda: search()[0].best(spec=SPEC, budget=0)),
    ('none of the forms', lambda: choice.choose(spec_of((4, 8), space=NO_FORM), SCORES, 100)),
  ],
)
def test_a_search_refuses_what_it_cannot_use(named, call):
  assert_refused(named, call)


def test_what_a_run_may_catch_has_errors_of_its_own():
  adapted, variables, batches = mixed()
  head = jax.tree.map(jnp.zeros_like, variables['params']['head'])
  headless = {**variables, 'params': {**variables['params'], 'head': head}}
  with pytest.raises(NoGradientError):
    allocated((adapted, headless, batches))
  batches = [*batches[:2], (batches[2][0] * jnp.nan, batches[2][1])]
  with pytest.raises(NonFiniteError, match='batch 2'):
    allocated((adapted, variables, batches))
  with pytest.raises(NonFiniteError, match='nan for structure 0'):
    evolved(lambda genomes: (np.ones(20), np.full(20, np.nan)))
