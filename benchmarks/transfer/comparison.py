"""Comparisons of all methods on the prepared tasks: their configs, and how they are run."""

import ast
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ml_collections

from benchmarks.transfer.tasks import TaskName
from glora_jax.reports import comparison_page
from glora_jax.runs import comparison
from glora_jax.runs.config import default_config

Backbone = Literal['embedded', 'vit_s']
Fields = Mapping[str, Any]  # of the config, by their names with points

# Of the two budgets the smaller one holds every preset but LoRA and what is larger, the other LoRA
# of rank 4, too: 36,864 parameters in the embedded backbone, 245,760 in ten blocks of the ViT-S.
PLANS: dict[Backbone, Fields] = {
  'embedded': {
    'model.image_size': 28,
    'compare.budgets': (20_000, 40_000),
    'compare.rates': (5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    'supernet.epochs': 36,
    'finetune.epochs': 9,
  },
  'vit_s': {
    'model.image_size': 84,
    'compare.budgets': (110_000, 250_000),
    'compare.rates': (1e-4, 5e-4, 1e-3, 2e-3, 4e-3),
    'supernet.epochs': 40,
    'finetune.epochs': 10,
  },
}
QUICK: Fields = {  # and of the budgets the larger one
  'compare.seeds': 1,
  'compare.methods': ('linear', 'ssf', 'lora', 'search'),
  'supernet.epochs': 3,
  'supernet.warmup_epochs': 0,
  'finetune.epochs': 1,
  'finetune.warmup_epochs': 0,
  'search.population': 12,
  'search.generations': 2,
  'search.parents': 6,
  'search.mutations': 6,
  'search.crossovers': 6,
  'compare.rate.linear': 4e-3,
  'compare.rate.ssf': 4e-3,
  'compare.rate.lora': 2e-3,
  'compare.rate.search': 2e-3,
}


def make_config(
  folder: str, task: TaskName, backbone: Backbone, fields: Fields
) -> ml_collections.ConfigDict:
  """The config of a comparison on a prepared task.

  Args:
    folder: what `preparation.prepare` has written.
    task: name of the task.
    backbone: name of the backbone.
    fields: values in place of the plan's.

  Raises:
    ValueError: the embedded backbone is asked to learn what it was made of; a field is unknown or
      of another type.
    FileNotFoundError: nothing was prepared in the folder.
  """
  if backbone == 'embedded' and task == 'fashion':
    raise ValueError(
      'The embedded backbone was pretrained on Fashion-MNIST, with images that this benchmark '
      'tests on; take --task mnist, or --backbone vit_s.'
    )
  for name in (task, 'vit_s') if backbone == 'vit_s' else (task,):
    if not os.path.isdir(os.path.join(folder, name)):
      raise FileNotFoundError(
        f'There is no folder {os.path.join(folder, name)}; '
        f'python -m benchmarks.transfer prepare --folder {folder} makes it.'
      )
  config = default_config()
  config.job = 'compare'
  config.task = f'folder:{os.path.join(folder, task)}'
  config.seed = 0
  config.model.weights = backbone if backbone == 'embedded' else os.path.join(folder, backbone)
  config.model.remat = 'dots_saveable'
  config.sampling.largest = 0.5
  config.supernet.update(warmup_epochs=3, final_learning_rate=1e-5)
  config.finetune.update(warmup_epochs=1, final_learning_rate=1e-5)
  config.search.update(population=30, generations=6, parents=10, mutations=15, crossovers=15)
  for name, value in {**PLANS[backbone], **fields}.items():
    _set_field(config, name, value)
  return config


def _set_field(config: ml_collections.ConfigDict, name: str, value: Any) -> None:
  """Sets a field of the config by its name with points."""
  try:
    config.update_from_flattened_dict({name: value})
  except (KeyError, TypeError, ValueError) as error:
    reason = str(error).strip().splitlines()[0]
    raise ValueError(
      f'{name}={value!r} cannot be set ({reason}); it is no such field of the config, or of '
      'another type.'
    ) from error


def parse_fields(texts: Sequence[str]) -> dict[str, Any]:
  """'compare.seeds=5' -> {'compare.seeds': 5}; what is no Python literal is a text.

  Raises:
    ValueError: a text has no '='.
  """
  fields = {}
  for text in texts:
    name, equals, value = text.partition('=')
    if not equals:
      raise ValueError(
        f"--set '{text}' has no '='; FIELD=VALUE is expected, compare.seeds=5 for instance."
      )
    try:
      fields[name] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      fields[name] = value
  return fields


def run(
  folder: str, tasks: Sequence[TaskName], backbone: Backbone, fields: Fields, workdir: str
) -> dict[TaskName, dict[str, Any]]:
  """Makes, or resumes, the comparisons and prints their tables.

  Args:
    folder, backbone, fields: see `make_config`.
    tasks: names of the tasks.
    workdir: for results, a folder in it for each task.

  Returns:
    The content of `result.json` by task.
  """
  # All configs are made first, so that a mistake in any is found before the first is run.
  configs = {task: make_config(folder, task, backbone, fields) for task in tasks}
  results = {}
  for task, config in configs.items():
    path = os.path.join(workdir, task)
    results[task] = comparison.run(config, path)
    size = config.model.image_size
    print(f'\n{task}, {backbone}, {size} pixels (a small benchmark of ours, not VTAB)\n')
    print(comparison_page.summary(results[task], path), flush=True)
  return results
