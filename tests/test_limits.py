"""Which values a setting takes: types, ranges, finiteness, choices; the sentence for all others."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glora_jax.limits import MOST_COUNTED, Domain, Limits, check_fields, check_path

RANGES = {'steps': Limits(at_least=1), 'rate': Limits(at_least=0), 'sizes': Limits(above=0)}


@dataclasses.dataclass(frozen=True)
class Settings:
  """A section that checks itself."""

  steps: int = 1
  rate: float = 0.5
  sizes: Sequence[int] = (4,)
  kind: Literal['small', 'large'] = 'small'
  by_name: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
  ready: bool = False
  share: float | None = None

  def __post_init__(self):
    check_fields(self, RANGES)


@pytest.mark.parametrize(
  'fields, sentence',
  [
    ({'steps': 0}, 'steps=0 must be at least 1.'),
    ({'steps': 2**31}, f'steps=2147483648 must be at most {MOST_COUNTED}.'),
    ({'steps': 10**5000}, f'steps=a whole number of 16610 bits must be at most {MOST_COUNTED}.'),
    ({'steps': np.float32(2.5)}, 'steps=2.5 must be a whole number.'),
    ({'steps': np.bool_(True)}, 'steps=True must be a whole number.'),
    ({'rate': np.float32(np.inf)}, 'rate=inf must be a finite number.'),
    ({'rate': 10**400}, f'rate=1{"0" * 79}... must be a finite number.'),
    ({'rate': '1'}, "rate='1' must be a number."),
    ({'sizes': jnp.array([[1, 2]])}, 'sizes[0]=[1, 2] must be a whole number.'),
    ({'sizes': 'ab'}, "sizes='ab' must be a tuple of whole numbers, above 0."),
    ({'sizes': (1, -1)}, 'sizes[1]=-1 must be above 0.'),
    ({'kind': 'huge'}, "kind='huge' is unknown; it is one of small, large."),
    ({'by_name': {'a': math.inf}}, 'by_name.a=inf must be a finite number.'),
    ({'ready': 0}, 'ready=0 must be True or False.'),
    ({'share': '½'}, "share='½' must be a number, or None."),
  ],
)
def test_a_field_that_cannot_be_is_one_sentence(fields, sentence):
  with pytest.raises(ValueError) as caught:
    Settings(**fields)
  assert str(caught.value) == sentence


@pytest.mark.parametrize('array', [np, jnp], ids=['numpy', 'jax'])
def test_scalars_and_arrays_are_python_numbers_once_they_are_taken(array):
  settings = Settings(
    steps=array.float32(3),
    rate=array.float32(0.5),
    sizes=[array.int32(1), 2],
    by_name={'a': None, 'b': jnp.bfloat16(1.5)},
    ready=array.array(True),
    share=array.array(0.25),
  )
  assert repr(settings) == repr(
    Settings(steps=3, rate=0.5, sizes=(1, 2), by_name={'a': None, 'b': 1.5}, ready=True, share=0.25)
  )


@given(
  st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.floats())),
  st.sampled_from([int, float, str, bool, int | None, Sequence[float], tuple[float, float]]),
)
def test_whatever_is_given_is_taken_or_refused_in_one_line(value, annotation):
  domain = Domain.of_annotation(annotation, Limits(at_least=0, at_most=10))
  taken = sentence = None
  try:
    taken = domain.check(value, 'x')
  except ValueError as error:
    sentence = str(error)
  if sentence is None:
    assert taken == (tuple(value) if isinstance(value, list) else value)
    assert domain.check(taken, 'x') == taken
  else:
    assert re.fullmatch(r'x.*\.', sentence)


@pytest.mark.parametrize('path', [None, 3, b'x', [], 1e308, '', 'a\0b'])
def test_what_is_no_path_is_refused(path):
  with pytest.raises(ValueError, match=r'is no path; give a text or a pathlib\.Path'):
    check_path(path)
