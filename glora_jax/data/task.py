"""A task: which images, which labels, which splits. Records only; `pipeline` reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tensorflow_datasets as tfds


@dataclasses.dataclass(frozen=True)
class Task:
  """One classification task on a TFDS data set.

  Attributes:
    name: what configs and reports call it.
    make_builder: `data_dir -> builder`; preparing it is left to `pipeline`.
    train, val, test: TFDS split expressions, disjoint.
    classes: names of the classes, in the order of the labels.
    image, label: keys of an example.
  """

  name: str
  make_builder: Callable[[str | None], tfds.core.DatasetBuilder]
  train: str
  val: str
  test: str
  classes: tuple[str, ...]
  image: str = 'image'
  label: str = 'label'

  @property
  def num_classes(self) -> int:
    return len(self.classes)


def find(name: str) -> Task:
  """The task of a name that a config gives."""
  from glora_jax.data import embedded  # the registry knows the rooms, they know the record

  tasks = {task.name: task for task in (embedded.DIGITS,)}
  if name not in tasks:
    raise ValueError(f"The task '{name}' is unknown; the tasks are: {', '.join(tasks)}.")
  return tasks[name]
