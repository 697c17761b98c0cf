"""Presets, full fine-tuning and the search at two budgets side by side, on the task and backbone of the quickstart.

  python -m glora_jax.main --config configs/compare.py                           # one seed, at the saved learning rates
  python -m glora_jax.main --config configs/compare.py --config.compare.seeds=5
  python -m glora_jax.main --config configs/compare.py:tune                      # chooses the learning rates anew

Every method gets 36 epochs, and a learning rate of its own out of the same list, chosen on validation images. What was chosen is saved
beside this file, in compare_rates.json; with `:tune` it stands in `rates.json` of the workdir.
"""

import json
import pathlib

from glora_jax.runs.config import default_config, parse_arguments


def get_config(arguments=''):
  how, _ = parse_arguments(arguments, {})
  if how not in ('', 'tune'):
    raise ValueError(f"'{how}' is unknown; configs/compare.py takes nothing, or 'tune'.")
  config = default_config()
  config.job = 'compare'
  config.seed = 0
  config.model.remat = 'dots_saveable'
  config.sampling.largest = 0.5
  config.supernet.update(epochs=36, warmup_epochs=3, learning_rate=4e-3, final_learning_rate=1e-5)
  config.search.update(
    population=30, generations=6, parents=10, mutations=15, crossovers=15, stop_early=True
  )
  config.finetune.update(epochs=9, warmup_epochs=1, final_learning_rate=1e-5)
  config.compare.seeds = 1
  if how != 'tune':
    config.compare.rate.update(
      json.loads((pathlib.Path(__file__).parent / 'compare_rates.json').read_text())
    )
  return config
