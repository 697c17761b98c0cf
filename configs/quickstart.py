"""A first run: a small ViT of Fashion-MNIST learns to read digits. Nothing is downloaded.

  python -m glora_jax.main --config configs/quickstart.py
  python -m glora_jax.main --config configs/quickstart.py:search
  python -m glora_jax.main --config configs/quickstart.py:tiny=True

The structure is chosen from one gradient, with as many parameters as BitFit. BitFit, a LoRA and a
linear probe are trained for comparison. `:search` is the paper's method: it trains a supernet and
searches it, within 40,000 parameters.

Test accuracy on 797 digits, five seeds: 95.8 +- 0.2%; LoRA has 94.0, BitFit 91.6 and the probe 87.9
(2026-11-30; docs/results.md has other rates and `:search`). Time: 84 seconds of stages on two cores
of an Intel Xeon, compilation included; 107 for `:search`, or 48 on two faster cores of an AMD EPYC.
"""

from glora_jax.vision.runs.config import default_config, parse_arguments, shrink


def get_config(arguments=''):
  """The config; `arguments` is empty or 'search', and 'tiny=True'."""
  how, given = parse_arguments(arguments, {'tiny': False}, choices=('', 'search'))
  config = default_config()
  config.task = 'digits'
  config.model.weights = 'embedded'
  config.seed = 0
  # On CPU, recomputing activations is faster than reading them back.
  config.model.remat = 'dots_saveable'
  config.structure = 'gradient'
  config.budget = 5_184
  config.presets = ('bitfit', 'lora:1@attn')
  config.training.update(
    epochs=24,
    warmup=3 / 24,
    batch_size=64,
    learning_rate=8e-3,
    final_learning_rate=1e-5,
    weight_decay=1e-4,
  )
  if how == 'search':
    config.structure = 'search'
    config.budget = 40_000
    config.presets = ('lora:4', 'gradient')
    # Chosen on validation images (benchmarks/RESULTS.md at commit fd8515f5, recipes for the
    # supernet).
    config.sampling.largest = 0.5
    config.training.update(epochs=16, warmup=3 / 16)
    config.search.update(population=30, generations=6, parents=10, mutations=15, crossovers=15)
    config.finetune.update(epochs=8, warmup=1 / 8, learning_rate=4e-3)
  return shrink(config) if given['tiny'] else config
