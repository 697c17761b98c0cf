"""Which matrices have rows, which are heads, and what is said of all others."""

import ast
import functools
import logging
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from trees import normal

import glora_jax
from glora_jax import SearchSpace
from glora_jax.method import presets
from glora_jax.method.trace.events import (
  CONVOLUTION,
  HEAD,
  ITEM_BY_ITEM,
  LOOKED_UP,
  NO_MODULE,
  NOT_SELECTED,
  TO_WORDS,
)

TOKENS = jnp.zeros((2, 5), int)
X = normal(2, 4)


class Decoder(nn.Module):
  """An embedding, positions, a product without a module, and a layer that gives the outputs."""

  tied: bool = False

  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(8, 4, name='embed')
    x = embed(tokens) + self.param('positions', nn.initializers.normal(), (1, 5, 4))
    x = x + nn.Dense(4, name='fc')(x)
    x = x @ self.param('w', nn.initializers.normal(), (4, 4))
    return embed.attend(x) if self.tied else nn.Dense(8, name='out')(x)


class Two(nn.Module):
  """Two layers, of which the second has a name that contains the first's."""

  last: str = 'fc2'
  residual: bool = False

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(4, name='fc')(x))
    y = jnp.tanh(nn.Dense(4, name=self.last)(x) / 30) * 30
    return x + y if self.residual else nn.log_softmax(y)[:, None]


def uncovered(adapted):
  return {matrix.name: matrix.reason for matrix in adapted.coverage().uncovered}


def rows(adapted):
  return [layer.name for layer in adapted.spec]


@pytest.fixture
def lines(caplog):
  """What is logged, as (level, message)."""
  caplog.set_level(logging.INFO, 'glora_jax')
  return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


def test_every_matrix_is_covered_or_has_a_reason_and_a_share(lines):
  adapted = glora_jax.adapt(Decoder(), TOKENS, heads='out')
  coverage = adapted.coverage()
  assert [matrix.name for matrix in coverage.covered] == ['fc/kernel']
  assert uncovered(adapted) == {
    'embed/embedding': LOOKED_UP,
    'positions': ITEM_BY_ITEM,
    'w': NO_MODULE,
    'out/kernel': HEAD,
  }
  total = 8 * 4 + 5 * 4 + (4 * 4 + 4) + 4 * 4 + (4 * 8 + 8)
  assert coverage.share == pytest.approx(16 / total)
  assert '4 of 5 weight matrices are not adapted (78.1% of parameters)' in str(coverage)
  assert adapted.summary().endswith(str(coverage))
  (_, first), (level, message) = lines()
  assert first.endswith('heads, trained in full: out.')
  assert level == 'WARNING'  # of what might have a row
  assert message.startswith('3 of 5 weight matrices are not adapted (53.1% of parameters): w (')


def test_a_convolution_that_multiplies_matrices_as_patch_embeddings_do_is_still_one(lines):
  def product(x, kernel, *args, **kwargs):
    return x @ kernel[0, 0]

  model = nn.Sequential([nn.Conv(3, (1, 1), conv_general_dilated=product), nn.Dense(2)])
  adapted = glora_jax.adapt(model, jnp.ones((1, 4, 4, 2)), heads=None)
  assert uncovered(adapted) == {'layers_0/kernel': CONVOLUTION}
  assert [level for level, _ in lines()] == ['INFO']


def test_what_is_not_selected_and_a_tied_embedding_are_said():
  model = Decoder(tied=True)
  params = jax.eval_shape(model.init, jax.random.key(0), TOKENS)['params']

  def apply(params, tokens):
    return model.apply({'params': params}, tokens)

  adapted = glora_jax.adapt_function(apply, params, TOKENS, select='^w$')
  assert rows(adapted) == ['w']
  assert uncovered(adapted) == {
    'embed/embedding': f'{LOOKED_UP}, also used in a matmul',
    'positions': ITEM_BY_ITEM,
    'fc/kernel': NOT_SELECTED,
  }


@pytest.mark.parametrize(
  'heads, expected',
  [
    ('fc2', ['fc']),
    ('fc', ['fc2']),  # a name is that name alone
    (['2$', 'nothing'], ['fc']),  # an expression is found wherever it is
    (lambda name: name.endswith('2'), ['fc']),
    ('fc2/kernel', ['fc']),
    (re.compile('FC2', re.IGNORECASE), ['fc']),
    (None, ['fc', 'fc2']),
  ],
)
def test_heads_are_names_paths_expressions_or_a_function(heads, expected):
  adapted = glora_jax.adapt(Two(), X, heads=heads)
  covered = str(adapted.coverage()) == 'all weight matrices are adapted'
  assert covered == (heads is None)
  assert rows(adapted) == expected
  assert {path[0] for path in adapted.places.head_paths} == {'fc', 'fc2'} - set(expected)


