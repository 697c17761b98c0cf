"""Calls of the library that need no file and no training."""

import functools
from typing import Any

import flax.linen as nn
import hypothesis.strategies as st
import jax
import numpy as np

import glora_jax
from benchmarks.fuzz.calling import Call
from benchmarks.fuzz.drawing import (
  RIGHT_SPACES,
  budgets,
  choices,
  codes,
  counts,
  flags,
  images,
  labels,
  names,
  near,
  patterns,
  ranks,
  rates,
  selection,
  spaces,
  specs,
  supports_among,
  with_genome,
)
from benchmarks.fuzz.models import SPECS, dense
from benchmarks.fuzz.oracle import Fault
from glora_jax import Consistency, Evolution, Layer, Recipe, Sampling, SearchSpace
from glora_jax.data.augment import Augmentation
from glora_jax.data.normalization import statistics
from glora_jax.method.draws import check_budget, random_genomes
from glora_jax.runs.config import parse_arguments


def _is_genome(arguments: dict[str, Any], genome: Any) -> None:
  spec = arguments['spec']
  if not isinstance(genome, np.ndarray | jax.Array) or genome.dtype != np.int8:
    raise Fault(f'{type(genome).__name__} in place of int8')
  if genome.shape[-2:] != (len(spec), 5):
    raise Fault(f'it has the shape {genome.shape}, of {len(spec)} layers')
  if not np.array_equal(glora_jax.canonicalize(spec, np.asarray(genome)).shape, genome.shape):
    raise Fault('its canonical genome has another shape')


def _is_within(arguments: dict[str, Any], genomes: Any) -> None:
  _is_genome(arguments, genomes)
  budget = check_budget(arguments.get('budget'))
  if genomes.shape[:1] != (int(arguments['number']),):
    raise Fault(f'{genomes.shape} are not {arguments["number"]}')
  if budget is not None and len(genomes):
    most = glora_jax.count_params(arguments['spec'], genomes).max()
    if most > budget:
      raise Fault(f'{most} parameters of {budget}')


def _is_count(arguments: dict[str, Any], number: Any) -> None:
  if not isinstance(number, int) and getattr(number, 'dtype', None) != np.int64:
    raise Fault(f'{type(number).__name__} in place of an int or int64')
  if np.shape(number) != np.shape(arguments['genome'])[:-2] or np.min(number, initial=0) < 0:
    raise Fault(f'{number} of genomes {np.shape(arguments["genome"])}')


def _survives_json(arguments: dict[str, Any], content: Any) -> None:
  spec = arguments['spec']
  genome = glora_jax.genome_from_json(spec, content)
  if not np.array_equal(genome, np.asarray(arguments['genome'])):
    raise Fault('read back it is another genome')


def _adapted(merge: Any, **options: Any) -> list:
  model = nn.Dense(3, name='Dense')
  adapted = glora_jax.adapt(model, dense().inputs, merge=merge, **options)
  return [layer.name for layer in adapted.spec]


def _adapted_function(split: Any, **options: Any) -> list:
  params = {'Dense': {'kernel': np.ones((4, 3), np.float32)}}
  adapted = glora_jax.adapt_function(_multiply, params, dense().inputs, split=split, **options)
  return [layer.name for layer in adapted.spec]


def _multiply(params: Any, inputs: Any) -> Any:
  return inputs @ params['Dense']['kernel']


def _apply(genome: Any, merge: Any) -> Any:
  adapted, variables, _, inputs = dense()
  return adapted.apply(variables, inputs, genome=genome, merge=merge)


def _is_output(_: dict[str, Any], output: Any) -> None:
  if output.shape != (2, 3) or output.dtype != np.float32:
    raise Fault(f'{output.dtype} {output.shape} in place of float32 (2, 3)')


def _fold(genome: Any) -> Any:
  adapted, variables, _, _ = dense()
  return adapted.fold(variables, genome)


def _fold_is_apply(arguments: dict[str, Any], params: Any) -> None:
  adapted, variables, _, inputs = dense()
  folded = nn.Dense(3).apply({'params': params}, inputs)
  applied = adapted.apply(variables, inputs, genome=arguments['genome'])
  if not np.allclose(folded, applied, atol=1e-5):
    raise Fault('folding gives other answers than applying')


