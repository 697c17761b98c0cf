"""What a run will take, before any of it runs."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import pytest
from PIL import Image
from tiny_runs import changed, stages_of

import glora_jax
from glora_jax.data.examples import Files
from glora_jax.models.vit import ViT
from glora_jax.runs import comparison, experiment
from glora_jax.runs import plan as plans
from glora_jax.runs.config import RunSettings
from glora_jax.runs.plan import Machine, images_per_core, machine_at_hand
from glora_jax.runs.programs import MAKERS, count, shape_of_run
from glora_jax.runs.sections import Comparison, Finetuning, TrainingSettings
from glora_jax.runs.stage import Workload

COUNTS = {'train': 640, 'val': 160, 'test': 200, 'train+val': 800}
RECIPE = TrainingSettings(epochs=4, warmup_epochs=1, batch_size=64)
GIVEN = RunSettings(structure='lora', training=RECIPE)
MODEL = ViT(10, patch_size=4, width=16, depth=2, num_heads=2)
COMPARING = RunSettings(
  job='compare',
  compare=Comparison(
    methods=('lora:2', 'finetuning', 'search', 'gradient'),
    budgets=(400, 800),
    seeds=3,
    rates=(1e-3, 4e-3),
    rate={'finetuning': 1e-3},
  ),
  training=dataclasses.replace(RECIPE, epochs=6, keep='best'),  # 10 steps each
  finetune=Finetuning(epochs=2, warmup_epochs=1),
  presets=(),
)


def calls_of(settings):
  """What the stages of a job call, by stage."""
  job = comparison if settings.job == 'compare' else experiment
  run = shape_of_run(settings, MODEL, 8, COUNTS)
  return {x.name: list(x.calls(run)) for x in job.stages_of(settings) if x.calls is not None}


def test_products_of_a_vit_are_those_that_one_counts_by_hand():
  variables = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  found = count(jax.make_jaxpr(MODEL.apply)(variables, jnp.zeros((3, 8, 8, 3))))
  tokens, width = 2 * 2 + 1, 16
  block = 12 * width**2 * tokens + 2 * tokens**2 * width
  by_hand = 2 * block + 4 * (4 * 4 * 3) * width + width * 10
  assert found.products == 3 * 2 * by_hand
  assert 0 < found.others < found.products


def test_a_loop_counts_as_often_as_it_goes_round_and_a_choice_as_its_dearest():
  def loop(x, steps):
    return jax.lax.scan(lambda y, _: (y @ y, None), x, length=steps)[0]

  def chosen(x):
    return jax.lax.cond(x[0, 0] > 0, lambda y: loop(y, 2), lambda y: loop(y, 5), x)

  assert count(jax.make_jaxpr(chosen)(jnp.ones((4, 4)))).products == 5 * 2 * 4**3


def test_every_structure_has_its_own_price_and_trainings_side_by_side_the_same():
  run = shape_of_run(
    dataclasses.replace(GIVEN, training=TrainingSettings(batch_size=8)), MODEL, 8, COUNTS
  )
  names = ('linear', 'lora:2@qkv', 'full')
  prices = [MAKERS['subnet'](run, Workload(structure=name)).operations for name in names]
  assert prices == sorted(set(prices))
  many = MAKERS['train_many'](run, Workload(structure='full', side_by_side=4))
  assert many.operations == pytest.approx(prices[-1], rel=0.05)


@pytest.mark.full
def test_a_plan_of_a_config_has_the_steps_of_every_stage_and_writes_nothing(
  run_config, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  planned = glora_jax.plan(changed(run_config, **{'data.max_resident': 0}))
  stages = {stage.name: stage for stage in planned.stages}
  assert list(stages) == [s.name for s in stages_of(run_config) if s.calls is not None]
  assert stages['supernet'].steps == 150
  assert all(stage.held > 10_000 for stage in planned.stages)
  fast, slow = planned.seconds
  arithmetic = sum(stage.operations for stage in planned.stages) / planned.machine.peak
  assert fast == pytest.approx(planned.compiling + arithmetic / 0.45)
  assert slow > fast
  assert planned.batch > 16
  assert f'{planned.per_core:,.0f}: ' in str(planned)
  assert planned.rates == max(
    tuple(stage.images / each for each in stage.seconds) for stage in planned.stages if stage.steps
  )
  assert not os.listdir(tmp_path)


def test_a_core_is_timed_on_images_that_can_be_read(tmp_path):
  paths = [str(tmp_path / f'{number}.png') for number in range(5)]
  for path in paths[:3]:
    Image.new('RGB', (9, 7)).save(path)
  assert 1 < images_per_core(Files(paths, [0] * 5), 8, 'squash') < 1e6
  assert images_per_core(Files(paths[3:], [0] * 2), 8, 'squash') is None


@pytest.mark.parametrize(
  'settings, memory, advice',
  [
    (GIVEN, 100, 'training/linear takes .* not one image fits: lower training.batch_size=64'),
    (GIVEN, 1000 + 32 * 10, 'at most 32 images fit: lower training.batch_size=64, raise'),
    (GIVEN, 1700, 'training/linear takes .* lower data.max_resident'),
    (COMPARING, 100, 'give fewer compare.seeds or compare.rates'),
  ],
)
def test_what_fits_no_device_is_refused_with_what_would_fit(settings, memory, advice):
  machine = Machine('test', 1, memory, 1e9, True, 'tpu')
  planner = plans._Planner(shape_of_run(settings, MODEL, 8, COUNTS), machine, jax.devices()[0])

  def cost(name, workload):
    held = 1800 if workload.recipe is None else 1000 + 10 * workload.recipe.batch_size
    return plans._Cost(1.0, held if workload.chunk == 8 else 0)

  planner._cost = cost
  with pytest.raises(ValueError, match=advice):
    [planner._stage(name, calls) for name, calls in calls_of(settings).items()]


def test_devices_of_a_cpu_share_its_memory(monkeypatch):
  monkeypatch.setattr(plans, '_SECONDS', 0.01)
  [device] = jax.local_devices()[:1]
  alone, shared = (machine_at_hand(number * [device]) for number in (1, 4))
  assert shared.memory == alone.memory // 4


def sums(settings, attribute='images'):
  """Steps or images by stage and program."""
  found = {}
  for name, calls in calls_of(settings).items():
    for call in calls:
      key = name, call.program
      found[key] = found.get(key, 0) + getattr(call, attribute)
  return found


def test_every_method_is_tuned_unless_its_rate_is_given_and_trained_from_every_seed():
  steps, images = sums(COMPARING, 'steps'), sums(COMPARING)
  assert steps['tuning/lora:2', 'train_many'] == 60
  assert images['tuning/lora:2', 'train_many'] == 60 * 64 * 2
  assert images['training/lora:2', 'train_many'] == 60 * 64 * 3
  assert images['training/lora:2', 'evaluation'] == 6 * 160 * 3  # a look after every epoch
  assert ('tuning/finetuning', 'train_many') not in steps
  assert ('training/finetuning', 'train_many') in steps
  rows = 1 + 1 + 2 * 2 + 2  # a searched structure is tested before its finetuning, too
  assert images['test', 'evaluation'] == rows * 3 * 360


def test_a_gradient_is_read_for_every_seed_and_serves_all_budgets():
  shifts = dataclasses.replace(COMPARING.allocation, prior='shifts')
  images = sums(dataclasses.replace(COMPARING, allocation=shifts))
  left = 6 - shifts.epochs()
  for stage, seeds, rates, budgets in (('tuning', 1, 2, 1), ('training', 3, 1, 2)):
    name = f'{stage}/gradient'
    assert images[name, 'features'] == seeds * 2 * 640  # and as many that are shifted
    assert images[name, 'allocation'] == seeds * 2 * 640
    assert images[name, 'train_many'] == seeds * budgets * rates * left * 10 * 64
  assert sums(COMPARING)['training/gradient', 'features'] == 3 * 640
