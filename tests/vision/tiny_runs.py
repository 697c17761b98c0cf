"""A run that is over in seconds, and what tests ask of such runs."""

import os
import subprocess
import sys
import time

from flax.traverse_util import flatten_dict
from joining import PIPES
from places import environment

from benchmarks.machinery import killable
from glora_jax.files import read_json
from glora_jax.vision.runs import experiment
from glora_jax.vision.runs.config import check_config, default_config
from glora_jax.vision.runs.context import make_context
from glora_jax.vision.runs.fields import sections
from glora_jax.vision.runs.settings import RunSettings


def make_config(weights):
  """Three dispatches of the supernet, three generations, a finetuning: shapes that tests share."""
  config = default_config()
  config.model.weights = str(weights)
  # As the quickstart, whose config the command line starts from.
  config.model.remat = 'dots_saveable'
  config.budget = 1000
  config.checkpoint_epochs = 1
  config.presets = ('lora',)
  config.training.update(epochs=3, warmup=1 / 3, batch_size=16, learning_rate=1e-2)
  config.search.update(population=4, generations=2, parents=2, mutations=2, crossovers=2)
  config.finetune.update(epochs=1, warmup=0.0, learning_rate=1e-3)
  return config


def changed(config, **fields):
  """A copy of a config with other values; `search__mode` is the field `search.mode`."""
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in fields.items()}
  )
  return config


def without_seconds(result):
  """A result but for the times it took, and with what it was made."""
  return killable.without_seconds(result, ('seconds', 'provenance'))


def contents(workdir):
  """What equal runs have in common, by file."""
  names = (
    'metrics.jsonl',
    'adapter.safetensors',
    'folded/model.safetensors',
    'search/archive.safetensors',
    'test_list.json',
  )
  result = without_seconds(read_json(workdir / 'result.json'))
  return {'result': result, **{name: (workdir / name).read_bytes() for name in names}}


def overrides(config):
  """Flags that give the fields of a config."""
  fields = flatten_dict(config.to_dict(), sep='.')
  return [f'--config.{name}={value}' for name, value in fields.items() if value is not None]


def start_command(config, workdir, *flags, devices=1):
  """Starts the quickstart with the fields of a config as flags, and with more flags."""
  words = [sys.executable, '-m', 'glora_jax.main', '--config', 'configs/quickstart.py']
  words += ['--workdir', str(workdir), *overrides(config), *flags]
  return subprocess.Popen(words, env=environment(devices), **PIPES)


def wait_for(process, *paths):
  """Waits until a process has made one of some paths, or has ended."""
  while process.poll() is None and not any(path.exists() for path in paths):
    time.sleep(0.01)


def all_fields():
  """All fields of a config, see `fields.Field`."""
  return [field for _, _, fields in sections(RunSettings()) for field in fields]


def stages_of(config):
  """The stages of a config's run."""
  return experiment.stages_of(check_config(config))


def context_of(config, workdir):
  """The context of a config's run, in a workdir."""
  os.makedirs(workdir, exist_ok=True)
  return make_context(check_config(config), stages_of(config), str(workdir))
