"""What a run will take, before any of it runs: steps, memory, arithmetic and time.

  python -m glora_jax.main --config configs/quickstart.py --plan
  python -m glora_jax.main --config configs/quickstart.py --plan --plan.topology v5e:2x4

Nothing is trained, and shapes are enough; images and weights that are not there are fetched.
Memory is an estimate from the traced programs (`costs`), or, where it is asked, the TPU
compiler's own account (`--plan.compile`).
"""

from __future__ import annotations

import dataclasses
import operator
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections

from glora_jax import mesh as meshes
from glora_jax.method.draws import require_feasible
from glora_jax.method.equation import made_for
from glora_jax.method.supports import COLLECTION
from glora_jax.runs import comparison, experiment
from glora_jax.runs.backbone import fetch_task, load_backbone
from glora_jax.runs.config import RunSettings, check_config
from glora_jax.runs.context import (
  Context,
  check,
  check_ranks,
  count,
  count_images,
  fit_batches,
)
from glora_jax.runs.planning.costs import (
  Cost,
  Line,
  bytes_by_kind,
  bytes_of,
  cost_of,
  memory_by_batch,
  memory_by_chunk,
)
from glora_jax.runs.planning.machine import (
  GIBIBYTE,
  Machine,
  Reading,
  find_slice,
  images_per_core,
  machine_of,
)
from glora_jax.runs.programs import on_mesh, program, shape_of_run
from glora_jax.runs.stage import Call, Stage, Workload

_TITLES = ('stage', 'steps', 'images', 'operations', 'memory of a device', 'time')
_UNITS = (('d', 86400), ('h', 3600), ('min', 60))
_PREFIXES = (('E', 1e18), ('P', 1e15), ('T', 1e12), ('G', 1e9))
SHARES = (0.45, 0.2)  # of the peak, which trainings of ViTs reach at best and often
# Seconds of a core for each equation of a program, traced, lowered and compiled. The nine of the
# quickstart took 1.3 to 4.5 ms on an AMD EPYC (jax 0.10.2, CPU), 3.0 in the mean.
COMPILING = (2e-3, 4.5e-3)


