"""What a run will take, before any of it runs."""

import dataclasses
import os
import types

import jax
import jax.numpy as jnp
import pytest
from PIL import Image
from tiny_runs import changed

import glora_jax
from glora_jax import main
from glora_jax.data.examples import Files
from glora_jax.models.vit import ViT
from glora_jax.runs.config import RunSettings
from glora_jax.runs.planning import plan as plans
from glora_jax.runs.planning.costs import cost_of, count, memory_by_batch, temporaries
from glora_jax.runs.planning.machine import (
  Machine,
  Reading,
  find_slice,
  images_per_core,
  machine_of,
)
from glora_jax.runs.programs import shape_of_run
from glora_jax.runs.sections import Comparison, Finetuning, TrainingSettings
from glora_jax.runs.stage import Workload

COUNTS = {'train': 640, 'val': 160, 'test': 200, 'train+val': 800}
RECIPE = TrainingSettings(epochs=4, warmup_epochs=1, batch_size=64)
GIVEN = RunSettings(structure='lora', training=RECIPE)
MODEL = ViT(10, patch_size=4, width=16, depth=2, num_heads=2)
SIX = dataclasses.replace(RECIPE, epochs=6)  # 10 steps each
FINETUNE = Finetuning(epochs=2, warmup_epochs=1)
COMPARE = Comparison(
  methods=('lora:2', 'finetuning', 'search', 'gradient'),
  budgets=(400, 800),
  seeds=3,
  rates=(1e-3, 4e-3),
  rate={'finetuning': 1e-3},
)
COMPARING = RunSettings(job='compare', compare=COMPARE, training=SIX, finetune=FINETUNE, presets=())


def plan_of(settings=GIVEN, **of_machine):
  """The plan of settings."""
  return plans.plan_of(shape_of_run(settings, MODEL, 8, COUNTS), 'digits', machine(**of_machine))


def machine(memory=2**30, devices=1, is_published=True):
  """A machine of devices of a gigaop a second."""
  return Machine('test', devices, 1, memory, 1e9, is_published, 'tpu')


@pytest.fixture(scope='module')
def planned():
  """The plan of a structure that is given, on one device."""
  return plan_of()


def test_products_of_a_vit_are_those_that_one_counts_by_hand():
  model = MODEL
  variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  found = count(jax.make_jaxpr(model.apply)(variables, jnp.zeros((3, 8, 8, 3))))
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


def test_what_a_backward_pass_reads_again_is_held_for_every_round():
  def loss(x, rounds):
    return jax.lax.scan(lambda y, _: (jnp.tanh(y @ y), None), x, length=rounds)[0].sum()

  gradients = [
    jax.make_jaxpr(jax.grad(lambda x, n=n: loss(x, n)))(jnp.ones((8, 8))) for n in (4, 8)
  ]
  four, eight = map(temporaries, gradients)
  assert four > 4 * 8 * 8 * 4
  assert eight - four == pytest.approx(four, rel=0.5)


def test_a_plan_has_the_steps_and_images_of_every_stage(planned):
  steps = {stage.name: stage.steps for stage in planned.stages}
  assert steps == {'training/linear': 40, 'training/lora': 40, 'test': 0}
  assert planned.stages[-1].images == 2 * 360
  fast, slow = planned.seconds
  assert fast == pytest.approx(sum(s.operations for s in planned.stages) / 0.45e9)
  assert slow == pytest.approx(fast * 0.45 / 0.2)


def calls_of(settings):
  """What the stages of a job call, by stage."""
  return plans._calls(shape_of_run(settings, MODEL, 8, COUNTS))


def test_a_searched_run_has_its_stages_in_order():
  calls = calls_of(RunSettings(presets=('gradient',), training=RECIPE))
  before = ['head', 'structure', 'supernet', 'training/linear', 'training/gradient']
  assert list(calls) == [*before, 'search', 'finetune', 'test']
  assert calls['training/gradient'][0].steps == 10 * 1  # three epochs were the gradient's
  assert calls['search'][0].images == 50 * 21 * 160


