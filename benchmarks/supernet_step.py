"""One training step: the supernet, fixed presets and their peers, against plain full fine-tuning of the same ViT.

  pip install -e '.[peers]' peft qwix   # what is not installed is left out
  python -m benchmarks.supernet_step [--shape Ti|B] [--remat POLICY] [--repeats 7] [--only NAME ...] [--quick]

`--shape Ti` (the default) is ViT-Ti/16 at 96 pixels in float32, for two CPU cores; `--shape B` is ViT-B/16 at 224 in bfloat16, for a GPU.
Batch 64, 10 classes, AdamW, rank 4, the head always trained, no augmentation, images resident.

Each row takes the same number of steps, in turn; JAX rows as one dispatch of `glora_jax.training.make_steps`, torch rows as a
plain loop. A ratio is the median over the repeats of the ratios within one repeat, so a machine that slows down for a while slows
both sides; below 1 is faster. Bytes are XLA's account of the compiled steps: arguments, temporaries, and results that take no argument's place;
gradients are counted in them, and shown apart as what the trained parameters measure. The share of the peak is the model's
floating-point operations by arithmetic (three times the forward's matrix products, for every row alike) per second over those of one large
matrix product, timed in the same run. The last line is JSON.
"""

import argparse
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import glora_jax
from benchmarks import machine
from glora_jax.method import genomes
from glora_jax.models.vit import ViT, vit
from glora_jax.training import loop, losses, recipe
from glora_jax.training.batches import batch_indices

CLASSES, RANK, LAYERS = 10, 4, ('qkv', 'proj', 'fc1', 'fc2')


class Shape(NamedTuple):
  """What is trained: the ViT, the images' side, the batch, and the steps of one dispatch."""

  model: ViT
  size: int
  batch: int
  steps: int


SHAPES = {
  'Ti': Shape(vit('Ti', CLASSES), 96, 64, 4),
  'B': Shape(vit('B', CLASSES, dtype=jnp.bfloat16), 224, 64, 10),
  'quick': Shape(ViT(CLASSES, patch_size=16, width=48, depth=2, num_heads=3), 32, 8, 2),
}


class Row(NamedTuple):
  """One way to train: `run()` takes a dispatch of steps to their end; bytes are null for torch."""

  run: Callable[[], None]
  held: int | None = None
  optimizer: int | None = None
  gradients: int | None = None


def size_of(tree) -> int:
  """Bytes of all arrays of a tree."""
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def jax_row(loss_fn, trainable, frozen, images, labels, batch: int, steps: int) -> Row:
  """The library's own compiled steps, with its own optimizer."""
  optimizer = recipe.Recipe(batch_size=batch).optimizer(len(labels))
  state = jax.tree.map(jnp.copy, trainable)
  state = [state, jax.jit(optimizer.init)(state), 0]
  indices = batch_indices(jax.random.key(0), 0, steps, len(labels), batch)
  rest = frozen, images, labels, indices, jax.random.key(1)
  compiled = loop.make_steps(loss_fn, optimizer).lower(*state, *rest).compile()
  memory = compiled.memory_analysis()
  held = (
    memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
  )

  def run():
    state[0], state[1], done, metrics = compiled(*state, *rest)
    jax.block_until_ready((state[0], metrics))
    assert int(done) == state[2] + steps, 'the loss was not finite'
    state[2] = int(done)

  return Row(run, held, size_of(state[1]), size_of(trainable))


def full(shape: Shape, params, images, labels) -> Row:
  """The yardstick."""
  loss_fn = lambda params, frozen, x, y, key: losses.cross_entropy(
    shape.model.apply({'params': params}, x), y
  )
  return jax_row(loss_fn, params, {}, images, labels, shape.batch, shape.steps)


def supernet_step(shape: Shape, params, images, labels) -> Row:
  """A random genome for every step."""
  adapted = glora_jax.adapt(shape.model, images[:1], space=glora_jax.SearchSpace(ranks=(RANK,)))
  trainable, frozen = adapted.split(adapted.init(jax.random.key(2), params))
  loss_fn = losses.supernet_loss(
    adapted, lambda key, x: x, lambda key: genomes.sample_genome(key, adapted.spec)
  )
  return jax_row(loss_fn, trainable, frozen, images, labels, shape.batch, shape.steps)


def preset(name: str):
  """A fixed preset in its cheapest form."""

  def row(shape: Shape, params, images, labels) -> Row:
    adapted = glora_jax.adapt(shape.model, images[:1], space=glora_jax.SearchSpace(ranks=(RANK,)))
    subnet = adapted.fix(glora_jax.preset(adapted.spec, name))
    trainable, frozen = subnet.split(adapted.init(jax.random.key(2), params))
    loss_fn = lambda trainable, frozen, x, y, key: losses.cross_entropy(
      subnet.apply(subnet.join(trainable, frozen), x), y
    )
    return jax_row(loss_fn, trainable, frozen, images, labels, shape.batch, shape.steps)

  return row


