"""Scoring a population against the floor for it, and what stopping early saves.

  pip install -e '.[peers]'   # for the comparison with PyTorch, optional
  python -m benchmarks.score_population [--quick]

`throughput_over_plain`: candidates x images per second of `make_scorer`, over the same ViT's plain jitted forward, run once per candidate
and block; in turn, the median of the ratios, for three shapes.
`stopping_speedup`: the time of the quickstart's search with every image of every
candidate, over its time with exact early stopping, on a supernet trained by the paper's sampling; both must select the same.
`throughput_over_torch`: the first shape against a serial PyTorch loop that merges each candidate and runs it (null without PyTorch and
timm). `--quick` takes fewer candidates and repeats. The last line is JSON.
"""

import argparse
import importlib.util
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import glora_jax
from benchmarks import machine, search_efficiency
from glora_jax.method.genomes import random_genomes
from glora_jax.models.vit import ViT
from glora_jax.search import early_stopping, evolution, scoring

SHAPES = {
  'embedded ViT, 28 pixels': (
    {'patch_size': 7, 'width': 96, 'depth': 6, 'num_heads': 3},
    28,
    32,
    200,
  ),
  'ViT-Ti/16, 64 pixels': (
    {'patch_size': 16, 'width': 192, 'depth': 12, 'num_heads': 3},
    64,
    8,
    100,
  ),
  'ViT-S/16, 96 pixels': ({'patch_size': 16, 'width': 384, 'depth': 12, 'num_heads': 6}, 96, 4, 50),
}


def problem(fields, size, candidates, images):
  """(adapted, variables, genomes, images, labels), all random."""
  model = ViT(10, **fields)
  x = jax.random.normal(jax.random.key(0), (images, size, size, 3))
  adapted = glora_jax.adapt(model, x[:1])
  variables = adapted.init(
    jax.random.key(1), jax.jit(model.init)(jax.random.key(2), x[:1])['params']
  )
  genomes = random_genomes(np.random.default_rng(0), adapted.spec, candidates)
  return adapted, variables, genomes, x, jnp.zeros(images, jnp.int32)


def timed(function):
  start = time.perf_counter()
  jax.block_until_ready(function())
  return time.perf_counter() - start


def over_plain(adapted, variables, genomes, images, labels, repeats):
  """Median of the ratios of throughputs."""
  scorer, plain = scoring.make_scorer(adapted), jax.jit(adapted.model.apply)
  ours = lambda: scorer(variables, genomes, images, labels)
  theirs = lambda: [
    plain({'params': variables['params']}, images[start : start + 256])
    for _ in genomes
    for start in range(0, len(labels), 256)
  ]
  timed(ours), timed(theirs)
  return statistics.median(timed(theirs) / timed(ours) for _ in range(repeats))


def over_whole(repeats, epochs, **options):
  """(speedup, share of candidates scored to the end) of the quickstart's search; options of the stopping scorer, `block` for instance."""
  splits = search_efficiency.digits()
  adapted, variables, preprocess = search_efficiency.train(splits['train'], 0, epochs)
  images, labels = (jnp.asarray(x) for x in splits['val'])
  settings = evolution.Evolution(
    population=30, generations=6, parents=10, mutations=15, crossovers=15
  )
  whole, by_image = (
    scoring.make_scorer(adapted, preprocess),
    scoring.make_image_scorer(adapted, preprocess),
  )
  stop = early_stopping.make_stopping_scorer(adapted, preprocess, **options)
  run = lambda score, **options: evolution.evolve(
    adapted.spec, score, jax.random.key(3), settings, budget=40_000, progress=False, **options
  )

  def without():
    return run(lambda genomes: whole(variables, genomes, images, labels))

  def with_stopping():
    found = {}

    def first(genomes):
      right, losses = (np.asarray(x) for x in by_image(variables, genomes, images, labels))
      order = early_stopping.hardest_first(~right)
      found['data'] = images[order], labels[order]
      return right.sum(1), losses.sum(1)

    return run(
      first,
      stopping_score=lambda genomes, valid, parents: stop(
        variables, genomes, *found['data'], valid, parents
      ),
    )

  full, stopped = without(), with_stopping()
  np.testing.assert_array_equal(full.genomes, stopped.genomes)
  speedup = statistics.median(
    timed(lambda: without().loss) / timed(lambda: with_stopping().loss) for _ in range(repeats)
  )
  return speedup, stopped.exact.mean()