def test_more_devices_hold_less_each_and_take_less_time(planned):
  two = plan_of(devices=2)
  assert two.seconds[0] == pytest.approx(planned.seconds[0] / 2, rel=0.05)
  assert two.stages[0].held < planned.stages[0].held


def test_the_page_says_what_is_an_estimate_and_how_many_cores_keep_up(planned):
  assert 'Memory is an estimate' in str(planned)
  assert 'streamed' not in str(planned)
  compiled = dataclasses.replace(planned, is_compiled=True, reading=Reading((900, 400), 250))
  assert "Memory is the TPU compiler's account" in str(compiled)
  assert '2 to 4 cores keep up' in str(compiled)


def test_a_core_is_timed_on_images_that_can_be_read(tmp_path):
  paths = [str(tmp_path / f'{number}.png') for number in range(5)]
  for path in paths[:3]:
    Image.new('RGB', (9, 7)).save(path)
  assert 1 < images_per_core(Files(paths, [0] * 5), 8, 'squash') < 1e6
  assert images_per_core(Files(paths[3:], [0] * 2), 8, 'squash') is None


def test_what_fits_no_device_is_refused_with_what_would_fit(planned):
  test = planned.stages[-1]._replace(held=2**40)
  many = planned.stages[0]._replace(name='training/lora:2', program='train_many', held=2**40)
  for changes, settings, advice in (
    ({'machine': machine(1), 'batch': 0}, GIVEN, 'not one image fits: lower training.batch_size'),
    ({'machine': machine(1), 'batch': 63}, GIVEN, 'images fit: lower training.batch_size=64'),
    ({'stages': (*planned.stages[:-1], test)}, GIVEN, r'test takes .* lower data.max_resident'),
    ({'stages': (many,)}, COMPARING, 'give fewer compare.seeds or compare.rates'),
  ):
    refused = dataclasses.replace(planned, **changes)
    with pytest.raises(ValueError, match=advice):
      plans._require_room(refused, settings)


def test_a_slice_has_the_chips_of_its_sides_and_is_named_by_its_numbers():
  names = ('v5e:1x1', 'v5e:02x04', 'v4:2x2x4')
  assert [find_slice(name).chips for name in names] == [1, 8, 16]
  assert find_slice('v5e:02x04').name == 'v5e:2x4'


def test_devices_of_a_cpu_share_its_memory(monkeypatch):
  alone = machine_of(None, 'one').memory
  monkeypatch.setattr(jax, 'devices', lambda: 4 * jax.local_devices()[:1])
  assert machine_of(None).memory == alone // 4


def test_at_hand_a_plan_counts_compiling_and_for_a_slice_it_says_that_it_does_not():
  published, at_hand = plan_of(), plan_of(is_published=False)
  assert 'without compiling and' in str(published)
  compiling = [now - before for now, before in zip(at_hand.seconds, published.seconds, strict=True)]
  assert 0 < compiling[0] < compiling[1]
  twice = plan_of(dataclasses.replace(GIVEN, presets=('bitfit',)), is_published=False)
  assert twice.compiling[0] > at_hand.compiling[0]


def test_every_structure_has_its_own_price():
  settings = dataclasses.replace(GIVEN, training=TrainingSettings(batch_size=8))
  run = shape_of_run(settings, MODEL, 8, COUNTS)
  costs = [
    cost_of('subnet', run, Workload(structure=name)).operations
    for name in ('linear', 'lora:2@qkv', 'full')
  ]
  assert costs == sorted(set(costs))
  calls = calls_of(dataclasses.replace(GIVEN, presets=('bitfit',))).values()
  names = [call.workload.structure for of_stage in calls for call in of_stage]
  assert names[:3] == ['linear', 'bitfit', 'lora']


def test_streamed_batches_grow_with_the_batch():
  data = dataclasses.replace(GIVEN.data, max_resident=0)
  lines = []
  for settings in (GIVEN, dataclasses.replace(GIVEN, data=data)):
    run = shape_of_run(settings, MODEL, 8, COUNTS)
    lines.append(memory_by_batch(cost_of('subnet', run), 'subnet', Workload(), run))
  assert lines[1].each >= lines[0].each + 8 * 8 * 3


