"""Pretrains the backbone that ships in the package, on Fashion-MNIST's 60,000 training images.

  apt-get install dataset-fashion-mnist
  python -m glora_jax.main --config configs/pretrain.py --workdir runs/pretrain

It writes `backbone.safetensors` and its test accuracy (`result.json`) into the workdir.
"""

from glora_jax.runs import pretrain


def get_config():
  """The config; its fields are those of `pretrain.PretrainSettings`."""
  return pretrain.default_config()
