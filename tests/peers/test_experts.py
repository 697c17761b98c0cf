"""Experts of transformers' models, selected by index: found, folded, written for PEFT, read."""

import copy
import functools

import jax
import numpy as np
import pytest
from comparing import assert_close, trained_variables
from numpy.testing import assert_allclose, assert_array_equal
from trees import normal

import glora_jax
from glora_jax.peft import load_peft, save_peft

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
pytest.importorskip('torchax')

SIZES = {
  **{'vocab_size': 32, 'hidden_size': 12, 'intermediate_size': 10, 'num_hidden_layers': 2},
  **{'num_attention_heads': 2, 'num_key_value_heads': 1, 'head_dim': 8, 'num_experts_per_tok': 2},
}
TOKENS = np.array([[1, 5, 10], [3, 0, 2]])
MODELS = {
  'Qwen3Moe': {'num_experts': 4, 'moe_intermediate_size': 10},
  'Mixtral': {'num_local_experts': 4},
  'GptOss': {'num_local_experts': 4},
}
EACH = pytest.mark.parametrize(
  'name',
  [
    'Mixtral',
    pytest.param('Qwen3Moe', marks=pytest.mark.full),
    pytest.param('GptOss', marks=pytest.mark.full),
  ],
)


@functools.cache
def ready(name, structure):
  """(module, adapted, trained variables, logits of variables)."""
  config = getattr(transformers, f'{name}Config')(**SIZES, **MODELS[name])
  config._attn_implementation = 'eager'
  module = getattr(transformers, f'{name}ForCausalLM')(config).eval()
  module.set_experts_implementation('eager')
  with torch.no_grad():  # zeros in biases would hide mistakes
    for seed, value in enumerate(module.parameters()):
      value.add_(torch.from_numpy(0.1 * np.array(normal(*value.shape, seed=seed))))
  adapted, params = glora_jax.torch.adapt(
    module, TOKENS, structure=structure, heads=None, use_cache=False
  )

  @jax.jit
  def logits(variables):
    return adapted.apply(variables, TOKENS, use_cache=False).logits

  return module, adapted, trained_variables(adapted, params), logits


@EACH
def test_every_expert_of_a_model_is_a_layer_and_folds_into_the_module(name):
  structure = 'scale_shift_lora:2' if name == 'GptOss' else 'lora:2'  # its experts have biases
  module, adapted, variables, logits = ready(name, structure)
  assert module.config._experts_implementation == 'eager'
  names = [layer.name.rpartition('/')[2] for layer in adapted.spec]
  # Queries, keys, values, output, router, four experts of each kernel, twice; and the head.
  assert len(names) == 2 * (4 + 1 + 2 * 4) + 1
  experts = [f'{kernel}[{e}]' for kernel in ('gate_up_proj', 'down_proj') for e in range(4)]
  assert [name for name in names if '[' in name] == 2 * experts
  (table,) = adapted.coverage().uncovered
  assert (table.name, table.reason) == ('model/embed_tokens/weight', 'embedding lookup')
  assert all(layer.bias for layer in adapted.spec if '[' in layer.name) == (name == 'GptOss')

  plain = of_module(module)
  fresh = adapted.init(jax.random.key(0), variables['params'])
  assert_allclose(logits(fresh), plain, rtol=1e-5, atol=1e-6)
  outputs = logits(variables)
  assert np.abs(outputs - plain).max() > 0.1
  folded = copy.deepcopy(module)
  glora_jax.torch.load(folded, adapted.fold(variables))
  assert_allclose(of_module(folded), outputs, atol=1e-5 * np.abs(outputs).max())


@EACH
def test_experts_and_router_go_to_peft_and_come_back(name, tmp_path):
  peft = pytest.importorskip('peft')
  module, adapted, variables, logits = ready(name, 'lora:2')
  assert save_peft(tmp_path, adapted, variables) == 'lora'
  theirs = peft.PeftModel.from_pretrained(copy.deepcopy(module), tmp_path).eval()
  expected = logits(variables)
  assert_close(of_module(theirs), expected)
  folded = jax.tree_util.tree_leaves_with_path(adapted.fold(variables))
  merged = dict(theirs.merge_and_unload().named_parameters())
  assert len(merged) == len(folded)
  for keys, value in folded:
    weight = merged[jax.tree_util.keystr(keys, simple=True, separator='.')]
    assert_close(weight.detach().numpy(), value)
  _, read = load_peft(tmp_path, adapted, variables['params'])
  assert_array_equal(logits(read), expected)


@EACH
def test_an_adapter_of_peft_for_experts_and_router_is_read(name, tmp_path):
  peft = pytest.importorskip('peft')
  module, adapted, variables, logits = ready(name, 'lora:2')
  router = 'router' if name == 'GptOss' else 'gate'
  config = peft.LoraConfig(
    r=1,
    lora_alpha=3,
    rank_pattern={'(gate_up|down|q|o)_proj': 2, f'{router}.weight': 2},
    alpha_pattern={r'layers\.0\..*\.down_proj': 5},
    target_modules=['q_proj', 'o_proj'],
    target_parameters=['experts.gate_up_proj', 'down_proj', f'{router}.weight'],
  )
  theirs = peft.get_peft_model(copy.deepcopy(module), config).eval()
  with torch.no_grad():
    for seed, (key, value) in enumerate(theirs.named_parameters()):
      if '.lora_' in key:
        value.copy_(torch.from_numpy(0.3 * np.array(normal(*value.shape, seed=seed))))
  theirs.save_pretrained(tmp_path)
  _, read = load_peft(tmp_path, adapted, variables['params'])
  outputs = logits(read)
  assert_close(outputs, of_module(theirs))
  assert np.abs(outputs - of_module(module)).max() > 0.1


def of_module(module):
  with torch.no_grad():
    return module(torch.from_numpy(TOKENS), use_cache=False).logits.numpy()
