"""What a run has found, for its page to tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from glora_jax.data.task import Task
from glora_jax.method.space import Spec
from glora_jax.reports import page
from glora_jax.reports.errors import Outcome
from glora_jax.search.allocated import Allocation
from glora_jax.search.archive import Archive


@dataclasses.dataclass(frozen=True)
class Findings:
  """What a run has found, as far as its page tells it.

  Attributes:
    result: content of `result.json`.
    task: what was learned.
    spec: the layers that the run's genomes describe, those that were searched among them.
    specs: the layers that each tested structure's genome describes, by name.
    outcome: the result's answers on the test images.
    archive: the search's; None where there was none.
    fitness: what the search went by, 'accuracy' or 'loss'.
    presets: parameters and accuracy of each preset with the supernet's weights, by name; none
      where there was no search.
    allocation: the structure that was read off a gradient, if one was.
    backbone: what else it takes to load the base: arguments of `weights.load` and `weights.refit`.
    made: with what it was found, process by process.
  """

  result: Mapping[str, Any]
  task: Task
  spec: Spec
  specs: Mapping[str, Spec]
  outcome: Outcome
  archive: Archive | None = None
  fitness: str = 'accuracy'
  presets: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
  allocation: Allocation | None = None
  backbone: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  made: Sequence[page.Made] = ()

  @property
  def is_paper(self) -> bool:
    """Whether the structure was searched on the test images."""
    return self.result['protocol'] == 'paper'

  @property
  def search_split(self) -> str:
    """The split whose images structures were scored on."""
    return 'test' if self.is_paper else 'val'

  @property
  def search_images(self) -> int:
    """How many images structures were scored on."""
    return self.result['data']['images'][self.search_split]
