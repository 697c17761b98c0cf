"""Checks by annotation: which values a type accepts, and the line about each that it does not."""

import dataclasses
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any, Literal, NotRequired, TypedDict

import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_refused

from glora_jax.checks import check_path, field, validate, validate_fields
from glora_jax.training.recipe import Recipe


class Row(TypedDict):
  params: int
  accuracy: float | None
  tags: NotRequired[list[str]]


@dataclasses.dataclass(frozen=True)
class Settings:
  """Some fields of every type."""

  steps: int = field(1, least=1)
  rate: float = field(0.5, least=0, below=9)
  sizes: tuple[int, ...] = field((4,), above=0)
  kind: Literal['small', 'large'] = 'small'
  by_name: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
  ready: bool = False
  share: float | None = field(None, most=1)
  name: str = 'run'

  def __post_init__(self):
    validate_fields(self)


WRONG = [
  ('steps', True, 'steps=True must be an integer, at least 1.'),
  ('steps', np.float32(2.5), 'steps=2.5 must be an integer, at least 1.'),
  ('rate', '1', "rate='1' must be a finite number, at least 0, below 9."),
  ('name', b'x', "name=b'x' must be a string."),
  ('sizes', jnp.array([[1, 2]]), 'sizes must be an integer, above 0, got a list.'),
  ('sizes', 'ab', "sizes='ab' must be a tuple (each an integer), above 0."),
  ('kind', 3, "kind=3 must be 'small' or 'large'."),
  ('by_name', {3: 1.0}, 'by_name=3 must be a string.'),
  ('by_name', {'a': 'b'}, "by_name='b' must be a finite number or None."),
  ('share', [0.5], 'share must be a finite number or None, at most 1, got a list.'),
]
INVALID = [
  ('rate', 10**400, f'rate=1{"0" * 79}... must be finite.'),
  ('rate', 9, 'rate=9 must be below 9.'),
  ('steps', 0, 'steps=0 must be at least 1.'),
  ('steps', 10**5000, 'steps=an integer of 16610 bits must be at most 2147483647.'),
  ('sizes', (1, -1), 'sizes=-1 must be above 0.'),
  ('kind', 'huge', "kind='huge' must be 'small' or 'large'."),
  ('by_name', {'a': math.inf}, 'by_name=inf must be finite.'),
  ('share', 1.5, 'share=1.5 must be at most 1.'),
]


@pytest.mark.parametrize(
  'kind, row', [(TypeError, row) for row in WRONG] + [(ValueError, row) for row in INVALID]
)
def test_another_type_is_a_type_error_and_another_value_a_value_error(kind, row):
  name, value, sentence = row
  assert_refused(sentence, lambda: Settings(**{name: value}), kind=kind)


def test_all_wrong_fields_are_said_at_once():
  with pytest.raises(ValueError, match=r'^steps=0 must be .*\nrate=-1 must be at least 0\.$'):
    Settings(steps=0, rate=-1)
  with pytest.raises(TypeError, match=r'^steps=0 must be at least 1\.\nname=None must be a string'):
    Settings(steps=0, name=None)


@pytest.mark.parametrize('array', [np, jnp], ids=['numpy', 'jax'])
def test_scalars_and_arrays_become_pythons_numbers(array):
  settings = Settings(
    steps=array.float32(3),
    rate=array.float32(0.5),
    sizes=array.asarray([1, 2]),
    by_name={'a': None, 'b': jnp.bfloat16(1.5)},
    ready=array.array(True),
    share=array.array(0.25),
  )
  same = Settings(3, 0.5, (1, 2), by_name={'a': None, 'b': 1.5}, ready=True, share=0.25)
  assert repr(settings) == repr(same)
  assert pickle.loads(pickle.dumps(settings)) == settings
  assert hash(Recipe(epochs=array.float32(10))) == hash(Recipe())


@pytest.mark.parametrize(
  'value, kind, sentence',
  [
    ({'a': True}, dict[str, float], 'a=True must be a finite number.'),
    ({'params': 1, 'accuracy': None, 'more': 0}, Row, None),
    ({'params': 1}, Row, 'accuracy is missing.'),
    ({'params': 1, 'accuracy': 0.5, 'tags': [None]}, Row, 'tags=None must be a string.'),
    ([1], Row, 'it must be a dictionary, got a list.'),
    ({'rows': [[1], [1, 'x']]}, dict[str, list[list[int]]], "rows='x' must be an integer."),
    ({'a': [object]}, dict[str, Any], None),
    (2**40, int, None),
  ],
)
def test_json_has_the_shape_of_an_annotation(value, kind, sentence):
  if sentence is None:
    assert validate(value, kind, '') == value
  else:
    assert_refused(sentence, lambda: validate(value, kind, ''))


def test_a_class_is_said_by_name_and_its_instances_are_not_formatted():
  class Endless:
    def __repr__(self):
      raise AssertionError

  validate(len, Callable | None, 'score')
  validate(None, Callable | None, 'score')
  assert_refused('recipe must be a Recipe, got an Endless.', validate, Endless(), Recipe, 'recipe')
  assert_refused(
    'score must be a function, got an Endless.', validate, Endless(), Callable, 'score'
  )
  assert_refused('seed must be an integer, got an Endless.', validate, Endless(), int, 'seed')


@pytest.mark.parametrize('path', [None, b'x', '', 'a\0b'])
def test_no_path_is_refused(path):
  kind = ValueError if isinstance(path, str) else TypeError
  with pytest.raises(kind, match=r'^expected a path'):
    check_path(path)
