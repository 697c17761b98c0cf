"""Settings: which values a field takes, and the line about each that it does not take."""

import math
import pickle
from collections.abc import Mapping
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_refused
from pydantic import Field

from glora_jax.checks import check_path
from glora_jax.training.recipe import Recipe
from glora_jax.vision.settings import (
  FILLED,
  Flag,
  Number,
  Several,
  Text,
  Whole,
  declared,
)


@declared
class Settings:
  """Some fields of every type."""

  steps: Whole = Field(default=1, ge=1, description='steps to take')
  rate: Number = Field(default=0.5, ge=0, lt=9, description='size of a step')
  sizes: Annotated[Several[Annotated[Whole, Field(gt=0)]], FILLED] = (4,)
  kind: Literal['small', 'large'] = 'small'
  by_name: Mapping[Text, Number | None] = Field(default={})
  ready: Flag = False
  share: Number | None = Field(default=None, le=1)
  name: Text = 'run'

  def __post_init__(self):
    if self.steps > 100 * self.rate:
      raise ValueError(f'steps={self.steps} are too many for rate={self.rate}.')


WRONG = [
  ('steps', True, 'steps=True should be a valid integer'),
  ('steps', np.float32(2.5), 'steps=2.5 should be a valid integer'),
  ('rate', 10**400, f'rate=1{"0" * 79}... should be a valid number'),
  ('name', b'x', "name=b'x' should be an instance of str"),
  ('sizes', jnp.array([[1, 2]]), 'sizes[0]=[1, 2] should be a valid integer'),
  ('steps', 0, 'steps=0 should be greater than or equal to 1'),
  ('steps', 10**5000, 'steps=an integer of 16610 bits: it must be at most 2147483647.'),
  ('steps', 51, 'steps=51 are too many for rate=0.5.'),
  ('sizes', (1, -1), 'sizes[1]=-1 should be greater than 0'),
  ('sizes', (), 'sizes=(): it must not be empty.'),
  ('kind', 'huge', "kind='huge' should be 'small' or 'large'"),
  ('by_name', {'a': math.inf}, 'by_name.a=inf should be a finite number'),
  ('colour', 'red', "colour='red' is unknown"),
]


@pytest.mark.parametrize('name, value, sentence', WRONG, ids=[sentence for *_, sentence in WRONG])
def test_a_field_that_cannot_be_is_one_line(name, value, sentence):
  assert_refused(sentence, lambda: Settings(**{name: value}))


@pytest.mark.parametrize('array', [np, jnp], ids=['numpy', 'jax'])
def test_scalars_and_arrays_are_python_numbers_once_they_are_taken(array):
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
  assert hash(Recipe(epochs=array.float32(500))) == hash(Recipe())


@pytest.mark.parametrize('path', [None, b'x', '', 'a\0b'])
def test_what_is_no_path_is_refused(path):
  with pytest.raises(ValueError, match=r'expected a path \(a string or a pathlib\.Path\), got'):
    check_path(path)
