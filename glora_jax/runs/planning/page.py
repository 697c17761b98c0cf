"""A plan as data, and as a page for a terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from glora_jax.runs.planning.machine import GIBIBYTE, Machine, Reading

_TITLES = ('stage', 'steps', 'images', 'operations', 'memory of a device', 'time')
_UNITS = (('d', 86400), ('h', 3600), ('min', 60))
_PREFIXES = (('E', 1e18), ('P', 1e15), ('T', 1e12), ('G', 1e9))


class PlannedStage(NamedTuple):
  """A stage and what it takes.

  Attributes:
    name: its name.
    program: key of `programs.MAKERS` of what takes its time.
    section: section of the config that it is trained by; None where nothing is.
    steps: steps of training; 0 where nothing is trained.
    images: images that it goes through, for each step and each candidate.
    operations: floating-point operations, of all devices together.
    held: bytes of each device.
    seconds: at 45% and at 20% of the peak.
  """

  name: str
  program: str
  section: str | None
  steps: int
  images: int
  operations: float
  held: int
  seconds: tuple[float, ...]

  @property
  def rates(self) -> tuple[float, ...]:
    """Images a second, at 45% and at 20% of the peak."""
    return tuple(self.images / seconds for seconds in self.seconds)


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a run will take; printed, it is a page.

  Attributes:
    model: task and model, in words.
    machine: the devices.
    stages: the stages, in their order.
    parameters: their numbers, by where they are.
    states: bytes, by what they are of.
    batch: most images of a step, on all devices together; 0 where not one fits.
    chunk: most candidates side by side on a device; None where nothing is searched.
    side_by_side: how many of them a run takes, which leaves half of what is free.
    compiling: seconds of compiling, at best and at worst; 0 where they are not known.
    reading: what streamed training images ask of the hosts; None where they stay on the devices.
    is_compiled: whether memory of the stages is the compiler's account, and not an estimate.
  """

  model: str
  machine: Machine
  stages: tuple[PlannedStage, ...]
  parameters: dict[str, int]
  states: dict[str, int]
  batch: int
  chunk: int | None
  side_by_side: int | None
  compiling: tuple[float, float] = (0.0, 0.0)
  reading: Reading | None = None
  is_compiled: bool = False

  @property
  def seconds(self) -> tuple[float, float]:
    """Seconds of all stages, at 45% and at 20% of the peak, and of compiling."""
    parts = (self.compiling, *(stage.seconds for stage in self.stages))
    fast, slow = zip(*parts, strict=True)
    return sum(fast), sum(slow)

  def __str__(self):
    return '\n'.join(_page(self))


def _page(plan: Plan) -> Iterator[str]:
  machine = plan.machine
  peak = 'published' if machine.is_published else 'measured'
  yield plan.model
  yield (
    f'{machine.devices} x {machine.name}: {machine.memory / GIBIBYTE:,.1f} GiB and '
    f'{_operations(machine.peak)} a second each ({peak})'
  )
  yield ''
  rows = [
    (
      stage.name,
      f'{stage.steps:,}' if stage.steps else '',
      f'{stage.images:,}',
      _operations(stage.operations),
      f'{stage.held / GIBIBYTE:,.2f} GiB',
      _range(stage.seconds),
    )
    for stage in plan.stages
  ]
  if any(plan.compiling):
    rows.append(('compiling', '', '', '', '', _range(plan.compiling)))
  total = sum(stage.operations for stage in plan.stages)
  yield from _table([_TITLES, *rows, ('all', '', '', _operations(total), '', _range(plan.seconds))])
  yield ''
  yield 'parameters: ' + ', '.join(f'{n:,} {name}' for name, n in plan.parameters.items())
  yield 'states: ' + ', '.join(f'{n / 1e6:,.1f} MB {name}' for name, n in plan.states.items())
  fits = [f'{plan.batch:,} images of a step on all devices together']
  if plan.chunk is not None:
    fits.append(f'{plan.chunk:,} candidates side by side on each')
  yield f'fits, by estimate: {" and ".join(fits)}'
  if plan.reading is not None:
    yield _words_on(plan.reading)
  source = "the TPU compiler's account" if plan.is_compiled else 'an estimate, from shapes alone'
  added = 'plus compiling, without' if any(plan.compiling) else 'without compiling and'
  yield (
    f'Memory is {source}. Time is that of the arithmetic at 45% to 20% of the peak, {added} '
    'reading.'
  )


def _words_on(reading: Reading) -> str:
  (fast, slow), (most, least) = reading.rates, reading.cores
  return (
    f'reading: training images are streamed, {slow:,.0f} to {fast:,.0f} a second, and a core like '
    f'those here decodes {reading.per_core:,.0f}: {least:,} to {most:,} cores keep up'
  )


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for first, *others in rows:
    cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
    yield '  '.join([first.ljust(widths[0]), *cells]).rstrip()


def _operations(number: float) -> str:
  for prefix, unit in _PREFIXES:
    if number >= unit:
      return f'{number / unit:,.1f} {prefix}op'
  return f'{number / 1e6:,.1f} Mop'


def _range(seconds: Sequence[float]) -> str:
  fast, slow = seconds
  if slow < 1:
    return 'below 1 s'
  return f'{_time(fast)} to {_time(slow)}'


def _time(seconds: float) -> str:
  for name, unit in _UNITS:
    if seconds >= 2 * unit:
      return f'{seconds / unit:.0f} {name}'
  return f'{seconds:.0f} s' if seconds >= 1 else 'below 1 s'
