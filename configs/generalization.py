"""Domain generalization: 16 images of each ImageNet class to train on; tested on ImageNet, V2, Sketch, A and R.

  python -m glora_jax.main --config configs/generalization.py
  python -m glora_jax.main --config configs/generalization.py:0
  python -m glora_jax.main --config configs/generalization.py:0,source=lists,root=/data/few-shot

Without a seed, or with `all`, the seeds 0, 1 and 2 are run, and the table has their means. `settings=FILE.json` holds budgets and learning
rates by seed.
"""

from glora_jax.runs.config import default_config, parse_arguments
from glora_jax.runs.suite import with_settings


def get_config(arguments='all'):
  seed, given = parse_arguments(
    arguments, {'source': None, 'root': None, 'rank': 8, 'settings': None}
  )
  config = default_config()
  config.task = f'generalization/{seed}'
  config.data.update(source=given['source'], root=given['root'], resize='crop')
  config.augment.update(crop=True, flip=True, rand_augment=True, color_jitter=0.4, erasing=0.25)
  config.model.weights = 'in21k-B/16'
  config.space.ranks = (given['rank'],)
  config.supernet.epochs = config.finetune.epochs = 100
  return with_settings(config, given['settings'])
