"""Configs in which any value stands in any field: the settings it says, or one line."""

import copy
import json

import hypothesis.strategies as st
import ml_collections
import pytest
from hypothesis import given
from judging import REFUSED, cases, judged, new_place
from spoiling import NASTY, damaged
from test_hostile_images import PNG, write_classes

from glora_jax.runs import comparison, experiment
from glora_jax.runs.config import RunSettings, check_config, default_config
from glora_jax.runs.schema import walk
from glora_jax.runs.workdir import Stopped, changes_of, claim_workdir, read_config

FIELDS = dict(walk(RunSettings()))
DEFAULTS = default_config().to_dict()
SECTIONS = sorted(name for name, value in DEFAULTS.items() if isinstance(value, dict))
TEXTS = (
  *('search', 'gradient', 'lora', 'lora:2@qkv', 'lora:0', 'lora:9' * 40, 'hira@(', 'lora@', '@'),
  *('linear', 'x.json', '/', '.', '..', '~', 'digits', 'folder:', 'csv:', 'vtab/all', 'hf:a/b'),
  *('https://', 'embedded', 'train', 'loss', '0' * 64),
)
# What is only refused, or only means something, beside a model and images.
STARTS = {
  'model.image_size': (1, 3, 7, 9, 64, 4096),
  'model.patch_size': (1, 3, 8, 4096),
  'model.num_heads': (1, 3, 7, 4096),
  'model.activation': ('gelu_tanh', 'quick_gelu'),
  'model.weights': ('hf:', 'http://x', 'gs://', '/', '.', '/dev/null', '~', '\0', 'x' * 300),
  'model.sha256': ('0' * 64,),
  'space.ranks': ((1, 2, 3), (17,), (4, 2), (1, 1), (10**6,)),
  'budget': (0, 1, 1e15, 1.5, 200),
  'supernet.accumulate': (2, 16, 7),
  'supernet.batch_size': (1, 3, 5000),
  'finetune.batch_size': (1, 5000),
  'data.dir': ('/proc', '/dev/null', '\0', '~nouser'),
  'data.max_resident': (0, 1, 2**62),
  'data.cache': ('/proc/x', '/dev/null', '\0'),
  'task': ('folder:', 'folder:/no', 'csv:/dev/null', 'vtab/', 'no', ' ', 'folder:\0'),
  'presets': (('lora:2@qkv', 'lora:2@qkv'), ('gradient',), ('lora@no',)),
  'structure': ('gradient', 'linear', 'lora:2@no', 'lora:4', '/etc/passwd.json', 'x.json', 'full'),
  'mesh.devices': ('one',),
  'mesh.base': ('sharded',),
  'search.population': (10**6,),
  'augment.shift': (4, 8, 10**5),
  'job': ('compare',),
  'compare.methods': (('lora',), ('search', 'lora:4'), ('gradient',)),
  'compare.budgets': ((100,), (0,), (10**9,), (2, 1)),
}


class Given:
  """What a config file can return: a config whose values have any type."""

  def __init__(self, values):
    self.values = values

  def to_dict(self):
    return copy.deepcopy(self.values)

  def to_json(self, json_encoder_cls=None):
    return json.dumps(self.values, cls=json_encoder_cls)


def value_of(draw, name):
  """A value for a field: any, one at the edges of its range, a text that means something."""
  if name in SECTIONS or draw(st.integers(0, 2)) == 2:
    return draw(st.sampled_from(NASTY))
  limits = FIELDS[name].domain.limits
  bounds = (limits.at_least, limits.at_most, limits.above, limits.below)
  edges = [bound + step for bound in bounds if bound is not None for step in (0, 1, -1, 1e-9)]
  value = draw(st.sampled_from([*edges, *edges, *TEXTS, *limits.choices]))
  return draw(st.sampled_from([value] * 7 + [(value,), [value, value], {'a': value}]))


def put(values, name, value):
  """Sets a field by its dotted name; nothing where its section is gone."""
  *sections, last = name.split('.')
  for section in sections:
    values = values[section]
    if not isinstance(values, dict):
      return
  values[last] = value


@cases(2)
@given(st.data())
def test_a_config_is_what_it_says_or_is_refused(data):
  values = copy.deepcopy(DEFAULTS)
  for _ in range(data.draw(st.integers(1, 2))):
    name = data.draw(st.sampled_from([*FIELDS, *SECTIONS]))
    put(values, name, value_of(data.draw, name))
  if data.draw(st.integers(0, 29)) == 29:
    del values[data.draw(st.sampled_from(sorted(values)))]
  with new_place() as place:
    config = Given(values)
    settings = judged(lambda: check_config(config), place)
    if settings is not REFUSED:
      assert check_config(Given(dict(reversed(values.items())))) == settings
      place.work.mkdir()
      claim_workdir(config, str(place.work))
      assert check_config(read_config(str(place.work))) == settings
      assert not changes_of(config, str(place.work))


def small_config(photos, backbone):
  config = default_config()
  config.task, config.model.weights, config.budget = f'folder:{photos}', backbone, 1000
  config.supernet.update(epochs=6, warmup_epochs=1, batch_size=4)
  config.search.update(population=4, generations=2, parents=2, mutations=2, crossovers=2)
  config.finetune.update(epochs=1, warmup_epochs=0, batch_size=4)
  config.training.update(epochs=6, warmup_epochs=1, batch_size=4)
  return config


@pytest.mark.slow
@cases(0.15, shrinks=False)
@given(data=st.data())
def test_a_run_starts_or_is_refused_before_its_first_stage(data, backbone):
  with new_place() as place:
    photos = place.given / 'photos'
    write_classes(photos)
    if data.draw(st.integers(0, 19)) == 19:
      (photos / 'a' / '0.png').write_bytes(data.draw(damaged(PNG)))
    values = small_config(photos, backbone).to_dict()
    for name in data.draw(st.lists(st.sampled_from(sorted(STARTS)), min_size=1, max_size=3)):
      put(values, name, data.draw(st.sampled_from(STARTS[name])))
    config = ml_collections.ConfigDict(values)
    run = comparison.run if config.job == 'compare' else experiment.run

    def attempt():
      try:
        run(config, str(place.work), lambda: True)
      except Stopped:
        return (place.work / 'config.json').read_text()
      raise AssertionError('it was asked to stop, and went on')

    if judged(attempt, place) is not REFUSED:
      assert check_config(read_config(str(place.work))) == check_config(config)
