"""Configs in which any value stands in any field: the settings it says, or one line."""

import copy
import re

import hypothesis.strategies as st
import ml_collections
from hypothesis import given
from judging import REFUSED, cases, judged, new_place
from spoiling import NASTY
from tiny_runs import all_fields

from glora_jax.vision.runs.config import check_config, default_config
from glora_jax.vision.runs.fields import by_name, values_of
from glora_jax.vision.runs.workdir import changes_of, read_config, write_config

FIELDS = {field.name: field for field in all_fields()}
DEFAULTS = default_config().to_dict()
SECTIONS = sorted(name for name, value in DEFAULTS.items() if isinstance(value, dict))
TEXTS = ('lora:2@qkv', 'hira@(', 'x.json', '~', 'folder:', 'hf:a/b', '0' * 64)


class Given(ml_collections.ConfigDict):
  """What a config file can return: a config whose values have any type."""

  def __init__(self, values):
    object.__setattr__(self, 'values', values)

  def to_dict(self):
    return copy.deepcopy(self.values)


def value_of(draw, name):
  """A value for a field: any, one at the edges of its range, a text that means something."""
  if name in SECTIONS or draw(st.integers(0, 2)) == 2:
    return draw(st.sampled_from(NASTY))
  edges = [bound + step for bound in FIELDS[name].limits.values() for step in (0, 1, -1)]
  choices = re.findall("'(\\w+)'", FIELDS[name].expected)
  value = draw(st.sampled_from([*edges, *edges, *TEXTS, *choices]))
  return draw(st.sampled_from([value] * 7 + [(value,)]))


def put(values, name, value):
  """Sets a field by its dotted name; nothing where its section is gone."""
  section, _, last = name.rpartition('.')
  values = values[section] if section else values
  if isinstance(values, dict):
    values[last] = value


@cases(2)
@given(st.data())
def test_a_config_is_what_it_says_or_is_refused(data):
  values = copy.deepcopy(DEFAULTS)
  for name in data.draw(st.lists(st.sampled_from([*FIELDS, *SECTIONS]), min_size=1, max_size=2)):
    put(values, name, value_of(data.draw, name))
  if data.draw(st.integers(0, 29)) == 29:
    del values[data.draw(st.sampled_from(sorted(values)))]
  with new_place() as place:
    config = Given(values)
    settings = judged(lambda: check_config(config), place)
    if settings is not REFUSED:
      place.work.mkdir()
      write_config(settings, place.work)
      assert by_name(read_config(place.work)) == values_of(settings)
      assert not changes_of(settings, place.work, values_of(settings))
