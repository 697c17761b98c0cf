"""The numbers behind the curves of a run, for its page."""

from __future__ import annotations

from typing import Any, NamedTuple, TypedDict

import numpy as np

from glora_jax.method import genomes
from glora_jax.method.genomes import genome_to_json
from glora_jax.method.space import TENSORS, Spec
from glora_jax.records import read_lines
from glora_jax.search.allocated import Allocation
from glora_jax.search.archive import Archive
from glora_jax.search.pareto import pareto_front
from glora_jax.standard_json import number

MEANINGS = ('scale W', 'shift W', 'prompt', 'scale b', 'shift b')  # of the tensors A to E

STAGES = {
  'baselines/linear': 'linear probe',
  'head': 'head, to read the gradient',
  'training': 'winner',
  'finetune': 'winner, finetuned',
  'finetune_choice': 'winner, to choose the epochs',
}


class Tensor(NamedTuple):
  """What a layer got of a support tensor.

  Attributes:
    form: 'none', 'constant', 'vector' or, with its rank, 'lora:4'.
    params: trained parameters.
  """

  form: str
  params: int

  @property
  def rank(self) -> str:
    """The rank of a LoRA; '' of the other forms."""
    return self.form.removeprefix('lora:') if self.form.startswith('lora:') else ''


def structure(spec: Spec, genome: np.ndarray) -> list[list[Tensor]]:
  """What every layer got, A to E, in the order of the spec.

  Args:
    spec: the layers.
    genome: int8 [layer, 5].
  """
  params = spec.cost_table[np.arange(len(spec))[:, None], np.arange(5), genome]
  return [
    [Tensor(layer[tensor], int(cost)) for tensor, cost in zip(TENSORS, costs, strict=True)]
    for layer, costs in zip(genome_to_json(spec, genome)['layers'], params, strict=True)
  ]


class Progress(NamedTuple):
  """How a search came along.

  Attributes:
    generations: their numbers, int [generation].
    means: mean over the given subnets of each generation, [generation].
    best: the best so far, [generation].
  """

  generations: np.ndarray
  means: np.ndarray
  best: np.ndarray


def progress(generation: np.ndarray, values: np.ndarray, better: np.ufunc) -> Progress:
  """Mean and best by generation.

  Args:
    generation: int [subnet].
    values: [subnet].
    better: `np.maximum` or `np.minimum`.

  Example:
    >>> progress(np.array([0, 0, 1]), np.array([2.0, 4.0, 3.0]), np.maximum).best.tolist()
    [4.0, 4.0]
  """
  generations = np.unique(generation)
  means = [values[generation == number].mean() for number in generations]
  best = [better.reduce(values[generation <= number]) for number in generations]
  return Progress(generations, np.array(means), np.array(best))


class Cloud(NamedTuple):
  """Error against parameters of the subnets of a search.

  Attributes:
    params: trained parameters, int [subnet].
    error: in percent, [subnet].
    front: indices of those that no other one is better than in both, ascending by parameters.
    winner: which of them is the winner, bool [subnet].
  """

  params: np.ndarray
  error: np.ndarray
  front: np.ndarray
  winner: np.ndarray


def cloud(spec: Spec, archive: Archive, num_images: int, genome: Any) -> Cloud:
  """The subnets of a search.

  Args:
    spec: the layers.
    archive: the search's.
    num_images: how many images a subnet was scored on.
    genome: the winner's, int [layer, 5].
  """
  params = genomes.count_params(spec, archive.genomes)
  error = 100 * (1 - archive.correct / num_images)
  winner = (archive.genomes == np.asarray(genome)).all(axis=(1, 2))
  return Cloud(params, error, pareto_front(params, error), winner)


class ValueCurve(NamedTuple):
  """What the units of a structure are worth held out, the best bought first.

  Attributes:
    params: trained parameters, int [purchase + 1].
    percent: value of all that is bought by then, in percent of all on offer, [purchase + 1].
    knee: index of the proposed budget.
  """

  params: np.ndarray
  percent: np.ndarray
  knee: int


def value_curve(allocation: Allocation) -> ValueCurve:
  """Value by budget of a structure that was read off a gradient."""
  params, values, knee = allocation.curve
  return ValueCurve(params, 100 / total_value(allocation) * values, knee)


def total_value(allocation: Allocation) -> float:
  """What all that is on offer is worth; where that is nothing, a number to divide by."""
  return max(float(allocation.curve.values[-1]), float(np.finfo(np.float32).tiny))


class _Measurement(TypedDict):
  stage: str
  epoch: float


def training(metrics: str) -> dict[str, list[dict[str, Any]]]:
  """What was measured in training, by the title of the stage.

  Args:
    metrics: path of `metrics.jsonl`.
  """
  stages: dict[str, list[dict[str, Any]]] = {}
  for line in read_lines(metrics, 'metrics', _Measurement):
    stage = line['stage']
    measurement = {name: number(value) for name, value in line.items()}
    stages.setdefault(STAGES.get(stage, stage.removeprefix('baselines/')), []).append(measurement)
  return stages
