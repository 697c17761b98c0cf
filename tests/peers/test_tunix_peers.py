"""Models of google-tunix with their maps of names, by transformers' models of the same weights."""

import dataclasses

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
from tests.peers import code_bases

WORDS, HEADS, CHANNELS = 19, 4, 8
THETA = 1_000_000  # the only one that tunix's Llama and Qwen compute with
SIZES = {'embed_dim': 16, 'hidden_dim': 24, 'num_heads': HEADS, 'head_dim': CHANNELS}
THEIR_SIZES = {
  'vocab_size': WORDS,
  'hidden_size': 16,
  'intermediate_size': 24,
  'num_attention_heads': HEADS,
  'head_dim': CHANNELS,
}
TOKENS = np.random.default_rng(0).integers(0, WORDS, (2, 6))
INPUTS = code_bases.inputs_of(TOKENS)


def gemma3(kv_heads):
  """Seven layers of both kinds of attention, in windows of three tokens and in whole."""
  code = code_bases.tunix('gemma3')
  config = code.ModelConfig(
    **SIZES,
    num_layers=7,
    num_embed=WORDS,
    num_kv_heads=kv_heads,
    sliding_window_size=3,
    global_base_frequency=THETA,
    param_dtype=jnp.float32,
  )
  theirs = transformers.Gemma3TextConfig(
    **THEIR_SIZES,
    num_hidden_layers=7,
    num_key_value_heads=kv_heads,
    sliding_window=3,
    query_pre_attn_scalar=CHANNELS,
  )
  return code.Gemma3, config, theirs


def like_llama(name, kind, theirs, epsilon, tied, field):
  """Two layers of a Llama 3, or of a model whose config has the same fields."""
  code = code_bases.tunix(name)
  config = code.ModelConfig(
    **SIZES,
    num_layers=2,
    vocab_size=WORDS,
    num_kv_heads=2,
    rope_theta=THETA,
    norm_eps=epsilon,
    **{field: tied},
  )
  theirs = theirs(
    **THEIR_SIZES,
    num_hidden_layers=2,
    num_key_value_heads=2,
    rms_norm_eps=epsilon,
    rope_parameters={'rope_type': 'default', 'rope_theta': THETA},
    tie_word_embeddings=tied,
  )
  return getattr(code, kind), config, theirs


def llama3(tied):
  return like_llama('llama3', 'Llama3', transformers.LlamaConfig, 1e-5, tied, 'weight_tying')


def qwen3(tied):
  return like_llama('qwen3', 'Qwen3', transformers.Qwen3Config, 1e-6, tied, 'use_tied_embedding')


def qwen3_with_experts(_):
  _, config, theirs = qwen3(False)
  config = dataclasses.replace(config, num_experts=4, num_experts_per_tok=2)
  fields = {**theirs.to_dict(), 'moe_intermediate_size': 24, 'norm_topk_prob': True}
  del fields['model_type']
  routed = transformers.Qwen3MoeConfig(**fields, num_experts=4, num_experts_per_tok=2)
  return code_bases.tunix('qwen3').Qwen3, config, routed


def logits_of(model):
  with torch.no_grad():
    return model.eval()(torch.as_tensor(TOKENS)).logits.numpy()


def loaded(folder):
  """transformers' model, each of whose tensors is in the folder."""
  kind = transformers.AutoModelForCausalLM
  model, found = kind.from_pretrained(folder, output_loading_info=True)
  assert not any(found.values()), found
  return model


@pytest.mark.parametrize(
  'names, build, option',
  [
    ('tunix_qwen3', qwen3, False),
    pytest.param('tunix_qwen3', qwen3, True, marks=pytest.mark.full),
    pytest.param('tunix_qwen3', qwen3_with_experts, 0, marks=pytest.mark.full),
    pytest.param('tunix_llama3', llama3, False, marks=pytest.mark.full),
    pytest.param('tunix_llama3', llama3, True, marks=pytest.mark.full),
    pytest.param('tunix_gemma3', gemma3, 2, marks=pytest.mark.full),
    pytest.param('tunix_gemma3', gemma3, HEADS, marks=pytest.mark.full),  # q, k, v in one kernel
  ],
)
def test_a_model_of_tunix_goes_to_transformers_and_its_adapter_to_peft(
  names, build, option, tmp_path, recwarn
):
  kind, config, theirs = build(option)
  model = randomized_model(lambda: kind(config, rngs=nnx.Rngs(0)))
  nnx.update(model, jax.tree.map(lambda x: x / 2, nnx.state(model)))  # or attention is too sharp
  attached = glora_jax.nnx.attach(model, *INPUTS, space=glora_jax.SearchSpace((1, 3), scale=2.0))
  adapted, variables = glora_jax.nnx.as_adapted(attached)
  # PEFT makes one LoRA of those of all experts.
  fixed = adapted.fix('lora:3' if build is qwen3_with_experts else mixed_loras(adapted.spec))
  theirs.save_pretrained(tmp_path)
  glora_jax.save_folded(tmp_path / 'base', fixed, variables, names, base=tmp_path)
  expected, _ = model(*INPUTS)
  assert_close(logits_of(loaded(tmp_path / 'base')), expected, 1e-4)

  variables = trained_variables(adapted, variables['params'])
  glora_jax.peft.save_peft(tmp_path / 'adapter', fixed, variables, names)
  with_adapter = peft.PeftModel.from_pretrained(loaded(tmp_path / 'base'), tmp_path / 'adapter')
  assert not [warning for warning in recwarn if 'adapter keys' in str(warning.message)]
  trained, _ = fixed.apply(variables, *INPUTS)
  assert_close(logits_of(with_adapter), trained)
  assert np.abs(trained - expected).max() > 0.1 * np.abs(expected).max()

  again = glora_jax.peft.load_peft(tmp_path / 'adapter', adapted, variables['params'], names)
  assert_close(again[0].apply(again[1], *INPUTS)[0], trained)

  folded = tmp_path / 'folded'
  glora_jax.save_folded(
    folded, fixed, variables, names, base=tmp_path / 'base', max_shard_bytes=4000
  )
  assert len([*folded.glob('*.safetensors')]) > 2
  assert_close(logits_of(loaded(folded)), trained)
