"""The programs of a run: those that runs call, and such as any accelerator can compile."""

import dataclasses
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from called import Called, raise_arguments, shapes
from tiny_runs import changed

from glora_jax.models.vit import ViT
from glora_jax.runs import early_checks, lifecycle, programs
from glora_jax.runs import run as run_module
from glora_jax.runs.config import RunSettings, check_config
from glora_jax.runs.sections import SpaceSettings
from glora_jax.runs.stages.training import train_supernet
from glora_jax.training import loop
from glora_jax.training.recipe import Recipe

PLATFORMS = ('tpu', 'cuda', 'rocm')
COUNTS = {'train': 64, 'val': 32, 'test': 32}
RECIPE = Recipe(batch_size=16)
SPACE = SpaceSettings(ranks=(2,))
SETTINGS = RunSettings(
  structure='gradient', space=SPACE, supernet=RECIPE, training=RECIPE, merge='lazy'
)


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
  program = programs.program(name, run, programs.Workload(chunk=2, subnet='bitfit'))
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


def test_what_accelerators_cannot_do_well_is_found():
  rows = jax.ShapeDtypeStruct(jax.export.symbolic_shape('n, 3'), jnp.float32)
  assert 'tensor<?' in hindrances(exported(jax.jit(jnp.sin), rows))
  with jax.enable_x64(True):
    assert 'xf64>' in hindrances(exported(jax.jit(jnp.sin), np.ones(3)))
  with pytest.raises(NotImplementedError, match='callback'):
    exported(jax.jit(lambda x: jax.pure_callback(np.sin, x, x)), jnp.ones(3))


@pytest.mark.slow
def test_programs_have_the_arguments_that_a_run_calls_them_with(run_config, tmp_path, monkeypatch):
  settings = check_config(changed(run_config, presets=()))
  run = lifecycle.prepare(settings, str(tmp_path))
  for name in ('make_scorer', 'make_predictor'):
    monkeypatch.setattr(run_module, name, lambda *args, **options: raise_arguments)
  monkeypatch.setattr(loop, 'make_steps', lambda *args: raise_arguments)
  genomes = np.zeros((run.settings.search.population, len(run.adapted.spec), 5), np.int8)
  calls = {
    'supernet': lambda: train_supernet(run),
    'scoring': lambda: run.score(run.variables, genomes, 'val'),
    'evaluation': lambda: run.predict(run.variables, genomes[0], 'test'),
  }
  model, size = run.adapted.model, run.metadata['image_size']
  of_shapes = programs.shape_of_run(run.settings, model, size, early_checks.count_images(run.task))
  for name, call in calls.items():
    with pytest.raises(Called) as called:
      call()
    assert shapes(called.value.args) == shapes(programs.program(name, of_shapes).arguments), name


def test_a_program_that_is_none_is_refused_with_the_names_of_all(run):
  with pytest.raises(ValueError, match='the programs are supernet, subnet'):
    programs.program('fine-tuning', run)
