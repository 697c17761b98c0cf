"""A LoRA step of SmolLM2 against that of PEFT in PyTorch."""

import functools

import jax
import torch

from benchmarks import torch_step
from benchmarks.language import model
from benchmarks.machinery.measuring import print_result
from benchmarks.machinery.training_steps import Problem, Shape

BATCH, LENGTH, STEPS = 4, 128, 2


def problem(quick: bool) -> tuple[torch.nn.Module, Problem]:
  """The model, and random tokens for a dispatch; the label of a token is the next token."""
  module = model.tiny() if quick else model.load()
  module.config.use_cache = False
  tokens = jax.random.randint(
    jax.random.key(0), (BATCH * STEPS, LENGTH + 1), 0, module.config.vocab_size
  )
  return module, Problem(Shape(None, LENGTH, BATCH, STEPS), None, tokens[:, :-1], tokens[:, 1:])


def measure(quick: bool, repeats: int) -> None:
  """Measures and prints."""
  name = 'tiny Llama' if quick else 'SmolLM2-135M'
  found = torch_step.against_peft(name, functools.partial(problem, quick), repeats)
  print_result('language.step', {'quick': quick, **found})
