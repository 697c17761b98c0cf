"""Domain generalization: trained on 16 images per ImageNet class, tested on five test sets.

  python -m glora_jax.main --config configs/generalization.py
  python -m glora_jax.main --config configs/generalization.py:0
  python -m glora_jax.main --config configs/generalization.py:0,source=lists,root=/data/few-shot
  python -m glora_jax.main --config configs/generalization.py:0,tiny=True

The test sets are ImageNet, V2, Sketch, A and R. Without a seed, or with `all`, seeds 0, 1 and 2 are
run, and the table has their means. `settings=FILE.json` has budgets and learning rates by seed.
Random crops are cut from the stored square images, while the paper crops the original files.

Not run so far, and its time is unknown: it needs the in21k weights, the data sets and an
accelerator. Published for GLoRA (arXiv 2306.07967), accuracy in %: ImageNet 78.3, V2 67.5, Sketch
30.6, A 13.3, R 31.0.
"""

from glora_jax.vision.runs.config import default_config, parse_arguments, shrink, with_settings

ARGUMENTS = {'source': str, 'root': str, 'rank': 8, 'settings': str, 'tiny': False}


def get_config(arguments='all'):
  """The config; `arguments` is a seed, or 'all', and any of `ARGUMENTS`."""
  seed, given = parse_arguments(arguments, ARGUMENTS)
  config = default_config()
  config.task = f'generalization/{seed or "all"}'
  config.seed = 42
  config.protocol = 'honest'
  config.structure = 'search'
  config.data.update(source=given['source'], root=given['root'], resize='crop')
  config.augment.update(crop=0.08, flip=True, rand_augment=9.0, color_jitter=0.4, erasing=0.25)
  config.model.weights = 'in21k-B/16'
  config.space.ranks = (given['rank'],)
  # The official recipe, which is for 1,000 training images, with fewer epochs.
  config.training.update(epochs=100, warmup=0.1, batch_size=64, learning_rate=1e-4)
  config.search.update(population=50, generations=20)
  config.finetune.epochs = 100
  config = with_settings(config, given['settings'])
  return shrink(config) if given['tiny'] else config
