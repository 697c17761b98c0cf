"""What other libraries make of the same problems; every function imports its library itself.

pip install -e '.[peers]' peft qwix
"""

import importlib.util
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.machinery.training_steps import CLASSES, RANK, CompiledSteps, Problem
from glora_jax.training import losses
from glora_jax.training.batches import batch_indices
from glora_jax.vision.models.vit import ViT

ADAPTED_LAYERS = '(qkv|proj|fc1|fc2)'


def installed(*libraries: str) -> bool:
  """Whether all of these can be imported."""
  return all(importlib.util.find_spec(library) for library in libraries)


def qwix_lora_steps(problem: Problem) -> CompiledSteps:
  """LoRA of the same rank in the same layers of the same Flax model, by Google's qwix."""
  import qwix

  provider = qwix.LoraProvider(
    module_path=f'blocks/.*{ADAPTED_LAYERS}', rank=RANK, alpha=float(RANK)
  )
  model = qwix.apply_lora_to_model(problem.shape.model, provider)
  initial = jax.jit(model.init)(jax.random.key(2), problem.images[:1])['params']
  trainable, frozen = {}, flatten_dict(initial) | flatten_dict(problem.params)
  for path in list(frozen):
    if path[0] == 'head' or path[-1].endswith(('_lora_a', '_lora_b')):
      trainable[path] = frozen.pop(path)
  stacks = sum(path[-1].endswith('_lora_a') for path in trainable)
  assert stacks == ADAPTED_LAYERS.count('|') + 1, f'qwix put LoRA into {stacks} stacks of layers'

  def loss_fn(trainable, frozen, batch, key):
    images, labels = batch
    del key
    logits = model.apply({'params': unflatten_dict({**trainable, **frozen})}, images)
    return losses.cross_entropy(logits, labels)

  return CompiledSteps(loss_fn, trainable, frozen, problem)


def timm_vit(model: ViT, size: int) -> Any:
  """The ViT of timm that has the same shape as ours, for images of `size` pixels."""
  import timm

  return timm.models.vision_transformer.VisionTransformer(
    img_size=size,
    patch_size=model.patch_size,
    embed_dim=model.width,
    depth=model.depth,
    num_heads=model.num_heads,
    num_classes=CLASSES,
  )


def peft_steps(problem: Problem, adapter: Literal['lora', 'glora']) -> Callable[[], None]:
  """A Hugging Face PEFT adapter on timm's ViT of the same shape, trained by a plain loop."""
  import peft
  import torch

  shape = problem.shape
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  where = {
    'r': RANK,
    'target_modules': f'blocks\\..*\\.{ADAPTED_LAYERS}',
    'modules_to_save': ['head'],
  }
  if adapter == 'lora':
    config = peft.LoraConfig(lora_alpha=RANK, **where)
  else:  # all five tensors in their largest form
    config = peft.GloraConfig(config_A_B='lora', config_C='lora', config_D_E='vector', **where)
  model = peft.get_peft_model(timm_vit(shape.model, shape.size), config).to(device).train()
  trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-4)
  images = torch.tensor(np.asarray(problem.images)).permute(0, 3, 1, 2).contiguous().to(device)
  labels = torch.tensor(np.asarray(problem.labels)).long().to(device)
  indices = np.stack([*batch_indices(jax.random.key(0), 0, shape.steps, len(labels), shape.batch)])
  batches = torch.tensor(indices).long().to(device)
  half_precision = shape.model.dtype == jnp.bfloat16

  def run():
    for index in batches:
      with torch.autocast(device, torch.bfloat16, enabled=half_precision):
        loss = torch.nn.functional.cross_entropy(model(images[index]), labels[index])
      optimizer.zero_grad(set_to_none=True)
      loss.backward()
      optimizer.step()
    loss.item()

  return run


def serial_torch_scorer(model: ViT, images: jax.Array) -> Callable[[np.ndarray], None]:
  """What merges one genome after the other into timm's ViT, layer by layer, and runs that.

  The supports lie as in the official implementation, and are random as the weights: only the time
  counts. It takes genomes int8 [candidate, layer, 5].
  """
  import torch

  vit = timm_vit(model, images.shape[1]).eval()
  pixels = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)
  linears = [
    layer
    for block in vit.blocks
    for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
  ]
  layers = []
  for linear in linears:
    outputs, inputs = linear.weight.shape
    factors = [(torch.randn(outputs, RANK), torch.randn(RANK, inputs)) for _ in 'AB']
    factors.append((torch.randn(inputs, RANK), torch.randn(RANK, 1)))
    base = linear.weight.detach().clone(), linear.bias.detach().clone()
    layers.append((linear, base, factors, [torch.randn(outputs) for _ in 'DE']))
  # Each form of a weight's tensor, of C, and of a bias's, by its code.
  of_weight = (lambda down, up: 0.0, lambda down, up: down[0, 0], lambda down, up: down[:, :1])
  of_weight += (torch.matmul,)
  of_prompt = None, lambda down, up: down[:, 0], lambda down, up: (down @ up)[:, 0]
  of_bias = (lambda vector: 0.0), (lambda vector: vector[0]), (lambda vector: vector)

  def score(genomes: np.ndarray) -> None:
    with torch.inference_mode():
      for genome in genomes.tolist():
        for (linear, (weight, bias), (scale, shift, prompt), (d, e)), codes in zip(
          layers, genome, strict=True
        ):
          merged = weight + weight * of_weight[codes[0]](*scale) + of_weight[codes[1]](*shift)
          moved = bias + bias * of_bias[codes[3]](d) + of_bias[codes[4]](e)
          form = of_prompt[codes[2]]
          linear.weight.data = merged
          linear.bias.data = moved + (0.0 if form is None else weight @ form(*prompt))
        vit(pixels).argmax(-1)

  return score
