"""The main job on what ships in the package: a small ViT of Fashion-MNIST learns digits.

  python -m glora_jax.main --config configs/quickstart.py

A supernet is trained and searched, as in the paper; the strongest LoRA that fits the budget and the
structure that one gradient asks for stand beside the winner, each trained alone for as many epochs
as the supernet. On two CPU cores that took 92 seconds, imports and compilation included; no
network is needed. The digits are scikit-learn's.
"""

from glora_jax.runs.config import default_config


def get_config():
  """The config."""
  config = default_config()
  config.seed = 0
  config.budget = 40_000
  config.presets = ('lora:4', 'gradient')
  # On CPU recomputing activations is faster than reading them back.
  config.model.remat = 'dots_saveable'
  # Chosen on validation images: `python -m benchmarks.supernet_recipes`.
  config.sampling.largest = 0.5
  config.supernet.update(
    epochs=16,
    warmup_epochs=3,
    batch_size=64,
    learning_rate=8e-3,
    final_learning_rate=1e-5,
    weight_decay=1e-4,
  )
  # What is trained alone where the structure is not searched: `--config.structure=gradient`.
  config.training.update(config.supernet)
  config.search.update(
    population=30, generations=6, parents=10, mutations=15, crossovers=15, stop_early=True
  )
  config.finetune.update(
    epochs=8, warmup_epochs=1, batch_size=64, learning_rate=4e-3, final_learning_rate=1e-5
  )
  return config
