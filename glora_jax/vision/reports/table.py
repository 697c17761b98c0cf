"""What a suite has measured so far, as one long table of which all pages are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

State = Literal['done', 'failed', 'not ready', 'waiting']


class Cell(NamedTuple):
  """A run of a suite.

  Attributes:
    task: name of its task.
    structure: what it trains; '' for the config's structure and its baselines.
    budget: most trained parameters, if the suite has several budgets.
    seed: its seed.
    rate: the learning rate that it tries; None for a run that is tested.
  """

  task: str
  structure: str = ''
  budget: int | None = None
  seed: int = 0
  rate: float | None = None


@dataclasses.dataclass
class Board:
  """The progress of a suite. A run's name is that of its folder in the suite's workdir.

  Attributes:
    title: the config's task, such as 'vtab/all' or 'digits'.
    cells: all runs by name, in order.
    results: content of `result.json` of every finished run, by name.
    missing: what the data of a run lacks and how to get it, by name.
    failed: the error of a failed run, by name.
  """

  title: str
  cells: Mapping[str, Cell]
  results: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  missing: dict[str, str] = dataclasses.field(default_factory=dict)
  failed: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def waiting(self) -> list[str]:
    """Names of the runs that have not been tried."""
    return [name for name in self.cells if self.state(name) == 'waiting']

  def state(self, name: str) -> State:
    """The state of a run."""
    if name in self.results:
      return 'done'
    if name in self.failed:
      return 'failed'
    return 'not ready' if name in self.missing else 'waiting'
