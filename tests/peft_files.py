"""Files of adapters as PEFT writes them."""

import json

import numpy as np
import safetensors.numpy

ROOT = 'base_model.model.'


def numbers(*shape):
  return np.random.default_rng(0).normal(0, 0.3, shape).astype(np.float32)


def write(folder, tensors, **config):
  tensors = {f'{ROOT}{name}': np.asarray(value, np.float32) for name, value in tensors.items()}
  safetensors.numpy.save_file(tensors, folder / 'adapter_model.safetensors')
  (folder / 'adapter_config.json').write_text(json.dumps({'peft_type': 'LORA', **config}))


def contents(folder):
  """(config, tensors by name of the torch model)."""
  tensors = safetensors.numpy.load_file(folder / 'adapter_model.safetensors')
  assert all(name.startswith(ROOT) for name in tensors)
  named = {name.removeprefix(ROOT): value for name, value in tensors.items()}
  return json.loads((folder / 'adapter_config.json').read_text()), named
