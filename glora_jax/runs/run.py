"""What all stages of a run share: its config, task data, adapted backbone and scores."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.data import augment, normalization, pipeline
from glora_jax.data.catalog import find
from glora_jax.data.task import Task
from glora_jax.files import read_json, write_json
from glora_jax.method import space
from glora_jax.method.adapt import adapt
from glora_jax.method.adapted import COLLECTION, Adapted
from glora_jax.method.genomes import require_feasible
from glora_jax.models import weights
from glora_jax.models.fetch import fetch, known_normalization
from glora_jax.models.translate import fit_to_format
from glora_jax.runs.config import check_config, data_source, finetune_recipe
from glora_jax.runs.workdir import Stopped, claim, claim_workdir
from glora_jax.search.scoring import Predictions, make_predictor, make_scorer
from glora_jax.training.recipe import Recipe

log = logging.getLogger(__name__)

SCORED_AT_ONCE = 1024  # images of a stream


@dataclasses.dataclass
class Run:
  """What all stages of a run share. `variables` are the adapted base's, before any training; `mesh` is None on one device."""

  config: ml_collections.ConfigDict
  workdir: str
  task: Task
  adapted: Adapted
  variables: dict[str, Any]
  metadata: dict[str, Any]
  seconds: dict[str, float]
  stop: Callable[[], bool]  # asked wherever everything is saved
  mesh: jax.sharding.Mesh | None = None
  arrays: dict[str, pipeline.Split] = dataclasses.field(default_factory=dict)
  scorers: dict[str | None, Callable] = dataclasses.field(default_factory=dict)
  predictors: dict[str | None, Callable] = dataclasses.field(default_factory=dict)

  @property
  def train_split(self) -> str:
    return 'train' if self.config.protocol == 'honest' else 'train+val'

  @property
  def search_split(self) -> str:
    return 'val' if self.config.protocol == 'honest' else 'test'

  def path(self, *names: str) -> str:
    return os.path.join(self.workdir, *names)

  def key(self, purpose: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(self.config.seed), purpose)

  def data(self, split: str) -> pipeline.Split:
    """A split, read once: on the device where it is small, else a stream with its labels."""
    if split not in self.arrays:
      settings, size = self.config.data, self.metadata['image_size']
      examples = self.task.open(split)
      options = {'rule': settings.resize, 'skip_broken': settings.skip_broken, 'title': split}
      if len(examples.labels) * size * size * 3 > settings.max_resident:
        stream = pipeline.Stream(examples, size, workers=settings.workers, **options)
        self.arrays[split] = pipeline.Split(stream, stream.labels)
      else:
        loaded = pipeline.load(examples, size, cache=settings.cache, **options)
        self.arrays[split] = pipeline.Split(
          *(jnp.asarray(array) for array in loaded)
          if self.mesh is None
          else meshes.replicate(self.mesh, tuple(loaded))
        )
    return self.arrays[split]

  def preprocess(self, images: jax.Array) -> jax.Array:
    return normalization.normalize(images, self.metadata['normalization'])

  def augmented(self, key: jax.Array, images: jax.Array) -> jax.Array:
    """What training sees of a batch."""
    return self.augmentation.apply(
      key, images, self.metadata['image_size'], self.metadata['normalization']
    )

  @property
  def augmentation(self) -> augment.Augmentation:
    return augment.Augmentation(**self.config.augment)

  @property
  def mix(self) -> Callable | None:
    """Mixup of a batch and its targets, where the config asks for it."""
    strength = self.augmentation.mixup
    return functools.partial(augment.mixup, alpha=strength) if strength else None

  def score(self, variables: Any, genomes: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Correct answers and summed loss of every genome on a split, for all genomes at once."""
    name = split if split in self.task.masked else None
    if name not in self.scorers:
      self.scorers[name] = make_scorer(
        self.adapted, self.preprocess, classes=self.task.mask(split), mesh=self.mesh
      )
    images, labels = self.data(split)
    if not isinstance(images, pipeline.Stream):
      return self.scorers[name](variables, genomes, images, labels)
    correct, loss = 0, 0.0
    for block in meshes.blocks(self.mesh, images, SCORED_AT_ONCE):
      some = self.scorers[name](variables, genomes, *block)
      correct, loss = correct + np.asarray(some[0]), loss + np.asarray(some[1], np.float64)
    return correct, loss

  def accuracy(self, variables: Any, genome: np.ndarray, split: str) -> float:
    correct, _ = self.score(variables, jnp.asarray(genome)[None], split)
    return int(correct[0]) / len(self.data(split).labels)

  def predict(self, variables: Any, genome: np.ndarray, split: str) -> Predictions:
    """What one subnet answers for every image of a split, as NumPy arrays."""
    name = split if split in self.task.masked else None
    if name not in self.predictors:
      self.predictors[name] = make_predictor(
        self.adapted, self.preprocess, classes=self.task.mask(split), mesh=self.mesh
      )
    images = self.data(split).images
    streamed = isinstance(images, pipeline.Stream)
    blocks = (
      (block for block, _ in meshes.blocks(self.mesh, images, SCORED_AT_ONCE))
      if streamed
      else (images,)
    )
    parts = [self.predictors[name](variables, jnp.asarray(genome), block) for block in blocks]
    return Predictions(
      *(np.concatenate([np.asarray(x) for x in column]) for column in zip(*parts, strict=True))
    )

  def pixels(self, split: str, indices: np.ndarray) -> np.ndarray:
    """Some images of a split, uint8 [len(indices), size, size, 3]; a process may ask alone."""
    images = self.data(split).images
    if isinstance(images, pipeline.Stream):
      return next(images.batches(np.asarray(indices)[None])).images
    return np.asarray(
      images.addressable_data(0)[np.asarray(indices)]
    )  # resident ones are whole on every device

  @contextlib.contextmanager
  def stage(self, name: str):
    """Measures a stage; what an interrupted run spent on it counts, too."""
    if self.stop():
      raise Stopped(f'before the stage {name}', self.workdir)
    log.info('%s: begins', name)
    start = time.perf_counter()
    seconds = lambda: round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 2)
    try:
      yield
    except BaseException:
      with contextlib.suppress(OSError):  # on a full disk what went wrong first is what matters
        self._note(name, seconds())
      raise
    self._note(name, seconds())
    log.info('%s: done, %.1f s', name, self.seconds[name])

  def _note(self, name, seconds):
    self.seconds[name] = seconds
    if meshes.primary():
      write_json(self.path('seconds.json'), self.seconds)


def carry_out(
  config: ml_collections.ConfigDict,
  workdir: str,
  stop: Callable[[], bool],
  stages: Callable[[Run], dict[str, Any]],
) -> dict[str, Any]:
  """Runs the stages of a job in its workdir, which no other process has meanwhile; a finished one is only read.

  Args:
    config, workdir, stop: see `experiment.run`.
    stages: what to do, each part in `Run.stage`; what they return becomes `result.json`, with the seconds of every stage.

  Returns:
    The content of `result.json`.
  """
  check_config(config)
  meshes.initialize(**config.distributed)
  path = os.path.join(workdir, 'result.json')
  with (
    claim(workdir) if meshes.primary() and not os.path.exists(path) else contextlib.nullcontext()
  ):
    claim_workdir(config, workdir)
    if os.path.exists(path):
      log.info('This run is finished; everything is in %s.', workdir)
      return read_json(path)
    this = prepare(config, workdir, stop)
    result = stages(this)
    result['seconds'] = this.seconds
    if meshes.primary():
      write_json(path, result)
    return result


def prepare(
  config: ml_collections.ConfigDict, workdir: str, stop: Callable[[], bool] = lambda: False
) -> Run:
  """Loads the backbone, gives it a new head for the task, and adapts it."""
  seconds_path = os.path.join(workdir, 'seconds.json')
  seconds = read_json(seconds_path) if os.path.exists(seconds_path) else {}
  mesh = meshes.over_devices(config.mesh.devices)
  for recipe in (Recipe(**config.supernet), finetune_recipe(config)):
    meshes.require_divisible(mesh, recipe.batch_size // recipe.accumulate)
  where, settings = data_source(config), config.model
  with meshes.primary_first('prepare'):
    find(config.task, where, workdir).open(
      'train'
    )  # prepares what is not there; some class names are known only then
    path = (
      weights.EMBEDDED_FILE
      if settings.weights == weights.EMBEDDED
      else fetch(settings.weights, settings.sha256)
    )
  task = find(config.task, where, workdir)
  fields = {
    name: settings[name] for name in ('num_heads', 'activation') if settings[name] is not None
  }
  loaded = weights.load(path, normalization=known_normalization(settings.weights), **fields)
  model, params, metadata = weights.refit(
    *loaded,
    num_classes=task.num_classes,
    image_size=settings.image_size,
    patch_size=settings.patch_size,
  )
  if source := metadata.get('source'):
    fit_to_format(
      model, flax.traverse_util.flatten_dict(params, sep='/'), source
    )  # refuses now what could not be written at the end
  model = model.clone(
    drop_path=settings.drop_path,
    remat=settings.remat,
    dtype=None if settings.dtype == 'float32' else settings.dtype,
  )
  if not isinstance(metadata['image_size'], int):
    raise ValueError(
      f'The weights are for images of {metadata["image_size"]}; a run needs square ones, give model.image_size.'
    )
  metadata['normalization'] = settings.normalization or metadata['normalization']
  sample = jax.ShapeDtypeStruct((1, metadata['image_size'], metadata['image_size'], 3), jnp.float32)
  adapted = adapt(model, sample, space=space.SearchSpace(**config.space), merge=config.merge)
  require_feasible(adapted.spec, config.budget)
  this = Run(
    config, workdir, task, adapted, {}, metadata, seconds, lambda: meshes.on_any(stop()), mesh
  )
  base = lambda path, x: (
    x if path in adapted.head_paths else x.astype(jnp.dtype(settings.base_dtype))
  )
  params = flax.traverse_util.path_aware_map(base, params)
  if mesh is None:
    this.variables = adapted.init(this.key(0), jax.tree.map(jnp.asarray, params))
  else:  # from the host to its places: a large base need not fit one device
    trainable, frozen = adapted.split(adapted.init(this.key(0), params))
    place = meshes.shard if config.mesh.base == 'sharded' else meshes.replicate
    this.variables = adapted.join(meshes.replicate(mesh, trainable), place(mesh, frozen))
  log.info(
    '%s: %d adapted layers of a %s, merging %s, subnets of up to %s parameters',
    task.name,
    len(adapted.spec),
    type(model).__name__,
    adapted.merge,
    f'{adapted.count_params(adapted.spec.num_codes - 1):,}',
  )
  log.info('%s', describe(adapted, this.variables, mesh))
  return this


def describe(adapted: Adapted, variables: Any, mesh: jax.sharding.Mesh | None = None) -> str:
  """Devices, mesh, precision, and how many parameters of which kind; one line."""
  trainable, frozen = adapted.split(variables)
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  types = lambda tree: ', '.join(sorted({str(leaf.dtype) for leaf in jax.tree.leaves(tree)}))
  axes = ', '.join(f'{name} {size}' for name, size in mesh.shape.items()) if mesh else 'none'
  computed = getattr(adapted.model, 'dtype', None)
  return (
    f'{jax.device_count()} x {jax.devices()[0].device_kind}, mesh: {axes}; '
    f'parameters: {count(trainable[COLLECTION]):,} in supports, {count(trainable["params"]):,} in heads ({types(trainable)}), '
    f'{count(frozen):,} frozen ({types(frozen)}); computed in {jax.numpy.dtype(computed).name if computed else types(trainable)}'
  )
