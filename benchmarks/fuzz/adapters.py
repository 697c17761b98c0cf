"""Adapters saved at odd paths, and files of all kinds loaded onto right and wrong models."""

import functools
import os
import pathlib
import random
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import glora_jax
from benchmarks.fuzz.checkpoints import originals
from benchmarks.fuzz.models import dense
from benchmarks.fuzz.nnx_calls import INPUTS, Mlp, attached
from benchmarks.fuzz.oracle import Case, Fault, same
from benchmarks.fuzz.peft import NAMES
from benchmarks.fuzz.place import Place
from benchmarks.fuzz.spoiling import spoil_bytes, spoil_header, spoil_tensors
from benchmarks.fuzz.values import NASTY, shown
from glora_jax import SearchSpace
from glora_jax.method.draws import random_genomes
from glora_jax.models.peft import load_peft, save_peft

LIMIT = 60.0  # seconds, as some compile
LORA = np.array([[0, 3, 0, 0, 0]], np.int8)
ODD_NAMES = (
  *('x' * 300, 'a\0b', '\udcff.safetensors', 'ü\n.safetensors', '', '.', 'no/folder/x'),
  *('file/x', '-', '~', 'x.npz', 'x.', ' ', '/proc/x.safetensors'),
)
KINDS = ('folder', 'fifo', 'device', 'nowhere', 'itself', 'outside', 'file')


class Saver(NamedTuple):
  """A way to write an adapter.

  Attributes:
    save: takes a path and metadata.
    load: what is read of a path, in arrays.
  """

  save: Callable[..., None]
  load: Callable[[Any], list]


def saved(rng: random.Random, place: Place) -> Case:
  """An adapter written to a path where something odd may be, or that is none."""
  name, saver = rng.choice(list(_savers().items()))
  path, shown_path = _odd_path(rng, place, b'x')
  metadata = {}
  if name != 'peft' and rng.random() < 0.3:
    metadata = {rng.choice(['note', 'spec', 'x', 'format', 'ü']): rng.choice(NASTY)}
  if name == 'peft' and rng.random() < 0.6:
    field = rng.choice(['names', 'transformers', 'base', 'genome'])
    odd = [{}, {'Dense': ''}, {'Dense': ['a', 'a']}, {'(': 'x'}, {'D.*': r'\9'}, 'timm', 'hf_vit']
    metadata = {field: rng.choice([*NASTY, *(odd if field == 'names' else [])])}

  def attempt() -> list:
    saver.save(path, **metadata)
    return saver.load(path)

  return Case(f'{name} saved at {shown_path}, {shown(metadata)}', attempt, limit=LIMIT)


def loaded(rng: random.Random, place: Place) -> Case:
  """A file, spoilt or foreign, loaded onto a linen or an NNX model, which may be another."""
  name, make = rng.choice([('linen', _onto_linen), ('nnx', _onto_nnx), ('trained', _onto_nnx)])
  content, source = _file(rng, place, name)
  path, shown_path = os.path.join(place.given, 'adapter'), 'a file'
  if rng.random() < 0.3:
    path, shown_path = _odd_path(rng, place, content)
  else:
    pathlib.Path(path).write_bytes(content)
  onto, model = make(rng)
  return Case(f'{source} at {shown_path}, {model}', functools.partial(onto, path), limit=LIMIT)


def _odd_path(rng: random.Random, place: Place, content: bytes) -> tuple[Any, str]:
  """A path in the workdir, and what it is; a file in it has the content."""
  os.makedirs(place.workdir)
  path = os.path.join(place.workdir, 'adapter.safetensors')
  action = rng.random()
  if action < 0.1:
    value = rng.choice([os.fsencode(path), pathlib.Path(path), *NASTY])
    return (value, shown(value)) if not isinstance(value, str) else (path, 'nothing')
  if action < 0.4:
    name = rng.choice(ODD_NAMES)
    pathlib.Path(place.workdir, 'file').write_bytes(content)
    return os.path.join(place.workdir, name), shown(name)
  if action < 0.6:
    return path, 'nothing'
  kind = rng.choice(KINDS)
  targets = {'device': '/dev/zero', 'nowhere': place.path('here', 'new'), 'itself': path}
  if kind == 'outside':
    targets[kind] = place.write('outside.safetensors', content=content)
  if kind == 'folder':
    os.mkdir(path)
  elif kind == 'fifo':
    os.mkfifo(path)
  elif kind == 'file':
    pathlib.Path(path).write_bytes(content)
  else:
    os.symlink(targets[kind], path)
  return path, kind


@functools.cache
def _savers() -> dict[str, Saver]:
  adapted, variables, genome, _ = dense()
  params = variables['params']

  def save_loras(path: Any, genome: Any = LORA, names: Any = NAMES, **options: Any) -> None:
    save_peft(path, adapted, variables, genome, names, **options)

  def load_onto_live(path: Any) -> list:
    return _onto_live(nnx.clone(attached()), path)

  return {
    'linen': Saver(
      lambda path, **metadata: glora_jax.save_adapter(path, adapted, variables, genome, **metadata),
      lambda path: list(glora_jax.load_adapter(path, adapted, params)),
    ),
    'nnx': Saver(
      lambda path, **metadata: glora_jax.nnx.save_adapter(path, attached(), **metadata),
      load_onto_live,
    ),
    'peft': Saver(save_loras, lambda path: list(load_peft(path, adapted, params, NAMES))),
  }


