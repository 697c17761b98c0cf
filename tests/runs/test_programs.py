"""The programs of a run: those that runs call, and such as any accelerator can compile."""

import dataclasses
import logging
import re

import jax
import numpy as np
import pytest
from called import Called, raise_arguments, shapes
from tiny_runs import changed, context_of, stages_of

from glora_jax.models.vit import ViT
from glora_jax.runs import context as contexts
from glora_jax.runs import programs
from glora_jax.runs.backbone import Model
from glora_jax.runs.config import RunSettings
from glora_jax.runs.sections import SpaceSettings, TrainingSettings
from glora_jax.runs.stage import Workload, walk
from glora_jax.runs.stages.methods import Task, Trial, train_method
from glora_jax.training import loop

PLATFORMS = ('tpu', 'cuda', 'rocm')
COUNTS = {'train': 64, 'val': 32, 'test': 32}
RECIPE = TrainingSettings(batch_size=16)
SPACE = SpaceSettings(ranks=(2,))
SETTINGS = RunSettings(structure='gradient', space=SPACE, training=RECIPE)


def exported(function, *arguments):
  """The StableHLO of a compiled function for all accelerators."""
  return jax.export.export(function, platforms=PLATFORMS)(*arguments).mlir_module()


def hindrances(text):
  """What in a program some accelerator, or one far from its host, cannot do well."""
  return set(re.findall(r'[<x]f64>|complex<|\w*callback\w*|tensor<[^>]*\?|custom_call @\w+', text))


@pytest.fixture(scope='module')
def run():
  """A run in bfloat16 on one device."""
  model = ViT(10, patch_size=4, width=16, depth=2, num_heads=2, dtype='bfloat16', drop_path=0.1)
  return programs.shape_of_run(SETTINGS, model, 8, COUNTS)


@pytest.mark.parametrize('name', programs.MAKERS)
def test_every_program_lowers_for_every_accelerator(name, run):
  program = programs.MAKERS[name](run, Workload(chunk=2, structure='bitfit'))
  assert not hindrances(exported(program.function, *program.arguments))


def test_a_run_of_two_spaces_says_once_what_is_not_adapted(caplog):
  model = ViT(10, patch_size=4, width=16, depth=2, num_heads=2)
  [gradient, searched] = (
    dataclasses.replace(SETTINGS, structure=name, presets=('gradient',))
    for name in ('gradient', 'search')
  )
  expected = programs.shape_of_run(gradient, model, 8, COUNTS).adapted
  caplog.set_level(logging.INFO, 'glora_jax')
  run = programs.shape_of_run(searched, model, 8, COUNTS)
  assert caplog.text.count('2 of 7 weight matrices are not adapted') == 1
  assert 'embed/kernel (convolution; use convs=True), pos_embed (not a matmul)' in caplog.text
  assert run.beside.adapted.spec == expected.spec
  assert run.beside.adapted.groups == expected.groups
  assert run.adapted.spec != expected.spec


def arguments_of(run, name, workload=Workload()):
  """What the program of a plan is called with."""
  model, size = run.adapted.model, run.metadata['image_size']
  of_shapes = programs.shape_of_run(run.settings, model, size, run.counts)
  return programs.MAKERS[name](of_shapes, workload).arguments


@pytest.mark.slow
def test_programs_have_the_arguments_that_a_run_calls_them_with(run_config, tmp_path, monkeypatch):
  config = changed(run_config, presets=())
  run = context_of(config, tmp_path)
  for name in ('make_scorer', 'make_predictor'):
    monkeypatch.setattr(contexts, name, lambda *args, **options: raise_arguments)
  monkeypatch.setattr(loop, 'make_steps', lambda *args: raise_arguments)
  genomes = np.zeros((run.settings.search.population, len(run.adapted.spec), 5), np.int8)
  for name, call in (
    ('supernet', lambda: walk(run, stages_of(config), until='supernet')),
    ('scoring', lambda: run.score(run.variables, genomes, 'val')),
    ('evaluation', lambda: run.predict(Model(run.adapted.fix(genomes[0]), run.variables), 'test')),
  ):
    with pytest.raises(Called) as called:
      call()
    assert shapes(called.value.args) == shapes(arguments_of(run, name)), name


@pytest.mark.slow
@pytest.mark.parametrize(
  'method, structure', [('lora:2', 'lora:2'), ('finetuning', 'finetuning'), ('search', None)]
)
def test_programs_side_by_side_are_those_of_a_comparison(
  run_config, tmp_path, monkeypatch, method, structure
):
  fields = {'presets': (), 'budget': None, 'compare.methods': (method,), 'compare.budgets': (900,)}
  run = context_of(changed(run_config, job='compare', **fields), tmp_path)
  monkeypatch.setattr(loop, 'make_steps', lambda *args: raise_arguments)
  with pytest.raises(Called) as called:
    train_method(run, method, Task('trained', [Trial(0, 1e-3), Trial(1, 1e-3)], (900,)))
  workload = Workload(structure=structure, side_by_side=2)
  *before, indices, keys, rates = called.value.args
  *shapes_before, most, of_keys, of_rates = arguments_of(run, 'train_many', workload)
  assert shapes((before, keys, rates)) == shapes((shapes_before, of_keys, of_rates))
  assert indices.shape[1:] == most.shape[1:]
  assert len(indices) <= len(most)  # of as many steps as a call has at most
