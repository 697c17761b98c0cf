"""One training step: of the supernet, of fixed subnets, and of peers, over plain full fine-tuning of the same ViT.

  pip install -e '.[peers]'   # for the peers, optional
  python -m benchmarks.supernet_step [--quick] [--shape Ti|B]

Every method takes `STEPS` steps of AdamW on 64 random images in one call; all run in turn, the figures are medians of the ratios of seven
rounds. Ours are the steps that users run (`training.make_steps`); the yardstick is the same function with all parameters trainable. qwix
adapts the same Flax model, at the same layers and rank; Hugging Face PEFT's LoRA and GLoRA adapt timm's ViT of the same shape, at the
same layers. Heads are trained everywhere. `bytes_over_full` is what XLA's `memory_analysis` says of arguments, temporaries and outputs that
alias no argument, over the same of the yardstick. A peer that is not installed is null.

`--shape Ti` is ViT-Ti/16 at 96 pixels in float32; `--shape B` is ViT-B/16 at 224 pixels, computed in bfloat16, for a GPU, and also prints the
share of the device's matmul peak, which is measured: model FLOPs are 2 x parameters x tokens for each product and pass (forward,
gradient by inputs, and by weights where these are trained), attention's products included. `--quick`: one round. The last line is JSON.
"""

import argparse
import importlib.util
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import glora_jax
from benchmarks import machine
from glora_jax import space, training
from glora_jax.models.vit import vit
from glora_jax.supernet import cross_entropy, subnet_loss, supernet_loss

BATCH, RANK, STEPS = 64, 4, 3
SHAPES = {'Ti': (96, None), 'B': (224, jnp.bfloat16)}
LAYERS = ('qkv', 'proj', 'fc1', 'fc2')
installed = lambda *names: all(importlib.util.find_spec(name) for name in names)


class Method:
  """Steps of one way to train, compiled; calling it takes `STEPS` of them."""

  def __init__(self, loss, trainable, frozen, images, labels):
    optimizer = optax.adamw(1e-3, weight_decay=1e-4)
    trainable = jax.tree.map(jnp.copy, trainable)
    self.state = trainable, optimizer.init(trainable)
    indices, key = jnp.tile(jnp.arange(BATCH), (STEPS, 1)), jax.random.key(0)
    self.rest = 0, frozen, images, labels, indices, key
    self.compiled = training.make_steps(loss, optimizer).lower(*self.state, *self.rest).compile()
    count = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    self.optimizer_bytes, self.gradient_bytes = count(self.state[1]), count(trainable)

  def __call__(self):
    *self.state, _, metrics = self.compiled(*self.state, *self.rest)
    jax.block_until_ready(metrics)

  @property
  def bytes(self):
    memory = self.compiled.memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def ours(model, params, images, labels):
  """The yardstick and our ways to train, by name."""
  adapted = glora_jax.adapt(model, images[:1], space=glora_jax.SearchSpace((RANK,)))
  variables, plain = adapted.init(jax.random.key(2), params), lambda key, x: x
  loss = lambda trainable, frozen, x, y, key: cross_entropy(model.apply({'params': trainable}, x), y)
  methods = {'full': Method(loss, params, {}, images, labels)}
  halves = adapted.split(variables)
  sample = lambda key: space.sample_genome(key, adapted.spec)
  methods['supernet'] = Method(supernet_loss(adapted, plain, sample), *halves, images, labels)
  for preset in ('lora', 'bitfit'):
    subnet = adapted.fix(space.preset(adapted.spec, preset))
    methods[preset] = Method(subnet_loss(subnet, plain), *subnet.split(variables), images, labels)
  return methods


def qwix_lora(model, images, labels):
  """LoRA by qwix on the same model; None where it is not installed."""
  if not installed('qwix'):
    return None
  import flax
  import qwix

  provider = qwix.LoraProvider(module_path=rf'blocks/.*({"|".join(LAYERS)})', rank=RANK, alpha=float(RANK))
  adapted = qwix.apply_lora_to_model(model, provider)
  params = flax.traverse_util.flatten_dict(jax.jit(adapted.init)(jax.random.key(1), images[:1])['params'])
  half = lambda trained: {p: v for p, v in params.items() if (any('lora' in str(part) for part in p) or p[0] == 'head') == trained}
  if not any('lora' in str(part) for path in params for part in path):
    raise RuntimeError('qwix adapted no layer; its naming has changed.')

  def loss(trainable, frozen, x, y, key):
    variables = {'params': flax.traverse_util.unflatten_dict({**frozen, **trainable})}
    return cross_entropy(adapted.apply(variables, x), y)

  return Method(loss, half(True), half(False), images, labels)


