"""The programs of a run are such that any accelerator can compile them."""

import re

import jax
import pytest
from tiny_runs import changed, context_of, stages_of

from glora_jax import compiling
from glora_jax.search import scoring
from glora_jax.vision.runs.stage import Stage, walk

PLATFORMS = ('tpu', 'cuda', 'rocm')
HINDRANCES = r'[<x]f64>|complex<|\w*callback\w*|tensor<[^>]*\?|custom_call @\w+'


def exported(function, arguments):
  """The StableHLO of a compiled function for all accelerators."""
  types = jax.tree.map(jax.typeof, arguments)
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), types)
  return jax.export.export(function, platforms=PLATFORMS)(*shapes).mlir_module()


@pytest.mark.full
def test_every_program_of_a_run_lowers_for_every_accelerator(run_config, tmp_path, monkeypatch):
  compile_here, texts = compiling._compile, []

  def compile_for_all(function, arguments):
    texts.append(exported(function, arguments))
    return compile_here(function, arguments)

  monkeypatch.setattr(compiling, '_compile', compile_for_all)
  monkeypatch.setattr(scoring, '_platform_of', lambda mesh: 'tpu')
  fields = {'presets': ('gradient', 'bitfit'), 'model.dtype': 'bfloat16', 'model.drop_path': 0.1}
  config = changed(run_config, **fields)
  last = Stage('last', lambda context: context.before, has_folder=False)
  marks = walk(context_of(config, tmp_path), [*stages_of(config), last])
  names = {name for mark in marks.values() for name in mark['programs']}
  expected = {'features', 'fold', 'gradient', 'predictions', 'scoring', 'training steps'}
  assert names == expected
  assert not {found for text in texts for found in re.findall(HINDRANCES, text)}
