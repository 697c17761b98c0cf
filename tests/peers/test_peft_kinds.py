"""PEFT's kinds by PEFT itself, out and in: structures times modules."""

import copy
import functools

import hypothesis
import jax
import numpy as np
import pytest
from comparing import assert_close, trained_variables
from hypothesis import strategies as st

pytest.importorskip('peft', reason='needs the peers extra')

import peft
import timm
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

import glora_jax
from glora_jax.peft import load_peft, save_peft
from tests.peers.random_adapters import random_adapter

TENSORS = 'ABCDE'
TOKENS = torch.tensor([[1, 4], [6, 0], [2, 2]])
IMAGES = torch.tensor(np.random.default_rng(0).normal(size=(3, 3, 4, 5)), dtype=torch.float32)
SPACE = glora_jax.SearchSpace((1, 2, 3), scale=1.7)


class Net(nn.Module):
  """Every module that PEFT adapts, a linear layer without bias, and a head."""

  def __init__(self, width=5):
    super().__init__()
    self.table = nn.Embedding(7, width)
    self.conv = nn.Conv2d(3, width, (2, 3))
    self.gpt = Conv1D(6, width)
    self.deep = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3, bias=False))
    self.head = nn.Linear(3, 2)

  def forward(self, tokens, images):
    x = self.table(tokens).sum(1) + torch.tanh(self.conv(images)).mean((2, 3))
    return self.head(self.deep(torch.tanh(self.gpt(x))))


@functools.cache
def ready(width=5):
  """(torch model, adapted, params, variables, outputs and fold of variables and a genome)."""
  torch.manual_seed(0)
  model = Net(width).eval()
  adapted, params = glora_jax.torch.adapt(
    model, TOKENS, IMAGES, space=SPACE, heads='head', convs=True, embeddings=True
  )
  variables = trained_variables(adapted, params)

  @jax.jit
  def results(variables, genome):
    outputs = adapted.apply(variables, TOKENS.numpy(), IMAGES.numpy(), genome=genome)
    return outputs, adapted.fold(variables, genome=genome)

  return model, adapted, params, variables, results


def flat(params):
  """Parameters by torch's names."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {jax.tree_util.keystr(keys, simple=True, separator='.'): leaf for keys, leaf in leaves}


def in_peft(model, folder, *inputs):
  """What PEFT makes of an adapter: outputs, and the merged parameters by name."""
  with_adapter = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
  with torch.no_grad():
    outputs = with_adapter(*inputs).numpy()
  merged = dict(with_adapter.merge_and_unload().named_parameters())
  return outputs, {name: value.detach().numpy() for name, value in merged.items()}


# The kinds, the narrowest first: which forms of A and B they hold, and whether C, D and E.
KINDS = {
  'lora': ('none', 'any', True),
  'hira': ('any', 'none', False),
  'dora': ('flat', 'any', True),
  'glora': ('any', 'any', True),
}
CODES = {'none': [0], 'flat': [0, 1, 2], 'any': [0, 1, 2, 3, 4, 5]}


@st.composite
def structures(draw, spec):
  """A kind, and a structure that it holds."""
  kind = draw(st.sampled_from(sorted(KINDS)))
  a, b, has_shift = KINDS[kind]
  genome = np.zeros((len(spec), 5), np.int8)
  for row, layer in enumerate(spec):
    if kind == 'glora' and not layer.name.startswith('deep'):
      continue  # for `nn.Linear` alone
    codes = [CODES[a], CODES[b], [0], [0], [0]]
    if has_shift and layer.bias:
      codes[2:] = [range(5), range(3), range(3)]
    genome[row] = [draw(st.sampled_from(choices)) for choices in codes]
  return kind, genome


def check_both_ways(folder, case, kind, genome):
  """PEFT's outputs and merged weights are ours, also after the adapter is read again."""
  model, adapted, params, variables, results = case
  written = save_peft(folder, adapted, variables, genome=genome, kind=kind)
  outputs, folded = results(variables, genome)
  found, merged = in_peft(model, folder, TOKENS, IMAGES)
  assert_close(found, outputs)
  assert merged.keys() == flat(folded).keys()
  fixed, read = load_peft(folder, adapted, params)
  again = flat(results(read, fixed.genome)[1])
  for name, value in flat(folded).items():
    assert_close(merged[name], value)
    assert_close(again[name], value)
  return written


