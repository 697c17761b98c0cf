"""What a run will take, before any of it runs: steps, memory, arithmetic, time and disk.

  python -m glora_jax.main --config configs/quickstart.py --plan
  python -m glora_jax.main --config configs/quickstart.py --plan --plan.topology v5e:2x4

Nothing is trained and nothing written; shapes are enough. Memory is an estimate from the traced
programs (`footprint`), or, where it is asked, the TPU compiler's own account (`--plan.compile`).
"""

from __future__ import annotations

import dataclasses
import tempfile
from typing import NamedTuple

import flax.linen as nn
import jax
import ml_collections

from glora_jax import mesh as meshes
from glora_jax.limits import shown
from glora_jax.method.supports import COLLECTION
from glora_jax.runs import early_checks
from glora_jax.runs.backbone import fetch_task, load_backbone
from glora_jax.runs.batch_sizes import fit_batches
from glora_jax.runs.config import RunSettings, check_config
from glora_jax.runs.costs import (
  Cost,
  Line,
  bytes_of,
  compiled_bytes,
  cost_of,
  memory_by_batch,
  memory_by_chunk,
)
from glora_jax.runs.disk_room import STATES_OF_ADAM, least_bytes
from glora_jax.runs.machine import Machine, machine_of
from glora_jax.runs.plan_page import GIBIBYTE, Plan, PlannedStage
from glora_jax.runs.planned_stages import Stage, stages_of
from glora_jax.runs.programs import Workload, program, shape_of_run
from glora_jax.runs.run import Run
from glora_jax.runs.sections import SEARCH
from glora_jax.runs.slices import find_slice

SHARES = (0.45, 0.2)  # of the peak, which trainings of ViTs reach at best and often


class Backbone(NamedTuple):
  """What a plan must know of a run's images and weights.

  Attributes:
    name: task and model, in words.
    model: the ViT, with a head for the task.
    size: side of its images.
    counts: number of images by split, 'train+val' too.
  """

  name: str
  model: nn.Module
  size: int
  counts: dict[str, int]


def plan(
  config: ml_collections.ConfigDict, topology: str | None = None, *, compiled: bool = False
) -> Plan:
  """What a run will take, before any of it runs.

  Args:
    config: a config with the fields of `config.default_config`, of one run. Its images and weights
      are read, or fetched where they are not there: they say how many steps there are, and of what.
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
    [('baselines', 6000), ('training', 6000), ('test', 0)]
  """
  if (job := config.get('job')) != 'adapt':
    raise ValueError(f"job={shown(job)} has no plan; give a run, whose job is 'adapt'.")
  settings = check_config(config)
  if compiled and topology is None:
    raise ValueError('The TPU compiler compiles for a slice; give a topology, as v5e:2x4.')
  machine = machine_of(topology, settings.mesh.devices, settings.model.dtype)
  backbone = _backbone(settings)
  if settings.merge == 'auto':
    merge = 'up_front' if machine.platform == 'cpu' else 'lazy'
    settings = dataclasses.replace(settings, merge=merge)
  # Batches must be dealt to these devices, which need not be here.
  mesh = jax.sharding.AbstractMesh((1, machine.devices), meshes.AXES)
  settings = fit_batches(settings, backbone.counts, mesh)
  planned = plan_of(settings, backbone, machine)
  if compiled and topology is not None:
    planned = _with_compiled(planned, settings, backbone, topology)
  _require_room(planned, settings)
  return planned


def _backbone(settings: RunSettings) -> Backbone:
  """What the run's files say."""
  with tempfile.TemporaryDirectory() as folder:
    task, path = fetch_task(settings, folder)
    counts = early_checks.count_images(task)
  model, _, metadata = load_backbone(settings.model, path, task.num_classes)
  size = metadata['image_size']
  name = (
    f'{task.name}, {task.num_classes} classes: a {type(model).__name__} of {model.depth} blocks, '
    f'width {model.width}, {size} pixels, computed in {settings.model.dtype}'
  )
  return Backbone(name, model, size, counts)


