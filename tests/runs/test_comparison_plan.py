"""What a comparison will take: the trainings, searches and gradients that it makes."""

import dataclasses

import pytest
from called import Called, raise_arguments, shapes
from tiny_runs import changed

from glora_jax.models.vit import ViT
from glora_jax.runs import early_checks, lifecycle, programs
from glora_jax.runs.config import RunSettings, check_config
from glora_jax.runs.planning import plan as plans
from glora_jax.runs.planning.costs import cost_of
from glora_jax.runs.planning.machine import Machine
from glora_jax.runs.planning.plan import Plan, PlannedStage
from glora_jax.runs.planning.stages import stages_of_comparison
from glora_jax.runs.programs import Workload
from glora_jax.runs.sections import Comparison
from glora_jax.runs.stages.many_starts import Trial
from glora_jax.runs.stages.methods import train_method
from glora_jax.training import side_by_side
from glora_jax.training.recipe import Recipe

COUNTS = {'train': 640, 'val': 160, 'test': 200}
RECIPE = Recipe(epochs=6, warmup_epochs=1, batch_size=64)  # 10 steps an epoch
FINETUNE = dataclasses.replace(RunSettings().finetune, epochs=2, warmup_epochs=1, batch_size=64)
COMPARE = Comparison(
  methods=('lora:2', 'finetuning', 'search', 'gradient'),
  budgets=(400, 800),
  seeds=3,
  rates=(1e-3, 4e-3),
  rate={'finetuning': 1e-3},
)
GIVEN = RunSettings(
  job='compare', compare=COMPARE, supernet=RECIPE, finetune=FINETUNE, merge='lazy', presets=()
)


def sums(settings, attribute):
  """Steps or images by stage and program."""
  found = {}
  for part in stages_of_comparison(settings, COUNTS):
    key = part.name, part.program
    found[key] = found.get(key, 0) + getattr(part, attribute)
  return found


def test_every_method_is_tuned_unless_its_rate_is_given_and_trained_from_every_seed():
  steps, images = (sums(GIVEN, attribute) for attribute in ('steps', 'images'))
  assert steps['tuning, lora:2', 'train_many'] == 60
  assert images['tuning, lora:2', 'train_many'] == 60 * 64 * 2
  assert images['training, lora:2', 'train_many'] == 60 * 64 * 3
  assert ('tuning, finetuning', 'train_many') not in steps
  assert ('training, finetuning', 'train_many') in steps


def test_a_search_is_made_in_every_supernet_and_budget():
  images = sums(GIVEN, 'images')
  search = GIVEN.search
  candidates = search.population * (search.generations + 1)
  for stage, trials, budgets in (('tuning', 2, 1), ('training', 3, 2)):
    supernets, finetuned = trials * 40 * 64, trials * budgets * 20 * 64
    assert images[f'{stage}, search', 'train_many'] == supernets + finetuned
    assert images[f'{stage}, search', 'scoring'] == trials * budgets * candidates * 160


def test_a_gradient_is_read_for_every_seed_and_budget():
  images = sums(GIVEN, 'images')
  left = 6 - GIVEN.allocation.epochs()
  for stage, seeds, rates, budgets in (('tuning', 1, 2, 1), ('training', 3, 1, 2)):
    assert (
      images[f'{stage}, gradient', 'features'] == seeds * 2 * 640
    )  # and as many that are shifted
    assert images[f'{stage}, gradient', 'allocation'] == seeds * 2 * (budgets + 1) * 640
    trained = seeds * budgets * rates * left * 10 * 64
    assert images[f'{stage}, gradient', 'train_many'] == trained
  alone = dataclasses.replace(GIVEN.allocation, prior=None)
  images = sums(dataclasses.replace(GIVEN, allocation=alone), 'images')
  assert images['training, gradient', 'features'] == 3 * 640


def test_the_test_is_of_every_row_and_seed():
  rows = 1 + 1 + 2 * 2 + 2  # a searched subnet is tested before its finetuning, too
  assert sums(GIVEN, 'images')['test', 'evaluation'] == rows * 3 * 360


@pytest.mark.full
def test_what_is_trained_side_by_side_has_its_memory_together_and_its_operations_each():
  model = ViT(10, patch_size=4, width=16, depth=2, num_heads=2)
  run = programs.shape_of_run(GIVEN, model, 8, COUNTS)
  operations = {}
  for subnet in (None, 'lora:2', 'finetuning'):
    alone, together = (
      cost_of('train_many', run, Workload(subnet=subnet, section='supernet', side_by_side=number))
      for number in (1, 4)
    )
    assert together.operations == pytest.approx(alone.operations, rel=0.05)
    assert 2 * alone.temporaries < together.temporaries < 6 * alone.temporaries
    operations[subnet] = alone.operations
  assert operations['finetuning'] > operations['lora:2']
  machine = Machine('test', 1, 1, 2**30, 1e9, True, 'tpu')
  planned = plans.plan_of(run, 'digits', machine)
  assert planned.stages[0].name == 'tuning, lora:2'
  assert planned.batch > 64


def test_trainings_side_by_side_that_fit_no_device_are_refused_with_what_would_fit():
  stage = PlannedStage('training, lora:2', 'train_many', 'supernet', 60, 1, 1.0, 2**30, (1.0, 2.0))
  machine = Machine('test', 1, 1, 2**29, 1e9, True, 'tpu')
  planned = Plan('ViT', machine, (stage,), {}, {}, batch=8, chunk=None, side_by_side=None)
  with pytest.raises(ValueError, match=r'give fewer compare.seeds or compare.rates') as caught:
    plans._require_room(planned, GIVEN)
  assert 'more devices' not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
  'method, subnet', [('lora:2', 'lora:2'), ('finetuning', 'finetuning'), ('search', None)]
)
def test_programs_side_by_side_are_those_of_a_comparison(
  run_config, tmp_path, monkeypatch, method, subnet
):
  fields = {'presets': (), 'budget': None, 'compare.methods': (method,), 'compare.budgets': (900,)}
  settings = check_config(changed(run_config, job='compare', **fields))
  run = lifecycle.prepare(settings, str(tmp_path))
  monkeypatch.setattr(side_by_side, 'make_steps_of_runs', lambda *args: raise_arguments)
  with pytest.raises(Called) as called:
    train_method(run, method, [Trial(0, 1e-3), Trial(1, 1e-3)], (900,), 'trained')
  counts = early_checks.count_images(run.task)
  of_shapes = programs.shape_of_run(
    run.settings, run.adapted.model, run.metadata['image_size'], counts
  )
  workload = Workload(subnet=subnet, section='supernet', side_by_side=2)
  planned = programs.program('train_many', of_shapes, workload)
  *before, indices, keys, rates = called.value.args
  *shapes_before, most, of_keys, of_rates = planned.arguments
  assert shapes((before, keys, rates)) == shapes((shapes_before, of_keys, of_rates))
  assert indices.shape[1:] == most.shape[1:]
  assert len(indices) <= len(most)  # of as many steps as a call has at most
