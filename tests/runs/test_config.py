"""Every config of the project loads, is complete, and understands its arguments."""

import dataclasses

import pytest
from absl import flags
from places import CONFIGS, get_config

from glora_jax.data.augment import Augmentation
from glora_jax.method.space import SearchSpace
from glora_jax.runs import command_line, schema, sections
from glora_jax.runs.config import (
  RunSettings,
  check_config,
  default_config,
  parse_arguments,
)
from glora_jax.search.evolution import Evolution
from glora_jax.training.consistency import Consistency
from glora_jax.training.recipe import Recipe
from glora_jax.training.sampling import Sampling


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


@pytest.mark.parametrize(
  'arguments, structure, ranks',
  [
    (('beans',), 'gradient', None),
    (('beans,rank=3',), 'gradient', (1, 2, 3)),
    (('beans,structure=search',), 'search', None),
    (('beans,structure=search,rank=8',), 'search', (8,)),
    (('beans,structure=lora:2@attn',), 'lora:2@attn', None),
  ],
)
def test_a_task_of_ones_own_takes_its_structure_from_a_gradient(arguments, structure, ranks):
  settings = check_config(get_config('own', *arguments))
  assert (settings.structure, settings.space.ranks) == (structure, ranks)
  assert settings.training == settings.supernet


@pytest.mark.parametrize('epochs, warmup', [(4, 0), (12, 1), (20, 10), (100, 10)])
def test_any_number_of_epochs_leaves_something_to_a_task_of_ones_own(epochs, warmup):
  settings = check_config(get_config('own', f'beans,epochs={epochs}'))
  assert settings.training.warmup_epochs == warmup
  assert settings.allocation.shortened(settings.training).epochs == epochs - 3


def test_what_is_said_of_an_allocations_epochs_is_what_the_training_spares():
  settings = check_config(get_config('own', 'beans,epochs=14'))
  recipe = dataclasses.replace(settings.training, warmup_epochs=10)
  spared = settings.allocation.spared(recipe, borrowed=True)
  assert spared == 4 < settings.allocation.epochs(borrowed=True)
  assert recipe.epochs - spared == settings.allocation.shortened(recipe, borrowed=True).epochs


@pytest.mark.parametrize('rank, parts', [(4, 8), (16, 16)])
def test_the_rank_on_offer_can_be_had(rank, parts):
  assert check_config(get_config('own', f'beans,rank={rank}')).allocation.max_rank == parts


def test_a_home_is_found(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'photos').mkdir()
  assert get_config('own', '~/photos').task == f'folder:{tmp_path}/photos'


def test_other_configs_search_and_the_quickstart_shows_the_gradients_structure():
  for name in ('vtab', 'fewshot', 'generalization', 'quickstart', 'compare'):
    assert check_config(get_config(name)).structure == 'search'
  assert 'gradient' in check_config(get_config('quickstart')).presets
  assert 'gradient' in check_config(get_config('compare')).compare.methods


def test_the_defaults_are_those_of_the_settings():
  assert check_config(default_config()) == RunSettings()


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'supernet.learning_rate': float('inf')}, 'supernet.learning_rate=inf must be a finite'),
    ({'supernet.warmup_epochs': 600}, 'supernet: warmup_epochs=600 is more than epochs=500'),
    ({'model.drop_path': 1.0}, r'model.drop_path=1.0 must be at least 0 and below 1\.'),
    ({'model.weights': ''}, "model.weights='' must not be empty: 'embedded', a path"),
    ({'model.unroll': 0}, 'model.unroll=0'),
    ({'model.remat': 'all'}, "model.remat='all' is unknown; it is one of everything_saveable"),
    ({'data.workers': -1}, 'data.workers=-1 must be at least 0 and at most 1024'),
    ({'augment.crop_scale': (0.5, 0.1)}, 'augment: crop_scale'),
    ({'merge': 'late'}, "merge='late' is unknown; it is one of auto, up_front, lazy"),
    ({'presets': ('lora', 'ssf:2')}, r"presets\[1\]='ssf:2': The preset 'ssf:2' has a rank"),
    ({'compare.methods': ('lora@',)}, r"compare.methods\[0\]='lora@': The preset"),
    (
      {'structure': 'lora:2', 'presets': ('gradient',)},
      r"presets=\('gradient',\) has 'gradient', .* and structure='lora:2' is given; leave it out",
    ),
    (
      {'structure': 'gradient', 'watch.profile': 'supernet'},
      "watch.profile='supernet' is no stage .*; give 'head' or 'baselines' or 'training' or None",
    ),
    ({'structure': 'lora', 'watch.profile': 'head'}, "give 'baselines' or 'training' or None"),
    ({'structure': 'linear', 'watch.profile': 'baselines'}, "give 'training' or None"),
    ({'protocol': 'paper', 'watch.profile': 'finetune'}, "watch.profile='finetune' is no stage"),
    ({'finetune.epochs': 0, 'finetune.warmup_epochs': 0, 'watch.profile': 'finetune'}, 'no stage'),
    ({'job': 'compare', 'watch.profile': 'training'}, r"can be traced; give 'search' or None\."),
    (
      {'job': 'compare', 'compare.methods': ('lora',), 'watch.profile': 'search'},
      r'can be traced; give None\.',
    ),
    ({'checkpoint_epochs': 0}, 'checkpoint_epochs=0 must be at least 1'),
    ({'seed': 2**70}, r'seed=1180591620717411303424 must be at least -2147483648 and at most'),
    ({'search.population': 10**9}, 'search.population=1000000000 must be at least 1 and at most 1'),
    ({'search.parents': 0}, r'search.parents=0 must be at least 1\.'),
    ({'finetune.epochs': -1}, r'finetune.epochs=-1 must be at least 0\.'),
    ({'supernet.final_learning_rate': -1.0}, 'supernet.final_learning_rate=-1.0 must be at least'),
    ({'supernet.weight_decay': float('nan')}, 'supernet.weight_decay=nan must be a finite number'),
    ({'compare.rates': ('a',)}, r"compare.rates\[0\]='a' must be a number"),
    ({'compare.rate.lora': float('nan')}, 'compare.rate.lora=nan must be a finite number'),
    ({'compare.seeds': 1001}, 'compare.seeds=1001 must be at least 1 and at most 1000'),
    ({'job': 'compare', 'supernet.epochs': 500, 'seed': 2**32 - 1}, 'leaves no room for the 5'),
    (
      {
        'job': 'compare',
        'supernet.epochs': 10,
        'supernet.warmup_epochs': 8,
        'finetune.epochs': 5,
        'finetune.warmup_epochs': 0,
      },
      r'supernet\.warmup_epochs=8 is more than the 5 epochs that finetune\.epochs=5 leave to the',
    ),
    ({'space.ranks': (0,)}, r'space.ranks\[0\]=0 must be at least 1'),
    ({'model.image_size': 99995}, 'model.image_size=99995 must be at least 1 and at most 4096'),
    ({'distributed.process_id': -1}, 'distributed.process_id=-1 must be at least 0'),
  ],
)
def test_a_value_that_cannot_be_is_refused_before_anything_starts(changes, message):
  config = default_config()
  config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=message):
    check_config(config)


