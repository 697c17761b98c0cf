"""What other libraries make of the same problems; every function imports its library itself.

pip install -e '.[peers]' peft qwix
"""

import importlib.util
from typing import Any, Literal

import flax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machinery.training_steps import CLASSES, RANK, CompiledSteps, Problem, Row
from glora_jax.models.vit import ViT
from glora_jax.training import losses
from glora_jax.training.batches import batch_indices

ADAPTED_LAYERS = ('qkv', 'proj', 'fc1', 'fc2')


def installed(*libraries: str) -> bool:
  """Whether all of these can be imported."""
  return all(importlib.util.find_spec(library) for library in libraries)


def qwix_lora_row(problem: Problem) -> Row:
  """LoRA of the same rank in the same layers of the same Flax model, by Google's qwix."""
  import qwix

  provider = qwix.LoraProvider(
    module_path=f'blocks/.*({"|".join(ADAPTED_LAYERS)})', rank=RANK, alpha=float(RANK)
  )
  model = qwix.apply_lora_to_model(problem.shape.model, provider)
  initial = jax.jit(model.init)(jax.random.key(2), problem.images[:1])['params']
  flatten, unflatten = flax.traverse_util.flatten_dict, flax.traverse_util.unflatten_dict
  variables = {**flatten(initial), **flatten(problem.params)}
  stacks = sum(path[-1].endswith('_lora_a') for path in variables)
  assert stacks == len(ADAPTED_LAYERS), f'qwix put LoRA into {stacks} stacks of layers'
  trainable, frozen = {}, {}
  for path, value in variables.items():
    is_trained = path[0] == 'head' or path[-1].endswith(('_lora_a', '_lora_b'))
    (trainable if is_trained else frozen)[path] = value

  def loss_fn(trainable, frozen, batch, key):
    images, labels = batch
    del key
    logits = model.apply({'params': unflatten({**trainable, **frozen})}, images)
    return losses.cross_entropy(logits, labels)

  return CompiledSteps(loss_fn, trainable, frozen, problem).row()


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


def peft_row(problem: Problem, adapter: Literal['lora', 'glora']) -> Row:
  """A Hugging Face PEFT adapter on timm's ViT of the same shape, trained by a plain loop."""
  import peft
  import torch

  shape = problem.shape
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  where = {
    'r': RANK,
    'target_modules': f'blocks\\..*\\.({"|".join(ADAPTED_LAYERS)})',
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
  indices = batch_indices(jax.random.key(0), 0, shape.steps, len(labels), shape.batch)
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

  return Row(run)


class SerialTorchScorer:
  """One candidate after the other: merges it into timm's ViT, layer by layer, and runs that.

  Weights and supports are random: only the time counts.
  """

  def __init__(self, model: ViT, images: jax.Array) -> None:
    """Builds the ViT and supports of rank 4 for images float [n, size, size, 3]."""
    import torch

    self.vit = timm_vit(model, images.shape[1]).eval()
    self.pixels = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)
    self.layers = [
      getattr(getattr(block, part), name)
      for block in self.vit.blocks
      for part, name in (('attn', 'qkv'), ('attn', 'proj'), ('mlp', 'fc1'), ('mlp', 'fc2'))
    ]
    self.base = [
      (layer.weight.detach().clone(), layer.bias.detach().clone()) for layer in self.layers
    ]
    self.supports = [self._random_supports(*weight.shape) for weight, _ in self.base]

  @staticmethod
  def _random_supports(outputs: int, inputs: int) -> dict[str, Any]:
    """Tensors under the names and in the layout of the official implementation."""
    import torch

    return {
      'Ad': torch.randn(outputs, RANK),
      'Au': torch.randn(RANK, inputs),
      'Bd': torch.randn(outputs, RANK),
      'Bu': torch.randn(RANK, inputs),
      'Cd': torch.randn(inputs, RANK),
      'Cu': torch.randn(RANK, 1),
      'D': torch.randn(outputs),
      'E': torch.randn(outputs),
    }

  def __call__(self, genomes: np.ndarray) -> None:
    """Answers for all images with each of the genomes, int8 [candidate, layer, 5]."""
    import torch

    with torch.inference_mode():
      for genome in genomes.tolist():
        for layer, base, supports, codes in zip(
          self.layers, self.base, self.supports, genome, strict=True
        ):
          layer.weight.data, layer.bias.data = _merged(*base, supports, codes)
        self.vit(self.pixels).argmax(-1)


def _merged(weight: Any, bias: Any, supports: dict[str, Any], codes: list[int]) -> tuple[Any, Any]:
  """Weight and bias of one layer with its supports in the forms that five codes name."""
  a, b, c, d, e = codes
  scale, shift = _matrix(supports, 'A', a), _matrix(supports, 'B', b)
  prompt = 0.0
  if c:  # a vector of the inputs, or one of low rank
    prompt = weight @ (supports['Cd'] if c == 1 else supports['Cd'] @ supports['Cu'])[:, 0]
  merged_bias = bias + bias * _vector(supports['D'], d) + _vector(supports['E'], e) + prompt
  return weight + weight * scale + shift, merged_bias


def _matrix(supports: dict[str, Any], tensor: Literal['A', 'B'], code: int) -> Any:
  """A or B: none, a scalar, a vector of the outputs, or the product of low rank."""
  down, up = supports[f'{tensor}d'], supports[f'{tensor}u']
  if code == 0:
    return 0.0
  if code == 1:
    return down[0, 0]
  return down[:, :1] if code == 2 else down @ up


def _vector(support: Any, code: int) -> Any:
  """D or E: none, a scalar, or a vector."""
  if code == 0:
    return 0.0
  return support[0] if code == 1 else support
