"""Calls of the library with wrong values: what the documentation says, or one line."""

import functools
from typing import NamedTuple

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from judging import REFUSED, cases, judged, new_place, same
from spoiling import codes, counts, nasty, near, odd_place, rates
from test_hostile_files import INPUTS, METADATA, SPEC, attached, dense
from trees import randomized

import glora_jax
from glora_jax import Evolution, Layer, Recipe, Sampling, SearchSpace, Spec
from glora_jax.data.augment import Augmentation
from glora_jax.method.draws import check_budget
from glora_jax.models import weights
from glora_jax.models.vit import ViT

SPECS = (
  SPEC,
  Spec((Layer('dense', 4, 3, space=SearchSpace(ranks=(2, 4))),)),
  Spec(tuple(Layer(f'b/{n}', 8, 8, space=SearchSpace(ranks=(1, 2))) for n in range(3))),
)
specs, flags = st.sampled_from(SPECS), st.booleans()
names = st.one_of(
  st.sampled_from([*glora_jax.presets(SPEC), 'nothing', '', 'LORA', 'lora ', 'prompt']),
  st.tuples(
    st.sampled_from(['lora', 'hira', 'ssf', 'x']),
    st.sampled_from(['', ':', ':1', ':2', ':4', ':0', ':-1', ':²', ':' + '9' * 5000]),
    st.sampled_from(['', '@', '@qkv', '@mlp', '@b', '@(', '@x', '@last_half', '@.*']),
  ).map(''.join),
)
alleles = st.sampled_from(['none', 'constant', 'vector', 'lora', 'lora:4', 'lora4', 'x', 0, 2, 99])
patterns = st.sampled_from(['qkv', 'mlp', '.*', 'b/', 'dense', '(', '', 'zzz', 'x' * 3000, 3, '\n'])
forms = st.dictionaries(st.sampled_from(['A', 'B', 'E', 'F', 1]), near(alleles))
ranks = near(st.sampled_from([(4,), (1, 2), [2, 4], 3, (4, 2), (0,), (1.5,), (2, 2), range(1, 4)]))
offers = near(alleles, st.lists(alleles, max_size=3), None, odds=6)
budgets = near(st.sampled_from([None, 0, 1, 40, 100, 1000, 1e3, 10**9, np.int64(50), 40.5, '40']))
spaces = near(st.sampled_from([SearchSpace(), SearchSpace(ranks=(1, 2)), {'.*': 1}, {}]))
selected = near(st.sampled_from([None, 'Dense', 'x', '(', ['Dense'], []]))
images = st.sampled_from([np.ones((2, 4), np.float32)] * 4 + [np.ones((0, 4)), np.ones((3, 4))])
right_labels = [np.array([0, 2])] * 4
odd_labels = [np.array([0, 3]), np.array([-1, 0]), np.array([0.5, 1]), np.zeros(0)]
arrays_of_labels = st.sampled_from([*right_labels, *odd_labels])
labels = near(arrays_of_labels)
models = near(st.sampled_from(['attached'] * 5 + ['plain']), odds=8)
merges = near(st.sampled_from([None, 'lazy', 'up_front']))


class Call(NamedTuple):
  """A function, what draws its keyword arguments, and what asserts that its result is right."""

  function: object
  required: dict
  optional: dict = {}  # noqa: RUF012, nobody changes it
  check: object = lambda result, **arguments: None


def is_genome(genome, spec, number=None, budget=None, **_):
  assert genome.dtype == np.int8
  assert genome.shape[-2:] == (len(spec), 5)
  assert number is None or genome.shape[0] == int(number)
  if check_budget(budget) is not None and genome.size:
    assert np.max(glora_jax.count_params(spec, np.asarray(genome))) <= check_budget(budget)


def genomes(*leading):
  pairs = specs.flatmap(lambda spec: st.tuples(st.just(spec), codes(spec, leading)))
  return {'chosen': pairs}


