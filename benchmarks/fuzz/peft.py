"""Adapters of HF PEFT, spoilt in their config, their tensors or their bytes."""

import functools
import json
import os
import random
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import glora_jax
from benchmarks.fuzz.models import IMAGE_SIZE, dense, randomized, vit
from benchmarks.fuzz.oracle import Case, Fault, same
from benchmarks.fuzz.place import Place
from benchmarks.fuzz.spoiling import spoil_bytes, spoil_json, spoil_tensors
from benchmarks.fuzz.values import JSON_VALUES
from glora_jax import Adapted, SearchSpace
from glora_jax.models.peft import CONFIG, WEIGHTS, load_peft, save_peft

NAMES = {'Dense': 'layers.0.fc'}
FIELDS = (
  *('use_dora', 'lora_bias', 'bias', 'init_lora_weights', 'use_rslora', 'alpha_pattern'),
  *('rank_pattern', 'lora_alpha', 'peft_type', 'layer_replication', 'r', 'x'),
)


class Original(NamedTuple):
  """An adapter as it was written.

  Attributes:
    folder: its path.
    adapted: the model that it belongs to.
    params: parameters of the base.
    names: what the modules are called.
  """

  folder: str
  adapted: Adapted
  params: Any
  names: Any


def peft(rng: random.Random, place: Place) -> Case:
  """An adapter read and written again."""
  original = rng.choice(_originals(place.path('shared')))
  folder = place.path('given', 'adapter')
  shutil.copytree(original.folder, folder)
  done = _spoil(rng, folder)
  load = functools.partial(load_peft, folder, original.adapted, original.params, original.names)

  def check(result: Any) -> None:
    variables, genome = result
    if genome.dtype != np.int8 or genome.shape != (len(original.adapted.spec), 5):
      raise Fault(f'its genome is {genome.dtype} {genome.shape}')
    folded = original.adapted.fold(variables, genome)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(folded)):
      raise Fault('folded it is not finite')
    copy = place.path('given', 'copy')
    save_peft(copy, original.adapted, variables, genome, original.names)
    again = load_peft(copy, original.adapted, original.params, original.names)
    shutil.rmtree(copy)
    if not same(list(again), result):
      raise Fault('written again it reads otherwise')

  shown = f'{os.path.basename(original.folder)} {done}'
  return Case(shown, lambda: list(load()), check, limit=60)


def _spoil(rng: random.Random, folder: str) -> str:
  """Spoils one of the files; what was done."""
  config, tensors = (os.path.join(folder, name) for name in (CONFIG, WEIGHTS))
  action = rng.random()
  if action < 0.05:
    os.remove(rng.choice([config, tensors]))
    return 'one is missing'
  if action < 0.25:
    with open(config) as file:
      content = json.load(file)
    with open(config, 'w') as file:
      json.dump({**content, rng.choice(FIELDS): rng.choice(JSON_VALUES)}, file)
  if action < 0.5:
    return spoil_json(rng, config)
  return (spoil_tensors if action < 0.8 else spoil_bytes)(rng, tensors)


@functools.cache
def _originals(shared: str) -> tuple[Original, ...]:
  """A LoRA of one linear layer, and LoRAs of a ViT with its head; written once."""
  adapted, variables, _, _ = dense()
  model, params = vit()
  images = jnp.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3))
  large = glora_jax.adapt(model, images, space=SearchSpace(ranks=(2,)))
  folders = [os.path.join(shared, f'peft_{name}') for name in ('lora', 'vit')]
  originals = (
    Original(folders[0], adapted, variables['params'], NAMES),
    Original(folders[1], large, params, 'hf_vit'),
  )
  lora = np.array([[0, 3, 0, 0, 0]], np.int8)
  save_peft(folders[0], adapted, variables, lora, NAMES)
  save_peft(
    folders[1],
    large,
    randomized(large.init(jax.random.key(0), params), 1),
    np.repeat(lora, len(large.spec), 0),
    'hf_vit',
  )
  return originals
