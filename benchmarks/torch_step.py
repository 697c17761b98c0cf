"""A LoRA step of PyTorch models on a CPU: `glora_jax.torch` against PEFT in PyTorch.

  pip install -e '.[peers]'
  python -m benchmarks.torch_step [--repeats 9] [--language] [--quick]

A Llama of transformers (16.6 million parameters: 10 blocks, 4 texts of 128 tokens) and timm's ViT-S
(8 images of 224 pixels), random weights, float32; LoRA of rank 8 in all linear layers of all
blocks, AdamW. Ours is a dispatch of `fit`'s compiled steps, PEFT's a plain loop over the same
batches. Both train as many parameters and start with the same loss, or the benchmark stops. Ratios
are medians of those within one repeat; below 1 is faster. Measure on a quiet machine: on a busy one
PyTorch's threads wait for one another, and take several times as long.

Memory is that of a process for each side (Linux only), at the peak of the second dispatch. From it
is taken what there was before the model was made, so that weights, optimizer, and what compiling
left behind count; or, for what a step needs, what there was before the dispatch. The table of times
has XLA's account of our compiled steps.

Then seconds of `adapt` for a Llama of 105 narrow layers; and how much memory a process needs at
most to make a Llama of 0.9 GiB, to adapt it and to initialize the variables, over the model's size,
with `release=True` and without. `--language` takes SmolLM2-135M alone (4 texts of 128 tokens; see
`benchmarks.study.language`), with `--quick` a tiny model. `--quick` takes two blocks, but for the
105 layers, and five repeats. The last line is JSON.
"""

import ctypes
import functools
import gc
import multiprocessing
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import timm
import torch
import transformers

import glora_jax.torch
from benchmarks.machinery.measuring import make_parser, print_result, print_table, seconds
from benchmarks.machinery.peers import TorchSteps
from benchmarks.machinery.training_steps import CompiledSteps, Problem, Shape, compare
from benchmarks.study import language
from glora_jax.training import losses
from glora_jax.training.fit import step_loss

RANK, STEPS, QUICK_REPEATS = 8, 4, 5
PAUSE = 0.3  # seconds; threads of the other framework spin for a while after their work
VOCABULARY = 4096
TEXT = np.zeros((1, 8), int)  # what models are adapted with
OURS, PEFT = 'glora_jax', 'PEFT (torch)'
LLAMA, VIT, SMOLLM2 = 'Llama', 'ViT-S', 'SmolLM2-135M'


def llama(width: int, blocks: int) -> torch.nn.Module:
  """A Llama with random weights, and heads of 64 numbers."""
  config = transformers.LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=width,
    intermediate_size=16 * width // 5,
    num_hidden_layers=blocks,
    num_attention_heads=width // 64,
    use_cache=False,
  )
  return transformers.LlamaForCausalLM(config)


Make = Callable[[], tuple[torch.nn.Module, Problem]]


def problem(task: str, quick: bool) -> tuple[torch.nn.Module, Problem]:
  """A module, and random examples for a dispatch; the label of a token is the next token."""
  key = jax.random.key(0)
  if task == VIT:
    pixels, labels = jax.random.normal(key, (8 * STEPS, 3, 224, 224)), jnp.arange(8 * STEPS)
    shape = Shape(None, size=224, batch=8, steps=STEPS)
    module = timm.create_model('vit_small_patch16_224', depth=2 if quick else 12)
    return module, Problem(shape, None, pixels, labels)
  if task == LLAMA:
    module = llama(320, 2 if quick else 10)
  else:
    module = language.tiny() if quick else language.load()
    module.config.use_cache = False
  tokens = jax.random.randint(key, (4 * STEPS, 129), 0, module.config.vocab_size)
  shape = Shape(None, size=128, batch=4, steps=STEPS)
  return module, Problem(shape, None, tokens[:, :-1], tokens[:, 1:])


def adapt(module: torch.nn.Module, inputs: Any, *, release: bool) -> tuple[Any, Any]:
  """The module with LoRA in all linear layers of all blocks, and its parameters."""
  return glora_jax.torch.adapt(
    module.eval(),
    inputs,
    structure=f'lora:{RANK}',
    select='(layers|blocks)/',
    heads=None,
    release=release,
  )


