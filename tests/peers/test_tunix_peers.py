"""Models of google-tunix with their maps of names, by transformers' models of the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from comparing import assert_close, mixed_loras, trained_variables
from flax import nnx
from hand_count import randomized_model

import glora_jax
from tests.peers.code_bases import (
  CHANNELS,
  DEPTH,
  HEADS,
  HIDDEN,
  KV_HEADS,
  PLAIN,
  SIZES,
  VOCABULARY,
  WIDTH,
  inputs_of,
  tunix,
)

TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (2, 6))
INPUTS = inputs_of(TOKENS)
THEIR_SIZES = {
  'vocab_size': VOCABULARY,
  'hidden_size': WIDTH,
  'intermediate_size': HIDDEN,
  'num_hidden_layers': DEPTH,
  'num_attention_heads': HEADS,
  'num_key_value_heads': KV_HEADS,
  'head_dim': CHANNELS,
}
THETA = PLAIN['rope_theta']
LLAMA = {
  **THEIR_SIZES,
  'rms_norm_eps': PLAIN['norm_eps'],
  'rope_parameters': {'rope_type': 'default', 'rope_theta': THETA},
  'tie_word_embeddings': False,
}
TIED = {**LLAMA, 'tie_word_embeddings': True}
EXPERTS = {'num_experts': 4, 'num_experts_per_tok': 2}
THEIR_EXPERTS = {**LLAMA, **EXPERTS, 'moe_intermediate_size': 16, 'norm_topk_prob': True}
# Seven layers of both kinds of attention, in windows of three tokens and in whole.
GEMMA = {
  'num_layers': 7,
  'num_embed': VOCABULARY,
  'sliding_window_size': 3,
  'global_base_frequency': THETA,
  'param_dtype': jnp.float32,
}
THEIR_GEMMA = {
  **THEIR_SIZES,
  'num_hidden_layers': 7,
  'sliding_window': 3,
  'query_pre_attn_scalar': CHANNELS,
}


def logits_of(model):
  with torch.no_grad():
    return model.eval()(torch.as_tensor(TOKENS)).logits.numpy()


def loaded(folder):
  """transformers' model, each of whose tensors is in the folder."""
  kind = transformers.AutoModelForCausalLM
  model, found = kind.from_pretrained(folder, output_loading_info=True)
  assert not any(found.values()), found
  return model


def full(*row):
  return pytest.param(*row, marks=pytest.mark.full)


@pytest.mark.parametrize(
  'name, fields, kind, their_fields',
  [
    ('qwen3', PLAIN, 'Qwen3', LLAMA),
    full('qwen3', PLAIN | {'use_tied_embedding': True}, 'Qwen3', TIED),
    full('qwen3', PLAIN | EXPERTS | {'hidden_dim': 16}, 'Qwen3Moe', THEIR_EXPERTS),
    full('llama3', PLAIN, 'Llama', LLAMA),
    full('llama3', PLAIN | {'weight_tying': True}, 'Llama', TIED),
    full('gemma3', GEMMA, 'Gemma3Text', THEIR_GEMMA),
    # Queries, keys and values are in one kernel.
    full(
      'gemma3', GEMMA | {'num_kv_heads': 2}, 'Gemma3Text', THEIR_GEMMA | {'num_key_value_heads': 2}
    ),
  ],
)
def test_a_model_of_tunix_goes_to_transformers_and_its_adapter_to_peft(
  name, fields, kind, their_fields, tmp_path, recwarn
):
  code, names = tunix(name), f'tunix_{name}'
  config = code.ModelConfig(**SIZES | fields)
  theirs = getattr(transformers, f'{kind}Config')(**their_fields)
  model = randomized_model(lambda: getattr(code, name.capitalize())(config, rngs=nnx.Rngs(0)))
  nnx.update(model, jax.tree.map(lambda x: x / 2, nnx.state(model)))  # or attention is too sharp
  attached = glora_jax.nnx.attach(model, *INPUTS, space=glora_jax.SearchSpace((1, 3), scale=2.0))
  adapted, variables = glora_jax.nnx.as_adapted(attached)
  # PEFT makes one LoRA of those of all experts.
  fixed = adapted.fix('lora:3' if kind == 'Qwen3Moe' else mixed_loras(adapted.spec))
  theirs.save_pretrained(tmp_path)
  glora_jax.save_folded(tmp_path / 'base', fixed, variables, names, base=tmp_path)
  expected, _ = model(*INPUTS)
  assert_close(logits_of(loaded(tmp_path / 'base')), expected, 1e-4)

  variables = trained_variables(adapted, variables['params'])
  glora_jax.peft.save(tmp_path / 'adapter', fixed, variables, names)
  with_adapter = peft.PeftModel.from_pretrained(loaded(tmp_path / 'base'), tmp_path / 'adapter')
  assert not [warning for warning in recwarn if 'adapter keys' in str(warning.message)]
  trained, _ = fixed.apply(variables, *INPUTS)
  assert_close(logits_of(with_adapter), trained)
  assert np.abs(trained - expected).max() > 0.1 * np.abs(expected).max()

  again = glora_jax.peft.load(tmp_path / 'adapter', adapted, variables['params'], names)
  assert_close(again[0].apply(again[1], *INPUTS)[0], trained)

  folded = tmp_path / 'folded'
  glora_jax.save_folded(
    folded, fixed, variables, names, base=tmp_path / 'base', max_shard_bytes=1000
  )
  assert len([*folded.glob('*.safetensors')]) > 2
  assert_close(logits_of(loaded(folded)), trained)
