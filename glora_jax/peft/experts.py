"""LoRAs of experts, which PEFT has for the parameter that all of them are in.

PEFT puts a wrapper around the module of the parameter (`target_parameters`). If several parameters
of a module are adapted, the wrapper of the first is inside that of the second, and so on:

    experts.base_layer.lora_A.weight    gate_up_proj, [expert, rank, in] as [expert * rank, in]
    experts.base_layer.lora_B.weight                  [out, rank, expert] as [out, rank * expert]
    experts.lora_A.weight               down_proj, likewise
    experts.lora_B.weight

No tensor has the name of its parameter. The first is the one that the module registers first, and
here the one that the model uses first, which is the same in transformers' modules.
tests/peers/test_experts.py proves it with PEFT's outputs. The weight of a router is a parameter
with one expert.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence

import numpy as np

from glora_jax.peft.kinds import Arrays
from glora_jax.peft.modules import PARAMETER, Module


def join(tensors: Arrays, modules: Iterable[Module]) -> Arrays:
  """Tensors by name, with those of experts joined into one pair for each wrapper."""
  joined = dict(tensors)
  for wrapper, experts in _wrapped(modules).items():
    a, b = ([joined.pop(f'{expert.name}.lora_{x}.weight') for expert in experts] for x in 'AB')
    joined[f'{wrapper}.lora_A.weight'] = np.concatenate(a)
    joined[f'{wrapper}.lora_B.weight'] = np.stack(b, axis=-1).reshape(len(b[0]), -1)
  return joined


def split(
  tensors: dict[str, Arrays], parameters: Sequence[str], modules: Iterable[Module]
) -> dict[str, Arrays]:
  """Tensors by module; each expert has those of its wrapper, of which it reads a part.

  Args:
    tensors: a file's tensors by their modules, and wrappers.
    parameters: names of the adapted parameters, or their ends; others have no wrapper.
    modules: the model's modules.
  """
  by_module = dict(tensors)
  ends = tuple(f'.{parameter}' for parameter in parameters)
  adapted = (module for module in modules if f'.{module.target}'.endswith(ends))
  for wrapper, experts in _wrapped(adapted).items():
    by_module |= dict.fromkeys((expert.name for expert in experts), by_module.pop(wrapper, {}))
  return by_module


def _wrapped(modules: Iterable[Module]) -> dict[str, list[Module]]:
  """The experts in each of PEFT's wrappers, by its name."""
  parameters, wrapped = collections.defaultdict(list), {}
  for module in modules:
    if module.kind == PARAMETER:
      parameters[module.target].append(module)
  for parameter, experts in reversed(parameters.items()):
    name = parameter.rpartition('.')[0]
    while name in wrapped:
      name += '.base_layer'
    wrapped[name] = experts
  return wrapped