@pytest.mark.parametrize(
  'changes, stages',
  [
    ({}, ('supernet', 'baselines', 'search', 'finetune')),
    ({'presets': ('gradient',)}, ('head', 'supernet', 'baselines', 'search', 'finetune')),
    ({'structure': 'gradient'}, ('head', 'baselines', 'training')),
    ({'job': 'compare'}, ('search',)),
  ],
)
def test_every_stage_of_a_job_can_be_traced(changes, stages):
  config = default_config()
  config.update_from_flattened_dict(changes)
  assert check_config(config).traceable == stages
  for stage in stages:
    config.watch.profile = stage
    check_config(config)


def test_presets_have_ranks_and_places():
  config = default_config()
  config.presets = ('lora:2@qkv', 'hira', 'lora:2@mlp')
  config.compare.methods = ('scale_shift_lora:1', 'finetuning', 'search')
  with config.compare.rate.unlocked():
    config.compare.rate['scale_shift_lora:1'] = 2e-3
  settings = check_config(config)
  assert settings.presets == ('lora:2@qkv', 'hira', 'lora:2@mlp')
  assert settings.compare.rate['scale_shift_lora:1'] == 2e-3
  with config.compare.rate.unlocked():
    config.compare.rate['lorra'] = 2e-3
  with pytest.raises(ValueError, match=r"compare.rate.lorra: The preset 'lorra' is unknown"):
    check_config(config)


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
  'section, ranges',
  [
    (Recipe, sections.RECIPE_RANGES),
    (Sampling, sections.SAMPLING_RANGES),
    (Consistency, sections.CONSISTENCY_RANGES),
    (Evolution, sections.EVOLUTION_RANGES),
    (Augmentation, sections.AUGMENTATION_RANGES),
  ],
)
def test_the_ranges_of_the_help_are_those_that_a_section_checks(section, ranges):
  for name, limits in ranges.items():
    bounds = {
      limits.at_least: lambda bound: bound - 1,
      limits.above: lambda bound: bound,
      limits.at_most: lambda bound: bound + 1,
    }
    for bound, beyond in bounds.items():
      if bound is not None:
        value = beyond(bound)
        with pytest.raises(ValueError, match=name):
          section(**{name: (value, value) if name == 'crop_scale' else value})


def test_the_help_flag_prints_every_field_and_ends(capsys):
  flag = flags.FLAGS[command_line.HELP_CONFIG.name]
  flag.parse('false')
  with pytest.raises(SystemExit):
    flag.parse('true')
  text = capsys.readouterr().out
  for name, setting in schema.walk(RunSettings()):
    assert f'--config.{name}=' in text
    assert setting.help, name


def test_arguments_reach_the_fields():
  config = get_config('vtab', 'cifar100,source=noah,root=/data,rank=2')
  assert (config.data.source, config.data.root, config.space.ranks) == ('noah', '/data', (2,))
  assert get_config('vtab', 'cifar100,root=2024').data.root == '2024'
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


@pytest.mark.parametrize('name', ['beans', 'imagenette/160px-v2', 'sun397/tfds:4.*.*'])
def test_a_data_set_of_tfds_is_named_with_its_configuration_and_version(name):
  assert get_config('own', name).task == f'tfds:{name}'


@pytest.mark.parametrize('images', ['no/such/place', '/photos', '../photos', 'labels.tsv'])
def test_what_is_neither_folder_nor_data_set_is_said(images, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'labels.tsv').touch()
  with pytest.raises(FileNotFoundError, match=f"There is no folder '{images}'"):
    get_config('own', images)


def test_every_number_of_a_config_has_a_range():
  """What has none takes any finite number, which for a rate or a count is hardly ever meant."""
  open_ended = [
    name
    for name, setting in schema.walk(RunSettings())
    if setting.domain.kind in (int, float) and not setting.domain.limits.range()
  ]
  assert open_ended == ['budget']  # `draws.check_budget` refuses what cannot be
