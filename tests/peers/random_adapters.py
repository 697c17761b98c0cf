"""Adapters of PEFT with random numbers."""

import peft
import torch


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
