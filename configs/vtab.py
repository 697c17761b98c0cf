"""VTAB-1k: 800 training and 200 validation images, ViT-B/16 pretrained on ImageNet-21k, the official recipe.

  python -m glora_jax.main --config configs/vtab.py:all
  python -m glora_jax.main --config configs/vtab.py:cifar100
  python -m glora_jax.main --config configs/vtab.py:clevr_count,source=noah,root=/data/vtab-1k
  python -m glora_jax.data.check --config configs/vtab.py:all

`all` runs those of the 19 tasks whose data is there, and keeps a table of them beside the published rows. A file of budgets and learning
rates by task, `settings=FILE.json`, holds `{"cifar100": {"budget": 860000, "learning_rate": 1e-4}, ...}`.

Published for GLoRA with 0.86 million parameters: 78.0 on average over the groups (arXiv 2306.07967); not run here in full. Images are
resized without keeping the aspect ratio and normalized as the weights were trained; the official code takes ImageNet's statistics:
`--config.model.normalization=imagenet`.
"""

from glora_jax.runs.config import default_config, parse_arguments
from glora_jax.runs.suite import with_settings


def get_config(arguments='cifar100'):
  task, given = parse_arguments(
    arguments, {'source': None, 'root': None, 'rank': 8, 'settings': None}
  )
  config = default_config()
  config.task = f'vtab/{task}'
  config.data.update(source=given['source'], root=given['root'], cache='~/.cache/glora_jax/images')
  config.model.weights = 'in21k-B/16'
  config.space.ranks = (given['rank'],)
  return with_settings(config, given['settings'])
