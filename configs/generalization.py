"""Domain generalization: 16 images of each ImageNet class to train on, five test sets.

  python -m glora_jax.main --config configs/generalization.py
  python -m glora_jax.main --config configs/generalization.py:0
  python -m glora_jax.main --config configs/generalization.py:0,source=lists,root=/data/few-shot

The test sets are ImageNet, V2, Sketch, A and R. Without a seed, or with `all`, the seeds 0, 1 and 2
are run, and the table has their means. `settings=FILE.json` holds budgets and learning rates by
seed.
"""

from glora_jax.runs.config import default_config, parse_arguments
from glora_jax.runs.suite_settings import with_settings

ARGUMENTS = {'source': None, 'root': None, 'rank': 8, 'settings': None}


def get_config(arguments='all'):
  """The config; `arguments` is a seed, or 'all', and any of `ARGUMENTS`."""
  seed, given = parse_arguments(arguments, ARGUMENTS)
  config = default_config()
  config.task = f'generalization/{seed}'
  config.data.update(source=given['source'], root=given['root'], resize='crop')
  config.augment.update(crop=True, flip=True, rand_augment=True, color_jitter=0.4, erasing=0.25)
  config.model.weights = 'in21k-B/16'
  config.space.ranks = (given['rank'],)
  # Fewer epochs than the official recipe, whose training sets have 1,000 images; all else is its.
  config.supernet.update(epochs=100, warmup_epochs=10, batch_size=64, learning_rate=1e-4)
  config.search.update(population=50, generations=20)
  config.finetune.update(epochs=100, warmup_epochs=10, batch_size=64, learning_rate=1e-4)
  return with_settings(config, given['settings'])
