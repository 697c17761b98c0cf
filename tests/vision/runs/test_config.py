"""Every config of the project loads, is complete, and understands its arguments."""

import dataclasses
import importlib.util
import re

import pytest
from places import CONFIGS, get_config
from tiny_runs import all_fields

from glora_jax import main
from glora_jax.errors import UserError
from glora_jax.method.space import SearchSpace
from glora_jax.vision.runs.config import check_config, default_config
from glora_jax.vision.runs.fields import NEEDED
from glora_jax.vision.runs.settings import RunSettings


@pytest.mark.parametrize(
  'name, arguments, task',
  [
    ('quickstart', ('search',), 'digits'),
    ('vtab', ('clevr_count,source=noah,root=/data',), 'vtab/clevr_count'),
    ('fewshot', ('food101,shots=all',), 'fewshot/food101/all/0'),
    ('generalization', ('2,source=lists,root=/data',), 'generalization/2'),
    ('own', (str(CONFIGS),), f'folder:{CONFIGS}'),
    ('own', ('x/labels.csv,weights=dinov2-S/14,budget=5000',), 'csv:x/labels.csv'),
    ('own', ('sun397/tfds:4.*.*',), 'tfds:sun397/tfds:4.*.*'),
  ],
)
def test_configs_are_complete_and_know_their_task(name, arguments, task):
  assert check_config(get_config(name, *arguments)).task == task


@pytest.mark.parametrize('epochs', [4, 20])
def test_a_task_of_ones_own_takes_its_structure_from_a_gradient_for_some_of_any_number_of_epochs(
  epochs,
):
  settings = check_config(get_config('own', f'beans,epochs={epochs}'))
  shortened = settings.allocation.shortened(settings.training)
  assert (settings.structure, shortened.epochs) == ('gradient', epochs - 2)
  assert shortened.warmup * shortened.epochs == pytest.approx(0.1 * epochs)


def test_finetuning_is_the_training_but_for_what_finetune_says():
  config = default_config()
  config.training.update(epochs=40, warmup=0.3, weight_decay=0.5, learning_rate=0.1)
  config.finetune.epochs = 5
  training = check_config(config).training
  expected = dataclasses.replace(training, epochs=5, warmup=0.1)
  assert check_config(config).finetuning == expected
  config.finetune.update(warmup=0.2, learning_rate=0.2)
  expected = dataclasses.replace(expected, warmup=0.2, learning_rate=0.2)
  assert check_config(config).finetuning == expected


def test_the_defaults_are_those_of_the_settings():
  assert check_config(default_config()) == RunSettings()


def test_open_ranks_are_those_of_the_structure():
  config = default_config()
  assert config.space.ranks is None
  space = check_config(config).space
  assert space.search_space() == SearchSpace((4,))
  assert space.search_space('gradient') == SearchSpace.distinct(range(1, 9))
  assert space.search_space('lora:2@qkv') == SearchSpace(tuple(range(1, 9)))
  config.space.ranks = (2, 4)
  space = check_config(config).space
  assert space.search_space().ranks == space.search_space('gradient').ranks == (2, 4)


@pytest.mark.parametrize(
  'flag, names',
  [('--help_config', NEEDED), ('--help_config=all', [name for name, *_ in all_fields()])],
)
def test_the_help_of_the_config_shows_its_fields(flag, names):
  page = main.PAGES[flag]()
  assert sorted(re.findall(r'^  --config\.([\w.]+)=', page, re.M)) == sorted(names)
  assert all(field.meaning for field in all_fields())
  assert page.endswith('--help_config=all shows all fields.') == (flag == '--help_config')


def test_arguments_reach_the_fields():
  config = get_config('vtab', 'cifar100,source=noah,root=2024,rank=2')
  assert (config.data.source, config.data.root, config.space.ranks) == ('noah', '2024', (2,))
  config = get_config('own', '~/x.csv,weights=dinov2-S/14,budget=5000,rank=16')
  assert config.task.startswith('csv:/')
  assert (config.model.weights, config.budget) == ('dinov2-S/14', 5000)
  assert config.allocation.max_rank == 16
  for arguments, ranks in (('rank=3', (1, 2, 3)), ('structure=search,rank=8', (8,))):
    assert get_config('own', f'beans,{arguments}').space.ranks == ranks


def test_every_number_of_a_config_has_a_range():
  fields = [field for field in all_fields() if 'number' in field.expected]
  fields += [field for field in all_fields() if 'integer' in field.expected]
  assert all(field.limits for field in fields)


def test_all_mistakes_of_a_config_are_said_at_once():
  config = default_config()
  config.update_from_flattened_dict({'training.warmup': 3.0, 'sampling.paths': 0, 'budget': -1.0})
  config.search = 3
  config.finetune.momentum = 0.9
  del config.mesh
  with pytest.raises(UserError) as caught:
    check_config(config)
  assert {line.partition(' ')[0] for line in str(caught.value).split('\n')} == {
    'mesh',
    'budget=-1.0',
    'training.warmup=3.0',
    'sampling.paths=0',
    'search=3',
    'finetune.momentum=0.9',
  }


def test_events_without_their_package_are_explained(monkeypatch):
  config = default_config()
  config.watch.tensorboard = True
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ImportError, match='pip install tensorboardX'):
    check_config(config)
