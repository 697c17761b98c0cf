"""The main job on what ships in the package: a small ViT pretrained on Fashion-MNIST learns scikit-learn's digits.

  python -m glora_jax.main --config configs/quickstart.py

About two minutes on two CPU cores, no network. The README has the accuracies to expect, over five seeds.
"""

from glora_jax.experiment import default_config


def get_config():
  config = default_config()
  config.seed = 0
  config.budget = 40_000
  config.supernet.update(epochs=40, warmup_epochs=4, learning_rate=4e-3, final_learning_rate=1e-5)
  config.search.update(population=40, generations=8, parents=10, mutations=20, crossovers=20)
  config.finetune.update(epochs=12, warmup_epochs=1, learning_rate=2e-3, final_learning_rate=1e-5)
  return config