def our_steps(module: torch.nn.Module, problem: Problem) -> CompiledSteps:
  """The library's steps; the module is empty afterwards."""
  adapted, params = adapt(module, problem.images[:1], release=True)

  def loss(forward, batch, key):
    del key
    outputs = forward(batch[0])
    return losses.cross_entropy(getattr(outputs, 'logits', outputs), batch[1])[0]

  halves = adapted.split(adapted.init(jax.random.key(1), params))
  return CompiledSteps(step_loss(adapted, loss), *halves, problem)


def peft_steps(module: torch.nn.Module, problem: Problem) -> TorchSteps:
  """Steps of the same LoRA by PEFT."""
  layers = r'(.*\.)?(layers|blocks)\..*(proj|qkv|fc.)'
  config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=layers)
  return TorchSteps(peft.get_peft_model(module, config), problem)


METHODS = {PEFT: peft_steps, OURS: our_steps}


def steps_of(make: Make, method: str) -> Any:
  """A dispatch, from the same weights for all methods."""
  torch.manual_seed(0)
  return METHODS[method](*make())


def resident(field: str) -> float:
  """MiB of this process that are in memory (VmRSS), or were at most (VmHWM)."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(rf'{field}:\s+(\d+)', status)[1]) / 1024


def held_by_steps(*given: Any) -> tuple[float, float]:
  """MiB of `steps_of` at the peak of its second call, and those that the call itself adds."""
  jnp.zeros(1).block_until_ready()  # JAX starts
  first, steps = resident('VmRSS'), steps_of(*given)
  steps()
  gc.collect()
  ctypes.CDLL('libc.so.6').malloc_trim(0)  # what is free goes back to the system
  pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
  second = resident('VmRSS')
  steps()
  return resident('VmHWM') - first, resident('VmHWM') - second


def against_peft(name: str, make: Make, repeats: int) -> dict[str, Any]:
  """Times and memory of both sides' steps, of which it prints tables.

  Args:
    name: of what is trained.
    make: makes a module and examples; a new process can call it, too.
    repeats: of every dispatch.
  """
  rows = {method: steps_of(make, method) for method in METHODS}
  for row in rows.values():
    row()
  ours, theirs = rows[OURS], rows[PEFT]
  trained = sum(value.numel() for value in theirs.trained)
  assert sum(map(np.size, jax.tree.leaves(ours.trainable))) == trained
  np.testing.assert_allclose(ours.metrics['loss'][0], theirs.losses[0], rtol=1e-5)
  print(f'{name}: {trained:,} parameters, loss {theirs.losses[0]:.5f}')
  found = compare(rows, len(theirs.batches), repeats, {'over_peft': (OURS, PEFT)}, pause=PAUSE)
  held = {method: alone(held_by_steps, make, method) for method in METHODS}
  columns = {'': '', 'MiB of a process': '.0f', 'of a step': '.0f'}
  print_table(columns, [(method, *sizes) for method, sizes in held.items()])
  return found | {'trained': trained, 'process_mib': held}


def held_by_adapt(blocks: int, release: bool) -> float:
  """The memory that it takes to make and to adapt a Llama, at the peak, over the Llama's size."""
  jnp.zeros(1).block_until_ready()
  before, module = resident('VmRSS'), llama(1024, blocks)
  size = sum(value.nbytes for value in module.parameters()) / 2**20
  adapted, params = adapt(module, TEXT, release=release)
  jax.block_until_ready(adapted.init(jax.random.key(0), params))
  return (resident('VmHWM') - before) / size


def alone(function: Callable[..., Any], *given: Any) -> Any:
  """Calls a function in a new process."""
  with multiprocessing.get_context('spawn').Pool(1) as pool:
    return pool.apply(function, given)


def main() -> None:
  """Measures and prints."""
  parser = make_parser(__doc__, 'two blocks, five repeats', repeats=9)
  parser.add_argument('--language', action='store_true', help='SmolLM2-135M alone')
  given = parser.parse_args()
  found: dict[str, Any] = {'quick': given.quick}
  repeats = QUICK_REPEATS if given.quick else given.repeats
  for task in [SMOLLM2] if given.language else [LLAMA, VIT]:
    found[task] = against_peft(task, functools.partial(problem, task, given.quick), repeats)
  if not given.language:
    module, blocks = llama(64, 15), 2 if given.quick else 16
    found['adapt_seconds'] = seconds(lambda: adapt(module, TEXT, release=False)[1])
    for name, release in (('released', True), ('kept', False)):
      found[f'{name}_over_size'] = alone(held_by_adapt, blocks, release)
  print_result('torch_step', found)


if __name__ == '__main__':
  main()