def peft_methods(model, size, images, labels):
  """Hugging Face PEFT's LoRA and GLoRA on timm's ViT, by name; empty where they are not installed."""
  if not installed('torch', 'timm', 'peft'):
    return {}
  import peft
  import timm
  import torch

  on_gpu = torch.cuda.is_available() and jax.default_backend() == 'gpu'
  device, found = torch.device('cuda' if on_gpu else 'cpu'), {}
  x = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2).to(device)
  y = torch.tensor(np.asarray(labels), dtype=torch.long, device=device)
  layers = rf'blocks\..*\.({"|".join(LAYERS)})'
  configs = {'peft_lora': lambda: peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=layers, modules_to_save=['head'])}
  if hasattr(peft, 'GloraConfig'):
    configs['peft_glora'] = lambda: peft.GloraConfig(r=RANK, target_modules=layers, modules_to_save=['head'])
  for name, config in configs.items():
    base = timm.models.vision_transformer.VisionTransformer(
        img_size=size, patch_size=model.patch_size, embed_dim=model.width, depth=model.depth, num_heads=model.num_heads, num_classes=10)
    adapted = peft.get_peft_model(base, config()).to(device).train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-3, weight_decay=1e-4)

    def take(adapted=adapted, optimizer=optimizer):
      for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=model.dtype is not None):
          loss = torch.nn.functional.cross_entropy(adapted(x), y)
        loss.backward()
        optimizer.step()
      if on_gpu:
        torch.cuda.synchronize()

    found[name] = take
  return found


def products(model, size):
  """FLOPs of one forward pass of one image: of the linear layers, and of attention."""
  patches = (size // model.patch_size)**2
  tokens, width = patches + 1, model.width
  linear = 2 * patches * 3 * model.patch_size**2 * width + 2 * tokens * model.depth * 12 * width**2
  return linear, 4 * tokens**2 * width * model.depth


def matmul_peak(dtype):
  """FLOPs per second of one large product."""
  a = jnp.ones((8192, 8192), dtype)
  many = jax.jit(lambda a: jax.lax.fori_loop(0, 20, lambda _, x: (x @ a) * 1e-4, a))
  many(a).block_until_ready()
  times = []
  for _ in range(5):
    start = time.perf_counter()
    many(a).block_until_ready()
    times.append(time.perf_counter() - start)
  return 20 * 2 * 8192**3 / min(times)


def timed(function):
  start = time.perf_counter()
  function()
  return (time.perf_counter() - start) / STEPS


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--quick', action='store_true', help='one round')
  parser.add_argument('--shape', choices=SHAPES, default='Ti')
  given = parser.parse_args()
  size, dtype = SHAPES[given.shape]
  model = vit(given.shape, 10, patch_size=16, dtype=dtype)
  images = jax.random.normal(jax.random.key(0), (BATCH, size, size, 3))
  labels = jax.random.randint(jax.random.key(1), (BATCH,), 0, 10)
  params = jax.jit(model.init)(jax.random.key(2), images[:1])['params']
  methods = ours(model, params, images, labels)
  if (peer := qwix_lora(model, images, labels)) is not None:
    methods['qwix_lora'] = peer
  methods |= peft_methods(model, size, images, labels)
  for method in methods.values():
    method()
  times = {name: [] for name in methods}
  for _ in range(1 if given.quick else 7):
    for name, method in methods.items():
      times[name].append(timed(method))

  def ratio(one, other):
    return round(statistics.median(a / b for a, b in zip(times[one], times[other], strict=True)), 3) if {one, other} <= times.keys() else None

  linear, attention = products(model, size)
  passes = {'full': (3, 3), 'supernet': (3, 3)}  # the supernet's gradient goes through the merged weights; of fixed subnets, thin terms do not
  peak = matmul_peak(jnp.bfloat16) if jax.default_backend() != 'cpu' else None
  print(f'{"":12}{"ms a step":>11}{"over full":>11}{"MiB held":>10}{"optimizer":>11}{"gradients":>11}{"of peak":>9}')
  shares = {}
  for name, method in methods.items():
    bytes_held = (method.bytes, method.optimizer_bytes, method.gradient_bytes) if isinstance(method, Method) else ()
    held = [f'{x / 2**20:.1f}' for x in bytes_held] or [''] * 3
    seconds = statistics.median(times[name])
    weights, products_passes = passes.get(name, (2, 3))
    shares[name] = round(BATCH * (linear * weights + attention * products_passes) / seconds / peak, 3) if peak else None
    print(f'{name:12}{1000 * seconds:11.1f}{ratio(name, "full"):11.2f}{held[0]:>10}{held[1]:>11}{held[2]:>11}{shares[name] or "":>9}')
  held = {name: method.bytes for name, method in methods.items() if isinstance(method, Method)}
  print(json.dumps({
      'benchmark': 'supernet_step', 'machine': machine.describe(), 'shape': given.shape,
      'supernet_over_full': ratio('supernet', 'full'), 'lora_over_full': ratio('lora', 'full'), 'bitfit_over_full': ratio('bitfit', 'full'),
      'bytes_over_full': round(held['supernet'] / held['full'], 3), 'supernet_over_peft_glora': ratio('supernet', 'peft_glora'),
      'lora_over_qwix': ratio('lora', 'qwix_lora'), 'lora_over_peft_lora': ratio('lora', 'peft_lora'),
      'share_of_peak': shares if peak else None}))


if __name__ == '__main__':
  main()
