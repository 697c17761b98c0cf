"""The numbers of short runs: two searches, a gradient, a suite that chooses learning rates."""

import json
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from benchmarks.machinery.killable import without_seconds
from benchmarks.record.training import Values
from glora_jax.files import read_tensors
from glora_jax.vision.runs import experiment, suite
from glora_jax.vision.runs.config import default_config

SHORT = {  # the embedded backbone on digits, with a few epochs of everything
  'mesh.devices': 'one',
  'model.remat': 'dots_saveable',
  'budget': 20_000,
  'presets': ('lora', 'gradient'),
  'training.epochs': 5,
  'training.warmup': 1 / 5,
  'training.learning_rate': 4e-3,
  'search.population': 8,
  'search.generations': 2,
  'search.parents': 3,
  'search.mutations': 4,
  'search.crossovers': 3,
  'finetune.epochs': 1,
  'finetune.warmup': 0.0,
  'finetune.learning_rate': 2e-3,
}
RUNS: dict[str, Values] = {
  'run/search': {},
  'run/gradient': {
    'structure': 'gradient',
    'training.warmup': 0.0,
    'training.learning_rate': 2e-3,
  },
  'run/pareto, augmented': {
    'search.mode': 'pareto',
    'augment.flip': True,
    'augment.mixup': 0.2,
  },
  'suite': {
    'budget': None,
    'suite.structures': ('lora', 'finetuning'),
    'suite.rates': (1e-3, 4e-3),
  },
}
# Times; what the last bits decide, which differ between processors; a genome in words.
LEFT_OUT = ('seconds', 'seconds_spread', 'provenance', 'stages', 'fold_max_abs_diff', 'layers')


def record() -> Iterator[tuple[str, Values]]:
  """Names and entries, one after the other."""
  for name, fields in RUNS.items():
    config = default_config()
    config.update_from_flattened_dict({**SHORT, **fields})
    with tempfile.TemporaryDirectory() as folder:
      (suite if config.suite.structures else experiment).run(config, folder)
      for path in sorted(pathlib.Path(folder).rglob('result.json')):
        inside = path.parent.relative_to(folder).parts  # of a suite, the folder of a run
        yield '/'.join([name, *inside]), _numbers(path.parent)


def _numbers(workdir: pathlib.Path) -> Values:
  """The result of a run; of one that trains a structure its metrics and genome, too."""
  found: Values = {'result': _read(workdir / 'result.json')}
  if (metrics := workdir / 'metrics.jsonl').exists():
    lines = metrics.read_text().splitlines()
    found['metrics'] = [without_seconds(json.loads(line), LEFT_OUT) for line in lines]
  if (genome := workdir / 'genome.json').exists():
    found['genome'] = _read(genome)
  if (scored := workdir / 'search' / 'archive.safetensors').exists():
    archive, _ = read_tensors(scored, 'archive')
    found['archive'] = {name: archive[name] for name in ('correct', 'loss', 'generation')}
  return found


def _read(path: pathlib.Path) -> Any:
  return without_seconds(json.loads(path.read_text()), LEFT_OUT)
