"""Arguments of public calls that cannot be are refused in one sentence before anything is done."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import glora_jax
from glora_jax import Layer, SearchSpace, Spec

INPUTS = jnp.ones((2, 4))
SPEC = Spec((Layer('fc1', 8, 32),))
PARAMS = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}


def adapted_with(**fields):
  return glora_jax.adapt(nn.Dense(3), INPUTS, space=SearchSpace(**fields))


@pytest.fixture(scope='module')
def adapted():
  return adapted_with(ranks=(2, 4))


@pytest.fixture(scope='module')
def variables(adapted):
  return adapted.init(jax.random.key(0), PARAMS)


@pytest.mark.parametrize(
  'space, sentence',
  [
    ((2, 4), r'space=\(2, 4\) must be a SearchSpace'),
    ({}, r'space=\{\} offers nothing'),
    ({'kernel': 4}, "space has 'kernel': 4; it must have a SearchSpace"),
    ({4: SearchSpace()}, 'space has 4: SearchSpace'),
  ],
)
def test_a_space_that_is_none_is_refused(space, sentence):
  with pytest.raises(ValueError, match=sentence):
    glora_jax.adapt(nn.Dense(3), INPUTS, space=space)
  with pytest.raises(ValueError, match='convs=3 must be True or False'):
    glora_jax.adapt(nn.Dense(3), INPUTS, convs=3)


def test_ranks_far_above_every_layer_of_their_space_are_refused():
  with pytest.raises(ValueError, match=r'rank 100000, and no layer with it has more than 4 inputs'):
    adapted_with(ranks=(4, 100_000))
  assert len(adapted_with(ranks=(16,)).spec) == 1


@pytest.mark.parametrize('merge', ['lazzy', 3, 'auto'])
def test_a_way_of_merging_that_is_none_is_refused(adapted, variables, merge):
  genome = glora_jax.preset(adapted.spec, 'lora')
  with pytest.raises(ValueError, match=f"merge={merge!r} is unknown; it is 'up_front' or 'lazy'"):
    adapted.apply(variables, INPUTS, genome=genome, merge=merge)


@pytest.mark.parametrize('fields', [{'ranks': (2, 8)}, {'ranks': (2, 4), 'tied': False}])
def test_variables_of_another_space_are_refused(adapted, fields):
  other = adapted_with(**fields).init(jax.random.key(0), PARAMS)
  genome = glora_jax.preset(adapted.spec, 'bitfit')
  calls = [
    lambda: adapted.apply(other, INPUTS, genome=genome),
    lambda: adapted.fold(other, genome),
    lambda: adapted.fix(genome).apply(other, INPUTS),
  ]
  for call in calls:
    with pytest.raises(ValueError, match=r"supports in variables\['glora'\] are not those"):
      call()


def test_supports_without_axes_are_refused_before_their_ranks_are_read(adapted, variables):
  genome = glora_jax.preset(adapted.spec, 'lora')
  supports = {**variables['glora'], 'A_down': jnp.zeros(())}
  wrong, subnet = {**variables, 'glora': supports}, adapted.fix(genome)
  calls = [
    lambda: adapted.apply(wrong, INPUTS, genome=genome),
    lambda: adapted.fold(wrong, genome),
    lambda: subnet.apply(wrong, INPUTS),
    lambda: subnet.split(wrong),
  ]
  for call in calls:
    with pytest.raises(ValueError, match=r'misshaped: A_down is \(\)'):
      call()


def test_variables_that_lack_a_collection_are_refused(adapted, variables):
  genome = glora_jax.preset(adapted.spec, 'lora')
  for name in ('params', 'glora'):
    fewer = {key: value for key, value in variables.items() if key != name}
    for call in (adapted.split, adapted.fix(genome).split):
      with pytest.raises(ValueError, match=f"The variables have no '{name}'"):
        call(fewer)
  with pytest.raises(ValueError, match='are a list and no dictionary'):
    adapted.split([])
  assert adapted.split({'params': PARAMS}, supports=False)[0] == {'params': {}}


def test_a_population_is_refused_where_one_genome_is_meant(adapted, variables, tmp_path):
  population = np.stack([glora_jax.preset(adapted.spec, 'lora')] * 2)
  file = tmp_path / 'adapter.safetensors'
  calls = [
    lambda: adapted.apply(variables, INPUTS, genome=population),
    lambda: adapted.fold(variables, population),
    lambda: adapted.fix(population),
    lambda: glora_jax.save_adapter(file, adapted, variables, population),
    lambda: glora_jax.genome_to_json(adapted.spec, population),
  ]
  for call in calls:
    with pytest.raises(ValueError, match=r'takes one genome \[1, 5\], not \(2, 1, 5\)'):
      call()
  assert not file.exists()


@pytest.mark.parametrize(
  'choices, sentence',
  [
    ({'(': 'lora'}, r"'\(' is not a regular expression"),
    ({'fc1': 3}, 'fc1=3 must be the name of a preset'),
    (['lora'], r"choices=\['lora'\] must be a dictionary"),
  ],
)
def test_choices_that_are_none_are_refused_by_custom_genome(choices, sentence):
  with pytest.raises(ValueError, match=sentence):
    glora_jax.custom_genome(Spec((Layer('fc1', 8, 32),)), choices)


@pytest.mark.parametrize(
  'make, sentence',
  [
    (lambda: SearchSpace(ranks=1.5), 'ranks=1.5 must be positive integers'),
    (lambda: SearchSpace(ranks=(True,)), r'ranks=\(True,\) must be positive integers'),
    (lambda: SearchSpace(ranks=(10**5000,)), 'ranks=too long to be shown must be positive'),
    (lambda: SearchSpace(A=0.5), 'A=0.5 is not a choice'),
    (lambda: SearchSpace(tied=7), 'tied=7 must be True or False'),
    (lambda: Layer('a', 'x', 2), "in_features='x' must be a whole number"),
    (lambda: Layer('a/b', 0, 2), '^a/b: in_features=0 must be at least 1 and at most 16777216'),
    (lambda: Layer('a', 1, 2, space=4), 'space=4 must be a SearchSpace'),
    (lambda: glora_jax.preset(Spec(()), 3), "3 is no preset's name"),
    (lambda: glora_jax.check_preset_name('lora@\n'), r"'lora@\\n' is no preset's name"),
    (lambda: glora_jax.count_params(Spec(()), 'x'), "The genome 'x' is no table of codes"),
    (lambda: glora_jax.random_genomes(None, Spec(()), 'x'), "number='x' must be a whole number"),
    (lambda: glora_jax.sample_genome(None, Spec(()), 2), 'largest=2 must be at least 0'),
    (lambda: glora_jax.adapt(nn.Dense(3), INPUTS, select=3), 'select=3 must be a regular expr'),
    (lambda: glora_jax.adapt(nn.Dense(3), INPUTS, heads=[3]), r'heads=\[3\] must be a regular'),
    (lambda: glora_jax.adapt(nn.Dense(3), INPUTS, ties=['ab']), r"ties=\['ab'\] must be a list"),
  ],
)
def test_values_of_another_type_are_refused_where_they_come_in(make, sentence):
  with pytest.raises(ValueError, match=sentence):
    make()


def test_metadata_do_not_take_the_place_of_what_an_adapter_says(adapted, variables, tmp_path):
  file = tmp_path / 'adapter.safetensors'
  genome = glora_jax.preset(adapted.spec, 'lora')
  with pytest.raises(ValueError, match="The name 'base' of metadata is taken"):
    glora_jax.save_adapter(file, adapted, variables, genome, base='x')
  assert not file.exists()


def test_what_is_no_spec_is_refused(adapted):
  genome = glora_jax.preset(adapted.spec, 'bitfit')
  calls = [
    lambda spec: glora_jax.preset(spec, 'lora'),
    glora_jax.presets,
    lambda spec: glora_jax.count_params(spec, genome),
    lambda spec: glora_jax.custom_genome(spec, {}),
    lambda spec: glora_jax.random_genomes(np.random.default_rng(0), spec, 1),
    lambda spec: glora_jax.sample_genome(jax.random.key(0), spec),
  ]
  for call in calls:
    with pytest.raises(ValueError, match=r'is a Adapted and no Spec; give adapted\.spec'):
      call(adapted)


@pytest.mark.parametrize('layers', [None, 'ab', (3,), Layer('fc1', 8, 32)])
def test_a_spec_is_of_layers(layers):
  with pytest.raises(ValueError, match=r'^layers=.* must be a tuple of Layers'):
    Spec(layers)


def test_a_traced_genome_is_refused_where_its_codes_are_needed(adapted, variables, tmp_path):
  path = tmp_path / 'adapter.safetensors'
  calls = [
    adapted.count_params,
    adapted.fix,
    adapted.summary,
    lambda genome: glora_jax.canonicalize(adapted.spec, genome),
    lambda genome: glora_jax.save_adapter(path, adapted, variables, genome),
  ]
  for call in calls:
    with pytest.raises(ValueError, match=r'The genome is traced, .* outside of jax\.jit'):
      jax.eval_shape(call, glora_jax.preset(adapted.spec, 'lora'))
  assert not path.exists()


@pytest.mark.parametrize('key', [0, jnp.zeros(3, jnp.uint32), jax.random.split(jax.random.key(0))])
def test_a_key_that_is_none_is_refused(adapted, key):
  for call in (
    lambda: adapted.init(key, PARAMS),
    lambda: glora_jax.sample_genome(key, SPEC),
    lambda: glora_jax.init_supports(key, 3, 2),
  ):
    with pytest.raises(ValueError, match='must be one random key'):
      call()


def test_parameters_of_another_model_or_kind_are_refused(adapted, variables):
  genome = glora_jax.preset(adapted.spec, 'lora')
  whole_numbers = jax.tree.map(lambda value: value.astype(int), PARAMS)
  with pytest.raises(ValueError, match='no floating-point numbers: bias is int32, kernel is int32'):
    adapted.init(jax.random.key(0), whole_numbers)
  for params in (None, {'kernel': PARAMS['kernel'].T}, whole_numbers):
    for apply in (adapted.fix(genome).apply, functools.partial(adapted.apply, genome=genome)):
      with pytest.raises(ValueError, match='These params are not those of the adapted Dense'):
        apply({**variables, 'params': params}, INPUTS)
  for nothing in (None, [1]):
    with pytest.raises(ValueError, match='and no dictionary; pass what init returned'):
      adapted.apply(nothing, INPUTS, genome=genome)
