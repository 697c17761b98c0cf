"""A run that is finished, with the weights that it has tested, and scores of any of its subnets."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from tqdm.auto import tqdm

from configs import quickstart
from glora_jax.files import read_arrays, read_json
from glora_jax.method.adapter_file import load_adapter
from glora_jax.runs import experiment
from glora_jax.runs.config import check_config
from glora_jax.runs.lifecycle import prepare
from glora_jax.runs.run import Run
from glora_jax.search.archive import Archive
from glora_jax.training import loop
from glora_jax.training.checkpoints import TrainingCheckpoints
from glora_jax.tree import fingerprint

SCORED_TOGETHER = 8  # genomes in one call of the scorer: one compilation, however many there are


class FinishedRun(NamedTuple):
  """What the questions are about.

  Attributes:
    run: the run, as it was prepared.
    archive: of its search.
    winner: genome of the search's winner, int8 [layer, 5].
    supernet: variables of the trained supernet.
    finetuned: variables of the winner after finetuning.
  """

  run: Run
  archive: Archive
  winner: np.ndarray
  supernet: Any
  finetuned: Any


def load(workdir: str) -> FinishedRun:
  """The run in a workdir, which is finished first where it is not.

  Raises:
    ValueError: it followed the paper's protocol, or what it wrote is not there any more or is not
      what it tested.
  """
  path = os.path.join(workdir, 'config.json')
  if os.path.exists(path):
    config = ml_collections.ConfigDict(read_json(path))
  else:
    config = quickstart.get_config()
  if config.protocol != 'honest':
    raise ValueError(
      f"The run in {workdir} has protocol='{config.protocol}': it searched on its test images, and "
      "none are left to ask on. Give the workdir of a run with protocol='honest'."
    )
  experiment.run(config, workdir)  # returns at once where there is a result
  run = prepare(check_config(config), workdir)
  for needed in (run.path('supernet'), run.path('search', 'archive.npz')):
    if not os.path.exists(needed):
      raise ValueError(
        f'{needed} is not there any more, and the questions are about it; give a workdir with all '
        'that the run wrote.'
      )
  archive = Archive(**read_arrays(run.path('search', 'archive.npz')))
  winner = archive.best(config.search.fitness)
  return FinishedRun(run, archive, winner, _load_supernet(run), _load_finetuned(run, winner))


def _load_supernet(run: Run) -> Any:
  """Variables of the supernet, which must be those that the run tested."""
  trainable, frozen = run.adapted.split(run.variables)
  optimizer = run.settings.supernet.optimizer(len(run.data(run.train_split).labels))
  with TrainingCheckpoints(run.path('supernet')) as checkpoints:
    state = checkpoints.latest(loop.TrainState(trainable, optimizer.init(trainable), 0))
  tested = read_json(run.path('test_list.json'))['winner_supernet']['weights']
  if state is None or fingerprint(state.trainable) != tested:
    raise ValueError(
      f'{run.path("supernet")} does not hold the weights that the run tested; give a workdir as '
      'the run left it.'
    )
  return run.adapted.join(state.trainable, frozen)


def _load_finetuned(run: Run, winner: np.ndarray) -> Any:
  """Variables of the finetuned winner, which must be the search's."""
  path = run.path('adapter.safetensors')
  finetuned, genome = load_adapter(path, run.adapted, run.variables['params'])
  if not np.array_equal(genome, winner):
    raise ValueError(f'{path} is not the winner of the search; give a workdir as the run left it.')
  return finetuned


def diagnostic_key(run: Run, purpose: int) -> jax.Array:
  """A random key of the run's seed for a purpose that is not among the run's own."""
  return jax.random.fold_in(jax.random.key(run.settings.seed), purpose)


def measure(
  run: Run, variables: Any, genomes: Sequence[np.ndarray], title: str | None = None
) -> list[dict[str, Any]]:
  """Scores subnets on the validation and the test images.

  Args:
    run: the run whose images and scorer are used.
    variables: that all subnets take their weights from.
    genomes: int8 [subnet, layer, 5].
    title: of a progress bar; none is shown without.

  Returns:
    A dictionary for each subnet: 'params', and accuracy and mean loss on both kinds of images
    ('val_accuracy', 'val_loss', 'test_accuracy', 'test_loss').
  """
  genomes = np.asarray(genomes, np.int8)
  scores = [{'params': int(params)} for params in run.adapted.count_params(genomes)]
  size = SCORED_TOGETHER if len(genomes) > 1 else 1
  with tqdm(
    total=2 * len(genomes), desc=title, unit='score', disable=title is None, leave=False
  ) as bar:
    for split in ('val', 'test'):
      number = len(run.data(split).labels)
      for start in range(0, len(genomes), size):
        block = genomes[start : start + size]
        padded = np.concatenate([block, np.repeat(block[:1], size - len(block), axis=0)])
        correct, loss = run.score(variables, padded, split)
        accuracies = np.asarray(correct, np.float64) / number
        losses = np.asarray(loss, np.float64) / number
        for index in range(len(block)):
          scores[start + index][f'{split}_accuracy'] = float(accuracies[index])
          scores[start + index][f'{split}_loss'] = float(losses[index])
        bar.update(len(block))
  return scores
