"""Domain generalization: 16 images of each ImageNet class to train on; tested on ImageNet, V2, Sketch, A and R.

  python -m glora_jax.main --config configs/generalization.py:0
  python -m glora_jax.main --config configs/generalization.py:0,source=lists,root=/data/few-shot
"""

from glora_jax.config import default_config, parse_arguments


def get_config(arguments='0'):
  seed, given = parse_arguments(arguments, {'source': None, 'root': None, 'rank': 8})
  config = default_config()
  config.task = f'generalization/{seed}'
  config.data.update(source=given['source'], root=given['root'], resize='crop')
  config.augment.update(crop=True, flip=True, rand_augment=True, color_jitter=0.4, erasing=0.25)
  config.model.weights = 'in21k-B/16'
  config.space.ranks = (given['rank'],)
  config.supernet.epochs = config.finetune.epochs = 100
  return config
