"""Twenty steps of each kind of training, a search, an allocation."""

import dataclasses
import functools
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import glora_jax
from benchmarks.record.comparing import Values, digest
from glora_jax import mesh as meshes
from glora_jax.data.augment import mixup
from glora_jax.models.vit import ViT
from glora_jax.nnx import live

STEPS, BATCH, IMAGES, CLASSES, SIDE = 20, 16, 80, 3, 16
SHARDED = 1024  # bytes of an array from which it is sharded
RECIPE = glora_jax.Recipe(epochs=4, batch_size=BATCH, warmup_epochs=1, learning_rate=3e-3)
SEARCH = glora_jax.Evolution(population=20, generations=6, parents=5, mutations=10, crossovers=8)
MODES = ('paper', 'pareto', 'random')
CONSISTENCY = glora_jax.Consistency(weight=0.5)
SUPERNETS: dict[str, tuple[Values, Values]] = {  # fields of a recipe, and options of a loss
  'supernet': ({}, {}),
  'supernet, paths': ({}, {'sampling': glora_jax.Sampling(paths=2, largest=0.3)}),
  'supernet, used alone': ({'update_used_only': True}, {}),
  'supernet, accumulated': ({'accumulate': 2}, {}),
  'supernet, bounded': ({'max_grad_norm': 0.5}, {}),
  'supernet, mixed': ({}, {'mix': functools.partial(mixup, alpha=0.8)}),
  'supernet, consistency': ({}, {'consistency': CONSISTENCY}),
}
FIXED: dict[str, tuple[str, Values]] = {
  'fixed, lora:2': ('lora:2', {}),
  'fixed, bitfit': ('bitfit', {}),
  'fixed, full': ('full', {}),
  'fixed, scale_shift_lora:2': ('scale_shift_lora:2', {}),
  'fixed, component dropout': ('lora:4', {'component_dropout': 0.3}),
  'fixed, consistency': ('lora:4', {'consistency': CONSISTENCY}),
}


class Problem:
  """A small ViT with random parameters, and images whose brightness tells their class."""

  def __init__(self) -> None:
    from trees import randomized

    labels = np.arange(IMAGES) % CLASSES
    noise = np.random.default_rng(0).normal(size=(IMAGES, SIDE, SIDE, 3))
    self.images = jnp.asarray(noise + labels[:, None, None, None], jnp.float32)
    self.labels = jnp.asarray(labels, jnp.int32)
    model = ViT(CLASSES, patch_size=8, width=32, depth=2, num_heads=2, drop_path=0.2)
    shapes = jax.eval_shape(model.init, jax.random.key(0), self.images[:1])['params']
    self.params = randomized(shapes, 3, 0.3)
    space = glora_jax.SearchSpace(ranks=(2, 4))
    self.adapted = glora_jax.adapt(model, self.images[:1], space=space)
    self.variables = self.adapted.init(jax.random.key(1), self.params)

  def fit(self, learner: Any, loss: Any, recipe: Any = RECIPE, **options: Any) -> Values:
    """The loss of every step, and what is trained at the end."""
    losses: list[float] = []
    variables = options.pop('variables', self.variables)
    state = glora_jax.fit(
      loss,
      *learner.split(variables),
      self.images,
      self.labels,
      recipe,
      jax.random.key(4),
      steps_per_dispatch=1,
      on_dispatch=lambda _, means: losses.append(means['loss']),
      progress=False,
      **options,
    )
    assert len(losses) == STEPS
    return {'losses': losses, 'trained': digest(state.trainable)}


def _supernet_loss(adapted: Any, sampling: Any = glora_jax.Sampling(), **options: Any) -> Any:
  draw = functools.partial(sampling.draw, spec=adapted.spec)
  return glora_jax.make_loss(adapted, None, draw, train=True, **options)


def record() -> Iterator[tuple[str, Values]]:
  """Names and entries, one after the other."""
  problem = Problem()
  adapted = problem.adapted
  for name, (fields, options) in SUPERNETS.items():
    recipe = dataclasses.replace(RECIPE, **fields)
    yield f'training/{name}', problem.fit(adapted, _supernet_loss(adapted, **options), recipe)
  for name, (preset, options) in FIXED.items():
    fixed = adapted.fix(preset)
    loss = glora_jax.make_loss(fixed, train=True, **options)
    yield f'training/{name}', problem.fit(fixed, loss)
  # Images are split over devices, and frozen weights with them.
  mesh, fsdp = meshes.over_devices(), meshes.over_devices(fsdp=4)
  yield 'training/eight devices', problem.fit(adapted, _supernet_loss(adapted), mesh=mesh)
  adapted, variables = glora_jax.shard(adapted, problem.variables, fsdp, min_bytes=SHARDED)
  found = problem.fit(adapted, _supernet_loss(adapted), mesh=fsdp, variables=variables)
  yield 'training/eight devices, fsdp=4', found
  yield 'training/side by side', _side_by_side(problem)
  yield 'training/head alone', _head(problem)
  yield 'training/function', _function()
  yield 'training/nnx', _nnx(problem)
  yield 'scores', _scores(problem)
  for mode in MODES:
    yield f'search/{mode}', search(mode)
  yield 'allocation', _allocation(problem)


def _side_by_side(problem: Problem) -> Values:
  trained = []
  for preset in ('lora:2', 'bitfit'):
    fixed = problem.adapted.fix(preset)
    trainable, frozen = fixed.split(problem.variables)
    state = glora_jax.fit(
      glora_jax.make_loss(fixed, train=True),
      jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), trainable),
      frozen,
      problem.images,
      problem.labels,
      RECIPE,
      jnp.stack([jax.random.key(seed) for seed in range(2)]),
      steps_per_dispatch=10,
      progress=False,
    )
    trained += [digest(jax.tree.map(operator.itemgetter(n), state.trainable)) for n in range(2)]
  return {'trained': trained}


