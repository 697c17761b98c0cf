"""Chosen rows of a table by PEFT itself, out and in: with tied and own heads, new words, alone."""

import copy

import peft
import pytest
from comparing import assert_close, assert_refused

import glora_jax
from tests.peers.random_adapters import BothWays, random_adapter
from tests.peers.torch_zoo import TOKENS, language_model

ROWS = [7, 3]  # not ascending
CALL = {'use_cache': False}


def model(tied):
  return language_model('Llama', tie_word_embeddings=tied)


def ours(module, embeddings, **options):
  options = {'select': 'q_proj|v_proj', 'heads': None, 'embeddings': embeddings, **options}
  space = glora_jax.SearchSpace(2, scale=1.5)
  return BothWays(module, TOKENS, space=space, kwargs=CALL, **options)


ALONE = {'select': lambda path: False}


@pytest.mark.parametrize(
  'tied, options',
  [
    (True, {}),
    pytest.param(False, {}, marks=pytest.mark.full),
    pytest.param(False, ALONE, marks=pytest.mark.full),
    pytest.param(False, {**ALONE, 'heads': 'lm_head'}, marks=pytest.mark.full),
  ],
)
def test_rows_with_and_without_loras_and_heads_go_to_peft_and_come_back(tied, options, tmp_path):
  case = ours(model(tied), ROWS, **options)
  assert case.check_out(tmp_path, case.adapted.fix('lora').genome) == 'lora'


LORA = {'r': 2, 'target_modules': ['q_proj', 'v_proj']}
THEIRS = {
  'by module': lambda: peft.LoraConfig(trainable_token_indices={'embed_tokens': ROWS}, **LORA),
  'by number': lambda: peft.LoraConfig(trainable_token_indices=ROWS, **LORA),
  'alone': lambda: peft.TrainableTokensConfig(token_indices=ROWS),
  'none': lambda: peft.LoraConfig(**LORA),
}


@pytest.mark.full
@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('name', THEIRS)
def test_rows_of_an_adapter_of_peft_are_read(name, tied, tmp_path):
  ours(model(tied), ROWS).check_in(tmp_path, THEIRS[name]())


def test_new_words_of_peft_need_an_extended_base_and_their_ids(tmp_path):
  module = model(True)
  larger = copy.deepcopy(module)
  larger.resize_token_embeddings(20)
  config = peft.LoraConfig(trainable_token_indices=[18, 3], **LORA)
  # As PEFT does by itself if the base has a name; a tied head has the rows once more.
  theirs = random_adapter(larger, config, tmp_path, 0.3, save_embedding_layers=True)
  small = ours(module, ROWS)
  named = 'extend the base first: glora_jax.extend'
  assert_refused(named, glora_jax.peft.load, tmp_path, small.adapted, small.params)
  untied = model(False)
  for extended, embeddings, select in ((untied, True, ''), (module, [19], 'q_proj|v_proj')):
    glora_jax.torch.extend(extended, 3)
    other = ours(extended, embeddings, select=select)
    assert_refused('embeddings=[18, 3]', glora_jax.peft.load, tmp_path, other.adapted, other.params)
  case = ours(module, [3, 18])
  adapted, variables = glora_jax.peft.load(tmp_path, case.adapted, case.params)
  logits = adapted.apply(variables, TOKENS, **CALL).logits
  old = [*range(17), 18]  # the other new words are PEFT's own noise
  expected = theirs(TOKENS, **CALL).logits.detach().numpy()
  assert_close(logits[..., old], expected[..., old])
