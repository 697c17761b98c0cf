"""Every config that comes with the project: it loads, is complete, and understands its arguments."""

import pytest
from conftest import CONFIGS, get_config

from glora_jax.runs.command_line import CONFIG  # noqa: F401, defines the flags
from glora_jax.runs.config import check_config, parse_arguments


@pytest.mark.parametrize(
  'name, arguments, task',
  [
    ('quickstart', (), 'digits'),
    ('vtab', (), 'vtab/cifar100'),
    ('vtab', ('clevr_count,source=noah,root=/data',), 'vtab/clevr_count'),
    ('vtab', ('all',), 'vtab/all'),
    ('fewshot', ('food101,shots=4,seed=1',), 'fewshot/food101/4/1'),
    ('fewshot', ('all',), 'fewshot/all/all/0'),
    ('fewshot', ('all,shots=4,seed=all',), 'fewshot/all/4/all'),
    ('fewshot', ('food101,shots=all',), 'fewshot/food101/all/0'),
    ('generalization', (), 'generalization/all'),
    ('generalization', ('2,source=lists,root=/data',), 'generalization/2'),
    ('own', (str(CONFIGS),), f'folder:{CONFIGS}'),
    ('own', ('x/labels.csv,weights=dinov2-S/14,budget=5000',), 'csv:x/labels.csv'),
    ('own', ('beans',), 'tfds:beans'),
  ],
)
def test_configs_are_complete_and_know_their_task(name, arguments, task):
  config = get_config(name, *arguments)
  check_config(config)
  assert config.task == task


def test_arguments_reach_the_fields():
  config = get_config('vtab', 'cifar100,source=noah,root=/data,rank=2')
  assert (config.data.source, config.data.root, config.space.ranks) == ('noah', '/data', (2,))
  config = get_config('own', 'beans,weights=dinov2-S/14,budget=5000')
  assert (config.model.weights, config.budget) == ('dinov2-S/14', 5000)


@pytest.mark.parametrize(
  'text, message',
  [
    (
      'a,b',
      "'b' in the config's arguments is unknown; NAME=VALUE is expected, with the names rank",
    ),
    ('a,color=3', 'is unknown'),
    ('a,rank=two', 'rank is of type int'),
  ],
)
def test_wrong_arguments_are_explained(text, message):
  with pytest.raises(ValueError, match=message):
    parse_arguments(text, {'rank': 4})


def test_what_is_neither_folder_nor_data_set_is_said():
  with pytest.raises(FileNotFoundError, match="There is no folder 'no/such/place'"):
    get_config('own', 'no/such/place')