def check_structures(folder, examples, widths):
  case = ready()

  @hypothesis.settings(max_examples=examples, deadline=None, derandomize=True)
  @hypothesis.given(structures(case[1].spec), st.sampled_from(widths))
  def check(drawn, width):
    kind, genome = drawn
    hypothesis.assume(genome.any())
    order = list(KINDS)
    case = ready(width)
    narrowest = check_both_ways(folder, case, None, genome)
    assert order.index(narrowest) <= order.index(kind)
    assert check_both_ways(folder, case, kind, genome) == kind

  check()


def test_every_structure_goes_out_and_comes_back(tmp_path):
  check_structures(tmp_path, 12, [5])


@pytest.mark.full
def test_every_structure_and_size_goes_out_and_comes_back(tmp_path):
  check_structures(tmp_path, 300, [5, 2, 8])


@pytest.mark.parametrize(
  'forms, kind',
  [
    ({'': 'lora:2'}, 'lora'),
    ({'': {'B': 'vector', 'C': 'vector', 'D': 'constant'}}, 'lora'),
    ({'conv': {'A': 'constant'}, 'gpt': {'A': 'lora:2'}}, 'hira'),
    ({'': {'A': 'vector', 'B': 'lora:1'}}, 'dora'),
    ({'gpt': {'A': 'constant', 'E': 'vector'}}, 'dora'),
    ({'deep': {'A': 'lora:1', 'B': 'lora:3'}}, 'glora'),
    ({'deep/0': {'A': 'lora:1', 'E': 'vector'}, 'deep/2': {'B': 'constant'}}, 'glora'),
  ],
)
def test_the_narrowest_kind_is_written(forms, kind, tmp_path):
  case = ready()
  genome = case[1].fix(forms).genome
  assert save_peft(tmp_path, case[1], case[3], genome=genome) == kind


SIZES = {
  'hidden_size': 32,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'intermediate_size': 48,
}
WORDS = {'vocab_size': 64, 'use_cache': False}
MODELS = {
  'llama': lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **WORDS)),
  'gpt2': lambda: transformers.GPT2LMHeadModel(
    transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, **WORDS)
  ),
  'bert': lambda: transformers.BertForSequenceClassification(
    transformers.BertConfig(vocab_size=64, **SIZES)
  ),
  'vit': lambda: transformers.ViTForImageClassification(
    transformers.ViTConfig(image_size=32, patch_size=8, **SIZES)
  ),
  'convnext': lambda: timm.models.ConvNeXt(
    num_classes=5, depths=(1, 1, 2, 1), dims=(16, 24, 32, 48)
  ),
}
FORMS = {
  'lora': [0, 3, 0, 0, 0],
  'lora with biases': [0, 4, 1, 2, 2],
  'hira': [4, 0, 0, 0, 0],
  'dora': [2, 4, 0, 0, 0],
  'dora with biases': [1, 3, 1, 1, 1],
  'glora': [4, 3, 2, 2, 1],
}


