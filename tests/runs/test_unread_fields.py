"""Fields that are given and do nothing are named, and no others."""

import pytest
from tiny_runs import stages_of

from glora_jax.runs.config import check_config, default_config
from glora_jax.runs.fields import warn_of_unread
from glora_jax.runs.stage import read_by


def named_by(caplog, fields, given=()):
  """What is named of a config with other values."""
  config = default_config()
  config.update_from_flattened_dict(fields)
  warn_of_unread(check_config(config), read_by(stages_of(config)), given)
  return [str(record.args[0]) for record in caplog.records]


@pytest.mark.parametrize(
  'fields, named',
  [
    ({}, []),
    ({'mesh.fsdp': 4, 'mesh.base': 'sharded'}, []),
    ({'mesh.fsdp': 4}, ['mesh.fsdp']),
    ({'job': 'compare', 'watch.tensorboard': True}, ['watch.tensorboard']),
  ],
)
def test_what_a_config_file_gives_and_does_nothing_is_named(fields, named, caplog):
  assert named_by(caplog, fields) == named


COMPARE = {'job': 'compare'}
KNOWN = {'structure': 'known', 'budget': 900}


@pytest.mark.parametrize(
  'fields, given, unused',
  [
    ({}, ('training.epochs', 'compare.budgets'), ['compare.budgets']),
    ({'structure': 'lora'}, ('training.epochs', 'budget', 'search.mode'), ['search.mode']),
    ({'structure': 'gradient'}, ('allocation.max_rank', 'sampling.largest'), ['sampling.largest']),
    (KNOWN, ('allocation.max_rank', 'allocation.head_epochs'), ['allocation.head_epochs']),
    ({'protocol': 'paper'}, ('finetune.epochs', 'search.mode'), ['finetune.epochs']),
    (COMPARE, ('compare.rate.lora', 'compare.rates', 'budget'), ['budget']),
    (
      {**COMPARE, 'compare.methods': ('lora', 'search')},
      ('search.mode', 'sampling.largest', 'training.epochs', 'allocation.max_rank'),
      ['allocation.max_rank'],
    ),
    (
      {**COMPARE, 'compare.methods': ('lora',), 'compare.rate.lora': 1e-3},
      ('compare.rates', 'finetune.learning_rate'),
      ['compare.rates', 'finetune.learning_rate'],
    ),
  ],
)
def test_what_a_command_line_gives_and_a_job_does_not_read_is_named(fields, given, unused, caplog):
  assert named_by(caplog, fields, given) == unused


LARGE, OTHER = {'training.learning_rate': 8e-3}, {'model.weights': 'dinov2-S/14'}
RATED = {**COMPARE, 'compare.rate.lora': 1e-3}


@pytest.mark.parametrize(
  'fields, given, named',
  [
    ({**LARGE, **OTHER}, ('model.weights',), ['training.learning_rate']),
    ({**LARGE, **OTHER}, ('model.weights', 'training.learning_rate'), []),
    ({**LARGE, **OTHER}, (), []),  # as a config file has them
    (LARGE, ('model.weights',), []),
    (OTHER, ('model.weights',), []),
    ({**RATED, 'task': 'folder:photos'}, ('task',), ['compare.rate']),
    ({**RATED, **OTHER}, ('model.weights',), ['compare.rate']),
    ({**RATED, **OTHER}, ('model.weights', 'compare.rate.lora'), []),
    ({**COMPARE, **OTHER}, ('model.weights',), []),
    (RATED, ('task',), []),
  ],
)
def test_rates_for_another_backbone_or_task_are_named(fields, given, named, caplog):
  assert named_by(caplog, fields, given) == named
