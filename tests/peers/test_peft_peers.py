"""Adapters by HF PEFT itself, on the models of transformers and timm."""

import numpy as np
import peft
import pytest
from comparing import assert_close, mixed_loras, trained_variables

import glora_jax
from glora_jax.vision.models import weights
from glora_jax.vision.models.peft import load, save
from tests.peers import families
from tests.peers.random_adapters import random_adapter

IMAGES = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
NAMES = ('hf_vit', 'hf_dinov2', 'hf_vit_model', 'timm_vit', 'timm_deit3', 'timm_clip')


def loaded(name, tmp_path, ranks=(1, 3)):
  """(torch model, params, our model adapted, where it is from)."""
  theirs = families.build(name)
  families.write(theirs, tmp_path / 'base')
  model, params, metadata = weights.load(tmp_path / 'base')
  adapted = glora_jax.adapt(model, IMAGES, space=glora_jax.SearchSpace(ranks))
  return theirs, params, adapted, metadata['source']


@pytest.mark.parametrize('name', NAMES)
def test_peft_loads_a_subnet_and_gives_its_logits(name, tmp_path, recwarn):
  theirs, params, adapted, source = loaded(name, tmp_path)
  variables = trained_variables(adapted, params, 0.1)
  genome = mixed_loras(adapted.spec)
  if name in ('hf_vit', 'timm_vit'):  # q, k and v apart, and fused
    genome[::2, [0, 4]] = 2
  save(tmp_path / 'adapter', adapted.fix(genome), variables, source)
  with_adapter = peft.PeftModel.from_pretrained(theirs, tmp_path / 'adapter').eval()
  assert not [warning for warning in recwarn if 'adapter keys' in str(warning.message)]
  expected = adapted.apply(variables, IMAGES, genome=genome)
  assert_close(families.logits(with_adapter, IMAGES), expected)
  base = adapted.model.apply({'params': params}, IMAGES)
  assert np.abs(expected - base).max() > 0.01


def test_loras_of_parts_of_a_fused_layer_are_read_side_by_side(tmp_path):
  """With patterns of rank and alpha, and queries and values apart."""
  theirs, params, adapted, _ = loaded('hf_vit', tmp_path, (1, 4))
  config = peft.LoraConfig(
    r=1,
    lora_alpha=3,
    target_modules=['q_proj', 'v_proj', 'fc1'],
    rank_pattern={'q_proj': 3},
    alpha_pattern={r'.*1.*': 5},
    modules_to_save=['classifier'],
  )
  expected = families.logits(random_adapter(theirs, config, tmp_path / 'adapter', 0.1), IMAGES)
  adapted, variables = load(tmp_path / 'adapter', adapted, params)
  assert_close(adapted.apply(variables, IMAGES), expected)
  assert not adapted.genome[:, [0, 2, 3, 4]].any()