def count(chosen):
  number = glora_jax.count_params(*chosen)
  assert np.shape(number) == np.shape(chosen[1])[:-2]
  assert np.min(number, initial=0) >= 0
  return number


def to_json(chosen):
  content = glora_jax.genome_to_json(*chosen)
  assert np.array_equal(glora_jax.genome_from_json(chosen[0], content), np.asarray(chosen[1]))
  return content


def adapt(**options):
  return [
    layer.name for layer in glora_jax.adapt(nn.Dense(3, name='Dense'), INPUTS, **options).spec
  ]


def adapt_function(**options):
  params = {'Dense': {'kernel': np.ones((4, 3), np.float32)}}

  def multiply(params, inputs):
    return inputs @ params['Dense']['kernel']

  return [
    layer.name for layer in glora_jax.adapt_function(multiply, params, INPUTS, **options).spec
  ]


def apply(genome, merge):
  adapted, variables = dense()
  output = adapted.apply(variables, INPUTS, genome=genome, merge=merge)
  assert (output.shape, output.dtype) == ((2, 3), np.float32)
  return output


def fold(genome):
  adapted, variables = dense()
  folded = nn.Dense(3).apply({'params': adapted.fold(variables, genome)}, INPUTS)
  assert np.allclose(folded, adapted.apply(variables, INPUTS, genome=genome), atol=1e-5)
  return folded


def init(kernel, bias):
  params = {'kernel': kernel, 'bias': bias}
  return dense()[0].init(jax.random.key(0), {k: v for k, v in params.items() if v is not None})


def evolve(correct, loss, **options):
  """A search among genomes whose score is the number of genes that are none, and something odd."""

  def judge(genomes):
    number = (genomes == 0).sum((1, 2))
    odd = [np.array([shift] * len(number)) for shift in (correct, loss)]
    if any(shift.dtype.kind in 'OU' for shift in odd):
      return tuple(odd)
    return number + odd[0], 100.0 - number + odd[1]

  settings = Evolution(population=4, generations=2, parents=2, mutations=2, crossovers=2)
  key = jax.random.key(0)
  arrays = glora_jax.evolve(SPEC, judge, key, settings, progress=False, **options).arrays()
  is_genome(arrays['genomes'], SPEC, budget=options['budget'])
  assert len({genome.tobytes() for genome in arrays['genomes']}) == len(arrays['genomes'])
  return arrays


@functools.cache
def scorer():
  return glora_jax.make_scorer(dense()[0])


def score(genomes, images, labels):
  scores = [np.asarray(x) for x in scorer()(dense()[1], genomes, images, labels)]
  assert [(x.shape, x.dtype.name) for x in scores] == [
    ((len(genomes),), 'int32'),
    ((len(genomes),), 'float32'),
  ]
  assert (scores[0] <= len(labels)).all()
  return scores


def allocate(number, **options):
  def loss(forward, batch, key):
    return optax.softmax_cross_entropy_with_integer_labels(forward(batch[0]), batch[1]).mean()

  batches = [(INPUTS + index, jnp.array([0, index % 3])) for index in range(number)]
  key = jax.random.key(0)
  found = glora_jax.allocate(*dense(), loss, batches, key=key, progress=False, **options)
  is_genome(found.genome, dense()[0].spec, budget=options.get('budget'))
  return [found.genome, found.count_params()]


def fit(images, labels, **fields):
  def loss(trainable, frozen, images, labels, key):
    return jnp.mean((images @ trainable['slope'] - labels) ** 2), {}

  recipe = Recipe(**{'epochs': 1, 'batch_size': 2, 'warmup_epochs': 0, **fields})
  start, key = {'slope': jnp.zeros(4)}, jax.random.key(0)
  return [glora_jax.fit(loss, start, {}, images, labels, recipe, key, progress=False).trainable]


