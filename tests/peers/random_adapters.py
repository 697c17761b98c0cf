"""Adapters of PEFT with random numbers, and adapters of ours by PEFT itself."""

import copy

import jax
import numpy as np
import peft
import torch
from comparing import assert_close, trained_variables, vector
from hand_count import by_name

import glora_jax
from tests.peers.torch_zoo import outputs_of


def random_adapter(module, config, folder, size, **options):
  """Wraps a module with an adapter, adds normal numbers of a size to all of it, and saves it."""
  torch.manual_seed(1)
  with_adapter = peft.get_peft_model(module, config).eval()
  with torch.no_grad():
    for parameter in with_adapter.parameters():
      if parameter.requires_grad:
        parameter.add_(torch.randn_like(parameter) * size)
  with_adapter.save_pretrained(folder, **options)
  return with_adapter


class BothWays:
  """A torch module, adapted, with random supports and heads."""

  def __init__(self, module, *inputs, size=0.3, kwargs=None, **options):
    self.module, self.inputs, self.kwargs = module, inputs, kwargs or {}
    self.adapted, self.params = glora_jax.torch.adapt(module, *inputs, **options, **self.kwargs)
    self.variables = trained_variables(self.adapted, self.params, size)
    self.results = jax.jit(self._results)

  def _results(self, variables, genome):
    outputs = self.adapted.apply(variables, *self.inputs, genome=genome, **self.kwargs)
    folded = by_name(self.adapted.fold(variables, genome=genome))
    return vector(outputs), {name.replace('/', '.'): value for name, value in folded.items()}

  def check_out(self, folder, genome, kind=None):
    """PEFT's outputs and merged weights are ours, also after they are read again; the kind."""
    written = glora_jax.peft.save(folder, self.adapted.fix(genome), self.variables, kind=kind)
    outputs, folded = self.results(self.variables, genome)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(self.module), folder).eval()
    assert_close(outputs_of(theirs, *self.inputs, **self.kwargs), outputs)
    merged = dict(theirs.merge_and_unload().named_parameters())
    assert merged.keys() == folded.keys()
    fixed, read = glora_jax.peft.load(folder, self.adapted, self.params)
    again = self.results(read, fixed.genome)
    assert_close(again[0], outputs)
    for name, value in folded.items():
      assert_close(merged[name].detach(), value)
      assert_close(again[1][name], value)
    base = outputs_of(self.module, *self.inputs, **self.kwargs)
    assert np.abs(outputs - base).max() > 1e-3 * np.abs(base).max()
    return written

  def check_in(self, folder, config, size=0.3):
    """Of a random adapter of PEFT the outputs are PEFT's; the structure that is read."""
    theirs = random_adapter(copy.deepcopy(self.module), config, folder, size)
    fixed, read = glora_jax.peft.load(folder, self.adapted, self.params)
    expected = outputs_of(theirs, *self.inputs, **self.kwargs)
    assert_close(self.results(read, fixed.genome)[0], expected)
    return fixed
