"""Adapters of HF PEFT by the names of formats; `tests/peers/test_peft_peers.py` has PEFT."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_refused, assert_trees_equal, mixed_loras, trained_variables
from numpy.testing import assert_allclose, assert_array_equal
from peft_files import contents, numbers, write
from places import FIXTURES

from glora_jax import SearchSpace, adapt
from glora_jax.vision.models import peft, weights

IMAGES = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)


@functools.cache
def trained(name):
  """A fixture, adapted, its supports and head random."""
  model, params, _ = weights.load(FIXTURES / name)
  adapted = adapt(model, IMAGES, space=SearchSpace((1, 3)))
  return types.SimpleNamespace(
    model=model,
    params=params,
    adapted=adapted,
    variables=trained_variables(adapted, params),
    genome=mixed_loras(adapted.spec),
  )


@pytest.mark.parametrize('pool', ['token', 'gap'])
def test_a_head_of_half_of_what_dinov2_reads_is_zero_for_the_other(pool, tmp_path):
  case = trained('hf_dinov2')
  wide, width = case.params['head'], case.model.width
  half = slice(width) if pool == 'token' else slice(width, None)
  params = {**case.params, 'head': {**wide, 'kernel': wide['kernel'][half]}}
  adapted = adapt(case.model.clone(pool=pool), IMAGES, space=SearchSpace((1, 3)))
  variables = trained_variables(adapted, params)
  peft.save(tmp_path, adapted.fix(case.genome), variables, 'hf_dinov2')
  expected = np.zeros_like(wide['kernel'])
  expected[half] = variables['params']['head']['kernel']
  assert_array_equal(contents(tmp_path)[1]['classifier.weight'].T, expected)
  _, read = peft.load(tmp_path, adapted, params)
  assert_trees_equal(read['params']['head'], variables['params']['head'])


FC1 = 'vit.layers.0.mlp.fc1'


@pytest.mark.parametrize(
  'name, format, named, kind',
  [
    ('hf_vit', ['timm'], 'format', TypeError),
    ('hf_vit', 'flax_npz', "format='flax_npz'", ValueError),
    ('timm_deit3', 'hf_vit', 'LayerScale', ValueError),
  ],
)
def test_an_adapter_that_cannot_be_written_is_one_sentence(name, format, named, kind, tmp_path):
  case = trained(name)
  given = tmp_path / 'a', case.adapted.fix(case.genome), case.variables, format
  assert_refused(named, peft.save, *given, kind=kind)
  assert not list(tmp_path.iterdir())


def test_another_model_than_the_vit_is_refused():
  adapted, params = adapt(nn.Dense(4), jnp.zeros((1, 4)), structure='lora'), {}
  assert_refused('adapted.model', peft.save, 'never', adapted, params, 'timm', kind=TypeError)
  assert_refused('adapted.model', peft.load, 'never', adapted, params, kind=TypeError)


def test_an_adapter_of_no_format_is_refused(tmp_path):
  case = trained('hf_vit')
  write(tmp_path, {'x.lora_A.weight': numbers(3, 16), 'x.lora_B.weight': numbers(4, 3)})
  assert_refused('(x)', peft.load, tmp_path, case.adapted, case.params)


@pytest.mark.parametrize('module', [FC1, 'vit.encoder.layer.0.intermediate.dense'])
def test_an_adapter_of_all_linear_layers_has_one_for_the_classifier_too(module, tmp_path):
  """With the names of transformers 5 and 4."""
  case = trained('hf_vit')
  down, up = numbers(3, 16), numbers(48, 3)
  tensors = {'classifier.lora_A.weight': down, 'classifier.lora_B.weight': up[:5]}
  tensors |= {f'{module}.lora_A.weight': down, f'{module}.lora_B.weight': up}
  adapted = adapt(case.model, IMAGES, space=SearchSpace(3), heads=None)
  write(tmp_path, tensors, r=3, lora_alpha=3)
  fixed, variables = peft.load(tmp_path, adapted, case.params)
  own = variables['glora']['head']
  assert_allclose(own['B_down'] @ own['B_up'], (up[:5] @ down).T, atol=1e-6)
  assert np.flatnonzero(fixed.genome[:, 1]).size == 2
  first = variables['glora']['blocks']['mlp']['fc1']['B_down'][0]
  assert_array_equal(first, down.T)
