"""Chosen rows of a table by PEFT itself, out and in: with tied and own heads, new words, alone."""

import copy
import functools

import jax
import numpy as np
import pytest
from comparing import assert_close, assert_refused, trained_variables

pytest.importorskip('peft', reason='needs the peers extra')
pytest.importorskip('torchax', reason='needs the peers extra')

import peft
import torch
import transformers

import glora_jax
from glora_jax.peft import load_peft, save_peft
from tests.peers.random_adapters import random_adapter

TOKENS = torch.tensor([[7, 5, 3, 9], [3, 0, 7, 7]])
ROWS = [7, 3]  # not ascending


@functools.cache
def model(tied):
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    tie_word_embeddings=tied,
  )
  module = transformers.LlamaForCausalLM(config).eval()
  with torch.no_grad():
    for value in module.parameters():
      value.add_(torch.randn_like(value) * 0.2)
  return module


def ours(module, embeddings, **options):
  options = {'structure': 'lora:2', 'select': 'q_proj|v_proj', 'heads': None, **options}
  return glora_jax.torch.adapt(module, TOKENS, embeddings=embeddings, use_cache=False, **options)


def logits_of(module):
  with torch.no_grad():
    return module(TOKENS, use_cache=False).logits.numpy()


def check_out(module, folder, **options):
  """PEFT's logits and merged weights are ours, also after the adapter is read again."""
  adapted, params = ours(module, ROWS, scale=1.5, **options)
  variables = trained_variables(adapted, params)
  assert save_peft(folder, adapted, variables) == 'lora'
  logits = adapted.apply(variables, TOKENS, use_cache=False).logits
  theirs = peft.PeftModel.from_pretrained(copy.deepcopy(module), folder).eval()
  assert_close(logits_of(theirs), logits)
  assert np.abs(logits - logits_of(module)).max() > 0.1
  merged = dict(theirs.merge_and_unload().named_parameters())
  for keys, value in jax.tree_util.tree_leaves_with_path(adapted.fold(variables)):
    name = jax.tree_util.keystr(keys, simple=True, separator='.')
    assert_close(merged[name].detach().numpy(), value)
  again, read = load_peft(folder, adapted, params)
  assert_close(again.apply(read, TOKENS, use_cache=False).logits, logits)


@pytest.mark.parametrize('tied', [True, pytest.param(False, marks=pytest.mark.full)])
def test_rows_next_to_loras_go_to_peft_and_come_back(tied, tmp_path):
  check_out(model(tied), tmp_path)


@pytest.mark.full
@pytest.mark.parametrize('options', [{}, {'heads': 'lm_head'}], ids=['alone', 'with a head'])
def test_rows_without_loras_go_to_peft_and_come_back(options, tmp_path):
  check_out(model(False), tmp_path, select=lambda path: False, **options)


LORA = {'r': 2, 'target_modules': ['q_proj', 'v_proj']}
THEIRS = {
  'by module': lambda: peft.LoraConfig(trainable_token_indices={'embed_tokens': ROWS}, **LORA),
  'by number': lambda: peft.LoraConfig(trainable_token_indices=ROWS, **LORA),
  'alone': lambda: peft.TrainableTokensConfig(token_indices=ROWS),
}


def of_peft(module, config, folder, **options):
  """Writes an adapter of PEFT with random numbers; its logits."""
  return logits_of(random_adapter(copy.deepcopy(module), config, folder, 0.3, **options))


@pytest.mark.full
@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('name', THEIRS)
def test_rows_of_an_adapter_of_peft_are_read(name, tied, tmp_path):
  expected = of_peft(model(tied), THEIRS[name](), tmp_path)
  adapted, params = ours(model(tied), ROWS)
  again, variables = load_peft(tmp_path, adapted.fix(None), params)
  assert_close(again.apply(variables, TOKENS, use_cache=False).logits, expected)


def test_new_words_of_peft_need_an_extended_base_and_their_ids(tmp_path):
  module = model(True)
  larger = copy.deepcopy(module)
  larger.resize_token_embeddings(43)
  config = peft.LoraConfig(trainable_token_indices=[41, 3], **LORA)
  # As PEFT does by itself if the base has a name; a tied head has the rows once more.
  expected = of_peft(larger, config, tmp_path, save_embedding_layers=True)
  small, params = ours(module, ROWS)
  assert_refused('extend the base first: glora_jax.extend', load_peft, tmp_path, small, params)
  extended = copy.deepcopy(module)
  glora_jax.torch.extend(extended, 3)
  other, params = ours(extended, [42])
  assert_refused('embeddings=[41, 3]', load_peft, tmp_path, other, params)
  adapted, params = ours(extended, [3, 41])
  again, variables = load_peft(tmp_path, adapted, params)
  logits = again.apply(variables, TOKENS, use_cache=False).logits
  old = [*range(40), 41]  # the other new words are PEFT's own noise
  assert_close(logits[..., old], expected[..., old])
