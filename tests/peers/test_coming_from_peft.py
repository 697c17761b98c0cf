"""docs/howto/coming_from_peft.md: its table and its example are true; and what dropout drops."""

import copy
import re

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from comparing import assert_close, assert_refused, trained_variables
from places import ROOT, code_of

import glora_jax
from glora_jax.method.dropout import Dropout
from tests.peers.torch_zoo import TOKENS, language_model

PAGE = (ROOT / 'docs' / 'howto' / 'coming_from_peft.md').read_text()
ROWS = [row.replace(r'\|', '|') for row in re.findall(r'(?m)^\| `r=.*\|$', PAGE)]


def adapt(module, structure='lora:2', **words):
  return glora_jax.torch.adapt(module, TOKENS, structure=structure, use_cache=False, **words)


@pytest.mark.parametrize('row', ROWS)
def test_a_row_trains_as_many_numbers_with_the_same_scale(row):
  theirs, ours = (eval(f'dict({cell})') for cell in re.findall('`(.*?)`', row))
  module = language_model('Llama', num_hidden_layers=3, attention_bias=True)
  config = peft.LoraConfig(**{'lora_alpha': 8, **theirs})
  wrapped = peft.get_peft_model(copy.deepcopy(module), config)
  adapted, params = adapt(module, **{'heads': None, **ours})
  trainable, _ = adapted.split(adapted.init(jax.random.key(0), params))
  count = sum(leaf.size for leaf in jax.tree.leaves(trainable))
  assert count == wrapped.get_nb_trainable_parameters()[0]
  scales = {m.scaling['default'] for m in wrapped.modules() if hasattr(m, 'lora_A')}
  assert theirs.get('rank_pattern') or {layer.space.scale for layer in adapted.spec} == scales


def test_the_example_prints_the_same_numbers_for_both(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  torch.manual_seed(0)
  names = {}
  for lines in code_of('docs/howto/coming_from_peft.md'):
    exec(lines, names)
  losses = np.array([names['losses'], names['losses_of_peft']])
  np.testing.assert_allclose(*losses, atol=1e-5)
  assert losses[0, 0] - losses[0, -1] > 0.1
  assert capsys.readouterr().out.count('PEFT') == 5


def one_layer(folder, **fields):
  """(Inputs, PEFT's module of a layer with a random LoRA, what `peft.load` makes of it)."""
  x = torch.randn(4, 8)
  module = torch.nn.Sequential(torch.nn.Linear(8, 5)).eval()
  config = peft.LoraConfig(
    r=2, lora_alpha=4, target_modules=['0'], init_lora_weights=False, **fields
  )
  theirs = peft.get_peft_model(copy.deepcopy(module), config)
  theirs.save_pretrained(folder)
  adapted, params = glora_jax.torch.adapt(module, x, structure='lora:2', scale=2.0, heads=None)
  return x, theirs, *glora_jax.peft.load(folder, adapted, params)


def test_a_lora_is_loaded_with_its_own_factors_so_that_training_continues_as_in_peft(tmp_path):
  x, theirs, adapted, variables = one_layer(tmp_path)
  theirs(x).square().sum().backward()
  trainable, frozen = adapted.split(variables)

  def loss(trainable):
    return (adapted.apply(adapted.join(trainable, frozen), x) ** 2).sum()

  gradient = jax.grad(loss)(trainable)
  for name, side in (('B_down', 'A'), ('B_up', 'B')):
    factor = theirs.get_parameter(f'base_model.model.0.lora_{side}.default.weight')
    assert_close(trainable['glora']['0'][name], factor.detach().T)
    assert_close(gradient['glora']['0'][name], factor.grad.T)


def test_dropout_drops_what_that_of_peft_drops(tmp_path):
  x, theirs, adapted, variables = one_layer(tmp_path, lora_dropout=0.5)
  key, dropout = jax.random.key(0), torch.nn.Module()
  of_layers = Dropout(key, 0.5).of_layers(adapted.places.groups[0])
  # PEFT's module, with our draw.
  dropout.forward = lambda x: torch.tensor(np.asarray(of_layers.drop(x.numpy(), 3)))
  forward = glora_jax.Forward(adapted, variables)
  assert_close(forward(x), theirs.eval()(x).detach())
  theirs.base_model.model[0].lora_dropout['default'] = dropout
  dropped = forward.dropping_inputs(key, 0.5)(x)
  assert_close(dropped, theirs(x).detach())
  assert np.abs(dropped - forward(x)).max() > 0.01


LLAMA, CONFIG = language_model('Llama'), peft.LoraConfig(r=2, target_modules=['q_proj'])


@pytest.mark.parametrize(
  'words',
  [
    {'structure': None, 'r': 8, 'lora_alpha': 16, 'target_modules': ['q_proj']},
    {'structure': 'lora:8', 'lora_alpha': 16},
    {'structure': 'lora:8', 'modules_to_save': ['lm_head'], 'lora_dropout': 0.1},
    {'structure': None, 'config': CONFIG},
  ],
)
def test_arguments_of_peft_are_refused_and_not_ignored(words):
  assert_refused("of PEFT: pass structure='lora:8' for r=8, scale=", adapt, LLAMA, **words)


def test_arguments_of_peft_that_the_module_has_are_its_own():
  class Scaled(torch.nn.Linear):
    def forward(self, x, r):
      return super().forward(x) * r

  glora_jax.torch.adapt(Scaled(3, 2).eval(), torch.ones(1, 3), r=2.0, heads=None)


def test_models_and_configs_of_peft_are_refused():
  config = 'LoraConfig of PEFT: pass structure='
  assert_refused(config, glora_jax.torch.adapt, LLAMA, TOKENS, CONFIG)
  model = peft.get_peft_model(copy.deepcopy(LLAMA), CONFIG)
  assert_refused('is a model of PEFT; pass the base model', adapt, model)


def test_a_tied_head_names_the_table_that_it_is_tied_to():
  module = language_model('Llama', tie_word_embeddings=True)
  tied = ['lm_head.weight is tied to model.embed_tokens.weight', "heads='model/embed_tokens'"]
  assert_refused(tied, adapt, module, heads='lm_head')
  for advice in ({'heads': 'model/embed_tokens'}, {'heads': None, 'embeddings': True}):
    adapt(module, **advice)


def test_peft_finds_the_class_and_the_base_of_an_adapter(tmp_path, monkeypatch):
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')  # PEFT asks the hub for a tokenizer
  language_model('Llama').save_pretrained(tmp_path / 'base')
  module = transformers.LlamaForCausalLM.from_pretrained(tmp_path / 'base').eval()
  adapted, params = adapt(module, scale=2.0, heads=None)
  assert 'scale of LoRAs of B: 2' in adapted.summary()
  variables = trained_variables(adapted, params)
  glora_jax.peft.save(tmp_path / 'adapter', adapted, variables)
  theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / 'adapter').eval()
  expected = adapted.apply(variables, TOKENS, use_cache=False).logits
  assert_close(theirs(TOKENS).logits.detach(), expected)
