"""Experts of transformers' models, which torchax selects by index: found whole, and folded back."""

import jax
import numpy as np
import pytest
from comparing import trained_variables
from numpy.testing import assert_allclose
from trees import normal

import glora_jax

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


@pytest.mark.parametrize(
  'name',
  [
    'Mixtral',
    pytest.param('Qwen3Moe', marks=pytest.mark.full),
    pytest.param('GptOss', marks=pytest.mark.full),
  ],
)
def test_every_expert_of_a_model_is_a_layer_and_folds_into_the_module(name):
  config = getattr(transformers, f'{name}Config')(**SIZES, **MODELS[name])
  config._attn_implementation = 'eager'
  module = getattr(transformers, f'{name}ForCausalLM')(config).eval()
  module.set_experts_implementation('eager')
  with torch.no_grad():  # zeros in biases would hide mistakes
    for seed, value in enumerate(module.parameters()):
      value.add_(torch.from_numpy(0.1 * np.array(normal(*value.shape, seed=seed))))
  structure = 'scale_shift_lora:2' if name == 'GptOss' else 'lora:2'  # its experts have biases
  adapted, params = glora_jax.torch.adapt(
    module, TOKENS, structure=structure, heads=None, use_cache=False
  )
  assert module.config._experts_implementation == 'eager'
  names = [layer.name.rpartition('/')[2] for layer in adapted.spec]
  # Queries, keys, values, output, router, four experts of each kernel, twice; and the head.
  assert len(names) == 2 * (4 + 1 + 2 * 4) + 1
  experts = [f'{kernel}[{e}]' for kernel in ('gate_up_proj', 'down_proj') for e in range(4)]
  assert [name for name in names if '[' in name] == 2 * experts
  (table,) = adapted.coverage().uncovered
  assert (table.name, table.reason) == ('model/embed_tokens/weight', 'embedding lookup')
  assert all(layer.bias for layer in adapted.spec if '[' in layer.name) == (name == 'GptOss')

  def logits(variables):
    return adapted.apply(variables, TOKENS, use_cache=False).logits

  plain = of_module(module)
  fresh = adapted.init(jax.random.key(0), params)
  assert_allclose(logits(fresh), plain, rtol=1e-5, atol=1e-6)
  variables = trained_variables(adapted, params)
  outputs = jax.jit(logits)(variables)
  assert np.abs(outputs - plain).max() > 0.1
  glora_jax.torch.load(module, adapted.fold(variables))
  assert_allclose(of_module(module), outputs, atol=1e-5 * np.abs(outputs).max())


def of_module(module):
  with torch.no_grad():
    return module(torch.from_numpy(TOKENS), use_cache=False).logits.numpy()
