"""Pretrains the backbone that ships in the package, on Fashion-MNIST's 60,000 training images.

  apt-get install dataset-fashion-mnist
  python -m glora_jax.main --config configs/pretrain.py --workdir runs/pretrain
  python -m glora_jax.main --config configs/pretrain.py:tiny=True

It writes `backbone.safetensors` and its test accuracy (`result.json`) into the workdir.

Reached: 89.1% of Fashion-MNIST's 10,000 test images, with seed 0 (2026-11-24).
Time: half an hour on two cores of an AMD EPYC.
"""

from glora_jax.runs import pretrain
from glora_jax.runs.config import parse_arguments


def get_config(arguments=''):
  """The config, with the fields of `pretrain.PretrainSettings`; `arguments`: 'tiny=True'."""
  _, given = parse_arguments(arguments, {'tiny': False}, choices=('',))
  config = pretrain.default_config()
  config.seed = 0
  config.model.update(patch_size=7, width=96, depth=6, num_heads=3, drop_path=0.05)
  config.training.update(
    epochs=25,
    warmup_epochs=2,
    batch_size=128,
    initial_learning_rate=1e-6,
    learning_rate=1e-3,
    final_learning_rate=1e-6,
    weight_decay=0.05,
  )
  if given['tiny']:
    config.model.update(width=24, depth=1)
    config.training.update(epochs=1, warmup_epochs=0)
  return config