@pytest.mark.parametrize('topology, compiled', [('v5e:1x1', False), (None, True)])
def test_options_of_a_plan_ask_for_one(monkeypatch, capsys, run_config, topology, compiled):
  for flag, value in (('PLAN', False), ('TOPOLOGY', topology), ('COMPILE', compiled)):
    monkeypatch.setattr(main, flag, types.SimpleNamespace(value=value))
  monkeypatch.setattr(plans, 'plan', lambda *_, **options: f'planned {options}')
  main.main(run_config)
  assert 'planned' in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_scores_as_many_side_by_side_as_half_of_free_memory_holds():
  memory = 2**22
  settings = RunSettings(presets=(), training=RECIPE)
  found = plan_of(settings, memory=memory)
  search = next(stage for stage in found.stages if stage.name == 'search')
  assert 1 <= found.side_by_side < found.chunk
  assert search.held < memory


@pytest.mark.slow
def test_a_plan_of_a_config_writes_nothing_and_deals_batches(run_config, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  planned = glora_jax.plan(changed(run_config, **{'data.max_resident': 0}), 'v5e:2x4')
  assert planned.machine.devices == 8
  assert planned.chunk == 4
  assert {stage.name: stage.steps for stage in planned.stages}['supernet'] == 150
  trainings = [stage for stage in planned.stages if stage.steps]
  assert planned.reading.rates == max(stage.rates for stage in trainings)
  assert not os.listdir(tmp_path)


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
  assert ('tuning/finetuning', 'train_many') not in steps
  assert ('training/finetuning', 'train_many') in steps
  rows = 1 + 1 + 2 * 2 + 2  # a searched subnet is tested before its finetuning, too
  assert images['test', 'evaluation'] == rows * 3 * 360


def test_a_search_is_made_in_every_supernet_and_budget():
  images, search = sums(COMPARING), COMPARING.search
  candidates = search.population * (search.generations + 1)
  for stage, trials, budgets in (('tuning', 2, 1), ('training', 3, 2)):
    supernets, finetuned = trials * 40 * 64, trials * budgets * 20 * 64
    assert images[f'{stage}/search', 'train_many'] == supernets + finetuned
    assert images[f'{stage}/search', 'scoring'] == trials * budgets * candidates * 160


def test_a_gradient_is_read_for_every_seed_and_budget():
  images = sums(COMPARING)
  left = 6 - COMPARING.allocation.epochs()
  for stage, seeds, rates, budgets in (('tuning', 1, 2, 1), ('training', 3, 1, 2)):
    name = f'{stage}/gradient'
    assert images[name, 'features'] == seeds * 2 * 640  # and as many that are shifted
    assert images[name, 'allocation'] == seeds * 2 * (budgets + 1) * 640
    assert images[name, 'train_many'] == seeds * budgets * rates * left * 10 * 64
  alone = dataclasses.replace(COMPARING.allocation, prior=None)
  images = sums(dataclasses.replace(COMPARING, allocation=alone))
  assert images['training/gradient', 'features'] == 3 * 640


@pytest.mark.full
def test_what_is_trained_side_by_side_has_its_memory_together_and_its_operations_each():
  run = shape_of_run(COMPARING, MODEL, 8, COUNTS)
  operations = {}
  for subnet in (None, 'lora:2', 'finetuning'):
    alone, together = (
      cost_of('train_many', run, Workload(structure=subnet, side_by_side=number))
      for number in (1, 4)
    )
    assert together.operations == pytest.approx(alone.operations, rel=0.05)
    assert 2 * alone.temporaries < together.temporaries < 6 * alone.temporaries
    operations[subnet] = alone.operations
  assert operations['finetuning'] > operations['lora:2']
  planned = plans.plan_of(run, 'digits', machine())
  assert planned.stages[0].name == 'tuning/lora:2'
  assert planned.batch > 64
