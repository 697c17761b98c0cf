"""What a run will take, before any of it runs."""

import dataclasses
import itertools
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
from glora_jax.runs.planning import machine as machines
from glora_jax.runs.planning import plan as plans
from glora_jax.runs.planning.costs import cost_of, count, equations, memory_by_batch, temporaries
from glora_jax.runs.planning.machine import (
  Machine,
  Reading,
  find_slice,
  images_per_core,
  machine_of,
)
from glora_jax.runs.planning.stages import stages_of
from glora_jax.runs.programs import Workload, shape_of_run
from glora_jax.runs.run import stage_names
from glora_jax.training.recipe import Recipe

COUNTS = {'train': 640, 'val': 160, 'test': 200, 'train+val': 800}
RECIPE = Recipe(epochs=4, warmup_epochs=1, batch_size=64)
GIVEN = RunSettings(structure='lora', training=RECIPE, merge='lazy')
MODEL = ViT(10, patch_size=4, width=16, depth=2, num_heads=2)


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

  of_loop, of_choice = (jax.make_jaxpr(f)(jnp.ones((4, 4))) for f in (lambda x: loop(x, 5), chosen))
  assert count(of_loop).products == count(of_choice).products == 5 * 2 * 4**3


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
  assert steps == {'baselines': 40, 'training': 40, 'test': 0}
  assert {stage.name: stage.images for stage in planned.stages}['test'] == 2 * 360
  fast, slow = planned.seconds
  assert fast == pytest.approx(sum(s.operations for s in planned.stages) / 0.45e9)
  assert slow == pytest.approx(fast * 0.45 / 0.2)


def test_a_searched_run_has_its_stages_in_order():
  settings = RunSettings(presets=('gradient',), supernet=RECIPE)
  stages = {stage.name: stage for stage in stages_of(settings, COUNTS)}
  names = ['head', 'structure', 'supernet', 'baselines', 'search', 'finetune', 'test']
  assert list(stages) == names
  assert stages['baselines'].steps == 10 * 1  # three epochs were the gradient's
  assert stages['search'].images == 50 * 21 * 160


def test_more_devices_hold_less_each_and_take_less_time(planned):
  two = plan_of(devices=2)
  assert two.seconds[0] == pytest.approx(planned.seconds[0] / 2, rel=0.05)
  assert two.stages[0].held < planned.stages[0].held


def test_the_page_says_that_memory_is_an_estimate(planned):
  page = str(planned)
  assert 'Memory is an estimate' in page
  assert '1 x test' in page
  compiled = str(dataclasses.replace(planned, is_compiled=True))
  assert "Memory is the TPU compiler's account" in compiled


def test_the_page_says_how_many_cores_keep_up_with_streamed_images(planned):
  assert 'streamed' not in str(planned)
  page = str(dataclasses.replace(planned, reading=Reading((900.0, 400.0), per_core=250.0)))
  assert '400 to 900 a second' in page
  assert '2 to 4 cores keep up' in page


def test_a_core_is_timed_on_images_that_can_be_read(tmp_path):
  paths = [str(tmp_path / f'{number}.png') for number in range(5)]
  for path in paths[:3]:
    Image.new('RGB', (9, 7)).save(path)
  partly, broken = Files(paths, [0] * 5), Files(paths[3:], [0] * 2)
  assert 1 < images_per_core(partly, 8, 'squash') < 1e6
  assert images_per_core(broken, 8, 'squash') is None


@pytest.mark.parametrize('memory, fits', [(2**20, 'not one image fits'), (0, 'images fit')])
def test_a_batch_that_fits_no_device_is_refused_with_what_would_fit(planned, memory, fits):
  held = max(stage.held for stage in planned.stages)
  small = machine(memory or held - 1)
  batch = 0 if memory else 63
  refused = dataclasses.replace(planned, machine=small, batch=batch)
  with pytest.raises(ValueError, match=rf'{fits}: lower training.batch_size=64'):
    plans._require_room(refused, GIVEN)


def test_a_slice_has_the_chips_of_its_sides_and_is_named_by_its_numbers():
  names = ('v5e:1x1', 'v5e:02x04', 'v4:2x2x4')
  assert [find_slice(name).chips for name in names] == [1, 8, 16]
  assert find_slice('v5e:02x04').name == 'v5e:2x4'


def test_devices_of_a_cpu_share_its_memory(monkeypatch):
  alone = machine_of(None, 'one').memory
  monkeypatch.setattr(jax, 'devices', lambda: 4 * jax.local_devices()[:1])
  assert machine_of(None).memory == alone // 4


