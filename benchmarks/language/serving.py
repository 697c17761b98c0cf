"""Eight prompts in a batch, each with its own adapter, against the plain model."""

import os
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import transformers

import glora_jax.torch
from benchmarks.language import model
from benchmarks.machinery.measuring import in_turn, print_result, print_table
from glora_jax.serve import Pool

ADAPTERS, RANK = 8, 8
LENGTH, MORE = 64, 64  # tokens of a prompt, and for how many more the cache has room


def prompts(config: Any) -> tuple:
  """Random prompts with an empty cache: all inputs of the call that reads them."""
  shape = ADAPTERS, LENGTH
  tokens = np.random.default_rng(0).integers(1, config.vocab_size, shape, dtype=np.int32)
  mask = np.ones((ADAPTERS, LENGTH + MORE), np.int32)
  positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), shape)
  layer = transformers.cache_utils.StaticLayer
  layers = [layer(LENGTH + MORE) for _ in range(config.num_hidden_layers)]
  return tokens, mask, positions, transformers.Cache(layers=layers)


def random_adapter(adapted: glora_jax.Adapted, params: Any, seed: int) -> Any:
  """Variables with normal noise on the adapter."""
  key = jax.random.key(seed)
  variables = adapted.init(key, params)
  noisy = jax.tree.map(
    lambda value: value + 0.02 * jax.random.normal(key, value.shape), variables['glora']
  )
  return {**variables, 'glora': noisy}


def measure(quick: bool, repeats: int) -> None:
  """Measures and prints."""
  module = model.tiny() if quick else model.load()
  tokens, mask, positions, empty = prompts(module.config)
  adapted, params = glora_jax.torch.adapt(
    module, tokens[:1], structure=f'lora:{RANK}', heads=None, release=True
  )
  names = [*map(str, range(ADAPTERS))]
  pool, alone = Pool(adapted, params, slots=ADAPTERS, rank=RANK), []
  apply = jax.jit(adapted.apply)
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'adapter.safetensors')
    for number, name in enumerate(names):
      variables = random_adapter(adapted, params, number)
      glora_jax.save_adapter(path, adapted, variables)
      pool.load(name, path)
      alone.append(apply(variables, tokens, mask, positions, empty).logits[number])
  plain = jax.jit(adapted.model.apply)
  forwards = {
    'plain': lambda *inputs: plain({'params': params}, *inputs),
    'pool': lambda *inputs: pool(inputs, names),
  }
  read = {name: forward(tokens, mask, positions, empty) for name, forward in forwards.items()}
  distance = jnp.abs(read['pool'].logits - jnp.stack(alone)).max() / jnp.abs(jnp.stack(alone)).max()
  next_inputs = tokens[:, -1:], mask, positions[:, -1:] + 1
  found: dict[str, Any] = {'distance': float(distance)}
  parts = {
    'prefill': {
      name: lambda forward=forward: forward(tokens, mask, positions, empty)
      for name, forward in forwards.items()
    },
    'decode': {
      name: lambda forward=forward, cache=read[name][1]: forward(*next_inputs, cache)
      for name, forward in forwards.items()
    },
  }
  for part, calls in parts.items():
    times = in_turn(calls, repeats)
    milliseconds = {name: 1e3 * times.median(name) for name in calls}
    found[part] = {'ms': milliseconds, 'over_plain': times.ratio('pool', 'plain')}
  columns = {'': '', 'plain, ms': ',.0f', 'pool, ms': ',.0f', 'pool / plain': '.3f'}
  rows = [(part, *found[part]['ms'].values(), found[part]['over_plain']) for part in parts]
  print_table(columns, rows)
  print(f'largest distance from each adapter alone, over the largest logit: {distance:.1e}')
  print_result('language.serve', {'quick': quick, **found})
