"""Tables that are looked up: adapted like a layer, or by chosen rows, which alone are trained."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import (
  assert_close,
  assert_folds,
  assert_refused,
  assert_trees_close,
  random_params,
  trained_variables,
)
from flax import nnx
from small_models import Decoder, LiveDecoder
from trees import normal, randomized

import glora_jax
from glora_jax import Pool
from glora_jax.files import read_tensors
from glora_jax.method.space import SearchSpace, Spec
from glora_jax.search.choice import rank_limit

V, D = 41, 6
KEY = jax.random.key(0)
TOKENS = jnp.array([[1, 2], [40, 1]])
PARAMS = {'table': normal(V, D), 'w': normal(D, D, seed=1)}
IDS = [40, 1, 7]  # 7 is in no example
MASK = np.isin(np.arange(V), IDS)
DTYPES = 'float32', 'bfloat16'


def tied(params, tokens):
  rows = jax.vmap(jax.vmap(lambda token: params['table'][token]))(tokens)
  return jnp.einsum('btd,vd->vbt', jnp.tanh(rows @ params['w']), params['table'])


def decoded(params, tokens):
  """One token at a time, each a number."""

  def step(state, token):
    state = jnp.tanh((params['table'][token] + state) @ params['w'])
    return state, params['table'] @ state

  return jax.lax.scan(step, jnp.zeros(D), tokens.ravel())[1]


def untied(params, tokens):
  return params['table'][tokens] @ params['w']


def one_hot(params, tokens):
  """A product in place of a lookup, and a lookup."""
  rows = jax.nn.one_hot(tokens, V) @ params['table']
  return rows @ params['w'] + params['table'][tokens]


def turned(params, tokens):
  """Along its second axis, merged where it is used; after a product with it."""
  seen = params['table'] @ jnp.sin(jnp.arange(D) * tokens.sum())
  rows = jax.lax.map(lambda token: params['w'] @ params['table'].T[:, token], tokens.ravel())
  return rows + seen.sum()


def adapt(function, structure='lora:2', embeddings=IDS, **options):
  options = {'structure': structure, 'embeddings': embeddings, **options}
  return glora_jax.adapt_function(function, PARAMS, TOKENS, **options)


def changed_rows(before, after):
  return np.flatnonzero((np.asarray(before) != np.asarray(after)).any(-1)).tolist()


STRUCTURES = ('scale_shift_lora:2', {'': {'A': 'constant', 'B': 'vector'}}, 'full')


@pytest.mark.parametrize(
  'rows, structure, dtype',
  [*((True, each, 'float32') for each in STRUCTURES), *((IDS, 'lora:2', t) for t in DTYPES)],
)
@pytest.mark.parametrize('function', [tied, decoded, turned, one_hot])
def test_a_function_with_supports_is_the_folded_one(function, rows, structure, dtype):
  adapted = adapt(function, structure, rows, scale=3.0)
  params = jax.tree.map(lambda array: array.astype(dtype), PARAMS)
  tolerance = 1e-5 if dtype == 'float32' else 2e-2
  start, variables = adapted.init(KEY, params), trained_variables(adapted, params)
  assert_close(jax.jit(adapted.apply)(start, TOKENS), jax.jit(function)(params, TOKENS))
  assert_folds(adapted, variables, TOKENS, tolerance=tolerance)
  nothing = TOKENS[:0]
  outputs = jax.eval_shape(adapted.apply, variables, nothing)
  assert outputs.shape == jax.eval_shape(function, params, nothing).shape
  if rows is IDS:
    table, added = adapted.fold(variables)['table'], variables['glora']['table']['B_up']
    assert adapted.count_params() == added.size + 2 * (D + D)
    assert changed_rows(params['table'], table) == sorted(IDS)
    assert_close(table[jnp.array(sorted(IDS))], params['table'][MASK] + added, tolerance)


@pytest.mark.parametrize('structure', ['bitfit', 'full', 'linear', {'mlp': 'lora:3'}, None])
def test_a_preset_is_of_the_other_layers_and_the_rows_are_always_trained(structure):
  params = random_params(Decoder(V), TOKENS)
  adapted = glora_jax.adapt(Decoder(V), TOKENS, structure=structure, embeddings=MASK)
  assert [layer.ids for layer in adapted.spec] == [tuple(sorted(IDS)), ()]
  assert 'rows:3' in adapted.summary()
  if structure is None:
    genomes = glora_jax.random_genomes(np.random.default_rng(0), adapted.spec, 3)
    assert (glora_jax.count_params(adapted.spec, genomes) >= len(IDS) * D).all()
    adapted = adapted.fix(genomes[0])
  variables = trained_variables(adapted, params)
  assert_folds(adapted, variables, TOKENS)
  words = params['embed']['embedding'], adapted.fold(variables)['embed']['embedding']
  assert changed_rows(*words) == sorted(IDS)


@pytest.mark.parametrize(
  'structure, rows', [('scale_shift_lora:2', True), ('full', True), ('lora:2', IDS)]
)
def test_an_nnx_model_with_supports_is_the_folded_one(structure, rows):
  live = LiveDecoder(V)
  model = glora_jax.nnx.attach(live, TOKENS, structure=structure, embeddings=rows)
  assert_close(model(TOKENS), live(TOKENS))
  nnx.update(model, randomized(nnx.state(model, glora_jax.nnx.AdapterParam)))
  folded = glora_jax.nnx.fold(model)
  assert_close(nnx.jit(lambda model: model(TOKENS))(model), folded(TOKENS))
  changed = changed_rows(live.embed.embedding, folded.embed.embedding)
  assert changed == sorted(IDS if rows is IDS else range(V))


@pytest.mark.parametrize('rows', [True, IDS], ids=str)
@pytest.mark.parametrize('function', [tied, decoded])
def test_gradients_are_those_of_the_merged_table_and_never_have_its_size(function, rows):
  adapted = adapt(function, embeddings=rows)
  free = adapted.fix(None)
  everything = free.init(KEY, PARAMS)
  trainable, frozen = adapted.split(trained_variables(adapted, PARAMS))
  model = glora_jax.nnx.attach(LiveDecoder(V), TOKENS, structure='lora:2', embeddings=rows)
  graph, adapter, rest = nnx.split(model, glora_jax.nnx.AdapterParam, ...)

  def gradient(run):
    return jax.grad(lambda part: jnp.sin(run(part)).sum())

  def makes_a_table(run, part):
    return re.search(rf':\w+\[({V},{D}|{D},{V})\] =', str(jax.make_jaxpr(run)(part)))

  ours = gradient(lambda part: adapted.apply(adapted.join(part, frozen), TOKENS))
  merged = gradient(lambda part: function(adapted.fold(adapted.join(part, frozen)), TOKENS))
  live = gradient(lambda part: nnx.merge(graph, part, rest)(TOKENS))
  assert_trees_close(jax.jit(ours)(trainable), jax.jit(merged)(trainable), 1e-4)
  assert makes_a_table(merged, trainable)
  assert not makes_a_table(ours, trainable)
  assert not makes_a_table(live, adapter)
  if rows is IDS:
    of_genome = functools.partial(free.apply, everything, TOKENS)
    assert not makes_a_table(lambda genome: of_genome(genome=genome), adapted.genome)


def test_an_allocation_pays_for_the_rows_and_chooses_for_the_other_layers():
  adapted = glora_jax.adapt(Decoder(V), TOKENS, embeddings=[1, 2], space=SearchSpace())
  start = adapted.init(KEY, random_params(Decoder(V), TOKENS))

  def loss(forward, batch, key):
    return (forward(batch) ** 2).mean()

  batches, rows = [TOKENS, TOKENS[::-1]], 2 * D
  found = glora_jax.allocate(adapted, start, loss, batches, budget=rows + D, key=KEY)
  assert found.count_params() == rows + D
  assert found.genome[1].any()
  assert rank_limit(adapted.spec, 48, 2.0) == rank_limit(Spec(adapted.spec.layers[1:]), 48, 2.0)
  options = {'budget': rows, 'key': KEY}
  named = 'the 12 that cannot be left out'
  assert_refused(named, glora_jax.allocate, adapted, start, loss, batches, **options)
  whole = glora_jax.adapt(Decoder(V), TOKENS, embeddings=True, space=SearchSpace())
  start = whole.init(KEY, start['params'])
  assert glora_jax.allocate(whole, start, loss, batches, budget=99, key=KEY).genome[0].any()


@pytest.mark.parametrize('rows', [True, [0, V - 1]], ids=str)
@pytest.mark.parametrize('mode', [{}, {'fill_value': 0.0}, {'mode': 'clip'}])
def test_a_token_beyond_the_table_is_what_it_was_and_harms_no_gradient(mode, rows):
  def function(params, tokens):
    rows = jnp.take(params['table'], tokens + V - 2, axis=0, **{'mode': 'fill', **mode})
    return jnp.where(jnp.isnan(rows), 7.0, rows) @ params['w']

  adapted = adapt(function, embeddings=rows)
  variables = trained_variables(adapted, PARAMS)
  assert_folds(adapted, variables, TOKENS)
  trainable, frozen = adapted.split(variables)
  found = jax.grad(lambda part: adapted.apply(adapted.join(part, frozen), TOKENS).sum())
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(found)(trainable)))


WORDS = {'word': normal(V, D), 'position': normal(5, D), 'mlp': normal(D, D)}


def adapt_two_tables(rows):
  def function(params, tokens):
    return (params['word'][tokens] + params['position'][jnp.arange(tokens.shape[-1])]) @ params[
      'mlp'
    ]

  return glora_jax.adapt_function(function, WORDS, TOKENS, structure='lora:2', embeddings=rows)


def test_of_several_tables_those_that_are_named_are_trained():
  both = adapt_two_tables({'word': jnp.array(IDS), 'pos': [True, False, False, True, False]})
  assert [(layer.name, layer.ids) for layer in both.spec if layer.ids] == [
    ('word', (1, 7, 40)),
    ('position', (0, 3)),
  ]
  assert_folds(both, trained_variables(both, WORDS), TOKENS)
  one = adapt_two_tables({'position': range(2)})
  assert [layer.name for layer in one.spec] == ['position', 'mlp']
  for rows, named in (
    ([1], ('all tables', 'word (41 rows), position (5 rows)')),
    ({'word': [1], 'token': [2]}, 'ids are given for token'),
    ({'position': [1, 5]}, ('ids of position are 0 to 4', 'got 5')),
  ):
    assert_refused(named, adapt_two_tables, rows)


@pytest.mark.parametrize(
  'rows, named',
  [
    ([1, V], f'got {V}'),
    ([-1, 3], 'got -1'),
    ([3, 5, 3], 'got 3'),
    (np.zeros(V, bool), 'got none'),
    ([True, False], 'each of the 41 rows of table'),
    ([1.5], '[1.5] must be a list of integers'),
    (5, 'must be a list of integers'),
    ({}, 'embeddings must be True or False'),
  ],
)
def test_rows_that_a_table_does_not_have_are_refused(rows, named):
  assert_refused(named, adapt, untied, embeddings=rows)


def test_a_table_that_is_not_looked_up_or_is_a_head_has_no_chosen_rows():
  inputs = jnp.ones((1, 4))
  for rows in ([1], True):
    assert_refused('no embedding lookup', glora_jax.adapt, nn.Dense(3), inputs, embeddings=rows)
  assert_refused('can have them are none', adapt, untied, heads='table')


def saved(path, rows, seed=0):
  """Writes a trained adapter of these rows; returns the model and its variables."""
  options = {'structure': 'lora:2', 'embeddings': rows, 'heads': None}
  adapted = glora_jax.adapt(Decoder(V), TOKENS, **options)
  variables = trained_variables(adapted, random_params(Decoder(V), TOKENS))
  variables['glora'] = randomized(variables['glora'], seed)
  glora_jax.save_adapter(path, adapted, variables)
  return adapted, variables


def test_a_file_holds_the_rows_and_goes_onto_a_model_with_the_same_alone(tmp_path):
  path = tmp_path / 'a'
  adapted, variables = saved(path, IDS)
  tensors, content = read_tensors(path, 'adapter')
  assert tensors['glora/embed/embedding/B_up'].shape == (3, D)
  assert content['ids'][0] == sorted(IDS)

  def load(path, **options):
    options = {'structure': str(path), 'embeddings': IDS, 'heads': None, **options}
    model = glora_jax.adapt(Decoder(V), TOKENS, **options)
    return glora_jax.load_adapter(path, model, variables['params'])

  loaded, again = load(path)
  assert_trees_close(loaded.apply(again, TOKENS), adapted.apply(variables, TOKENS))
  assert_refused(
    ('the rows [1, 7, 40] of embed', 'this model [1, 7, 39]'), load, path, embeddings=[1, 7, 39]
  )
  whole = {'embeddings': True, 'structure': 'lora:2'}
  assert_refused('another embeddings=', load, path, **whole)
  assert_refused('the same embeddings=', load, path, embeddings=False)


def test_a_pool_serves_adapters_of_different_rows_in_one_batch(tmp_path):
  tokens = jnp.array([[1, 2, 40], [1, 2, 40], [0, 3, 7], [5, 1, 0], [0, 3, 7]])
  names = ['a', 'b', None, 'b', 'a']
  rows = {'a': [1, 40, 7], 'b': [0, 2]}
  alone = {name: saved(tmp_path / name, ids, seed) for seed, (name, ids) in enumerate(rows.items())}
  adapted, variables = alone['a']
  alone[None] = adapted, {**variables, **adapted.init(KEY, variables['params'])}
  pool = Pool(adapted, variables['params'], slots=3, rank=2)
  for name in rows:
    pool.load(name, tmp_path / name)
  outputs = pool(tokens, names)
  for number, name in enumerate(names):
    model, own = alone[name]
    expected = model.apply(own, tokens[number : number + 1])
    assert_close(outputs[number : number + 1], expected)
  saved(tmp_path / 'many', range(4))
  assert_refused(('4 rows', 'holds 3'), pool.load, 'many', tmp_path / 'many')


def test_a_sum_of_adapters_has_the_rows_of_all(tmp_path):
  first, second, both = (tmp_path / name for name in ('first', 'second', 'both'))
  one, two = (
    adapted.fold(variables)
    for adapted, variables in (saved(first, [1, 40, 7]), saved(second, [0, 7], 1))
  )
  assert glora_jax.combine({first: 0.5, second: -2}, both) == {}
  params = random_params(Decoder(V), TOKENS)
  expected = jax.tree.map(
    lambda base, *folded: base + 0.5 * (folded[0] - base) - 2 * (folded[1] - base), params, one, two
  )
  union = glora_jax.adapt(Decoder(V), TOKENS, embeddings=[0, 1, 7, 40], space=SearchSpace())
  fixed, variables = glora_jax.load_adapter(both, union, params)
  assert_trees_close(fixed.fold(variables), expected)
  glora_jax.combine({first: 0, second: 0}, both)
  fixed, variables = glora_jax.load_adapter(both, union, params)
  assert_trees_close(fixed.fold(variables), params)
  saved(second, True)
  assert_refused('adapt different layers', glora_jax.combine, {first: 1, second: 1}, both)
