"""What scorers, searches and allocations refuse, before anything wrong is believed."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_allocate import allocated, mixed
from test_allocation import random_worth, spec_of
from tiny_models import problem
from toy_search import SMALL, SPEC, Judge

import glora_jax
from glora_jax.search import choice, known, scoring
from glora_jax.search.archive import Archive
from glora_jax.search.errors import NoGradientError, NonFiniteError
from glora_jax.search.evolution import Evolution


def scored(change=lambda p: {}, **options):
  """Scores a problem of which some parts are changed."""
  given = problem('mlp')
  given = {**given._asdict(), **change(given)}
  return scoring.make_scorer(given.pop('adapted'), **options)(*given.values())


def predicted(change=lambda p: {}, **options):
  given = problem('mlp')
  arguments = {'variables': given.variables, 'genome': given.genomes[0], 'images': given.images}
  predict = scoring.make_predictor(given.adapted, **options)
  return predict(*{**arguments, **change(given)}.values())


def one_image(images, key):
  return images[:1]  # of which every image would get the answer


def judge(correct=np.ones(20), loss=np.ones(20)):
  return lambda genomes: (correct, loss)


def evolved(**options):
  options = {'score': Judge(), 'key': jax.random.key(0), 'settings': SMALL, **options}
  return glora_jax.evolve(SPEC, progress=False, **options)


def allocating(**changes):
  """`allocate` with arguments of which some are changed."""
  given = dict(zip(('adapted', 'variables', 'batches'), mixed(), strict=True)) | changes
  return allocated([given.pop(name) for name in ('adapted', 'variables', 'batches')], **given)


def without_gradient(forward, batch, key):
  logits = forward(batch[0])
  return jnp.sqrt(jnp.square(logits - jax.lax.stop_gradient(logits)).sum())  # 0, whatever x is


def with_prior(make, **changes):
  allocating(prior=make(allocating()), **changes)


def with_a_wider_layer(own):
  first, *others = own.spec.layers
  spec = glora_jax.Spec((dataclasses.replace(first, in_features=99), *others))
  return dataclasses.replace(own, spec=spec)


def with_nan(own):
  return dataclasses.replace(own, values=own.values._replace(E_vector=own.values.E_vector * np.nan))


def called(function):
  function()


def known_written(change=lambda values: values, spec=SPEC):
  known.write(os.devnull, spec, [change(random_worth(0, SPEC, positive=True))])


NO_FORM = glora_jax.SearchSpace(A='none', B=('none', 'constant'), C='none', E='none')
ONE = Archive.empty(SPEC).extended(np.ones((1, 4, 5), np.int8), [7], [8.0], 0)
# What is called, with what (a dictionary is keyword arguments), what the sentence names.
CALLS = {
  scored: [
    (lambda p: {'genomes': np.full_like(p.genomes, 99)}, '99'),
    (lambda p: {'genomes': p.genomes[0]}, r'\(2, 5\)'),
    (lambda p: {'labels': p.labels.at[2].set(7)}, 'label 7 of image 2'),
    (lambda p: {'variables': {'params': p.variables['params']}}, "'glora'"),
    ({'classes': np.zeros(4, bool)}, 'True for one at least'),
    ({'mesh': jax.make_mesh((1,), ('data',))}, 'axes data'),
    ({'preprocess': one_image}, r'\[1, 4\] for 23 images'),
  ],
  predicted: [
    (lambda p: {'images': p.images[:0]}, r'\[0, 4, 4, 3\]'),
    ({'preprocess': one_image}, r'\[1, 4\] for 23 images'),
  ],
  with_prior: [
    (lambda own: lambda: [own, 3], 'prior=3'),
    (with_a_wider_layer, '99 x'),
    (with_nan, 'E_vector=.*nan.* finite'),
    ({'make': lambda own: own, 'batches': mixed()[2][:1]}, 'One batch'),
  ],
  evolved: [
    ({'score': lambda genomes: genomes}, r'\(correct, loss\)'),
    ({'score': judge(np.full(20, 0.5))}, 'integers'),
  ],
  known_written: [
    (lambda values: values._replace(C_vector=values.C_vector * np.nan), 'finite numbers'),
    (lambda values: values._replace(B_lora=-values.B_lora), 'at least 0'),
    (lambda values: values._replace(E_vector=np.array(['a'] * len(SPEC))), 'finite numbers'),
    ({'spec': glora_jax.Spec(SPEC.layers[:2])}, '2 layers'),
  ],
  Evolution: [
    ({'mutations': 40}, 'mutations=40'),
  ],
  allocating: [
    ({'variables': {'params': {}, 'glora': {}}}, "'glora'"),
    ({'batches': iter([])}, 'no batches'),
    ({'batches': [(np.array([None]), np.zeros(1, int))]}, 'batch 0 .* dtype=object'),
    ({'batches': lambda: mixed()[2]}, 'batches=.* another iterable'),
    ({'budget': 2}, 'budget=2'),
    ({'loss': lambda forward, batch, key: forward(batch[0])}, 'shape .4, 4.'),
    ({'loss': without_gradient}, 'batch 0'),
  ],
  called: [
    (lambda: known.write(os.devnull, SPEC, []), 'at least one'),
    (lambda: ONE.best(spec=SPEC, budget=0), 'at most 0'),
    (
      lambda: choice.choose(spec_of((4, 8), space=NO_FORM), random_worth(0), 100),
      'none of the forms',
    ),
  ],
}


@pytest.mark.parametrize(
  'call, given, named', [(call, *row) for call, rows in CALLS.items() for row in rows]
)
def test_what_cannot_be_is_refused_by_name(call, given, named):
  with pytest.raises(ValueError, match=named):
    call(**given) if isinstance(given, dict) else call(given)


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
    evolved(score=judge(loss=np.full(20, np.nan)))