def _head(problem: Problem) -> Values:
  variables = glora_jax.warm_head(
    problem.adapted,
    problem.variables,
    problem.images,
    problem.labels,
    RECIPE,
    jax.random.key(4),
    progress=False,
  )
  return {'head': digest(variables['params']['head'])}


def _block(x: jax.Array, kernels: Any) -> tuple[jax.Array, None]:
  return x + jnp.tanh(x @ kernels['up']) @ kernels['down'], None


def _two_blocks(params: Any, x: jax.Array) -> jax.Array:
  """A function that scans over two blocks."""
  x, _ = jax.lax.scan(_block, x, params['blocks'])
  return x @ params['head']


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _function() -> Values:
  """The supernet's steps of a function, by hand."""
  from trees import randomized

  shapes = {'blocks': {'up': (2, 8, 16), 'down': (2, 16, 8)}, 'head': (8, CLASSES)}
  params = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
    shapes,
    is_leaf=lambda node: isinstance(node, tuple),
  )
  params = randomized(params, 5, 0.2)
  x = jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, 8)), jnp.float32)
  labels = jnp.arange(BATCH) % CLASSES
  adapted = glora_jax.adapt_function(_two_blocks, params, x)
  trainable, frozen = adapted.split(adapted.init(jax.random.key(1), params))
  optimizer = optax.adamw(3e-3)

  def loss(trainable: Any, key: jax.Array) -> jax.Array:
    genome = glora_jax.sample_genome(key, adapted.spec)
    return _cross_entropy(adapted.apply(adapted.join(trainable, frozen), x, genome=genome), labels)

  @jax.jit
  def step(trainable: Any, state: Any, key: jax.Array) -> Any:
    value, gradient = jax.value_and_grad(loss)(trainable, key)
    updates, state = optimizer.update(gradient, state, trainable)
    return optax.apply_updates(trainable, updates), state, value

  state, losses = optimizer.init(trainable), []
  for number in range(STEPS):
    trainable, state, value = step(trainable, state, jax.random.key(number))
    losses.append(float(value))
  return {'losses': losses, 'trained': digest(trainable)}


def _nnx(problem: Problem) -> Values:
  """A live model with dropout and batch statistics, a structure drawn for every step."""
  from live_models import TOKENS, Classifier

  model = glora_jax.nnx.attach(Classifier(), TOKENS)
  spec = live.spec(model)
  optimizer = nnx.Optimizer(model, optax.adamw(3e-3), wrt=glora_jax.nnx.Trained)
  labels = problem.labels[: len(TOKENS)]
  wrt = nnx.DiffState(0, glora_jax.nnx.Trained)
  loss = nnx.value_and_grad(lambda model: _cross_entropy(model(TOKENS), labels), argnums=wrt)

  @nnx.jit
  def step(model: Any, optimizer: Any, genome: jax.Array) -> jax.Array:
    glora_jax.nnx.set_genome(model, genome)
    value, gradients = loss(model)
    optimizer.update(model, gradients)
    return value

  genomes = [
    glora_jax.sample_genome(key, spec) for key in jax.random.split(jax.random.key(4), STEPS)
  ]
  losses = [float(step(model, optimizer, genome)) for genome in genomes]
  return {
    'losses': losses,
    'trained': digest(nnx.state(model, glora_jax.nnx.Trained)),
    'statistics': digest(nnx.state(model, nnx.BatchStat)),
  }


def _scores(problem: Problem) -> Values:
  from comparing import random_variables

  variables = random_variables(problem.adapted, problem.params)
  genomes = glora_jax.random_genomes(np.random.default_rng(0), problem.adapted.spec, 10)
  score = glora_jax.make_scorer(problem.adapted)
  correct, loss = score(variables, genomes, problem.images, problem.labels)
  on_mesh = glora_jax.make_scorer(problem.adapted, mesh=meshes.over_devices())
  other, _ = on_mesh(variables, genomes, problem.images, problem.labels)
  return {'correct': correct, 'loss': loss, 'correct, eight devices': other}


def search(mode: Any) -> Values:
  """An archive of scores that are whole numbers, the same on every machine."""
  from toy_search import SPEC, Judge

  settings = dataclasses.replace(SEARCH, mode=mode)
  archive = glora_jax.evolve(SPEC, Judge(), jax.random.key(0), settings, budget=300, progress=False)
  return {
    'genomes': [''.join(map(str, genome.ravel())) for genome in archive.genomes],
    'correct': archive.correct,
    'generation': archive.generation,
    'best': archive.best(spec=SPEC, budget=200),
  }


def _allocation(problem: Problem) -> Values:
  space = glora_jax.SearchSpace.distinct((1, 2, 4))
  adapted = glora_jax.adapt(problem.adapted.model, problem.images[:1], space=space)
  batches = [
    (problem.images[start : start + 10], problem.labels[start : start + 10])
    for start in range(0, IMAGES, 10)
  ]

  def loss(forward: Any, batch: Any, key: jax.Array) -> jax.Array:
    del key
    images, labels = batch
    return _cross_entropy(forward(images), labels)

  variables = adapted.init(jax.random.key(1), problem.params)
  allocation = glora_jax.allocate(
    adapted, variables, loss, batches, budget=400, key=jax.random.key(3), progress=False
  )
  return {
    'genome': allocation.genome,
    'params': allocation.count_params(),
    'signal': allocation.signal,
    'values': {name: digest(values) for name, values in allocation.values._asdict().items()},
    'starting values': digest(allocation.variables['glora']),
  }