def _file(rng: random.Random, place: Place, name: str) -> tuple[bytes, str]:
  """The bytes of a file, mostly of an adapter's of a name, and what it is."""
  folder = _originals(place.path('shared'))
  source = name if rng.random() < 0.75 else rng.choice(sorted(os.listdir(folder)))
  path = place.path('given', 'source')
  shutil.copy(os.path.join(folder, source), path)
  done = ''
  if source in ('linen', 'nnx', 'trained') and rng.random() < 0.6:
    done = rng.choice([spoil_bytes, spoil_header, spoil_tensors])(rng, path)
  return pathlib.Path(path).read_bytes(), f'{source} {done}'


@functools.cache
def _originals(shared: str) -> str:
  """A folder with adapters of both models, a checkpoint, arrays and others; written once."""
  folder = os.path.join(shared, 'adapters')
  os.makedirs(folder, exist_ok=True)
  savers = _savers()
  for name in ('linen', 'nnx'):
    savers[name].save(os.path.join(folder, f'{name}.safetensors'))
    os.replace(os.path.join(folder, f'{name}.safetensors'), os.path.join(folder, name))
  savers['peft'].save(os.path.join(shared, 'adapter_of_peft'))
  shutil.copy(
    os.path.join(shared, 'adapter_of_peft', 'adapter_model.safetensors'),
    os.path.join(folder, 'peft'),
  )
  model = nnx.clone(attached())
  genomes = random_genomes(np.random.default_rng(3), glora_jax.nnx.spec(model), 1)
  glora_jax.nnx.set_genome(model, genomes[0])
  glora_jax.nnx.save_adapter(os.path.join(folder, 'trained'), model, note='x')
  checkpoint = originals(shared)[0]
  [tensors] = [name for name in os.listdir(checkpoint) if name.endswith('.safetensors')]
  shutil.copy(os.path.join(checkpoint, tensors), os.path.join(folder, 'checkpoint'))
  np.savez(os.path.join(folder, 'arrays.npz'), x=np.ones(3))
  pathlib.Path(folder, 'empty').write_bytes(b'')
  pathlib.Path(folder, 'text').write_text('{"genome": [[0, 0, 0, 0, 0]]}')
  return folder


def _onto_linen(rng: random.Random) -> tuple[Callable[[Any], list], str]:
  """What loads a file onto a linen model, and which one."""
  adapted, variables, _, inputs = dense()
  params = variables['params']
  name = rng.choice(['right', 'right', 'right', *_other_models(), 'base', 'missing', 'odd', 'type'])
  if name in _other_models():
    adapted, inputs = _other_models()[name]
  elif name == 'base':
    params = {**params, 'kernel': params['kernel'] + 1}
  elif name == 'missing':
    params = {'kernel': params['kernel']}
  elif name == 'type':
    params = jax.tree.map(lambda leaf: leaf.astype(rng.choice(['int32', 'float64'])), params)
  elif name == 'odd':
    params = rng.choice(NASTY)

  def load(path: Any) -> list:
    variables, genome = glora_jax.load_adapter(path, adapted, params)
    output = adapted.apply(variables, inputs, genome=genome)
    return [variables, genome, output]

  return load, f'linen {name} {shown(params) if name == "odd" else ""}'


@functools.cache
def _other_models() -> dict[str, Any]:
  """Adapted models with inputs, none of them that of the adapter."""
  inputs = jnp.ones((2, 4))
  wide = nn.Sequential([nn.Dense(3), nn.Dense(3)])
  return {
    'ranks': (glora_jax.adapt(nn.Dense(3, name='Dense'), inputs), inputs),
    'width': (
      glora_jax.adapt(nn.Dense(5, name='Dense'), inputs, space=SearchSpace(ranks=(2, 4))),
      inputs,
    ),
    'two': (glora_jax.adapt(wide, inputs, space=SearchSpace(ranks=(2, 4))), inputs),
  }


def _onto_nnx(rng: random.Random) -> tuple[Callable[[Any], list], str]:
  """What loads a file onto an NNX model, and which one."""
  kind = rng.choice(['right', 'right', 'right', 'ranks', 'base', 'plain', 'part', 'fixed', 'odd'])
  odd = rng.choice(NASTY)

  def load(path: Any) -> list:
    return _onto_live(_live(kind, odd), path)

  return load, f'nnx {kind} {shown(odd) if kind == "odd" else ""}'


def _live(kind: str, odd: Any) -> Any:
  """The model of a kind."""
  if kind == 'odd':
    return odd
  model = Mlp() if kind == 'plain' else nnx.clone(_attached(kind))
  if kind == 'base':
    model.hidden.kernel[...] += 1
  if kind == 'fixed':
    return glora_jax.nnx.fix(model, glora_jax.nnx.get_genome(model))
  return model.head if kind == 'part' else model


@functools.cache
def _attached(kind: str) -> Mlp:
  ranks = (1,) if kind == 'ranks' else (1, 2)
  return glora_jax.nnx.attach(Mlp(), INPUTS, space=SearchSpace(ranks=ranks))


def _onto_live(model: Any, path: Any) -> list:
  """What a live model answers with a file's adapter; one that is refused must not have changed it.

  Raises:
    Fault: it has.
  """
  before = _state(model)
  try:
    glora_jax.nnx.load_adapter(path, model)
  except Exception:
    if not same(before, _state(model)):
      raise Fault('a model that an adapter was refused for has changed') from None
    raise
  return [glora_jax.nnx.get_genome(model), model(INPUTS)]


def _state(model: Any) -> list:
  if not isinstance(model, nnx.Module):
    return []
  return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]