def qwix_lora(shape: Shape, params, images, labels) -> Row:
  """LoRA of the same rank in the same layers of the same Flax model, by Google's qwix."""
  import flax
  import qwix

  provider = qwix.LoraProvider(
    module_path=f'blocks/.*({"|".join(LAYERS)})', rank=RANK, alpha=float(RANK)
  )
  model = qwix.apply_lora_to_model(shape.model, provider)
  flatten, unflatten = flax.traverse_util.flatten_dict, flax.traverse_util.unflatten_dict
  variables = {
    **flatten(jax.jit(model.init)(jax.random.key(2), images[:1])['params']),
    **flatten(params),
  }
  is_trained = lambda path: path[0] == 'head' or path[-1].endswith(('_lora_a', '_lora_b'))
  found = sum(path[-1].endswith('_lora_a') for path in variables)
  assert found == len(LAYERS), f'qwix put LoRA into {found} stacks of layers'
  trainable, frozen = (
    {p: v for p, v in variables.items() if is_trained(p) == part} for part in (True, False)
  )
  loss_fn = lambda trainable, frozen, x, y, key: losses.cross_entropy(
    model.apply({'params': unflatten({**trainable, **frozen})}, x), y
  )
  return jax_row(loss_fn, trainable, frozen, images, labels, shape.batch, shape.steps)


def peft_row(config_of):
  """timm's ViT of the same shape with a Hugging Face PEFT adapter."""

  def row(shape: Shape, params, images, labels) -> Row:
    import peft
    import timm
    import torch

    del params
    like, device = shape.model, 'cuda' if torch.cuda.is_available() else 'cpu'
    base = timm.models.vision_transformer.VisionTransformer(
      img_size=shape.size,
      patch_size=like.patch_size,
      embed_dim=like.width,
      depth=like.depth,
      num_heads=like.num_heads,
      num_classes=CLASSES,
    )
    config = config_of(peft)(
      r=RANK, target_modules=f'blocks\\..*\\.({"|".join(LAYERS)})', modules_to_save=['head']
    )
    if hasattr(config, 'lora_alpha'):
      config.lora_alpha = RANK
    model = peft.get_peft_model(base, config).to(device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-4)
    x = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2).contiguous().to(device)
    y = torch.tensor(np.asarray(labels)).long().to(device)
    batches = (
      torch.tensor(batch_indices(jax.random.key(0), 0, shape.steps, len(labels), shape.batch))
      .long()
      .to(device)
    )

    def run():
      for index in batches:
        with torch.autocast(device, torch.bfloat16, enabled=like.dtype == jnp.bfloat16):
          loss = torch.nn.functional.cross_entropy(model(x[index]), y[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
      loss.item()

    return Row(run)

  return row


def glora_config(peft):
  """All five tensors in their largest form."""
  return lambda **fields: peft.GloraConfig(
    config_A_B='lora', config_C='lora', config_D_E='vector', **fields
  )


ROWS = {
  'full fine-tuning': (full, ()),
  'supernet': (supernet_step, ()),
  'LoRA preset': (preset('lora'), ()),
  'BitFit preset': (preset('bitfit'), ()),
  'qwix LoRA': (qwix_lora, ('qwix',)),
  'PEFT LoRA (torch)': (peft_row(lambda peft: peft.LoraConfig), ('torch', 'timm', 'peft')),
  'PEFT GLoRA (torch)': (peft_row(glora_config), ('torch', 'timm', 'peft')),
}


def timed(function) -> float:
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def in_turn(rows: dict[str, Row], repeats: int) -> dict[str, list[float]]:
  """Seconds of every row's dispatch in every repeat, each row warmed up once."""
  for row in rows.values():
    row.run()
  seconds = {name: [] for name in rows}
  for _ in range(repeats):
    for name, row in rows.items():
      time.sleep(0.3)  # threads of the other framework spin for a while after their work
      seconds[name].append(timed(row.run))
  return seconds


def ratio(seconds, one: str, other: str) -> float | None:
  """Median of the ratios within a repeat; None where one of the two was not run."""
  if one not in seconds or other not in seconds:
    return None
  return round(
    statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True)), 3
  )


