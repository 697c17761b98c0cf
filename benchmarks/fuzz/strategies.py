"""All strategies by name, and how often each has its turn."""

import functools
import random
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.fuzz import (
  adapters,
  archives,
  calling,
  calls,
  checkpoints,
  commands,
  configs,
  folders,
  model_calls,
  nnx_calls,
  peft,
  pictures,
  starts,
  states,
  tables,
  workdirs,
)
from benchmarks.fuzz.oracle import Case
from benchmarks.fuzz.place import Place


class Strategy(NamedTuple):
  """A way to make cases.

  Attributes:
    make: writes the files of a case, from a generator alone.
    weight: its share of all cases, beside the other weights.
    is_slow: whether its cases take seconds: `--quick` leaves them out.
  """

  make: Callable[[random.Random, Place], Case]
  weight: float
  is_slow: bool = False


STRATEGIES: dict[str, Strategy] = {
  'config': Strategy(configs.field_values, 20),
  'csv': Strategy(tables.comma_separated, 10),
  'list': Strategy(tables.list_of_images, 3),
  'image': Strategy(pictures.decoded, 12),
  'folder': Strategy(folders.classes, 10),
  'checkpoint': Strategy(checkpoints.checkpoint, 12),
  'adapter': Strategy(archives.adapter, 6),
  'adapter saved': Strategy(adapters.saved, 3),
  'adapter loaded': Strategy(adapters.loaded, 4),
  'archive': Strategy(archives.archive, 5),
  'config.json': Strategy(archives.config_file, 5),
  'record': Strategy(archives.record, 4),
  'lines': Strategy(archives.lines, 2),
  'peft': Strategy(peft.peft, 5),
  'split.json': Strategy(workdirs.split_file, 3),
  'weights.json': Strategy(workdirs.weights_file, 3),
  'images.npz': Strategy(workdirs.image_files, 3),
  'training states': Strategy(states.training_states, 1),
  'genome': Strategy(archives.genome_file, 5),
  'call': Strategy(functools.partial(calling.make_call, calls.CALLS), 25),
  'model call': Strategy(functools.partial(calling.make_call, model_calls.CALLS), 8),
  'nnx call': Strategy(functools.partial(calling.make_call, nnx_calls.CALLS), 4),
  'start': Strategy(starts.start, 0.4, is_slow=True),
  'convert': Strategy(commands.convert, 0.12, is_slow=True),
  'predict': Strategy(commands.predict, 0.08, is_slow=True),
  'run': Strategy(commands.run, 0.12, is_slow=True),
  'task': Strategy(folders.task_names, 4),
}


def choose(number: int, seed: int, names: list[str]) -> tuple[str, random.Random]:
  """The strategy of a case and the generator that makes it, which no other case influences."""
  rng = random.Random(f'{seed}/{number}')
  weights = [STRATEGIES[name].weight for name in names]
  return rng.choices(names, weights)[0], rng
