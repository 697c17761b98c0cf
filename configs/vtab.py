"""VTAB-1k: 800 training and 200 validation images, the official recipe.

Structures are chosen on these, then trained on all 1,000, as is usual; the test comes last.

  python -m glora_jax.main --config configs/vtab.py:all
  python -m glora_jax.main --config configs/vtab.py:cifar100
  python -m glora_jax.main --config configs/vtab.py:clevr_count,source=noah,root=/data/vtab-1k
  python -m glora_jax.main --config configs/vtab.py:cifar100,tiny=True
  python -m glora_jax.main --config configs/vtab.py:all --check

The backbone is a ViT-B/16 pretrained on ImageNet-21k. `all` runs those of the 19 tasks whose data
is ready, and puts them into a table with the published results. `--config.suite.prepare=True`
first downloads the data that needs no manual download. A file of budgets and learning rates by
task, `settings=FILE.json`, has
`{"cifar100": {"budget": 860000, "learning_rate": 1e-4}, ...}`.

Not run so far, and its time is unknown: it needs the in21k weights, the data sets and an
accelerator. Published for GLoRA with 0.86 million parameters (arXiv 2306.07967): 78.0 on average
over the groups, 76.4 on cifar100. Images are resized without keeping the aspect ratio and
normalized as the weights were trained. `docs/howto/vtab.md` has the command for the official code's
protocol.
"""

from glora_jax.vision.runs.config import default_config, parse_arguments, shrink, with_settings

ARGUMENTS = {'source': str, 'root': str, 'rank': 8, 'settings': str, 'tiny': False}


def get_config(arguments='cifar100'):
  """The config; `arguments` is a task, or 'all', and any of `ARGUMENTS`."""
  task, given = parse_arguments(arguments, ARGUMENTS)
  config = default_config()
  config.task = f'vtab/{task or "cifar100"}'
  config.seed = 42
  config.protocol = 'honest'
  config.structure = 'search'
  config.train_on = 'train+val'
  config.data.update(source=given['source'], root=given['root'], cache='~/.cache/glora_jax/images')
  config.data.resize = 'squash'
  config.model.weights = 'in21k-B/16'
  config.space.ranks = (given['rank'],)
  # The official recipe, which is also the default.
  config.training.update(epochs=500, warmup=0.02, batch_size=64, learning_rate=1e-4)
  config.search.update(population=50, generations=20)
  config.finetune.epochs = 100
  config = with_settings(config, given['settings'])
  return shrink(config) if given['tiny'] else config
