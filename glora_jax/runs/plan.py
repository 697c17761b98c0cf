"""A plan of a run before it starts: steps, memory, arithmetic and time.

  python -m glora_jax.main --config configs/quickstart.py --plan
  python -m glora_jax.main --config configs/quickstart.py --plan --plan.topology v5e:2x4

Every program that a stage calls is compiled, for this machine's devices or for a TPU slice, and
none is run; missing images and weights are downloaded. Memory is what the compiler reports, and
operations are counted in the traced programs. The compiler for slices is libtpu
(`pip install 'jax[tpu]'`), which needs no TPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.data.examples import Examples
from glora_jax.data.image import ResizeRule, resize
from glora_jax.errors import user_errors
from glora_jax.files import first_line
from glora_jax.limits import shown
from glora_jax.method.supports import COLLECTION
from glora_jax.runs import comparison, experiment
from glora_jax.runs.config import RunSettings, check_config
from glora_jax.runs.context import Context, count, make_context
from glora_jax.runs.programs import MAKERS
from glora_jax.runs.stage import Call, Workload
from glora_jax.search.scoring import made_for

GIBIBYTE = 2**30
SHARES = (0.45, 0.2)  # of the peak: what training a ViT reaches at best, and often
_TITLES = ('stage', 'steps', 'images', 'operations', 'memory of a device', 'time')
_UNITS = (('d', 86400), ('h', 3600), ('min', 60))
_PREFIXES = (('E', 1e18), ('P', 1e15), ('T', 1e12), ('G', 1e9))
# Of the matrices whose products are timed: they fit a CPU's caches, and fill other devices.
_SIDES = {'cpu': 512}
_SIDE = 4096
_SECONDS = 1.0  # of timing: some of hundreds of short products are undisturbed
_TIMED = 48  # images
# What libtpu needs on a machine without a TPU.
_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # no TPU is used, so processes do not conflict
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
}
# libtpu's two error messages.
_NEEDED = re.compile(r'(?:\(|Used )([\d.]+)([KMG])(?:\) exceeds| of [\d.]+[KMG] hbm)')
_POWERS = {'K': 2**10, 'M': 2**20, 'G': GIBIBYTE}


class Chip(NamedTuple):
  """A generation of TPUs: figures published by Google, and libtpu's name for it.

  Attributes:
    peak: bfloat16 operations of matrix products in a second.
    memory: bytes.
    config: name of its configuration.
  """

  peak: float
  memory: int
  config: str = 'default'


CHIPS = {
  'v4': Chip(275e12, 32 * GIBIBYTE, 'megacore'),
  'v5e': Chip(197e12, 16 * GIBIBYTE),
  'v5p': Chip(459e12, 95 * GIBIBYTE),
  'v6e': Chip(918e12, 32 * GIBIBYTE),
}


def chip_of(topology: str) -> Chip:
  """The chip of a slice by its name, 'v5e:2x4' or 'v4:2x2x1'; raises ValueError for others.

  Example:
    >>> chip_of('v5e:2x4').memory // GIBIBYTE
    16
  """
  generation, _, sides = str(topology).partition(':')
  if generation not in CHIPS or not re.fullmatch(r'[1-9]\d?(x[1-9]\d?){1,2}', sides):
    raise ValueError(
      f'topology {shown(topology)} is unknown; give {", ".join(CHIPS)} with the chips of each '
      'side, for example v5e:2x4 or v4:2x2x2.'
    )
  return CHIPS[generation]


def has_compiler() -> bool:
  """Whether libtpu is installed."""
  return importlib.util.find_spec('libtpu') is not None


def devices_of(topology: str) -> Sequence[jax.Device]:
  """Devices of a slice for the TPU compiler, with no hardware behind them.

  Raises:
    ValueError: the slice does not exist.
    ImportError: libtpu is not installed.
  """
  chip = chip_of(topology)
  if not has_compiler():
    raise ImportError(
      f"topology {topology} needs the TPU compiler, which is not installed; pip install 'jax[tpu]'."
    )
  from jax.experimental import topologies

  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  sides = [int(side) for side in topology.partition(':')[2].split('x')]
  host = (min(sides[0], 2), min(sides[1], 2), 1)
  options = {'chip_config_name': chip.config, 'chips_per_host_bounds': host}
  try:
    return topologies.get_topology_desc(topology, 'tpu', **options).devices
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(
      f'topology {shown(topology)} is impossible: {first_line(str(error))}'
    ) from error


class Machine(NamedTuple):
  """Equal devices; those of a host's CPU share its memory and its cores.

  Attributes:
    name: name of the device.
    devices: number of devices.
    memory: bytes of each device.
    peak: operations of matrix products per second and device.
    is_published: whether the peak is published by the maker, not measured.
    platform: 'cpu', 'gpu' or 'tpu'.
  """

  name: str
  devices: int
  memory: int
  peak: float
  is_published: bool
  platform: str


def machine_at_hand(devices: Sequence[jax.Device], dtype: Any = 'float32') -> Machine:
  """This machine's devices; their peak is measured for a type of computation."""
  device = jax.local_devices()[0]
  stats = device.memory_stats() or {}
  memory = stats.get('bytes_limit') or os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  side = _SIDES.get(device.platform, _SIDE)
  factor = jnp.full((side, side), 1 / side, dtype)
  multiply = jax.jit(jnp.matmul)
  multiply(factor, factor).block_until_ready()
  best, end = math.inf, time.perf_counter() + _SECONDS
  while (start := time.perf_counter()) < end:
    multiply(factor, factor).block_until_ready()
    best = min(best, time.perf_counter() - start)
  share = 1
  if device.platform == 'cpu':
    share = len(devices) // len({each.process_index for each in devices})
  peak = 2 * side**3 / best / share
  return Machine(device.device_kind, len(devices), memory // share, peak, False, device.platform)


def bytes_by_kind(executable: Any) -> dict[str, int]:
  """Bytes of a device that a compiled program takes, as the compiler reports."""
  memory = executable.memory_analysis()
  return {
    'arguments': memory.argument_size_in_bytes,
    'temporaries': memory.temp_size_in_bytes,
    'outputs': memory.output_size_in_bytes - memory.alias_size_in_bytes,
    'code': memory.generated_code_size_in_bytes,
  }


def most_that_fit(memory: float, few: tuple[int, float], many: tuple[int, float]) -> int:
  """How many fit into a memory at once, by a line through two numbers and their bytes."""
  each = max(1.0, (many[1] - few[1]) / (many[0] - few[0]))
  return max(0, int(few[0] + (memory - few[1]) // each))


def images_per_core(examples: Examples, image_size: int, rule: ResizeRule) -> float | None:
  """Images that a core reads, decodes and resizes in a second, measured on a sample.

  Waiting for a disk does not count. None if none of them can be decoded.
  """
  indices = np.linspace(0, len(examples.labels) - 1, _TIMED + 1).astype(int)
  seconds = []
  for index in indices:
    with contextlib.suppress(OSError):
      start = time.thread_time()
      resize(examples.image(int(index)), image_size, rule)
      seconds.append(time.thread_time() - start)
  warm = seconds[1:]  # the first one loads decoders and opens files
  return 1 / max(float(np.mean(warm)), 1e-9) if warm else None


class PlannedStage(NamedTuple):
  """A stage and what it takes.

  Attributes:
    name: its name.
    steps: steps of training; 0 if nothing is trained.
    images: images that it goes through, for each step and each candidate.
    operations: floating-point operations, of all devices together.
    held: bytes of each device.
    seconds: at 45% and at 20% of the peak.
  """

  name: str
  steps: int
  images: int
  operations: float
  held: int
  seconds: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a run will take; printed, it is a page.

  Attributes:
    model: task and model, in words.
    machine: the devices.
    stages: the stages, in order.
    parameters: numbers of parameters, by place.
    states: bytes, by what they hold.
    compiling: seconds that compiling took here.
    batch: most images per step, on all devices together; None if a batch cannot be halved.
    side_by_side: candidates of a search on each device at once; None on CPU, or without a search.
    per_core: streamed training images that a core of this machine decodes in a second; None if they
      stay on the devices.
  """

  model: str
  machine: Machine
  stages: tuple[PlannedStage, ...]
  parameters: dict[str, int]
  states: dict[str, int]
  compiling: float
  batch: int | None = None
  side_by_side: int | None = None
  per_core: float | None = None

  @property
  def seconds(self) -> tuple[float, float]:
    """Seconds of all stages, at 45% and at 20% of the peak, and of compiling."""
    fast, slow = zip(*(stage.seconds for stage in self.stages), strict=True)
    return self.compiling + sum(fast), self.compiling + sum(slow)

  @property
  def rates(self) -> tuple[float, ...]:
    """Images a second that the fastest training takes, at 45% and at 20% of the peak."""
    trainings = [stage for stage in self.stages if stage.steps]
    return max(tuple(stage.images / each for each in stage.seconds) for stage in trainings)

  @property
  def cores(self) -> tuple[int, ...]:
    """Cores that decode streamed images as fast as the fastest training takes them."""
    return tuple(math.ceil(rate / (self.per_core or math.inf)) for rate in self.rates)

  def __str__(self):
    return '\n'.join(_page(self))


def _page(plan: Plan) -> Iterator[str]:
  machine = plan.machine
  peak = 'published' if machine.is_published else 'measured'
  yield plan.model
  yield (
    f'{machine.devices} x {machine.name}: {machine.memory / GIBIBYTE:,.1f} GiB and '
    f'{_operations(machine.peak)} per second each ({peak})\n'
  )
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
  total = _operations(sum(stage.operations for stage in plan.stages))
  compiling, whole = _range((plan.compiling,) * 2), _range(plan.seconds)
  rows += [('compiling', '', '', '', '', compiling), ('all', '', '', total, '', whole)]
  widths = [max(map(len, column)) for column in zip(_TITLES, *rows, strict=True)]
  for first, *others in (_TITLES, *rows):
    cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
    yield '  '.join([first.ljust(widths[0]), *cells]).rstrip()
  yield '\nparameters: ' + ', '.join(f'{n:,} {name}' for name, n in plan.parameters.items())
  yield 'states: ' + ', '.join(f'{n / 1e6:,.1f} MB {name}' for name, n in plan.states.items())
  if plan.batch is not None:
    yield f'largest batch: {plan.batch:,} images, on all devices together'
  if plan.side_by_side is not None:
    yield f'search: {plan.side_by_side:,} candidates side by side on each device'
  if plan.per_core is not None:
    (fast, slow), (most, least) = plan.rates, plan.cores
    yield (
      f'reading: training takes {slow:,.0f} to {fast:,.0f} streamed images per second, a core of '
      f'this machine decodes {plan.per_core:,.0f}: {least:,} to {most:,} cores keep up'
    )
  yield (
    'Memory is what the compiler reports. Time is arithmetic at 45% to 20% of the peak, plus '
    'compiling as measured here, without reading images.'
  )


def _operations(number: float) -> str:
  for prefix, unit in _PREFIXES:
    if number >= unit:
      return f'{number / unit:,.1f} {prefix}op'
  return f'{number / 1e6:,.1f} Mop'


def _range(seconds: Sequence[float]) -> str:
  fast, slow = map(_time, seconds)
  return fast if fast == slow else f'{fast} to {slow}'


def _time(seconds: float) -> str:
  for name, unit in _UNITS:
    if seconds >= 2 * unit:
      return f'{seconds / unit:.0f} {name}'
  return f'{seconds:.0f} s' if seconds >= 1 else 'below 1 s'


@user_errors()
def plan(config: ml_collections.ConfigDict | RunSettings, topology: str | None = None) -> Plan:
  """Plans a run without running it: steps, memory, arithmetic and time of every stage.

  Args:
    config: a config with the fields of `config.default_config`, of one run or of a comparison. Its
      images and weights are read, and downloaded if they are missing.
    topology: name of a TPU slice, for example 'v5e:2x4'; compiling for it takes minutes for a
      program of a large model. None for this machine.

  Returns:
    The plan; printed, it is a page.

  Raises:
    ValueError: a wrong field, an unknown slice, or a batch that cannot be split over the devices or
      does not fit them.
    ImportError: a topology is given, but libtpu is not installed.

  Example:
    >>> import glora_jax
    >>> from glora_jax.runs.config import default_config
    >>> config = default_config()
    >>> config.structure = 'linear'
    >>> planned = glora_jax.plan(config)
    >>> [(stage.name, stage.steps) for stage in planned.stages]
    [('training/linear', 6000), ('test', 0)]
  """
  settings = check_config(config)
  stages = (comparison if settings.job == 'compare' else experiment).stages_of(settings)
  meshes.initialize(**dataclasses.asdict(settings.distributed))
  devices = jax.devices() if topology is None else devices_of(topology)
  devices = devices[: 1 if settings.mesh.devices == 'one' else None]
  if topology is None:
    machine = machine_at_hand(devices, settings.model.dtype)
  else:
    chip = chip_of(topology)
    machine = Machine(f'TPU {topology}', len(devices), chip.memory, chip.peak, True, 'tpu')
  with made_for(machine.platform), tempfile.TemporaryDirectory() as folder:
    context = make_context(settings, stages, folder, devices=devices)
    calls = {stage.name: list(stage.calls(context)) for stage in stages if stage.calls is not None}
    return _Planner(context, machine, devices[0]).plan(calls)


class _Cost(NamedTuple):
  """Operations for an image on all devices together, and bytes of each device."""

  operations: float
  held: int


class _Planner:
  """Asks the compiler once for each program what it takes on the devices of a plan."""

  def __init__(self, context: Context, machine: Machine, device: jax.Device):
    self._context, self._machine, self._device = context, machine, device
    self._cost: Callable[[str, Workload], _Cost] = functools.cache(self._compile)

  def _compile(self, name: str, workload: Workload) -> _Cost:
    made = MAKERS[name](self._context, workload)
    if self._context.mesh is None:
      made = made.on(self._device)
    lowered = made.function.lower(*made.arguments)
    try:
      return _Cost(made.operations, sum(bytes_by_kind(lowered.compile()).values()))
    except jax.errors.JaxRuntimeError as error:
      if (found := _NEEDED.search(str(error))) is None:
        raise
      needed = int(float(found[1]) * _POWERS[found[2]])
      return _Cost(made.operations, max(needed, self._machine.memory + 1))

  def plan(self, calls: Mapping[str, Sequence[Call]]) -> Plan:
    """The plan of a job from the calls of its stages."""
    context, machine = self._context, self._machine
    every = [call for of_stage in calls.values() for call in of_stage]
    # Other processes slow the first clock, and parallel threads add up in the second.
    clocks = time.perf_counter, time.process_time
    started = [clock() for clock in clocks]
    stages = tuple(self._stage(name, of_stage) for name, of_stage in calls.items())
    compiling = min(clock() - start for clock, start in zip(clocks, started, strict=True))
    is_searched = any(call.program == 'scoring' for call in every)
    worst = max(
      (call for call in every if call.steps),
      key=lambda call: self._cost(call.program, call.workload).held,
    )
    trainable, frozen = context.adapted.split(context.variables)
    return Plan(
      model=_words(context),
      machine=machine,
      stages=stages,
      parameters={
        'of the base': count(frozen),
        'in supports': count(trainable[COLLECTION]),
        'in heads': count(trainable['params']),
      },
      states={
        'the base': _bytes_of(frozen),
        'what is trained, with its moments': 3 * _bytes_of(trainable),  # Adam has two
      },
      compiling=compiling,
      batch=self._most_images(worst),
      side_by_side=self._scoring[0] if is_searched and machine.platform != 'cpu' else None,
      per_core=_per_core(context),
    )

  def _stage(self, name: str, calls: Sequence[Call]) -> PlannedStage:
    """A stage from the programs that it calls one after another, each of which must fit."""
    machine, operations, held = self._machine, 0.0, 0
    for call in calls:
      if call.program == 'scoring':
        _, cost = self._scoring
      else:
        cost = self._cost(call.program, call.workload)
      if cost.held > machine.memory:
        raise ValueError(self._too_large(name, call, cost))
      operations += cost.operations * call.images
      held = max(held, cost.held)
    rate = machine.peak * machine.devices
    return PlannedStage(
      name,
      sum(call.steps for call in calls),
      sum(call.images for call in calls),
      operations,
      held,
      tuple(operations / (rate * share) for share in SHARES),
    )

  @functools.cached_property
  def _scoring(self) -> tuple[int, _Cost]:
    """Candidates that `make_scorer` takes at once: as many as fit half of what one leaves free."""
    one = self._cost('scoring', Workload(chunk=1))
    if self._machine.platform == 'cpu':
      return 1, one
    each = self._cost('scoring', Workload(chunk=2)).held - one.held
    free = self._machine.memory - one.held
    population, mesh = self._context.settings.search.population, self._context.mesh
    most = -(-population // (mesh.shape['candidate'] if mesh else 1))
    chunk = max(1, min(most, int(1 + free / 2 // max(1, each))))
    return chunk, one._replace(held=one.held + (chunk - 1) * each)

  def _most_images(self, call: Call) -> int | None:
    """Images per training step that fit, from the memory of a batch and of half a batch."""
    recipe, memory = call.workload.recipe, self._machine.memory
    assert recipe is not None
    part = recipe.accumulate * self._context.devices * self._context.settings.sampling.paths
    fewer = recipe.batch_size // 2 // part * part
    if not fewer:
      return None
    half = call.workload._replace(recipe=dataclasses.replace(recipe, batch_size=fewer))
    few, many = (self._cost(call.program, each).held for each in (half, call.workload))
    return most_that_fit(memory, (fewer, few), (recipe.batch_size, many)) // part * part

  def _too_large(self, name: str, call: Call, cost: _Cost) -> str:
    """The error about a stage that does not fit: what would fit, and what to do."""
    machine, settings, most = self._machine, self._context.settings, None
    fits, advice = '', []
    if call.steps:
      most = self._most_images(call)
      fits = f' at most {most:,} images fit:' if most else ' not one image fits:'
    if call.steps or call.program in ('features', 'allocation'):
      advice.append(f'lower training.batch_size={settings.training.batch_size}')
    if call.steps:
      advice.append('raise training.accumulate')
      if call.program == 'train_many':
        advice.append('give fewer compare.seeds or compare.rates')
      if settings.model.remat != 'nothing_saveable':
        advice.append("give model.remat='nothing_saveable'")
    else:
      advice.append(f'lower data.max_resident={settings.data.max_resident}')
      if settings.model.base_dtype == 'float32':
        advice.append("give model.base_dtype='bfloat16'")
    if settings.job != 'compare':  # a comparison has one device
      advice.append('take more devices')
    return (
      f'{name} takes about {cost.held / GIBIBYTE:,.1f} GiB of each of the {machine.devices} '
      f'devices ({machine.name}), which have {machine.memory / GIBIBYTE:,.1f};{fits} '
      f'{", or ".join(filter(None, (", ".join(advice[:-1]), advice[-1])))}.'
    )


def _words(context: Context) -> str:
  """Task and model."""
  task, model = context.task, context.adapted.model
  return (
    f'{task.name}, {task.num_classes} classes: a {type(model).__name__} of {model.depth} blocks, '
    f'width {model.width}, {context.metadata["image_size"]} pixels, computed in '
    f'{context.settings.model.dtype}'
  )


def _bytes_of(tree: Any) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _per_core(context: Context) -> float | None:
  """Training images that a core decodes in a second, if they are streamed."""
  if context.is_resident(context.counts[context.train_split]):
    return None
  examples = context.task.open(context.train_split)
  return images_per_core(examples, context.metadata['image_size'], context.settings.data.resize)
