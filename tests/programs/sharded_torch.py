"""Adapts a PyTorch module whose weights are sharded over eight devices."""

import jax
import numpy as np
import torch
from comparing import trained_variables

import glora_jax
import glora_jax.torch

layers = torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8)
module, x = torch.nn.Sequential(*layers).eval(), torch.ones(8, 16)
adapted, params = glora_jax.torch.adapt(module, x, structure='lora:2')
variables = trained_variables(adapted, params)
expected = adapted.apply(variables, x)
mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
adapted, variables = glora_jax.shard(adapted, variables, mesh, min_bytes=1)
kernel = variables['params']['0']['weight']
assert kernel.addressable_shards[0].data.nbytes * 8 == kernel.nbytes
np.testing.assert_allclose(jax.jit(adapted.apply)(variables, x.numpy()), expected, atol=1e-5)
glora_jax.torch.copy_to(adapted.fold(variables), module)
np.testing.assert_allclose(module(x).detach(), expected, atol=1e-5)
