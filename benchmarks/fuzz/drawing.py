"""What hypothesis draws as arguments of calls: mostly right values, and now and then any."""

from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np

import glora_jax
from benchmarks.fuzz.models import SPECS
from benchmarks.fuzz.values import NASTY
from glora_jax import SearchSpace, Spec
from glora_jax.method.draws import random_genomes

EXAMPLES = 4  # drawn for a case, of which the last is taken: the first are the simplest

nasty = st.sampled_from(NASTY)
counts = st.sampled_from([0, 1, 2, 3, 4, 8, 20, np.int64(2), 4.0])
rates = st.sampled_from([0, 0.0, 0.1, 0.5, 1.0, 1e-3, np.float32(0.5), 1 - 1e-12])
flags = st.booleans()
specs = st.sampled_from(SPECS)


def near(valid: st.SearchStrategy, odds: int = 4) -> st.SearchStrategy:
  """Values that are right, but for one of so many."""
  return st.one_of(*[valid] * (odds - 1), nasty)


@st.composite
def codes(draw: Any, spec: Spec, leading: tuple[int, ...] = ()) -> Any:
  """Genomes of a spec, with wrong codes, types, shapes or kinds now and then."""
  rng = np.random.default_rng(draw(st.sampled_from(range(50))))
  population = random_genomes(rng, spec, int(np.prod(leading, initial=1)))
  genome = population.reshape(*leading, len(spec), 5)
  match draw(st.sampled_from(['right'] * 6 + ['code', 'type', 'shape', 'list', 'other', 'more'])):
    case 'code':
      genome[..., 0, draw(st.sampled_from(range(5)))] = draw(st.sampled_from([-1, 9, 127, -128]))
    case 'type':
      types = ['int64', 'uint8', 'float32', 'bool', 'uint64', 'complex64', 'object', 'U3']
      return genome.astype(draw(st.sampled_from(types)))
    case 'shape':
      shapes = [(), (0,), (5,), (1, 5), (2, 4), (0, len(spec), 5), (len(spec), 0), (1, 1, 1, 5)]
      return np.zeros(draw(st.sampled_from(shapes)), np.int8)
    case 'list':
      return genome.tolist()
    case 'other':
      return draw(nasty)
    case 'more':
      return np.stack([genome] * draw(st.sampled_from([1, 2])))
  return genome


@st.composite
def with_genome(draw: Any, leading: tuple[int, ...] = ()) -> dict[str, Any]:
  """A spec and genomes of it, or nearly so."""
  spec = draw(specs)
  return {'spec': spec, 'genome': draw(codes(spec, leading))}


names = st.one_of(
  st.sampled_from([*glora_jax.presets(SPECS[0]), 'nothing', '', 'LORA', 'lora ', 'prompt']),
  st.tuples(
    st.sampled_from(['lora', 'hira', 'ssf', 'x']),
    st.sampled_from(['', ':', ':1', ':2', ':4', ':0', ':-1', ':²', ':' + '9' * 5000]),
    st.sampled_from(['', '@', '@qkv', '@mlp', '@attn', '@b', '@(', '@x', '@last_half', '@.*']),
  ).map(''.join),
)
alleles = st.sampled_from(['none', 'constant', 'vector', 'lora', 'lora:4', 'lora4', 'x', 0, 2, 99])
patterns = st.sampled_from(['qkv', 'mlp', '.*', 'b/', 'dense', '(', '', 'zzz', 'x' * 3000, 3, '\n'])
choices = st.dictionaries(
  patterns,
  near(st.one_of(names, st.dictionaries(st.sampled_from(['A', 'B', 'E', 'F', 1]), near(alleles)))),
  max_size=3,
)
ranks = near(st.sampled_from([(4,), (1, 2), [2, 4], 3, (4, 2), (0,), (1.5,), (2, 2), range(1, 4)]))
offers = near(
  st.one_of(alleles, st.lists(alleles, max_size=3), st.tuples(alleles), st.just(None)), 6
)
spaces = st.fixed_dictionaries(
  {},
  optional={
    'ranks': ranks,
    **dict.fromkeys('ABCDE', offers),
    'tied': near(flags),
    'one_shift': near(flags),
  },
)
budgets = near(st.sampled_from([None, 0, 1, 40, 100, 1000, 1e3, 10**9, np.int64(50), 40.5, '40']))
RIGHT_SPACES = (SearchSpace(), SearchSpace(ranks=(1, 2)), {'.*': 1}, {})


def selection(layer: str) -> dict[str, st.SearchStrategy]:
  """What chooses among the layers of a model, one of which has this name."""
  patterns = [None, layer, 'x', '(', [layer], []]
  return {
    'space': near(st.sampled_from([*RIGHT_SPACES, {layer: SearchSpace()}])),
    'select': near(st.sampled_from(patterns)),
    'heads': near(st.sampled_from([None, *patterns])),
    'ties': near(st.sampled_from([(), [('a', 'b')], [(layer, layer)], [()], ['ab']])),
    'convs': near(flags, 8),
  }


def supports_among(variables: Any, layer: str) -> st.SearchStrategy:
  """Variables of a model with such a layer, or what lacks a part of them or has another one."""
  kernels = [np.zeros((3, 4), np.float32), np.zeros((4, 3), np.int32), None, 'x']
  return near(
    st.one_of(
      st.just(variables),
      st.sampled_from([{}, {'params': {}}, {'glora': {}}, {'params': {}, 'glora': {}}]),
      st.sampled_from(kernels).map(
        lambda kernel: {**variables, 'params': {'kernel': kernel, 'bias': np.zeros(3)}}
      ),
      st.sampled_from([{}, {layer: {}}, {layer: {'A': np.zeros(3)}}, 'x']).map(
        lambda supports: {**variables, 'glora': supports}
      ),
    )
  )


images = st.sampled_from([np.ones((2, 4), np.float32)] * 4 + [np.ones((0, 4)), np.ones((3, 4))])
labels = near(
  st.sampled_from(
    [np.array([0, 2])] * 4 + [np.array([0, 3]), np.array([-1, 0]), np.array([0.5, 1]), np.zeros(0)]
  ),
  8,
)


def drawn_by(strategy: st.SearchStrategy, seed: int) -> Any:
  """What a strategy draws by a seed, whatever was drawn before."""
  drawn: list[Any] = []

  @hypothesis.seed(seed)
  @hypothesis.settings(
    max_examples=EXAMPLES,
    database=None,
    deadline=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  @hypothesis.given(strategy)
  def note(value: Any) -> None:
    drawn.append(value)

  note()
  return drawn[-1]
