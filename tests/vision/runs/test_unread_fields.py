"""Fields that are given and do nothing are named, and no others."""

import pytest

from glora_jax.vision.runs import suite
from glora_jax.vision.runs.config import check_config, default_config
from glora_jax.vision.runs.fields import warn_of_unread

TRANSFER = {'structure': 'transfer', 'budget': 900}
RATED = {'suite.structures': ('lora',), 'suite.rate.lora': 1e-3}
LARGE, OTHER = {'training.learning_rate': 8e-3}, {'model.weights': 'dinov2-S/14'}


@pytest.mark.parametrize(
  'fields, given, named',
  [
    # For a job that does not read them.
    ({'structure': 'lora'}, ('training.epochs', 'budget', 'search.mode'), ['search.mode']),
    (TRANSFER, ('allocation.max_rank', 'allocation.head_epochs'), ['allocation.head_epochs']),
    ({}, ('suite.rate.lora', 'suite.prepare'), ['suite.rate.lora']),
    # Rates for another backbone or task.
    ({**LARGE, **OTHER}, ('model.weights',), ['training.learning_rate']),
    ({**LARGE, **OTHER}, ('model.weights', 'training.learning_rate'), []),
    ({**LARGE, **OTHER}, (), []),  # as a config file has them
    ({**LARGE}, ('model.weights',), []),
    ({**RATED, 'task': 'folder:photos'}, ('task',), ['suite.rate']),
    ({**RATED, **OTHER}, ('model.weights', 'suite.rate.lora'), []),
    (RATED, ('task',), []),
  ],
)
def test_what_is_given_and_does_nothing_is_named(fields, given, named, caplog):
  config = default_config()
  config.update_from_flattened_dict(fields)
  settings = check_config(config)
  warn_of_unread(settings, suite.fields_read(settings), given)
  assert [str(record.args[0]) for record in caplog.records] == named