def over_torch(adapted, variables, genomes, images, labels, repeats):
  """Against timm's ViT of the same shape, its linear layers merged anew for every candidate; None where that is not installed."""
  if not (importlib.util.find_spec('torch') and importlib.util.find_spec('timm')):
    return None
  import timm
  import torch

  model = adapted.model
  theirs = timm.models.vision_transformer.VisionTransformer(
    img_size=images.shape[1],
    patch_size=model.patch_size,
    embed_dim=model.width,
    depth=model.depth,
    num_heads=model.num_heads,
    num_classes=10,
  ).eval()
  layers = [
    getattr(getattr(block, part), name)
    for block in theirs.blocks
    for part, name in (('attn', 'qkv'), ('attn', 'proj'), ('mlp', 'fc1'), ('mlp', 'fc2'))
  ]
  pixels, scorer = (
    torch.tensor(np.asarray(images)).permute(0, 3, 1, 2),
    scoring.make_scorer(adapted),
  )
  base = [(layer.weight.detach().clone(), layer.bias.detach().clone()) for layer in layers]
  rank = 4
  supports = [
    {
      'Ad': torch.randn(w.shape[0], rank),
      'Au': torch.randn(rank, w.shape[1]),
      'Bd': torch.randn(w.shape[0], rank),
      'Bu': torch.randn(rank, w.shape[1]),
      'Cd': torch.randn(w.shape[1], rank),
      'Cu': torch.randn(rank, 1),
      'D': torch.randn(w.shape[0]),
      'E': torch.randn(w.shape[0]),
    }
    for w, _ in base
  ]

  def form(s, name, code):
    if code == 0:
      return 0.0
    return (
      s[f'{name}d'][0, 0]
      if code == 1
      else s[f'{name}d'][:, :1]
      if code == 2
      else s[f'{name}d'] @ s[f'{name}u']
    )

  def serial():
    with torch.inference_mode():
      for genome in genomes.tolist():
        for layer, (weight, bias), s, (a, b, c, d, e) in zip(
          layers, base, supports, genome, strict=True
        ):
          layer.weight.data = weight + weight * form(s, 'A', a) + form(s, 'B', b)
          prompt = (
            0.0 if c == 0 else weight @ (s['Cd'][:, 0] if c == 1 else (s['Cd'] @ s['Cu'])[:, 0])
          )
          of = lambda name, code, s=s: 0.0 if code == 0 else s[name][0] if code == 1 else s[name]
          layer.bias.data = bias + bias * of('D', d) + of('E', e) + prompt
        theirs(pixels).argmax(-1)

  ours = lambda: scorer(variables, genomes, images, labels)
  timed(ours), serial()

  def seconds():
    start = time.perf_counter()
    serial()
    return time.perf_counter() - start

  return statistics.median(seconds() / timed(ours) for _ in range(repeats))


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--quick', action='store_true', help='fewer candidates and repeats')
  quick = parser.parse_args().quick
  repeats, result, torch_ratio = (1 if quick else 7), {}, None
  for number, (name, (fields, size, candidates, images)) in enumerate(SHAPES.items()):
    some = problem(fields, size, max(2, candidates // 4) if quick else candidates, images)
    result[name] = round(over_plain(*some, repeats), 3)
    print(f"{name:26} {result[name]:.2f} of the plain forward's throughput", flush=True)
    if number == 0:
      torch_ratio = over_torch(*some, repeats)
      print(
        f'{"":26} {"no PyTorch" if torch_ratio is None else f"{torch_ratio:.2f} of the serial PyTorch loop"}',
        flush=True,
      )
  speedup, share = over_whole(1 if quick else 5, 3 if quick else 28)
  print(
    f'stopping early             {speedup:.2f} times faster, {100 * share:.0f}% scored to the end, the same selected'
  )
  print(
    json.dumps(
      {
        'benchmark': 'score_population',
        'machine': machine.describe(),
        'throughput_over_plain': result,
        'stopping_speedup': round(speedup, 3),
        'scored_to_the_end': round(float(share), 3),
        'throughput_over_torch': torch_ratio and round(torch_ratio, 3),
      }
    )
  )


if __name__ == '__main__':
  main()