def nnx_model(kind):
  """The model of a kind; whatever else is drawn is taken for one."""
  kinds = {'attached': nnx.clone(attached()), 'plain': nnx.Linear(4, 3, rngs=nnx.Rngs(0))}
  return kinds.get(kind, kind) if isinstance(kind, str) else kind


def nnx_attach(kind, **options):
  model = nnx_model(kind)
  before = model(INPUTS) if isinstance(model, nnx.Module) else None
  new = glora_jax.nnx.attach(model, INPUTS, **options)
  assert np.allclose(new(INPUTS), before, atol=1e-5)
  return [layer.name for layer in glora_jax.nnx.spec(new)]


def nnx_set_genome(kind, genome):
  model = nnx_model(kind)
  glora_jax.nnx.set_genome(model, genome)
  assert np.array_equal(glora_jax.nnx.get_genome(model), np.asarray(genome))
  assert np.allclose(glora_jax.nnx.fold(model)(INPUTS), model(INPUTS), atol=1e-4)
  return model(INPUTS)


def nnx_fix(kind, genome):
  return glora_jax.nnx.fix(nnx_model(kind), genome)(INPUTS)


def nnx_ask(kind, question):
  return str(getattr(glora_jax.nnx, question)(nnx_model(kind)))


def refit(**sizes):
  images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
  model = ViT(5, patch_size=4, width=12, depth=1, num_heads=2)
  params = randomized(jax.eval_shape(model.init, jax.random.key(0), images)['params'])
  model, params, _ = weights.refit(model, params, METADATA, **sizes)
  return [str(model), params]


def settings(kind):
  """A call that makes settings, each of whose fields may be wrong."""
  fields = {
    name: near(getattr(kind(), name), counts, rates, flags, odds=6)
    for name in kind.__dataclass_fields__
  }
  return Call(kind, {}, fields)