def _split(variables: Any) -> Any:
  return list(dense().adapted.split(variables))


def _evolve(correct: Any, loss: Any, **options: Any) -> dict[str, np.ndarray]:
  """A search in which scores are the number of genes that are none, plus something."""

  def judge(genomes: np.ndarray) -> tuple[Any, Any]:
    number = (genomes == 0).sum((1, 2))
    shifts = [np.array([shift] * len(number)) for shift in (correct, loss)]
    if any(shift.dtype.kind in 'OU' for shift in shifts):
      return tuple(shifts)
    return number + shifts[0], 100.0 - number + shifts[1]

  settings = Evolution(population=4, generations=2, parents=2, mutations=2, crossovers=2)
  archive = glora_jax.evolve(
    SPECS[0], judge, jax.random.key(0), settings, progress=False, **options
  )
  return archive.arrays()


def _is_archive(arguments: dict[str, Any], arrays: Any) -> None:
  params = glora_jax.count_params(SPECS[0], arrays['genomes'])
  budget = check_budget(arguments['budget'])
  if budget is not None and len(params) and params.max() > budget:
    raise Fault(f'{params.max()} parameters of {budget}')
  unique = {genome.tobytes() for genome in arrays['genomes']}
  if len(unique) != len(params):
    raise Fault('a subnet was scored twice')


def _scorer(genomes: Any, images: Any, labels: Any, **options: Any) -> list:
  """Scores; only the smallest programs are compiled, and each once."""
  adapted, variables, _, _ = dense()
  score = (
    _make_scorer(**options) if _hashable(options) else glora_jax.make_scorer(adapted, **options)
  )
  return [np.asarray(value) for value in score(variables, genomes, images, labels)]


@functools.cache
def _make_scorer(**options: Any) -> Any:
  return glora_jax.make_scorer(dense().adapted, **options)


def _hashable(options: dict[str, Any]) -> bool:
  try:
    hash(tuple(options.values()))
  except TypeError:
    return False
  return True


def _are_scores(arguments: dict[str, Any], scores: list) -> None:
  number = len(arguments['genomes'])
  expected = [('int32', (number,)), ('float32', (number,))]
  if [(str(value.dtype), value.shape) for value in scores] != expected:
    raise Fault(f'{scores!r:.200} in place of {expected}')
  if (scores[0] > len(arguments['labels'])).any():
    raise Fault('more right answers than images')


def _settings(kind: type) -> Call:
  """A call that makes settings, each of whose fields may be wrong."""
  defaults = kind()
  optional = {
    name: near(st.one_of(st.just(getattr(defaults, name)), counts, rates, flags), 6)
    for name in kind.__dataclass_fields__
  }
  return Call(kind, st.fixed_dictionaries({}, optional=optional))


def _init_supports(**arguments: Any) -> Any:
  return glora_jax.init_supports(jax.random.key(0), **arguments)


def _random(seed: int, **arguments: Any) -> Any:
  return random_genomes(np.random.default_rng(seed), **arguments)


def _sample(**arguments: Any) -> Any:
  return np.asarray(glora_jax.sample_genome(jax.random.key(0), **arguments))