def test_compiled_expressions_select_what_their_texts_do_by_their_flags():
  fc = re.compile('^FC$', re.IGNORECASE)
  for select in (fc, [fc], '^fc$'):
    assert rows(glora_jax.adapt(Two(), X, select=select, heads=None)) == ['fc']
  space = {fc: SearchSpace((2,)), 'fc2': SearchSpace((3,))}
  spec = glora_jax.adapt(Two(), X, space=space, heads=None).spec
  assert [layer.space.ranks for layer in spec] == [(2,), (3,)]
  genome = presets.custom_genome(spec, {fc: 'bitfit'})
  assert genome.any(axis=1).tolist() == [True, False]


@pytest.mark.parametrize(
  'name, options, warning',
  [
    ('fc2', {}, "fc2, gets an adapter .* pass heads='fc2'"),
    ('fc2', {'select': 'fc$'}, 'fc2, stays frozen'),
    ('head', {}, None),
    ('score', {}, None),
    ('fc2', {'heads': None}, None),
    ('fc2', {'heads': 'fc2'}, None),
    ('fc2', {'residual': True}, None),  # no classifier
  ],
)
def test_a_last_layer_that_is_no_head_is_said(lines, name, options, warning):
  model = Two(name, options.pop('residual', False))
  glora_jax.adapt(model, X, **options)
  found = [message for level, message in lines() if level == 'WARNING']
  assert len(found) == (warning is not None)
  assert warning is None or re.search(warning, found[0])


@pytest.mark.parametrize('name', ['lm_head', 'output_projection'])
@pytest.mark.parametrize(
  'options, adapted, reason',
  [
    ({}, ['fc'], TO_WORDS),
    ({'heads': None}, ['fc'], TO_WORDS),
    ({'space': SearchSpace()}, ['fc'], TO_WORDS),
    ({'heads': 'lm_head|output'}, ['fc'], HEAD),
    ({'select': ''}, ['fc', None], None),
    ({'select': 'lm_head|output'}, [None], None),
  ],
)
def test_an_output_layer_to_words_is_left_alone_unless_it_is_named(
  lines, name, options, adapted, reason
):
  found = glora_jax.adapt(Two(name), X, **options)
  assert rows(found) == [row or name for row in adapted]
  assert uncovered(found).get(f'{name}/kernel') == reason
  assert 'WARNING' not in dict(lines())


def test_the_default_is_a_lora_of_rank_8_and_a_space_leaves_the_structure_free():
  adapted = glora_jax.adapt(Two('head'), X)
  assert repr(adapted) == repr(glora_jax.adapt(Two('head'), X, structure='lora:8'))
  assert adapted.fix(None).genome is None
  assert glora_jax.adapt(Two('head'), X, space=SearchSpace()).genome is None


class Inner(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(8, name='out')(x)


class Outer(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(3, name='out')(Inner(name='inner')(x))


def of_torch(params, x):
  x = jnp.tanh(x @ params['body.weight'].T)
  return x @ params['classifier.weight'].T + params['classifier.bias']


NAMED_AS_IN_TORCH = {
  'body.weight': jnp.ones((5, 4)),
  'classifier.weight': jnp.ones((3, 5)),
  'classifier.bias': jnp.ones(3),
}


@pytest.mark.parametrize(
  'adapt, trained',
  [
    (functools.partial(glora_jax.adapt, Outer(), X), {'out/kernel', 'out/bias'}),
    (
      functools.partial(glora_jax.adapt_function, of_torch, NAMED_AS_IN_TORCH, jnp.ones((2, 4))),
      {'classifier.weight', 'classifier.bias'},
    ),
  ],
)
def test_the_heads_that_are_advised_are_the_output_layer(adapt, trained, lines):
  adapt()
  [advice] = [message for _, message in lines() if 'is not trained in full' in message]
  heads = ast.literal_eval(advice.split('pass heads=')[1].removesuffix('.'))
  assert {'/'.join(path) for path in adapt(heads=heads).places.head_paths} == trained


def test_no_head_is_advised_where_nothing_else_would_be_left(lines):
  glora_jax.adapt(nn.Dense(3), X)
  assert not [message for level, message in lines() if level == 'WARNING']