attached_genomes = st.deferred(lambda: codes(glora_jax.nnx.spec(attached())))
QUESTIONS = ['params', 'spec', 'get_genome', 'count_params', 'summary', 'fold']
DENSE = SPECS[1]  # as that of `dense`
CALLS = {
  'preset': Call(glora_jax.preset, {'spec': specs, 'name': near(names, odds=8)}, check=is_genome),
  'preset_label': Call(glora_jax.preset_label, {'spec': specs, 'name': near(names, odds=8)}),
  'check_preset_name': Call(glora_jax.check_preset_name, {'name': near(names, odds=8)}),
  'custom_genome': Call(
    glora_jax.custom_genome,
    {'spec': specs, 'choices': near(st.dictionaries(patterns, near(names, forms)))},
    check=is_genome,
  ),
  'count_params': Call(count, genomes(3)),
  'canonicalize': Call(lambda chosen: glora_jax.canonicalize(*chosen), genomes(2)),
  'genome_to_json': Call(to_json, genomes()),
  'random_genomes': Call(
    lambda **options: glora_jax.random_genomes(np.random.default_rng(0), **options),
    {'spec': specs, 'number': near(counts)},
    {'budget': budgets},
    is_genome,
  ),
  'sample_genome': Call(
    lambda **options: np.asarray(glora_jax.sample_genome(jax.random.key(0), **options)),
    {'spec': specs},
    {'largest': near(rates)},
    is_genome,
  ),
  'SearchSpace': Call(SearchSpace, {}, {'ranks': ranks, **dict.fromkeys('ABCDE', offers)}),
  'Layer': Call(
    Layer,
    {'name': near(patterns), 'in_features': near(counts), 'out_features': near(counts)},
    {'bias': near(flags), 'space': near(SearchSpace())},
  ),
  'Recipe': settings(Recipe),
  'Sampling': settings(Sampling),
  'Evolution': settings(Evolution),
  'Augmentation': settings(Augmentation),
  'init_supports': Call(
    lambda **options: glora_jax.init_supports(jax.random.key(0), **options),
    {'in_features': near(counts), 'out_features': near(counts)},
    {'ranks': ranks, 'bias': near(flags)},
  ),
  'adapt': Call(
    adapt, {}, {'space': spaces, 'select': selected, 'heads': selected, 'convs': near(flags)}
  ),
  'adapt_function': Call(adapt_function, {}, {'space': spaces, 'select': selected}),
  'init': Call(
    init,
    {
      'kernel': near(np.ones((4, 3), np.float32), np.ones((3, 4), np.float32), None),
      'bias': near(np.zeros(3, np.float32), np.zeros(2, np.float32), None),
    },
  ),
  'apply': Call(apply, {'genome': codes(DENSE), 'merge': merges}),
  'fold': Call(fold, {'genome': codes(DENSE)}),
  'summary': Call(lambda genome: dense()[0].summary(genome), {'genome': codes(DENSE)}),
  'evolve': Call(
    evolve,
    {
      'correct': st.sampled_from([0, 0, 0, 1.0, 0.5, np.nan, -100, np.inf, '1', None]),
      'loss': st.sampled_from([0.0, 0.0, 0.0, np.nan, np.inf, -np.inf, '1', 1j]),
      'budget': budgets,
      'initial': st.one_of(st.just(None), codes(SPEC, (2,))),
    },
  ),
  'score': Call(score, {'genomes': codes(DENSE, (2,)), 'images': images, 'labels': labels}),
  'allocate': Call(allocate, {'number': st.sampled_from([4, 4, 1, 0])}, {'budget': budgets}),
  'fit': Call(
    fit,
    {'images': images, 'labels': arrays_of_labels},
    {'epochs': near(counts), 'batch_size': near(counts), 'accumulate': near(counts)},
  ),
  'refit': Call(
    refit, {}, {'num_classes': near(counts), 'image_size': near(4, 8, 12, (8, 16), (8,), 8.0)}
  ),
  'nnx.attach': Call(
    nnx_attach,
    {'kind': near(st.sampled_from(['plain'] * 5 + ['attached']))},
    {'space': spaces, 'select': selected, 'heads': selected},
  ),
  'nnx.set_genome': Call(nnx_set_genome, {'kind': models, 'genome': attached_genomes}),
  'nnx.fix': Call(nnx_fix, {'kind': models, 'genome': attached_genomes}),
  'nnx questions': Call(nnx_ask, {'kind': models, 'question': st.sampled_from(QUESTIONS)}),
}


@pytest.mark.parametrize('name', CALLS)
@cases(0.1)
@given(data=st.data())
def test_a_call_gives_what_it_documents_or_refuses(name, data):
  call = CALLS[name]
  arguments = data.draw(st.fixed_dictionaries(call.required, optional=call.optional))
  result = judged(lambda: call.function(**arguments))
  if result is not REFUSED:
    call.check(result, **arguments)


@cases(0.3)
@given(st.data())
def test_an_adapter_is_saved_at_an_odd_path_or_that_is_refused(data):
  odd = ['x' * 300, 'a\0b', '\udcff', 'ü\n', '', '.', 'no/folder/x', '-', '~', ' ', '/proc/x']
  notes = st.dictionaries(st.sampled_from(['note', 'spec', 'format', 'ü']), nasty, max_size=1)
  adapted, variables = dense()
  genome, metadata = glora_jax.preset(adapted.spec, 'lora'), data.draw(notes)
  with new_place() as place:
    place.work.mkdir()
    name = data.draw(st.sampled_from(['x', 'x', *odd]))
    if name == 'x':
      odd_place(data.draw, place.work / 'x')
    path = f'{place.work}/{name}'

    def attempt():
      glora_jax.save_adapter(path, adapted, variables, genome, **metadata)
      return list(glora_jax.load_adapter(path, adapted, variables['params']))

    result = judged(attempt, place)
    assert result is REFUSED or same(result[1], genome)