dense_spec = dense().adapted.spec
CALLS: dict[str, Call] = {
  'preset': Call(
    glora_jax.preset,
    st.fixed_dictionaries({'spec': specs, 'name': near(names, 8)}, optional={'budget': budgets}),
    _is_genome,
    2,
  ),
  'preset_label': Call(
    glora_jax.preset_label, st.fixed_dictionaries({'spec': specs, 'name': near(names, 8)})
  ),
  'check_preset_name': Call(
    glora_jax.check_preset_name, st.fixed_dictionaries({'name': near(names, 8)})
  ),
  'custom_genome': Call(
    glora_jax.custom_genome,
    st.fixed_dictionaries({'spec': specs, 'choices': near(choices, 8)}),
    _is_genome,
    2,
  ),
  'count_params': Call(
    lambda spec, genome: glora_jax.count_params(spec, genome), with_genome((3,)), _is_count
  ),
  'canonicalize': Call(
    lambda spec, genome: glora_jax.canonicalize(spec, genome), with_genome((2,)), _is_genome
  ),
  'genome_to_json': Call(glora_jax.genome_to_json, with_genome(), _survives_json),
  'random_genomes': Call(
    _random,
    st.fixed_dictionaries(
      {'seed': st.sampled_from([0, 1]), 'spec': specs, 'number': near(counts)},
      optional={'budget': budgets},
    ),
    _is_within,
  ),
  'sample_genome': Call(
    _sample,
    st.fixed_dictionaries({'spec': specs}, optional={'largest': near(rates)}),
    _is_genome,
    0.3,
  ),
  'SearchSpace': Call(SearchSpace, spaces, None, 2),
  'SearchSpace.distinct': Call(SearchSpace.distinct, st.fixed_dictionaries({'ranks': ranks})),
  'Layer': Call(
    Layer,
    st.fixed_dictionaries(
      {'name': near(patterns), 'in_features': near(counts), 'out_features': near(counts)},
      optional={'bias': near(flags), 'space': near(st.sampled_from(RIGHT_SPACES[:2]))},
    ),
  ),
  'Recipe': _settings(Recipe),
  'Sampling': _settings(Sampling),
  'Consistency': _settings(Consistency),
  'Evolution': _settings(Evolution),
  'Augmentation': _settings(Augmentation),
  'statistics': Call(
    statistics,
    st.fixed_dictionaries(
      {
        'normalization': near(
          st.sampled_from(['unit', 'clip', ([0.5] * 3, [0.5] * 3), ([0] * 3, [0] * 3), ([1], [1])])
        )
      }
    ),
  ),
  'parse_arguments': Call(
    parse_arguments,
    st.fixed_dictionaries(
      {
        'text': st.lists(
          st.sampled_from(
            ['a', 'rank=4', 'rank=x', 'rank', '=', 'b=1', 'b=', '\0', 'rank=' + '9' * 5000]
          ),
          max_size=4,
        ).map(','.join),
        'defaults': st.just({'rank': 8, 'b': None}),
      }
    ),
  ),
  'adapt': Call(
    _adapted,
    st.fixed_dictionaries(
      {**selection('Dense'), 'merge': near(st.sampled_from(['auto', 'lazy', 'up_front']))}
    ),
    None,
    0.5,
  ),
  'adapt_function': Call(
    _adapted_function,
    st.fixed_dictionaries(
      {**selection('Dense'), 'split': near(st.sampled_from([{}, {'Dense': 0}, {'(': 0}, {'D': 9}]))}
    ),
    None,
    0.5,
  ),
  'apply': Call(
    _apply,
    st.fixed_dictionaries(
      {'genome': codes(dense_spec), 'merge': near(st.sampled_from([None, 'lazy', 'up_front']))}
    ),
    _is_output,
    0.5,
  ),
  'fold': Call(_fold, st.fixed_dictionaries({'genome': codes(dense_spec)}), _fold_is_apply, 0.5),
  'split': Call(
    _split, st.fixed_dictionaries({'variables': supports_among(dense().variables, 'Dense')})
  ),
  'evolve': Call(
    _evolve,
    st.fixed_dictionaries(
      {
        'correct': st.sampled_from([0, 0, 0, 1.0, 0.5, np.nan, -100, np.inf, '1', None]),
        'loss': st.sampled_from([0.0, 0.0, 0.0, np.nan, np.inf, -np.inf, '1', 1j]),
        'budget': budgets,
        'initial': st.one_of(st.just(None), codes(SPECS[0], (2,))),
      }
    ),
    _is_archive,
  ),
  'init_supports': Call(
    _init_supports,
    st.fixed_dictionaries(
      {'in_features': near(counts, 8), 'out_features': near(counts, 8)},
      optional={'ranks': ranks, 'bias': near(flags), 'tied': near(flags)},
    ),
    None,
    0.3,
  ),
  'make_scorer': Call(
    _scorer,
    st.fixed_dictionaries(
      {'genomes': codes(dense_spec, (2,)), 'images': images, 'labels': labels},
      optional={
        'chunk': near(st.sampled_from([None, 1, 2])),
        'block': near(st.sampled_from([2, 256])),
      },
    ),
    _are_scores,
    0.3,
  ),
}
