"""Compares presets, full fine-tuning, search and gradient on the quickstart's task.

  python -m glora_jax.main --config configs/compare.py
  python -m glora_jax.main --config configs/compare.py --config.suite.seeds=5
  python -m glora_jax.main --config configs/compare.py:tune
  python -m glora_jax.main --config configs/compare.py:tiny=True

The first command trains each structure once, with its learning rate in compare_rates.json, next to
this file; `:tune` first chooses the rates again, on the validation images. Every structure gets 36
epochs and a rate from the same list. Search and gradient have two budgets, and the LoRAs are the
largest that fit them.

Test accuracy in % over three seeds, with the saved rates (2026-12-01):

  linear probe  90.5 +- 0.1    LoRA of rank 2            95.9 +- 0.7
  prompts       92.6 +- 0.5    LoRA of rank 4            96.8 +- 0.1
  BitFit        93.8 +- 0.3    searched, at most 20,000  95.4 +- 0.4
  SSF-like      94.8 +- 0.3    searched, at most 40,000  96.2 +- 0.2
  all of GLoRA  96.8 +- 0.4    gradient, at most 20,000  96.8 +- 0.5
  full          96.4 +- 0.3    gradient, at most 40,000  96.7 +- 1.1
  fine-tuning

Time on two cores of an AMD EPYC: 22 minutes for three seeds with the saved rates. docs/results.md
has an earlier table of five seeds, whose rates were chosen again.
"""

import json
import pathlib

from glora_jax.vision.runs.config import default_config, parse_arguments, shrink

RATES = pathlib.Path(__file__).parent / 'compare_rates.json'


def get_config(arguments=''):
  """The config; `arguments` is empty, or 'tune', and 'tiny=True'."""
  how, given = parse_arguments(arguments, {'tiny': False}, choices=('', 'tune'))
  config = default_config()
  config.task = 'digits'
  config.model.weights = 'embedded'
  config.seed = 0
  config.model.remat = 'dots_saveable'
  config.sampling.largest = 0.5
  config.training.update(
    epochs=36,
    warmup=3 / 36,
    batch_size=64,
    learning_rate=4e-3,
    final_learning_rate=1e-5,
    weight_decay=1e-4,
  )
  config.search.update(population=30, generations=6, parents=10, mutations=15, crossovers=15)
  config.finetune.update(epochs=9, warmup=1 / 9)
  config.suite.seeds = 1
  config.suite.budgets = (20_000, 40_000)
  config.suite.rates = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
  config.suite.structures = (
    'linear',
    'bitfit',
    'lora:2',
    'lora:4',
    'ssf',
    'prompt',
    'full',
    'finetuning',
    'search',
    'gradient',
  )
  if how != 'tune':
    config.suite.rate.update(json.loads(RATES.read_text()))
  if given['tiny']:
    config.suite.update(structures=('linear', 'lora:2'), rates=())
    return shrink(config)
  return config
