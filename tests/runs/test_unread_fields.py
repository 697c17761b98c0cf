"""Fields that are given and do nothing are named, and no others."""

import pytest

from glora_jax.runs.config import check_config, default_config
from glora_jax.runs.used_fields import warn_of_unread, warn_of_unused


@pytest.mark.parametrize(
  'fields, sentences',
  [
    ({}, []),
    ({'mesh.fsdp': 4, 'mesh.base': 'sharded'}, []),
    (
      {'mesh.fsdp': 4},
      [
        "mesh.fsdp=4 does nothing in a run of structure='search': mesh.base='replicated' keeps the "
        "weights whole; give 'sharded'.",
      ],
    ),
    (
      {'job': 'compare', 'suite.settings': {'digits': {'budget': 5}}},
      [
        "suite.settings={'digits': {'budget': 5}} does nothing in a comparison: it is of a task "
        "that stands for several, as 'vtab/all'.",
      ],
    ),
  ],
)
def test_what_is_given_and_does_nothing_is_named(fields, sentences, caplog):
  config = default_config()
  settings = fields.pop('suite.settings', {})
  config.update_from_flattened_dict(fields)
  config.suite.settings = settings
  warn_of_unread(check_config(config))
  assert [record.getMessage() for record in caplog.records] == sentences


@pytest.mark.parametrize(
  'fields, given, unused',
  [
    ({}, ('supernet.epochs', 'search.mode', 'finetune.on', 'watch.profile'), ()),
    ({}, ('training.epochs', 'allocation.folds'), ('training.epochs', 'allocation.folds')),
    ({'presets': ('gradient',)}, ('allocation.folds',), ()),
    ({'structure': 'lora'}, ('training.epochs', 'budget', 'supernet.epochs'), ('supernet.epochs',)),
    ({'structure': 'gradient'}, ('allocation.folds', 'sampling.largest'), ('sampling.largest',)),
    ({'protocol': 'paper'}, ('finetune.epochs', 'search.mode'), ('finetune.epochs',)),
    (
      {'job': 'compare'},
      ('compare.rate.lora', 'compare.budgets', 'compare.rates', 'training.epochs'),
      ('training.epochs',),
    ),
    (
      {'job': 'compare', 'compare.methods': ('lora', 'search')},
      ('search.mode', 'sampling.largest', 'finetune.epochs', 'supernet.epochs', 'allocation.folds'),
      ('allocation.folds',),
    ),
    (
      {'job': 'compare', 'compare.methods': ('lora', 'gradient')},
      ('search.mode', 'sampling.largest', 'finetune.epochs', 'supernet.epochs', 'allocation.folds'),
      ('search.mode', 'sampling.largest', 'finetune.epochs'),
    ),
  ],
)
def test_what_a_command_line_gives_and_a_job_does_not_read_is_named(fields, given, unused, caplog):
  config = default_config()
  config.update_from_flattened_dict(fields)
  warn_of_unused(check_config(config), given)
  assert [record.args[0] for record in caplog.records] == list(unused)


@pytest.mark.parametrize(
  'fields, given, job',
  [
    ({'protocol': 'paper'}, 'finetune.epochs', "a run of protocol='paper'"),
    ({'protocol': 'paper'}, 'training.epochs', "a run of structure='search'"),
    (
      {'job': 'compare', 'compare.methods': ('lora',)},
      'search.mode',
      "a comparison without the method 'search'",
    ),
    ({'job': 'compare'}, 'training.epochs', 'a comparison'),
    ({'compare.methods': ('lora',)}, 'compare.budgets', "a run of structure='search'"),
    (
      {'job': 'compare', 'compare.methods': ('lora', 'ssf')},
      'compare.budgets',
      'a comparison of methods that fill no budget',
    ),
    (
      {'job': 'compare', 'compare.methods': ('lora',), 'compare.rate.lora': 1e-3},
      'compare.rates',
      'a comparison of methods that have a learning rate each',
    ),
  ],
)
def test_the_sentence_says_what_about_the_job_leaves_a_field_unread(fields, given, job, caplog):
  config = default_config()
  config.update_from_flattened_dict(fields)
  warn_of_unused(check_config(config), [given])
  assert caplog.messages == [f'--config.{given} does nothing in {job}, which does not read it.']


def test_a_field_that_is_named_as_unread_is_not_named_again(caplog):
  config = default_config()
  config.job, config.compare.methods, config.finetune.learning_rate = 'compare', ('lora',), 0.5
  warn_of_unread(check_config(config))
  warn_of_unused(check_config(config), ['finetune.learning_rate'])
  assert len(caplog.messages) == 1