def plan_of(settings: RunSettings, backbone: Backbone, machine: Machine) -> Plan:
  """The plan of a run by estimates, a function of shapes alone.

  Args:
    settings: the config, with batches that the images fill and the devices divide.
    backbone: its model and number of images.
    machine: the devices.
  """
  run = _share_of(settings, backbone, machine.devices)
  stages = tuple(stages_of(settings, backbone.counts))
  # The images of a block are dealt to a host's devices in scoring, and to all in a test.
  block = -(-Workload().block // (machine.devices // machine.hosts))
  workloads = {
    'scoring': Workload(chunk=1, block=block),
    'evaluation': Workload(block=-(-Workload().block // machine.devices)),
  }
  costs = {
    stage.program: cost_of(stage.program, run, workloads.get(stage.program, Workload()))
    for stage in stages
  }
  # What each device holds of the base once, and what it keeps a part of.
  trainable, frozen = run.adapted.split(run.variables)
  spared = 0
  if settings.mesh.base == 'sharded':
    spared = bytes_of(frozen) - bytes_of(frozen) // machine.devices
  chunk = memory = None
  if any(stage.program == 'scoring' for stage in stages):
    memory = memory_by_chunk(costs['scoring'], run, block)
    chunk = memory.most(machine.memory + spared)
  planned = tuple(
    _planned(stage, costs[stage.program], machine, _held(stage, costs, memory, machine) - spared)
    for stage in stages
  )
  section = 'supernet' if settings.structure == SEARCH else 'training'
  recipe = getattr(settings, section)
  lines = [
    memory_by_batch(costs[name], name, section, run)
    for name in ('supernet', 'subnet')
    if name in costs
  ]
  most = min(line.most(machine.memory + spared) for line in lines)
  moments = STATES_OF_ADAM * bytes_of(trainable)
  return Plan(
    model=backbone.name,
    machine=machine,
    stages=planned,
    parameters={
      'of the base': _number(frozen),
      'in supports': _number(trainable[COLLECTION]),
      'in heads': _number(trainable['params']),
    },
    states={'the base': bytes_of(frozen), 'what is trained, with its moments': moments},
    disk=least_bytes(run),
    batch=most * recipe.accumulate * machine.devices,
    chunk=None if chunk is None else min(chunk, settings.search.population),
  )


def _share_of(settings: RunSettings, backbone: Backbone, devices: int) -> Run:
  """What one device does of a run: the same with its share of every batch, as shapes."""
  shares = {
    name: dataclasses.replace(recipe, batch_size=recipe.batch_size // devices)
    for name in ('supernet', 'finetune', 'training')
    if not (recipe := getattr(settings, name)).batch_size % (devices * recipe.accumulate)
  }
  settings = dataclasses.replace(settings, **shares)
  return shape_of_run(settings, backbone.model, backbone.size, backbone.counts)


def _held(stage: Stage, costs: dict[str, Cost], memory: Line | None, machine: Machine) -> int:
  """Bytes of each device; candidates are side by side as `make_scorer` has them."""
  if stage.program != 'scoring' or memory is None or machine.platform == 'cpu':
    return costs[stage.program].held
  free = machine.memory - memory.fixed
  chunk = max(1, memory.most(memory.fixed + free / 2))
  return int(memory.fixed + min(chunk, costs['scoring'].candidates) * memory.each)


def _planned(stage: Stage, cost: Cost, machine: Machine, held: int) -> PlannedStage:
  operations = cost.operations * stage.images
  rate = machine.peak * machine.devices
  seconds = tuple(operations / (rate * share) for share in SHARES)
  name, made, _, steps, images = stage
  return PlannedStage(name, made, steps, images, operations, held, seconds)


def _number(tree: object) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _with_compiled(planned: Plan, settings: RunSettings, backbone: Backbone, topology: str) -> Plan:
  """The plan with the TPU compiler's account of every program."""
  devices = find_slice(topology).devices()
  mesh = meshes.over(devices[: planned.machine.devices])
  run = shape_of_run(settings, backbone.model, backbone.size, backbone.counts, mesh=mesh)
  held = {}
  for name in dict.fromkeys(stage.program for stage in planned.stages):
    made = program(name, run, Workload(chunk=planned.chunk or 1))
    held[name] = compiled_bytes(made if mesh else made.on(devices[0]))
  stages = tuple(stage._replace(held=held[stage.program]) for stage in planned.stages)
  return dataclasses.replace(planned, stages=stages, is_compiled=True)


def _require_room(planned: Plan, settings: RunSettings) -> None:
  """Raises ValueError where a batch, or a program, fits no device."""
  machine = planned.machine
  worst = max(planned.stages, key=lambda stage: stage.held)
  if worst.held <= machine.memory:
    return
  section = 'supernet' if settings.structure == SEARCH else 'training'
  fits = f'at most {planned.batch:,} images fit' if planned.batch else 'not one image fits'
  raise ValueError(
    f'{worst.name} takes about {worst.held / GIBIBYTE:,.1f} GiB of each of the {machine.devices} '
    f'devices ({machine.name}), which have {machine.memory / GIBIBYTE:,.1f}; {fits}: lower '
    f'{section}.batch_size={getattr(settings, section).batch_size}, raise {section}.accumulate, '
    "give model.remat='nothing_saveable', or take more devices."
  )