class PlannedStage(NamedTuple):
  """A stage and what it takes.

  Attributes:
    name: its name.
    program: key of `programs.MAKERS` of what takes its time.
    steps: steps of training; 0 where nothing is trained.
    images: images that it goes through, for each step and each candidate.
    operations: floating-point operations, of all devices together.
    held: bytes of each device.
    seconds: at 45% and at 20% of the peak.
  """

  name: str
  program: str
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
  if (reading := plan.reading) is not None:
    (fast, slow), (most, least) = reading.rates, reading.cores
    yield (
      f'reading: training images are streamed, {slow:,.0f} to {fast:,.0f} a second, and a core '
      f'like those here decodes {reading.per_core:,.0f}: {least:,} to {most:,} cores keep up'
    )
  source = "the TPU compiler's account" if plan.is_compiled else 'an estimate, from shapes alone'
  added = 'plus compiling, without' if any(plan.compiling) else 'without compiling and'
  yield (
    f'Memory is {source}. Time is that of the arithmetic at 45% to 20% of the peak, {added} '
    'reading.'
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


def plan(
  config: ml_collections.ConfigDict | RunSettings,
  topology: str | None = None,
  *,
  compiled: bool = False,
) -> Plan:
  """What a run will take, before any of it runs.

  Args:
    config: a config with the fields of `config.default_config`, of one run or of a comparison. Its
      images and weights are read, or fetched where they are not there: they say how many steps
      there are, and of what.
    topology: name of a TPU slice, 'v5e:2x4' for instance; None for the machine at hand.
    compiled: whether memory is asked of the TPU compiler, which takes minutes for each program of a
      large model; only with a topology.

  Returns:
    The plan; printed, it is a page.

  Raises:
    ValueError: a wrong field, no such slice, or a batch that cannot be dealt to the devices or fits
      none of them.
    ImportError: `compiled`, and libtpu is not installed.

  Example:
    >>> import glora_jax
    >>> from glora_jax.runs.config import default_config
    >>> config = default_config()
    >>> config.structure = 'lora'
    >>> planned = glora_jax.plan(config, 'v5e:1x1')
    >>> [(stage.name, stage.steps) for stage in planned.stages]
    [('baselines/linear', 6000), ('training', 6000), ('test', 0)]
  """
  settings = check_config(config)
  if compiled and topology is None:
    raise ValueError('The TPU compiler compiles for a slice; give a topology, as v5e:2x4.')
  meshes.initialize(**dataclasses.asdict(settings.distributed))
  machine = machine_of(topology, settings.mesh.devices, settings.model.dtype)
  with made_for(machine.platform):
    name, context = _shape_of(settings, machine)
    planned = plan_of(context, name, machine)
    _require_room(planned, context.settings)
    planned = dataclasses.replace(planned, reading=_reading_of(planned, context))
    if compiled and topology is not None:
      planned = _with_compiled(planned, context, topology)
      _require_room(planned, context.settings)
  return planned


def _shape_of(settings: RunSettings, machine: Machine) -> tuple[str, Context]:
  """(task and model in words, the job as shapes), checked as the job itself would be."""
  stages = _stages(settings)
  with tempfile.TemporaryDirectory() as folder:
    task, path = fetch_task(settings, folder)
    counts = count_images(task)
  # Batches must be dealt to these devices, which need not be here.
  mesh: Any = None
  if machine.devices > 1:
    mesh = jax.sharding.AbstractMesh((1, machine.devices), meshes.AXES)
  settings = fit_batches(settings, stages, counts, mesh)
  model, _, metadata = load_backbone(settings.model, path, task.num_classes)
  size = metadata['image_size']
  settings.augment.check_size(size)
  context = shape_of_run(settings, model, size, counts)
  check_ranks(context.adapted)
  require_feasible(context.adapted.spec, settings.budget)
  check(dataclasses.replace(context, mesh=mesh), stages)
  name = (
    f'{task.name}, {task.num_classes} classes: a {type(model).__name__} of {model.depth} blocks, '
    f'width {model.width}, {size} pixels, computed in {settings.model.dtype}'
  )
  return name, dataclasses.replace(context, task=task)


def _reading_of(planned: Plan, context: Context) -> Reading | None:
  """What the fastest training takes where its images are streamed; None where they are not."""
  examples = context.task.open(context.train_split)
  trainings = [stage for stage in planned.stages if stage.steps]
  if context.is_resident(len(examples.labels)) or not trainings:
    return None
  per_core = images_per_core(examples, context.metadata['image_size'], context.settings.data.resize)
  if per_core is None:
    return None
  rates = (stage.rates for stage in trainings)
  return Reading(max(rates), per_core)


def plan_of(context: Context, name: str, machine: Machine) -> Plan:
  """The plan of a run by estimates, a function of shapes alone.

  Args:
    context: the job as shapes, with batches that the images fill and the devices divide.
    name: task and model, in words.
    machine: the devices.
  """
  settings = context.settings
  calls = _calls(context)
  every = list(dict.fromkeys(call for of_stage in calls.values() for call in of_stage))
  workloads = {call: _workload(call, machine) for call in every}
  costs = {call: cost_of(call.program, context, workloads[call]) for call in every}
  # What each device holds of the base once, and what it keeps a part of.
  trainable, frozen = context.adapted.split(context.variables)
  spared = 0
  if settings.mesh.base == 'sharded':
    spared = bytes_of(frozen) - bytes_of(frozen) // (settings.mesh.fsdp or machine.devices)
  memory = machine.memory + spared
  held = {call: cost.held - spared for call, cost in costs.items()}
  chunk = side_by_side = None
  for call in every:
    if call.program == 'scoring':
      line = memory_by_chunk(costs[call], context, workloads[call].block)
      chunk = min(line.most(memory), settings.search.population)
      side_by_side = _side_by_side(line, memory, settings.search.population, machine)
      held[call] = int(line.fixed + side_by_side * line.each) - spared
  trained = [call for call in every if call.workload.recipe not in (None, settings.finetuning)]
  worst = max(trained, key=held.__getitem__)
  line = memory_by_batch(costs[worst], worst.program, workloads[worst], context)
  # A slice's compiler is not at hand.
  traced = 0 if machine.is_published else sum(cost.equations for cost in costs.values())
  moments = 3 * bytes_of(trainable)  # the parameters, and two moments of Adam
  return Plan(
    model=name,
    machine=machine,
    stages=tuple(
      _planned(name, of_stage, costs, held, machine) for name, of_stage in calls.items()
    ),
    parameters={
      'of the base': count(frozen),
      'in supports': count(trainable[COLLECTION]),
      'in heads': count(trainable['params']),
    },
    states={'the base': bytes_of(frozen), 'what is trained, with its moments': moments},
    batch=line.most(memory) * settings.training.accumulate * machine.devices,
    chunk=chunk,
    side_by_side=side_by_side,
    compiling=(COMPILING[0] * traced, COMPILING[1] * traced),
  )


def _stages(settings: RunSettings) -> tuple[Stage, ...]:
  """The stages of a config's job."""
  return (comparison if settings.job == 'compare' else experiment).stages_of(settings)


def _calls(context: Context) -> dict[str, tuple[Call, ...]]:
  """The programs that the stages of a job call, by stage."""
  stages = _stages(context.settings)
  return {stage.name: tuple(stage.calls(context)) for stage in stages if stage.calls is not None}


def _workload(call: Call, machine: Machine) -> Workload:
  """What a device is given: its share of a batch, of a block in scoring a host's, of a test's."""
  workload, devices = call.workload, machine.devices
  recipe = workload.recipe
  if recipe is not None and not recipe.batch_size % (devices * recipe.accumulate):
    recipe = dataclasses.replace(recipe, batch_size=recipe.batch_size // devices)
    return workload._replace(recipe=recipe)
  if call.program == 'scoring':
    return workload._replace(chunk=1, block=-(-workload.block // (devices // machine.hosts)))
  if call.program == 'evaluation':
    return workload._replace(block=-(-workload.block // devices))
  return workload


def _side_by_side(line: Line, memory: float, population: int, machine: Machine) -> int:
  """Candidates that `make_scorer` takes side by side: what half of the free memory holds."""
  if machine.platform == 'cpu':
    return 1
  fitting = line.most(line.fixed + (memory - line.fixed) / 2)
  return max(1, min(fitting, -(-population // machine.hosts)))


def _planned(
  name: str,
  calls: Sequence[Call],
  costs: Mapping[Call, Cost],
  held: Mapping[Call, int],
  machine: Machine,
) -> PlannedStage:
  """A stage from the programs that it calls, which run one after another."""
  operations = sum(costs[call].operations * call.images for call in calls)
  rate = machine.peak * machine.devices
  return PlannedStage(
    name=name,
    program=calls[0].program,
    steps=sum(call.steps for call in calls),
    images=sum(call.images for call in calls),
    operations=operations,
    held=max(held[call] for call in calls),
    seconds=tuple(operations / (rate * share) for share in SHARES),
  )


def _with_compiled(planned: Plan, context: Context, topology: str) -> Plan:
  """The plan with the TPU compiler's account of every program."""
  devices = find_slice(topology).devices()
  mesh = meshes.over(devices[: planned.machine.devices], context.settings.mesh.fsdp)
  context = on_mesh(context, mesh)
  held: dict[str, int] = {}
  for name, calls in _calls(context).items():
    for call in calls:
      workload = call.workload._replace(chunk=planned.side_by_side or 1)
      made = program(call.program, context, workload)
      executable = (made if mesh else made.on(devices[0])).lowered().compile()
      held[name] = max(held.get(name, 0), sum(bytes_by_kind(executable).values()))
  stages = tuple(stage._replace(held=held[stage.name]) for stage in planned.stages)
  return dataclasses.replace(planned, stages=stages, is_compiled=True)


def _require_room(planned: Plan, settings: RunSettings) -> None:
  """Raises ValueError where a program fits no device."""
  machine = planned.machine
  worst = max(planned.stages, key=operator.attrgetter('held'))
  if worst.held <= machine.memory:
    return
  fits = ''
  if worst.steps:
    fits = f' at most {planned.batch:,} images fit:' if planned.batch else ' not one image fits:'
  *others, last = _advice(worst, settings)
  advice = f'{", ".join(others)}, or {last}' if others else last
  raise ValueError(
    f'{worst.name} takes about {worst.held / GIBIBYTE:,.1f} GiB of each of the {machine.devices} '
    f'devices ({machine.name}), which have {machine.memory / GIBIBYTE:,.1f};{fits} '
    f'{advice}.'
  )


def _advice(stage: PlannedStage, settings: RunSettings) -> Iterator[str]:
  """What makes a stage smaller, or its part on a device."""
  model = settings.model
  if stage.steps or stage.program in ('features', 'allocation'):
    yield f'lower training.batch_size={settings.training.batch_size}'
  if stage.steps:
    yield 'raise training.accumulate'
    if stage.program == 'train_many':
      yield 'give fewer compare.seeds or compare.rates'
    if model.remat != 'nothing_saveable':
      yield "give model.remat='nothing_saveable'"
  else:
    yield f'lower data.max_resident={settings.data.max_resident}'
    if model.base_dtype == 'float32':
      yield "give model.base_dtype='bfloat16'"
  if settings.job != 'compare':  # which has one device
    yield 'take more devices'