@pytest.mark.full
@pytest.mark.parametrize('name', MODELS)
def test_models_of_transformers_and_timm_go_out_and_come_back(name, tmp_path):
  """Distances relative to the largest logit or weight: `pytest -m full -s` prints them."""
  torch.manual_seed(0)
  model = MODELS[name]().eval()
  inputs = torch.randint(64, (2, 7))
  if name in ('vit', 'convnext'):
    inputs = torch.randn(2, 3, 32, 32)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(torch.randn_like(parameter) * 0.05)
  adapted, params = glora_jax.torch.adapt(
    model,
    inputs,
    space=glora_jax.SearchSpace((2, 4), scale=2.0),
    select=lambda path: 'conv_dw' not in path,  # of groups
    convs=name in ('vit', 'convnext'),
    embeddings=name == 'bert',
  )
  variables = trained_variables(adapted, params, 0.1)

  def logits(outputs):
    return getattr(outputs, 'logits', outputs)

  @jax.jit
  def results(variables, genome):
    outputs = adapted.apply(variables, inputs.numpy(), genome=genome)
    return logits(outputs), adapted.fold(variables, genome=genome)

  def distance(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()

  for forms, row in FORMS.items():
    genome = np.tile(np.array(row, np.int8), (len(adapted.spec), 1))
    genome[[not layer.bias for layer in adapted.spec], 2:] = 0
    if forms == 'glora' and name in ('gpt2', 'bert', 'vit', 'convnext'):
      if name != 'bert':
        with pytest.raises(ValueError, match='GLoRA cannot hold Conv'):
          save_peft(tmp_path, adapted, variables, genome=genome)
        continue
      genome[['embeddings' in layer.name for layer in adapted.spec]] = 0
    kind = save_peft(tmp_path, adapted, variables, genome=genome)
    assert kind == forms.split()[0]
    outputs, folded = results(variables, genome)
    wrapped = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    with torch.no_grad():
      found = logits(wrapped(inputs)).numpy()
    merged = dict(wrapped.merge_and_unload().named_parameters())
    fixed, read = load_peft(tmp_path, adapted, params)
    again, _ = results(read, fixed.genome)
    weights = max(distance(merged[k].detach(), v) for k, v in flat(folded).items())
    distances = distance(found, outputs), weights, distance(again, outputs)
    print(name, forms, *(f'{number:.1e}' for number in distances))
    assert max(distances) < 1e-5


def outputs_of_peft(model, config, folder):
  """Writes an adapter of PEFT with random tensors; its outputs."""
  with_adapter = random_adapter(copy.deepcopy(model), config, folder, 0.2)
  with torch.no_grad():
    return with_adapter(TOKENS, IMAGES).numpy()


ALL = {'target_modules': ['table', 'conv', 'gpt', 'deep.0', 'deep.2'], 'modules_to_save': ['head']}
LINEAR = {'target_modules': ['gpt', 'deep.0', 'deep.2']}
DEEP = {'target_modules': ['deep.0', 'deep.2'], 'r': 2}
THEIRS = {
  'lora': (peft.LoraConfig(r=2, lora_alpha=3, **ALL), {'B=lora:2'}),
  'rank_stabilized': (peft.LoraConfig(r=3, use_rslora=True, **ALL), {'B=lora:3'}),
  'patterns': (
    peft.LoraConfig(r=1, rank_pattern={'deep.*': 3}, alpha_pattern={r'.*\.2': 5}, **LINEAR),
    {'B=lora:1', 'B=lora:3'},
  ),
  'biases': (
    peft.LoraConfig(r=2, bias='all', lora_bias=True, target_modules=['conv', 'gpt', 'deep.0']),
    {'B=lora:2, E=vector'},
  ),
  'dora': (peft.LoraConfig(r=2, use_dora=True, **ALL), {'A=vector, B=lora:2'}),
  'dora_with_bias': (
    peft.LoraConfig(r=2, use_dora=True, bias='lora_only', use_rslora=True, **LINEAR),
    {'A=vector, B=lora:2, E=vector', 'A=vector, B=lora:2'},
  ),
  'hira': (peft.HiraConfig(r=2, **ALL), {'A=lora:2'}),
  'ia3': (
    peft.IA3Config(target_modules=['conv', 'gpt', 'deep.2'], feedforward_modules=[]),
    {'A=vector, D=vector', 'A=vector'},
  ),
  'ia3_feedforward': (
    peft.IA3Config(target_modules=['conv', 'gpt', 'deep.0'], feedforward_modules=['conv', 'gpt']),
    {'A=lora:1', 'A=vector, D=vector'},
  ),
  'glora': (
    peft.GloraConfig(config_C='lora', config_D_E='vector', **DEEP),
    {'A=lora:2, B=lora:2, C=vector, D=vector, E=vector', 'A=lora:2, B=lora:2'},
  ),
  'glora_vectors': (
    peft.GloraConfig(config_A_B='vector', config_C='vector', config_D_E='constant', **DEEP),
    {'A=vector, B=vector, C=vector, D=constant, E=constant', 'A=vector, B=vector'},
  ),
  'glora_constants': (
    peft.GloraConfig(config_A_B='constant', config_C='none', config_D_E='none', **DEEP),
    {'A=constant, B=constant'},
  ),
  'glora_of_bias': (
    peft.GloraConfig(config_A_B='none', config_C='none', config_D_E='vector', **DEEP),
    {'D=vector, E=vector'},
  ),
}


@pytest.mark.parametrize('name', THEIRS)
def test_an_adapter_of_peft_is_read_as_a_structure(name, tmp_path, caplog):
  config, forms = THEIRS[name]
  model, adapted, params, _, results = ready()
  expected = outputs_of_peft(model, config, tmp_path)
  with caplog.at_level('INFO', logger='glora_jax.peft'):
    fixed, variables = load_peft(tmp_path, adapted, params)
  assert_close(results(variables, fixed.genome)[0], expected)
  read = caplog.text.strip().partition('read as ')[2].split('; ')
  assert {layers.rpartition(' in ')[0] for layers in read} == forms
