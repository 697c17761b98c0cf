"""A progress bar of training."""

from __future__ import annotations

import time
from collections.abc import Mapping

from tqdm.auto import tqdm


class Progress:
  """A progress bar over steps, with the latest metrics and the images per second.

  Args:
    title: what stands before the bar.
    first: steps that are done already.
    last: steps that are done at the end.
    batch_size: number of images in a step.
    shown: whether anything is shown.
  """

  def __init__(self, title: str, first: int, last: int, batch_size: int, shown: bool):
    self._batch_size = batch_size
    self._step = first
    self._time = time.perf_counter()
    self._bar = tqdm(
      total=last, initial=min(first, last), desc=title, unit='step', disable=not shown
    )

  def __enter__(self) -> Progress:
    return self

  def __exit__(self, *exception) -> None:
    self._bar.close()

  def reach(self, step: int, metrics: Mapping[str, float]) -> None:
    """Moves the bar to a step, and shows the metrics."""
    steps = step - self._step
    now = time.perf_counter()
    speed = steps * self._batch_size / (now - self._time)
    shown = {name: f'{value:.3f}' for name, value in metrics.items()}
    self._bar.set_postfix(shown | {'images/s': f'{speed:.0f}'})
    self._bar.update(steps)
    self._step = step
    self._time = now
