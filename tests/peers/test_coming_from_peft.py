"""docs/howto/coming_from_peft.md: its table and its example are true; and what dropout drops."""

import copy
import functools
import re

import jax
import numpy as np
import pytest
from places import ROOT
from trees import randomized

pytest.importorskip('peft', reason='needs the peers extra')
pytest.importorskip('torchax', reason='needs the peers extra')

import peft
import torch
import transformers

import glora_jax
from glora_jax.method.dropout import Dropout

PAGE = (ROOT / 'docs' / 'howto' / 'coming_from_peft.md').read_text()
ROWS = [row.replace(r'\|', '|') for row in re.findall(r'(?m)^\| `r=.*\|$', PAGE)]


class Layer(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.attn = torch.nn.ModuleDict({name: torch.nn.Linear(8, 8) for name in ('q_proj', 'v_proj')})
    self.mlp = torch.nn.Linear(8, 8)

  def forward(self, x):
    return self.mlp(self.attn['q_proj'](x) * self.attn['v_proj'](x))


class Model(transformers.PreTrainedModel):
  config_class = transformers.PretrainedConfig

  def __init__(self):
    super().__init__(transformers.PretrainedConfig())
    # Under a name, as in transformers: PEFT finds no numbers of layers at the root.
    self.model = torch.nn.ModuleDict({'layers': torch.nn.ModuleList(Layer() for _ in range(3))})
    self.lm_head = torch.nn.Linear(8, 5)

  def get_output_embeddings(self):
    return self.lm_head

  def forward(self, x):
    for layer in self.model['layers']:
      x = layer(x)
    return self.lm_head(x)


@pytest.mark.parametrize('row', ROWS)
def test_a_row_trains_as_many_numbers_with_the_same_scale(row):
  theirs, ours = (eval(f'dict({cell})') for cell in re.findall('`(.*?)`', row))
  module, x = Model().eval(), torch.randn(2, 8)
  wrapped = peft.get_peft_model(
    copy.deepcopy(module), peft.LoraConfig(**{'lora_alpha': 8, **theirs})
  )
  adapted, params = glora_jax.torch.adapt(module, x, **{'heads': None, **ours})
  shapes = jax.eval_shape(lambda: adapted.split(adapted.init(jax.random.key(0), params))[0])
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert count == wrapped.get_nb_trainable_parameters()[0]
  scales = {m.scaling['default'] for m in wrapped.modules() if hasattr(m, 'lora_A')}
  assert theirs.get('rank_pattern') or {layer.space.scale for layer in adapted.spec} == scales


def test_the_example_prints_the_same_numbers_for_both(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  torch.manual_seed(0)
  names = {}
  for lines in re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL):
    exec(lines, names)
  losses = np.array([names['losses'], names['losses_of_peft']])
  np.testing.assert_allclose(*losses, atol=1e-5)
  assert losses[0, 0] - losses[0, -1] > 0.1
  assert capsys.readouterr().out.count('PEFT') == 5


def test_a_lora_is_loaded_with_its_own_factors_so_that_training_continues_as_in_peft(tmp_path):
  module, x = torch.nn.Sequential(torch.nn.Linear(8, 5)).eval(), torch.randn(4, 8)
  config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=['0'], init_lora_weights=False)
  theirs = peft.get_peft_model(copy.deepcopy(module), config)
  theirs.save_pretrained(tmp_path)
  theirs(x).square().sum().backward()
  adapted, params = glora_jax.torch.adapt(module, x, structure='lora:2', scale=2.0, heads=None)
  adapted, variables = glora_jax.peft.load_peft(tmp_path, adapted, params)
  trainable, frozen = adapted.split(variables)

  def loss(trainable):
    return (adapted.apply(adapted.join(trainable, frozen), x) ** 2).sum()

  for found, expected in ((trainable, 'data'), (jax.grad(loss)(trainable), 'grad')):
    for name, side in (('B_down', 'A'), ('B_up', 'B')):
      factor = getattr(
        theirs.get_parameter(f'base_model.model.0.lora_{side}.default.weight'), expected
      )
      np.testing.assert_allclose(found['glora']['0'][name], factor.T, rtol=1e-4, atol=1e-5)


