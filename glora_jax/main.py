"""Command line: `python -m glora_jax.main --config configs/quickstart.py [--workdir DIR] [--config.field=value ...]`.

Flags, logging and dispatch; a run itself is `experiment.run(config, workdir)`, which a notebook calls just the same.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys

from absl import app, flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file('config', None, 'Python file with get_config(); override its fields with --config.FIELD=VALUE.')
WORKDIR = flags.DEFINE_string('workdir', None, 'Where everything is written; runs/NAME_OF_CONFIG by default.')
DEBUG = flags.DEFINE_bool('debug', False, 'Show the traceback of an error.')


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    sys.exit(f'error: unknown arguments {argv[1:]}; fields of the config are given as --config.FIELD=VALUE.')
  logging.basicConfig(format='%(message)s', level=logging.WARNING, stream=sys.stderr, force=True)
  logging.getLogger('glora_jax').setLevel(logging.INFO)
  config = CONFIG.value
  name = os.path.splitext(os.path.basename(config_flags.get_config_filename(flags.FLAGS['config']).split(':')[0]))[0]
  workdir = WORKDIR.value or os.path.join('runs', name)

  # Imported late: a typing error in a flag should not wait for JAX.
  from glora_jax import experiment, pretrain

  job = {'adapt': experiment.run, 'pretrain': pretrain.run}[config.job]
  try:
    result = job(config, workdir)
  except (ValueError, OSError, RuntimeError) as error:
    if DEBUG.value:
      raise
    sys.exit(f'error: {error}\n(--debug shows where.)')
  print(experiment.summary(result, workdir) if config.job == 'adapt' else result)


def run() -> None:
  """Entry point: flags are parsed here so that a wrong one is one sentence, too."""
  flags.mark_flag_as_required('config')

  def parse(argv):
    # ml_collections prints a traceback of its own for a config file that is not there.
    given = [argument.removeprefix('--config=') for argument in argv if argument.startswith('--config=')]
    given += [following for argument, following in itertools.pairwise(argv) if argument == '--config']
    for path in given:
      if not os.path.isfile(path.split(':')[0]):
        sys.exit(f'error: there is no config file {path}; the ones that come with the project are in configs/.')
    try:
      return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
      said = str(error.args[0] if error.args else error).strip().splitlines()
      sys.exit(f'error: {said[-1]}')  # ml_collections puts a whole traceback into the text of some

  app.run(main, flags_parser=parse)


if __name__ == '__main__':
  run()
