"""New words of PyTorch models, next to what transformers makes of them by itself."""

import copy

import numpy as np
import pytest
import torch
import transformers
from comparing import assert_refused

import glora_jax
import glora_jax.torch
from tests.peers import torch_zoo
from tests.peers.torch_zoo import LANGUAGE, WIDTH, language_model, moved

V = WIDTH  # words, and as many features, so that not every square matrix has a row for each
SIZES = {**LANGUAGE, 'vocab_size': V}
TOKENS = torch.tensor([[1, 2, V - 1]])
MODELS = {
  'tied': lambda: language_model('Llama', vocab_size=V, tie_word_embeddings=True),
  'own head': lambda: language_model('Llama', vocab_size=V),
  'own head with bias': lambda: language_model('Phi', vocab_size=V),
  'no head, 16 bits': lambda: transformers.BertModel(transformers.BertConfig(**SIZES)).bfloat16(),
}


@pytest.mark.parametrize('make', MODELS.values(), ids=MODELS)
def test_a_model_is_as_transformers_resizes_it_whose_new_rows_are_means_with_some_noise(make):
  torch.manual_seed(0)
  module = make().eval()
  theirs = copy.deepcopy(module)
  theirs.resize_token_embeddings(V + 3, pad_to_multiple_of=16)  # noise of 3e-5 of their deviation
  glora_jax.torch.extend(module, 3, multiple=16)
  assert module.config.to_dict() == theirs.config.to_dict()
  named = dict(theirs.named_parameters())
  assert dict(module.named_parameters()).keys() == named.keys()
  for name, value in module.named_parameters():
    assert value.dtype == named[name].dtype
    np.testing.assert_allclose(*(v.detach().float() for v in (value, named[name])), atol=2e-4)
  assert len(module.get_input_embeddings().weight) == 32


def with_tied_bias():
  """For the bias of a tied head, transformers has zeros."""
  return moved(transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)))


@pytest.mark.parametrize('make', [MODELS['tied'], MODELS['own head'], with_tied_bias])
def test_old_words_keep_their_logits_and_new_ones_have_those_that_they_start_as(make):
  module = make().eval()
  table, head = module.get_input_embeddings(), module.get_output_embeddings()
  is_tied, before = table.weight is head.weight, module(TOKENS).logits
  glora_jax.torch.extend(module, [[5], [5, 7], []])
  after = module(TOKENS).logits
  expected = [before[..., 5], before[..., [5, 7]].mean(-1), before.mean(-1)]
  torch.testing.assert_close(after, torch.cat([before, torch.stack(expected, -1)], -1))
  table, head = module.get_input_embeddings(), module.get_output_embeddings()
  assert (table.weight is head.weight) == is_tied
  assert (table.weight[V] == table.weight[5]).all()


class Plain(torch.nn.Module):
  def __init__(self, words):
    super().__init__()
    self.embed, self.mlp = torch.nn.Embedding(words, 4), torch.nn.Linear(4, 4)
    self.head = torch.nn.Linear(4, words)

  def forward(self, tokens):
    return self.head(self.mlp(self.embed(tokens)))


def test_what_an_error_advises_for_a_module_of_ones_own_works():
  module, larger = Plain(V), Plain(V + 1)
  assert_refused(
    ["{'embed': 0, 'head': 0}", 'Plain has no vocabulary'], glora_jax.torch.extend, module, 1
  )
  _, params = glora_jax.torch.adapt(module, TOKENS, structure='lora:1')
  glora_jax.torch.copy_to(glora_jax.extend(params, {'embed': 0, 'head': 0}, 1), larger)
  torch.testing.assert_close(larger(TOKENS)[..., :V], module(TOKENS))


def test_a_module_given_to_the_other_function_and_bad_ids_are_refused():
  module = MODELS['tied']()
  assert_refused('use glora_jax.torch.extend', glora_jax.extend, module, {'embed': 0}, 1)
  assert_refused('new=16', glora_jax.torch.extend, module, [[V]])
  assert module.config.vocab_size == V
  assert_refused('no vocabulary', glora_jax.torch.extend, torch_zoo.vit().module, 1)
