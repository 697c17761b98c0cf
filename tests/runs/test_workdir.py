"""A workdir belongs to one config; an older config's missing fields mean what they meant then."""

import pytest

from glora_jax.files import read_json, write_json
from glora_jax.runs.config import check_config, default_config
from glora_jax.runs.workdir import claim_workdir, read_config


@pytest.fixture
def older(tmp_path):
  """A workdir whose `config.json` lacks fields and a section."""
  claim_workdir(default_config(), str(tmp_path))
  written = read_json(tmp_path / 'config.json')
  del written['consistency'], written['search']['guides'], written['compare']['rate']['prompt']
  write_json(tmp_path / 'config.json', written)
  return str(tmp_path)


def test_a_field_that_an_older_config_lacks_has_the_meaning_that_it_had_then(older):
  before = read_json(f'{older}/config.json')
  claim_workdir(default_config(), older)
  assert read_json(f'{older}/config.json') == before


@pytest.mark.parametrize(
  'name, value, sentence',
  [
    ('search.guides', 2, 'search.guides was 1 and is now 2'),
    ('consistency.sigma', 0.5, 'consistency.sigma was 0.2 and is now 0.5'),
    ('compare.rate.prompt', 0.1, 'compare.rate.prompt was None and is now 0.1'),
    ('seed', 7, 'seed was 42 and is now 7'),
  ],
)
def test_another_meaning_than_that_is_another_config(older, name, value, sentence):
  config = default_config()
  config.update_from_flattened_dict({name: value})
  with pytest.raises(ValueError, match=f'belongs to another config: {sentence}'):
    claim_workdir(config, older)


def test_a_field_that_changes_no_result_may_change(older):
  config = default_config()
  config.watch.profile = 'search'
  config.mesh.devices = 'one'
  claim_workdir(config, older)


def test_open_ranks_are_those_that_older_configs_write_out(older):
  written = read_json(f'{older}/config.json')
  assert written['space']['ranks'] is None
  write_json(f'{older}/config.json', {**written, 'space': {'ranks': [4]}})
  claim_workdir(default_config(), older)
  config = default_config()
  config.space.ranks = (2,)
  with pytest.raises(ValueError, match=r'space.ranks was \[4\] and is now \[2\]'):
    claim_workdir(config, older)


def test_a_field_that_is_gone_is_named(older):
  written = read_json(f'{older}/config.json')
  write_json(f'{older}/config.json', {**written, 'momentum': 0.9})
  with pytest.raises(ValueError, match=r'momentum was 0\.9 and is now None'):
    claim_workdir(default_config(), older)


def test_the_config_of_an_older_workdir_is_read_whole(older):
  written = read_json(f'{older}/config.json')
  written['supernet']['learning_rate'], written['space']['ranks'] = 0.5, [2, 8]
  write_json(f'{older}/config.json', written)
  settings = check_config(read_config(older))
  assert settings.supernet.learning_rate == 0.5
  assert settings.space.ranks == (2, 8)
  assert settings.search.guides == 1
  assert settings.consistency == check_config(default_config()).consistency
