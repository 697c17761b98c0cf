"""PEFT's kinds by PEFT itself, out and in: structures times modules, and experts."""

import functools

import hypothesis
import numpy as np
import peft
import pytest
import torch
from hand_count import quick_first
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

import glora_jax
from tests.peers import torch_zoo
from tests.peers.random_adapters import BothWays

TOKENS = torch.tensor([[1, 4], [6, 0], [2, 2]])
IMAGES = torch.tensor(np.random.default_rng(0).normal(size=(3, 3, 4, 5)), dtype=torch.float32)


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
  torch.manual_seed(0)
  space = glora_jax.SearchSpace((1, 2, 3), scale=1.7)
  options = {'space': space, 'heads': 'head', 'convs': True, 'embeddings': True}
  return BothWays(Net(width).eval(), TOKENS, IMAGES, **options)


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


@pytest.mark.parametrize(
  'examples, widths', [(12, [5]), pytest.param(300, [5, 2, 8], marks=pytest.mark.full)]
)
def test_every_structure_goes_out_and_comes_back(examples, widths, tmp_path):
  @hypothesis.settings(max_examples=examples, deadline=None, derandomize=True)
  @hypothesis.given(structures(ready().adapted.spec), st.sampled_from(widths))
  def check(drawn, width):
    kind, genome = drawn
    hypothesis.assume(genome.any())
    narrowest = ready(width).check_out(tmp_path, genome)
    order = list(KINDS)
    assert order.index(narrowest) <= order.index(kind)
    assert ready(width).check_out(tmp_path, genome, kind) == kind

  check()


FORMS = {
  'lora': [0, 3, 0, 0, 0],
  'lora with biases': [0, 4, 1, 2, 2],
  'hira': [4, 0, 0, 0, 0],
  'dora': [2, 4, 0, 0, 0],
  'dora with biases': [1, 3, 1, 1, 1],
  'glora': [4, 3, 2, 2, 1],
}


# The attention of torchvision's calls no module.
@functools.cache
def ready_example(name, **options):
  example = torch_zoo.EXAMPLES[name]()
  options = {'space': glora_jax.SearchSpace((1, 2), scale=2.0), **options, **example.options}
  return BothWays(example.module, *example.inputs, size=0.1, kwargs=example.kwargs, **options)


@quick_first(sorted({*torch_zoo.EXAMPLES} - {'torchvision_vit'}), 'mixtral')
def test_modules_of_the_zoo_go_out_and_come_back(name, tmp_path):
  case = ready_example(name)
  parts = dict(case.module.named_modules())
  for forms, row in FORMS.items():
    genome = np.tile(np.array(row, np.int8), (len(case.adapted.spec), 1))
    for layer, codes in zip(case.adapted.spec, genome, strict=True):
      part = parts.get(layer.name.replace('/', '.'))
      codes[2:] *= layer.bias
      if part is None or 'Router' in type(part).__name__:  # of experts
        codes *= forms == 'lora'
      elif forms == 'glora' or getattr(part, 'groups', 1) > 1:
        codes *= type(part) is nn.Linear
    assert not genome.any() or case.check_out(tmp_path, genome) == forms.split()[0]


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


@pytest.mark.parametrize('config, forms', THEIRS.values(), ids=THEIRS)
def test_an_adapter_of_peft_is_read_as_a_structure(config, forms, tmp_path, caplog):
  with caplog.at_level('INFO', logger='glora_jax.peft'):
    ready().check_in(tmp_path, config, 0.2)
  read = caplog.text.strip().partition('read as ')[2].split('; ')
  assert {layers.rpartition(' in ')[0] for layers in read} == forms


@pytest.mark.parametrize('up', [[0, 3, 4, 3], [0, 0, 0, 0]])
def test_ranks_of_experts_go_to_peft_and_come_back(up, tmp_path):
  case = ready_example('mixtral', heads=None)
  names = [layer.name for layer in case.adapted.spec]
  genome = np.zeros((len(names), 5), np.int8)
  genome[[name.endswith('mlp/gate') for name in names], 1] = 3
  genome[['[' in name for name in names], 1] = 2 * [*up, 4, 0, 3, 4]
  assert case.check_out(tmp_path, genome) == 'lora'


@quick_first(['mixtral', 'gpt_oss'], 'mixtral')
def test_an_adapter_of_peft_for_experts_and_router_is_read(name, tmp_path):
  router = 'router' if name == 'gpt_oss' else 'gate'
  config = peft.LoraConfig(
    r=1,
    lora_alpha=3,
    rank_pattern={'(gate_up|down|q|o)_proj': 2, f'{router}.weight': 2},
    alpha_pattern={r'layers\.0\..*\.down_proj': 5},
    target_modules=['q_proj', 'o_proj'],
    target_parameters=['experts.gate_up_proj', 'down_proj', f'{router}.weight'],
  )
  read = ready_example(name, heads=None).check_in(tmp_path, config)
  assert np.unique(read.genome[:, 1]).tolist() == [0, 4]