def test_a_peak_is_that_of_the_calls_that_no_other_process_held_up(monkeypatch):
  ticks = itertools.chain(itertools.repeat(5e-3, 40), itertools.repeat(1e-3))
  clock = itertools.accumulate(ticks)
  monkeypatch.setattr(machines.time, 'perf_counter', lambda: next(clock))
  assert machine_of(None, 'one').peak == pytest.approx(2 * 512**3 / 1e-3)


def test_equations_of_a_loop_and_of_what_is_called_count_once():
  def loop(x):
    return jax.lax.fori_loop(0, 9, lambda _, y: jnp.sin(jnp.cos(y)), jax.jit(jnp.tanh)(x))

  more = equations(jax.make_jaxpr(lambda x: jnp.exp(loop(x)))(1.0))
  assert more == equations(jax.make_jaxpr(loop)(1.0)) + 1
  assert 4 <= more < 9


def test_at_hand_a_plan_counts_compiling_and_for_a_slice_it_says_that_it_does_not():
  published, at_hand = plan_of(), plan_of(is_published=False)
  assert 'without compiling and reading' in str(published)
  assert 'plus compiling, without reading' in str(at_hand)
  compiling = [now - before for now, before in zip(at_hand.seconds, published.seconds, strict=True)]
  assert 0 < compiling[0] < compiling[1]
  twice = plan_of(dataclasses.replace(GIVEN, presets=('bitfit',)), is_published=False)
  assert twice.compiling[0] > at_hand.compiling[0]


def test_every_structure_has_its_own_price():
  names = ('linear', 'lora:2@qkv', 'full')
  settings = dataclasses.replace(GIVEN, training=Recipe(batch_size=8))
  run = shape_of_run(settings, MODEL, 8, COUNTS)
  costs = [cost_of('subnet', run, Workload(subnet=name)).operations for name in names]
  assert costs[0] < costs[1] < costs[2]
  parts = stages_of(dataclasses.replace(GIVEN, presets=('bitfit',)), COUNTS)
  assert [part.workload.subnet for part in parts][:3] == ['linear', 'bitfit', 'lora']


def test_a_subnet_is_priced_by_its_own_section():
  finetune = dataclasses.replace(RunSettings().finetune, batch_size=16)
  settings = RunSettings(supernet=RECIPE, finetune=finetune, merge='lazy')
  run = shape_of_run(settings, MODEL, 8, COUNTS)
  tuned, alone = (
    cost_of('subnet', run, Workload(subnet='search', section=section)).held
    for section in ('finetune', 'supernet')
  )
  assert tuned < alone


def test_streamed_batches_grow_with_the_batch():
  data = dataclasses.replace(GIVEN.data, max_resident=0)
  lines = []
  for settings in (GIVEN, dataclasses.replace(GIVEN, data=data)):
    run = shape_of_run(settings, MODEL, 8, COUNTS)
    lines.append(memory_by_batch(cost_of('subnet', run), 'subnet', Workload(), run))
  assert lines[1].each >= lines[0].each + 8 * 8 * 3


@pytest.mark.parametrize('structure', ['search', 'gradient', 'lora'])
def test_stages_are_those_that_a_run_counts(structure):
  settings = RunSettings(structure=structure, presets=(), supernet=RECIPE, training=RECIPE)
  planned = dict.fromkeys(part.name for part in stages_of(settings, COUNTS))
  free = {'report', *(() if structure == 'gradient' else ('structure',))}
  assert list(planned) == [name for name in stage_names(settings) if name not in free]


def test_advice_is_of_the_stage_that_is_too_large(planned):
  test = planned.stages[-1]._replace(held=2**40)
  refused = dataclasses.replace(planned, stages=(*planned.stages[:-1], test))
  with pytest.raises(ValueError, match=r'test takes .* lower data.max_resident') as caught:
    plans._require_room(refused, GIVEN)
  assert 'batch_size' not in str(caught.value)


@pytest.mark.parametrize('name, value', [('TOPOLOGY', 'v5e:1x1'), ('COMPILE', True)])
def test_options_of_a_plan_ask_for_one(monkeypatch, capsys, run_config, name, value):
  for flag, default in (('PLAN', False), ('TOPOLOGY', None), ('COMPILE', False)):
    given = value if flag == name else default
    monkeypatch.setattr(main, flag, types.SimpleNamespace(value=given))
  monkeypatch.setattr(plans, 'plan', lambda *_, **options: f'planned {options}')
  main.main(changed(run_config, job='adapt'))
  assert 'planned' in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_scores_as_many_side_by_side_as_half_of_free_memory_holds():
  memory = 2**22
  settings = RunSettings(presets=(), supernet=RECIPE, merge='lazy')
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
