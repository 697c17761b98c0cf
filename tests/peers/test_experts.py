"""Experts by PEFT itself, out with LoRAs of some of them alone, and in; others are in the zoo."""

import functools

import numpy as np
import peft
import pytest
from hand_count import quick_first

import glora_jax
from tests.peers import torch_zoo
from tests.peers.random_adapters import BothWays


@functools.cache
def ready(name):
  example = torch_zoo.EXAMPLES[name]()
  space = glora_jax.SearchSpace((1, 2), scale=2.0)
  return BothWays(example.module, *example.inputs, space=space, heads=None, kwargs=example.kwargs)


@pytest.mark.parametrize('up', [[0, 3, 4, 3], [0, 0, 0, 0]])
def test_ranks_of_experts_go_to_peft_and_come_back(up, tmp_path):
  case = ready('mixtral')
  names = [layer.name for layer in case.adapted.spec]
  genome = np.zeros((len(names), 5), np.int8)
  genome[[name.endswith('mlp/gate') for name in names], 1] = 3
  genome[['[' in name for name in names], 1] = 2 * [*up, 4, 0, 3, 4]
  assert case.check_out(tmp_path, genome) == 'lora'


@quick_first(['mixtral', 'qwen3_moe', 'gpt_oss'], 'mixtral')
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
  assert np.unique(ready(name).check_in(tmp_path, config).genome[:, 1]).tolist() == [0, 4]
