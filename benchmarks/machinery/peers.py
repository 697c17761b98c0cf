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


class TorchSteps:
  """A plain loop in PyTorch over the steps of a dispatch.

  Attributes:
    trained: the parameters that are trained.
    losses: those of the last call.
  """

  def __init__(self, model: Any, problem: Problem, half_precision: bool = False):
    """Copies a model, an `nn.Module`, and a problem to the accelerator, if there is one."""
    import torch

    shape = problem.shape
    self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    self.model = model.to(self.device).train()
    self.trained = [value for value in model.parameters() if value.requires_grad]
    self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=1e-4)
    self.half_precision = half_precision
    number = len(problem.labels)
    indices = batch_indices(jax.random.key(0), 0, shape.steps, number, shape.batch)
    self.data = [
      torch.tensor(np.asarray(rows)).to(self.device) for rows in (problem.images, problem.labels)
    ]
    self.batches = torch.tensor(np.stack([*indices])).long().to(self.device)

  def __call__(self) -> None:
    """Does the steps."""
    import torch

    losses = []
    for index in self.batches:
      inputs, labels = (rows[index] for rows in self.data)
      with torch.autocast(self.device, torch.bfloat16, enabled=self.half_precision):
        outputs = self.model(inputs)
        logits = getattr(outputs, 'logits', outputs)  # transformers returns several
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten().long())
      self.optimizer.zero_grad(set_to_none=True)
      loss.backward()
      self.optimizer.step()
      losses.append(loss.detach())
    self.losses = torch.stack(losses).tolist()


def peft_steps(problem: Problem, adapter: Literal['lora', 'glora']) -> TorchSteps:
  """A Hugging Face PEFT adapter on timm's ViT of the same shape."""
  import peft

  where = {
    'r': RANK,
    'target_modules': f'blocks\\..*\\.{ADAPTED_LAYERS}',
    'modules_to_save': ['head'],
  }
  if adapter == 'lora':
    config = peft.LoraConfig(lora_alpha=RANK, **where)
  else:  # all five tensors in their largest form
    config = peft.GloraConfig(config_A_B='lora', config_C='lora', config_D_E='vector', **where)
  shape = problem.shape
  model = peft.get_peft_model(timm_vit(shape.model, shape.size), config)
  problem = problem._replace(images=problem.images.transpose(0, 3, 1, 2))
  return TorchSteps(model, problem, half_precision=shape.model.dtype == jnp.bfloat16)


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
