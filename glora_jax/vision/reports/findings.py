"""What a run has found besides its result, for its page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from glora_jax.compiling import Compilation
from glora_jax.method.space import Spec
from glora_jax.search.allocation import Allocation
from glora_jax.search.archive import Archive
from glora_jax.vision.data.task import Task
from glora_jax.vision.reports.errors import Outcome


@dataclasses.dataclass(frozen=True)
class Findings:
  """The findings of a run, for its page.

  Attributes:
    result: content of `result.json`, and how it was made (`provenance`).
    task: the task.
    spec: the layers that a search chose forms for; without a search those of the result.
    outcome: the result's answers on the test images; None if they were not read.
    archive: the search's; None without a search.
    fitness: what the search maximized, 'accuracy' or 'loss'.
    presets: parameters and accuracy of each preset with the supernet's weights, by name.
    allocation: the allocation; None without one.
    backbone: arguments of `weights.load` and `weights.refit` that load the base again.
    keeps_best: whether the weights are those of the best epoch on the validation images.
    programs: what was compiled, by stage and name.
  """

  result: Mapping[str, Any]
  task: Task
  spec: Spec
  outcome: Outcome | None = None
  archive: Archive | None = None
  fitness: str = 'accuracy'
  presets: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
  allocation: Allocation | None = None
  backbone: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  keeps_best: bool = False
  programs: Mapping[str, Mapping[str, Compilation]] = dataclasses.field(default_factory=dict)

  @property
  def searched_images(self) -> tuple[str, int]:
    """The split that the search scored structures on, and its number of images."""
    split = 'test' if self.result['protocol'] == 'paper' else 'val'
    return split, self.result['data']['images'][split]