def test_dropout_drops_what_that_of_peft_drops():
  key, x = jax.random.key(0), torch.randn(4, 8)
  module = torch.nn.Sequential(torch.nn.Linear(8, 5)).eval()
  config = peft.LoraConfig(r=2, target_modules=['0'], lora_dropout=0.5, init_lora_weights=False)
  theirs = peft.get_peft_model(copy.deepcopy(module), config)
  [layer] = [part for part in theirs.modules() if hasattr(part, 'lora_dropout')]
  adapted, params = glora_jax.torch.adapt(module, x, structure='lora:2', scale=4.0, heads=None)
  dropout = Dropout(key, 0.5).of_layers(adapted.places.groups[0])

  def drop(x):  # PEFT's module, with our draw
    return torch.tensor(np.asarray(dropout.drop(x.numpy(), 3)))

  factors = {
    f'B_{end}': side['default'].weight.detach().numpy().T
    for end, side in (('down', layer.lora_A), ('up', layer.lora_B))
  }
  forward = glora_jax.Forward(adapted, {'params': params, 'glora': {'0': factors}})
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  close(forward(x), theirs.eval()(x).detach())
  layer.lora_dropout['default'].forward = drop
  dropped = forward.dropping_inputs(key, 0.5)(x)
  close(dropped, theirs(x).detach())
  assert np.abs(dropped - forward(x)).max() > 0.01


def llama(tied=False):
  config = transformers.LlamaConfig(
    vocab_size=16,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    tie_word_embeddings=tied,
  )
  return transformers.LlamaForCausalLM(config).eval()


TOKENS = torch.arange(4)[None]


@pytest.mark.parametrize(
  'words',
  [
    {'r': 8, 'lora_alpha': 16, 'target_modules': ['q_proj']},
    {'structure': 'lora:8', 'lora_alpha': 16},
    {'structure': 'lora:8', 'modules_to_save': ['lm_head'], 'lora_dropout': 0.1},
    {'config': peft.LoraConfig(r=8)},
  ],
)
def test_arguments_of_peft_are_refused_and_not_ignored(words):
  with pytest.raises(TypeError, match="of PEFT: pass structure='lora:8' for r=8, scale="):
    glora_jax.torch.adapt(llama(), TOKENS, use_cache=False, **words)


def test_arguments_of_peft_that_the_module_has_are_its_own():
  class Scaled(torch.nn.Linear):
    def forward(self, x, r):
      return super().forward(x) * r

  glora_jax.torch.adapt(Scaled(3, 2).eval(), torch.ones(1, 3), r=2.0, heads=None)


def test_models_and_configs_of_peft_are_refused():
  config = peft.LoraConfig(r=2, target_modules=['q_proj'])
  with pytest.raises(TypeError, match=r'^LoraConfig of PEFT: pass structure='):
    glora_jax.torch.adapt(llama(), TOKENS, config)
  with pytest.raises(TypeError, match=r'^PeftModel.* is a model of PEFT; pass the base model'):
    glora_jax.torch.adapt(peft.get_peft_model(llama(), config), TOKENS, structure='lora:2')


def test_a_tied_head_names_the_table_that_it_is_tied_to():
  module = llama(tied=True)
  tied = 'lm_head.weight is tied to model.embed_tokens.weight.*embed_tokens'
  with pytest.raises(ValueError, match=tied):
    glora_jax.torch.adapt(module, TOKENS, structure='lora:2', heads='lm_head', use_cache=False)
  for advice in ({'heads': 'model/embed_tokens'}, {'heads': None, 'embeddings': True}):
    glora_jax.torch.adapt(module, TOKENS, structure='lora:2', use_cache=False, **advice)


def test_peft_finds_the_class_and_the_base_of_an_adapter(tmp_path, monkeypatch):
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')  # PEFT asks the hub for a tokenizer
  llama().save_pretrained(tmp_path / 'base')
  module = transformers.LlamaForCausalLM.from_pretrained(tmp_path / 'base').eval()
  adapted, params = glora_jax.torch.adapt(
    module, TOKENS, structure='lora:2', scale=2.0, heads=None, use_cache=False
  )
  assert 'scale of LoRAs of B: 2' in adapted.summary()
  variables = adapted.init(jax.random.key(0), params)
  variables['glora'] = randomized(variables['glora'], scale=0.1)
  glora_jax.peft.save_peft(tmp_path / 'adapter', adapted, variables)
  theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / 'adapter').eval()
  expected = adapted.apply(variables, TOKENS, use_cache=False).logits
  np.testing.assert_allclose(theirs(TOKENS).logits.detach(), expected, atol=1e-5)
