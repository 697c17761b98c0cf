"""Your own images: a folder with a subfolder for each class, a CSV of paths and labels, or any TFDS data set.

  python -m glora_jax.main --config configs/own.py:photos/
  python -m glora_jax.main --config configs/own.py:labels.csv,weights=dinov2-S/14,budget=100000
  python -m glora_jax.main --config configs/own.py:beans

What is not split into train, val and test is split once, stratified; `split.json` in the workdir says who went where. Without `weights` the
small backbone in the package is used, which has seen 28 x 28 grey images only: good for trying out, not for results.
"""

import os

from glora_jax.runs.config import default_config, parse_arguments


def get_config(arguments=''):
  what, given = parse_arguments(
    arguments, {'weights': 'embedded', 'rank': 4, 'budget': None, 'epochs': 100}
  )
  kind = 'folder' if os.path.isdir(what) else 'csv' if what.endswith('.csv') else 'tfds'
  if kind == 'tfds' and (os.sep in what or not what):
    raise FileNotFoundError(
      f"There is no folder '{what}'; configs/own.py:WHAT takes a folder, a CSV, or the name of a TFDS data set."
    )
  config = default_config()
  config.task = f'{kind}:{what}'
  config.budget = given['budget']
  config.model.weights = given['weights']
  config.space.ranks = (given['rank'],)
  config.augment.flip = True
  config.supernet.update(epochs=given['epochs'], learning_rate=1e-3)
  config.finetune.update(epochs=max(1, given['epochs'] // 4), learning_rate=5e-4, warmup_epochs=0)
  config.search.update(generations=10)
  return config