def model_operations(shape: Shape) -> float:
  """Floating-point operations of one training step: the matrix products of the forward pass, and twice as many of the backward."""
  model = shape.model
  patches = (shape.size // model.patch_size) ** 2
  tokens = patches + int(model.class_token)
  layers = (
    12 * model.width**2 * tokens + 2 * tokens**2 * model.width
  )  # multiply-adds of a block: dense layers, attention
  embedding = patches * model.patch_size**2 * 3 * model.width
  return 3 * 2 * shape.batch * (model.depth * layers + embedding)


def peak(dtype, side: int, repeats: int = 5) -> float:
  """Floating-point operations a second of a chain of large matrix products, the best of some repeats."""
  chain = 8
  x = jnp.full((side, side), 1 / side, dtype)
  products = jax.jit(lambda x: jax.lax.fori_loop(0, chain, lambda _, y: y @ x, x))
  run = lambda: products(x).block_until_ready()
  run()
  return chain * 2 * side**3 / min(timed(run) for _ in range(repeats))


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--shape', choices=('Ti', 'B'), default='Ti')
  parser.add_argument(
    '--remat', help='policy of jax.checkpoint_policies for all JAX rows; dots_saveable for instance'
  )
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument(
    '--only',
    nargs='+',
    choices=ROWS,
    metavar='NAME',
    help='these rows alone, for a look at one of them',
  )
  parser.add_argument('--quick', action='store_true', help='a tiny ViT, two repeats')
  arguments = parser.parse_args()
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # torch shares the card
  shape = SHAPES['quick' if arguments.quick else arguments.shape]
  shape = shape._replace(model=shape.model.clone(remat=arguments.remat))
  repeats = 2 if arguments.quick else arguments.repeats
  installed = lambda names: all(importlib.util.find_spec(name) for name in names)
  if installed(('torch',)):
    import torch

    torch.set_num_threads(os.cpu_count())

  images = jax.random.normal(
    jax.random.key(0), (shape.batch * shape.steps, shape.size, shape.size, 3)
  )
  labels = jnp.arange(len(images), dtype=jnp.int32) % CLASSES
  params = jax.jit(shape.model.init)(jax.random.key(1), images[:1])['params']
  rows = {
    name: make(shape, params, images, labels)
    for name, (make, needs) in ROWS.items()
    if installed(needs) and (not arguments.only or name in arguments.only)
  }
  seconds = in_turn(rows, repeats)

  on_accelerator = jax.default_backend() != 'cpu'
  dtype = shape.model.dtype or jnp.float32
  top = peak(dtype, 256 if arguments.quick else 8192 if on_accelerator else 2048)
  operations = model_operations(shape)
  median = {name: statistics.median(values) / shape.steps for name, values in seconds.items()}
  mebibytes = lambda value: '' if value is None else f'{value / 2**20:.1f}'
  print(
    f'{"":20s} {"ms a step":>10s} {"over full":>10s} {"of peak":>8s} {"MiB held":>10s} {"optimizer":>10s} {"gradients":>10s}'
  )
  for name, row in rows.items():
    over = ratio(seconds, name, 'full fine-tuning')
    print(
      f'{name:20s} {1e3 * median[name]:10.1f} {"" if over is None else over:>10} {operations / median[name] / top:8.3f} '
      f'{mebibytes(row.held):>10s} {mebibytes(row.optimizer):>10s} {mebibytes(row.gradients):>10s}'
    )
  print(
    f'Peak: {top / 1e9:.0f} GFLOP/s in {jnp.dtype(dtype).name}. One step of full fine-tuning: {operations / 1e9:.1f} GFLOP. '
    f'{repeats} repeats of {shape.steps} steps.'
  )
  both = 'supernet' in rows and 'full fine-tuning' in rows
  print(
    json.dumps(
      {
        'benchmark': 'supernet_step',
        'machine': machine.describe(),
        'quick': arguments.quick,
        'shape': arguments.shape,
        'remat': arguments.remat,
        'repeats': repeats,
        'milliseconds': {name: round(1e3 * value, 2) for name, value in median.items()},
        'share_of_peak': {
          name: round(operations / value / top, 4) for name, value in median.items()
        },
        'supernet_over_full': ratio(seconds, 'supernet', 'full fine-tuning'),
        'lora_over_full': ratio(seconds, 'LoRA preset', 'full fine-tuning'),
        'bytes_over_full': round(rows['supernet'].held / rows['full fine-tuning'].held, 3)
        if both
        else None,
        'bytes_held': {name: row.held for name, row in rows.items()},
        'optimizer_bytes': {name: row.optimizer for name, row in rows.items()},
        'gradient_bytes': {name: row.gradients for name, row in rows.items()},
        'supernet_over_peft_glora': ratio(seconds, 'supernet', 'PEFT GLoRA (torch)'),
        'lora_over_qwix': ratio(seconds, 'LoRA preset', 'qwix LoRA'),
        'lora_over_peft_lora': ratio(seconds, 'LoRA preset', 'PEFT LoRA (torch)'),
      }
    )
  )


if __name__ == '__main__':
  main()
