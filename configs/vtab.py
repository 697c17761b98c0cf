"""VTAB-1k: 800 training and 200 validation images, the official recipe.

  python -m glora_jax.main --config configs/vtab.py:all
  python -m glora_jax.main --config configs/vtab.py:cifar100
  python -m glora_jax.main --config configs/vtab.py:clevr_count,source=noah,root=/data/vtab-1k
  python -m glora_jax.data.check --config configs/vtab.py:all

The backbone is a ViT-B/16 pretrained on ImageNet-21k. `all` runs those of the 19 tasks whose data
is ready, and keeps a table of them beside the published rows. A file of budgets and learning rates
by task, `settings=FILE.json`, holds `{"cifar100": {"budget": 860000, "learning_rate": 1e-4}, ...}`.

Published for GLoRA with 0.86 million parameters: 78.0 on average over the groups (arXiv
2306.07967); not reproduced in full by this project. Images are resized without keeping the aspect
ratio and normalized as the weights were trained; the official code takes ImageNet's statistics:
`--config.model.normalization=imagenet`.
"""

from glora_jax.runs.config import default_config, parse_arguments
from glora_jax.runs.suite_settings import with_settings

ARGUMENTS = {'source': None, 'root': None, 'rank': 8, 'settings': None}


def get_config(arguments='cifar100'):
  """The config; `arguments` is a task, or 'all', and any of `ARGUMENTS`."""
  task, given = parse_arguments(arguments, ARGUMENTS)
  config = default_config()
  config.task = f'vtab/{task}'
  config.data.update(source=given['source'], root=given['root'], cache='~/.cache/glora_jax/images')
  config.model.weights = 'in21k-B/16'
  config.space.ranks = (given['rank'],)
  # The official recipe, which is the default, too.
  config.supernet.update(epochs=500, warmup_epochs=10, batch_size=64, learning_rate=1e-4)
  config.search.update(population=50, generations=20)
  config.finetune.update(epochs=100, warmup_epochs=10, batch_size=64, learning_rate=1e-4)
  return with_settings(config, given['settings'])
