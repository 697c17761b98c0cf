"""Sections as frozen dataclasses: what is refused, in which sentence, and what the help says."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import pytest

from glora_jax.runs import schema
from glora_jax.runs.schema import field


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """How to step.

  Attributes:
    rate: size of a step,
      in every direction.
    first, second: decay of a moment.
  """

  rate: float = 0.1
  first: float = 0.9
  second: float = 0.99

  def __post_init__(self):
    if self.second < self.first:
      raise ValueError(f'second={self.second} is below first={self.first}.')


@dataclasses.dataclass(frozen=True)
class Settings:
  """Everything."""

  kind: Literal['small', 'large'] = field('small', 'how large')
  steps: int = field(10, 'steps to take', at_least=1)
  share: float | None = field(None, 'share that is dropped', at_least=0, below=1)
  ready: bool = field(False, 'whether all is prepared')
  name: str = field('run', 'what it is called', nonempty=True)
  sizes: Sequence[int] = field((4,), 'sizes on offer', above=0, nonempty=True)
  span: tuple[float, float] = field((0.0, 1.0), 'smallest and largest')
  scales: Mapping[str, float | None] = field({'a': None, 'b': 2.0}, 'scale of each', above=0)
  free: Mapping[str, float] = field({}, 'anything')
  optimizer: Optimizer = Optimizer(rate=0.5)


def values(**changes):
  return {**schema.to_config_dict(Settings()).to_dict(), **changes}


def test_a_config_dict_of_a_section_builds_it_again():
  assert schema.build(Settings, values()) == Settings()
  changed = schema.build(Settings, values(share=0.5, sizes=[2, 8], free={'x': 1.0}))
  assert (changed.share, changed.sizes, changed.free) == (0.5, (2, 8), {'x': 1.0})


@pytest.mark.parametrize(
  'changes, named',
  [
    ({'sizes': (4, 0)}, 'sizes[1]=0'),
    ({'span': (0.0, 1.0, 2.0)}, 'span=(0.0, 1.0, 2.0)'),
    ({'scales': {'a': -1.0, 'b': None}}, 'scales.a=-1.0'),
    ({'scales': {'a': 1.0}}, "'scales.b' is missing"),
    ({'optimizer': 3}, 'optimizer=3'),
    ({'optimizer': {'rate': 1.0, 'first': 0.9, 'second': 0.5}}, 'optimizer: second=0.5'),
    ({'optimizer': {'rate': 1.0, 'third': 1.0}}, "'optimizer.third' is unknown"),
  ],
)
def test_what_cannot_be_is_named(changes, named):
  with pytest.raises(ValueError, match=re.escape(named)):
    schema.build(Settings, values(**changes))


def test_a_config_dict_takes_other_values_of_a_fields_type_alone():
  config = schema.to_config_dict(Settings())
  config.share = 0.25
  config.scales.a = 1
  assert (config.share, config.scales.a) == (0.25, 1.0)
  for section, name, value in ((config, 'share', 'half'), (config, 'steps', 1.5)):
    with pytest.raises(TypeError):
      section[name] = value


def test_the_help_names_every_field_with_default_type_range_and_meaning():
  text = schema.describe(Settings(), prefix='--')
  assert text.startswith('  --kind=small    (one of small, large)\n      how large\n')
  assert (
    '--optimizer.*: How to step.\n\n  --optimizer.rate=0.5    (a number)\n'
    '      size of a step, in every direction.\n'
  ) in text
  for name, _ in schema.walk(Settings()):
    assert f'  --{name}=' in text
