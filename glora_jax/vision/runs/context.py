"""What all stages of a job are given: made and checked once, before the first stage runs."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.checks import MOST_COUNTED, shown
from glora_jax.compiling import reported
from glora_jax.method.adapted import Adapted
from glora_jax.method.draws import require_feasible
from glora_jax.search.scoring import make_scorer
from glora_jax.training.losses import classification
from glora_jax.training.recipe import Recipe
from glora_jax.vision.data import normalization, pipeline
from glora_jax.vision.data.augment import Augmentation
from glora_jax.vision.data.pipeline import Images, choose_resident, open_images
from glora_jax.vision.data.task import Task
from glora_jax.vision.files import sha256_of
from glora_jax.vision.models import weights
from glora_jax.vision.runs.backbone import (
  Model,
  Stream,
  adapt_spaces,
  fetch_task,
  is_beside,
  load_backbone,
  stream_key,
  variables_before_training,
)
from glora_jax.vision.runs.origins import WEIGHTS
from glora_jax.vision.runs.predictions import BATCH, Predictions, make_predictor
from glora_jax.vision.runs.processes import over_devices
from glora_jax.vision.runs.settings import RunSettings, TrainingSettings
from glora_jax.vision.runs.workdir import is_tested

if TYPE_CHECKING:
  from glora_jax.vision.runs.stage import Mark, Stage

log = logging.getLogger(__name__)

_SIDE_OF_PHOTOGRAPHS = 100  # pixels, of the smallest
_NOTE = (
  'The small backbone of the package has only seen gray images of 28 x 28 pixels; for color images '
  'of this size it suits trials only. For results add weights=dinov2-S/14 to the arguments of the '
  'config, as in own:FOLDER,weights=dinov2-S/14.'
)
STREAMED_BLOCK = 1024  # images of a stream that are scored at once


def never() -> bool:
  """A `stop` that never asks to stop."""
  return False


def train_split_of(settings: RunSettings) -> str:
  """The split that structures are chosen with: supernet, heads and gradients are trained on it."""
  return 'train' if settings.protocol == 'honest' else 'train+val'


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
  """What a stage is given besides the results of others; the last two differ by stage.

  Attributes:
    settings: the config, checked.
    workdir: folder for everything that is written.
    images: the images of the task.
    adapted: the adapted backbone.
    variables: its variables before any training.
    metadata: what the weights' file says: 'image_size', 'normalization' and more.
    stop: called wherever everything is saved; if it returns True, the job ends.
    facts: what else all results depend on: digests of the images by split, and of the weights.
    beside: the space of baselines that the search's space lacks; None if it has all of them.
    mesh: the devices; None for a single one.
    shared: folder of the stages that several runs share; None if the workdir has all stages.
    folders: folders of the stages that are in `shared`, by name.
    compiled: scorers and predictors, by their maker and masked split (None for all others), and
      folds, by whether they are of the run's own space.
    before: records of the stages that came before this one, by name.
    dispatched: to be called after every dispatch; a profiler counts them in a stage that it traces.
  """

  settings: RunSettings
  workdir: str
  images: Images
  adapted: Adapted
  variables: dict[str, Any]
  metadata: dict[str, Any]
  stop: Callable[[], bool] = never
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  beside: Model | None = None
  mesh: jax.sharding.Mesh | None = None
  shared: str | None = None
  folders: Mapping[str, str] = dataclasses.field(default_factory=dict)
  compiled: dict[tuple[Any, Any], Callable] = dataclasses.field(default_factory=dict)
  before: Mapping[str, Mark] = dataclasses.field(default_factory=dict)
  dispatched: Callable[[], None] = lambda: None

  def fold(self, model: Model) -> Any:
    """The plain model's parameters."""
    is_own = model.adapted.spec is self.adapted.spec
    key = 'fold', is_own
    if key not in self.compiled:
      adapted = self.adapted if is_own or self.beside is None else self.beside.adapted
      self.compiled[key] = reported('fold', jax.jit(adapted.fold))
    return self.compiled[key](model.variables, model.genome)

  @property
  def task(self) -> Task:
    """The classes and splits."""
    return self.images.task

  @property
  def train_split(self) -> str:
    """See `train_split_of`; what was chosen is trained on `settings.final_split`."""
    return train_split_of(self.settings)

  @property
  def search_split(self) -> str:
    """The split that the search scores structures on."""
    return 'val' if self.settings.protocol == 'honest' else 'test'

  @property
  def devices(self) -> int:
    """Number of devices that a batch is split over."""
    return 1 if self.mesh is None else self.mesh.size

  @property
  def shards(self) -> int:
    """Parts of a batch with separate random draws for images and passes."""
    settings = self.settings
    drawn = (settings.augment, settings.model.drop_path, settings.sampling.paths)
    if drawn == (Augmentation(), 0, 1) or not meshes.are_replicated(self.variables):
      return 1  # nothing is drawn, or the compiler splits the batch
    return self.devices

  def place(self, name: str) -> Model:
    """The space of a structure with a name."""
    if self.beside is not None and is_beside(self.adapted.spec, name):
      return self.beside
    return Model(self.adapted, self.variables)

  def path(self, name: str, *names: str) -> str:
    """A path within the workdir, or within the folder of a stage that several runs share."""
    return os.path.join(self.folders.get(name) or os.path.join(self.workdir, name), *names)

  def key(self, stream: Stream) -> jax.Array:
    """The random key of the run's seed for one purpose."""
    return stream_key(self.settings.seed, stream)

  def preprocess(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """uint8 [batch, size, size, 3] to the normalized float32 that the backbone takes."""
    del key
    return normalization.normalize(images, self.metadata['normalization'])

  def augmented(self, images: jax.Array, key: jax.Array) -> jax.Array:
    """`preprocess` for a batch in training: augmented, then normalized."""
    return self.settings.augment.apply(
      key, images, self.metadata['image_size'], self.metadata['normalization']
    )

  def score(self, variables: Any, genomes: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores a population on a split.

    Args:
      variables: the model's variables.
      genomes: int8 [candidate, layer, 5].
      split: name of the split.

    Returns:
      (correct answers [candidate], summed loss [candidate]).
    """
    scorer = self._compiled(_scorer, split)
    correct: Any = 0
    loss: Any = 0.0
    for block in pipeline.blocks(self.images.split(split), STREAMED_BLOCK, self.mesh):
      block_correct, block_loss = scorer(variables, genomes, block)
      correct = correct + np.asarray(block_correct)
      loss = loss + np.asarray(block_loss, np.float64)
    return correct, loss

  def _folded(self, model: Model) -> dict[str, Any]:
    """The variables of the folded structure, so that one program is for all of them."""
    return {**self.variables, 'params': self.fold(model)}

  def measure(self, model: Model, split: str) -> dict[str, float]:
    """Accuracy and mean loss of a structure on a split, by 'SPLIT_accuracy' and 'SPLIT_loss'."""
    genomes = jnp.zeros((1, len(self.adapted.spec), 5), jnp.int8)
    correct, loss = self.score(self._folded(model), genomes, split)
    number = len(self.task.open(split).labels)
    return {
      f'{split}_accuracy': int(correct[0]) / number,
      f'{split}_loss': float(loss[0]) / number,
    }

  def predict(self, model: Model, split: str) -> Predictions:
    """A structure's answers for every image of a split, as NumPy arrays [image]."""
    variables, predictor = self._folded(model), self._compiled(_predictor, split)
    images = self.images.split(split)
    number = len(images.labels)
    size = -(-min(BATCH, number) // self.devices) * self.devices
    batches = pipeline.equal_batches(images, size, self.mesh)
    parts = [predictor(variables, batch.images) for batch in batches]
    return Predictions(*(np.concatenate(column)[:number] for column in zip(*parts, strict=True)))

  def _compiled(self, make: Callable, split: str) -> Callable:
    """The scorer or predictor of a split; splits without a mask share theirs."""
    key = make, split if split in self.task.masked else None
    if key not in self.compiled:
      self.compiled[key] = make(self, self.task.mask(split))
    return self.compiled[key]


def _scorer(context: Context, classes: np.ndarray | None) -> Callable:
  loss = classification(context.preprocess, classes=classes)
  return make_scorer(context.adapted, loss, mesh=context.mesh)


def _predictor(context: Context, classes: np.ndarray | None) -> Callable:
  return make_predictor(context.adapted, context.preprocess, classes=classes, mesh=context.mesh)


def make_context(
  given: RunSettings,
  stages: Sequence[Stage],
  workdir: str,
  stop: Callable[[], bool] = never,
  shared: str | None = None,
) -> Context:
  """Loads the backbone, gives it a new head for the task, adapts it, and checks what stages need.

  Args:
    given: the config; the context's batches are no larger than the images allow.
    stages: all stages of the job.
    workdir: folder of the job, which gets only a record of the images and one of the weights.
    stop: see `experiment.run`.
    shared: see `experiment.run`.

  Raises:
    ValueError, OSError: anything that would make a stage fail, as far as it can be known now.
  """
  titles = dict.fromkeys(stage.title for stage in stages if stage.has_folder)
  if (profile := given.watch.profile) not in (None, *titles):
    raise ValueError(
      f'watch.profile={shown(profile)} is not a stage of this job; give one of {", ".join(titles)}.'
    )
  mesh = over_devices(given.mesh.devices, given.mesh.fsdp)
  task, path = fetch_task(given, workdir)
  counts = count_images(task)
  settings = fit_batches(given, stages, counts, mesh)
  model, params, metadata = load_backbone(settings.model, path, task.num_classes)
  size = metadata['image_size']
  settings.augment.check_size(size)
  adapted, other = adapt_spaces(settings, model, size, mesh)
  check_ranks(adapted)
  require_feasible(adapted.spec, settings.budget)
  variables, beside = variables_before_training(adapted, params, settings, mesh), None
  if other is not None:
    beside = Model(other, other.init(stream_key(settings.seed, Stream.INIT), variables['params']))
  data = settings.data
  images = Images(task, size, rule=data.resize, workers=data.workers)
  context = Context(
    settings=settings,
    workdir=workdir,
    images=images,
    adapted=adapted,
    variables=variables,
    metadata=metadata,
    stop=lambda: meshes.on_any(stop()),
    beside=beside,
    mesh=mesh,
    shared=shared,
  )
  for stage in stages:
    stage.check(context)
  log.info('%s: %s', task.name, describe(adapted, variables, mesh))
  if workdir and meshes.primary():
    os.makedirs(workdir, exist_ok=True)
  images = open_images(
    images,
    choose_resident(images, (context.train_split, settings.final_split), data.max_resident),
    skip_broken=data.skip_broken,
    cache=data.cache,
    folder=workdir or None,
    is_tested=bool(workdir) and is_tested(workdir),
    mesh=mesh,
  )
  images = dataclasses.replace(images, task=_with_note(settings, images.task))
  left = count_images(images.task)  # fewer if broken ones are left out
  record = os.path.join(workdir, WEIGHTS)
  digests = {WEIGHTS: sha256_of(record)} if os.path.isfile(record) else {}
  facts = {**images.identities, **digests}
  context = dataclasses.replace(context, images=images, facts=facts)
  if left != counts:
    context = dataclasses.replace(context, settings=fit_batches(given, stages, left, mesh))
    for stage in stages:
      stage.check(context)
  return context


def _with_note(settings: RunSettings, task: Task) -> Task:
  """The task with a note, which is logged, if the package's backbone is to see photographs."""
  if settings.model.weights != weights.EMBEDDED:
    return task
  picture = task.open('train')[0].image()
  pixels = np.asarray(picture)
  if min(picture.size) < _SIDE_OF_PHOTOGRAPHS or (pixels == pixels[..., :1]).all():
    return task
  log.warning(_NOTE)
  return dataclasses.replace(task, notes=(*task.notes, _NOTE))


def count_images(task: Task) -> dict[str, int]:
  """The number of images of every split of a task, and of 'train+val'.

  Raises:
    ValueError, OSError: a split cannot be opened.
  """
  counts = {split: len(task.open(split).labels) for split in task.splits}
  return {**counts, 'train+val': counts['train'] + counts['val']}


def check_ranks(adapted: Adapted) -> None:
  """Raises ValueError if a LoRA rank on offer is too large for every layer."""
  sides = [min(layer.in_features, layer.out_features) for layer in adapted.spec]
  ranks = {rank for layer in adapted.spec for rank in layer.space.ranks}
  if beyond := [rank for rank in sorted(ranks) if rank > max(sides)]:
    raise ValueError(
      f'space.ranks has {beyond[0]}, but no layer of the model can have a rank above {max(sides)}; '
      'lower it.'
    )


def fit_batches(
  settings: RunSettings,
  stages: Sequence[Stage],
  counts: Mapping[str, int],
  mesh: jax.sharding.Mesh | None,
) -> RunSettings:
  """The settings with batches that the images fill, and with a prior that there is.

  Args:
    settings: the config.
    stages: all stages of the job.
    counts: number of images by split.
    mesh: the devices that batches are split over.

  Raises:
    ValueError: a batch is larger than the images, cannot be cut into equal paths or split over
      the devices, or there are more steps than can be counted.
  """
  splits = [split for stage in stages for split in stage.splits]
  sizes = [counts[split] for split in splits]
  has_supernet = any('sampling.' in stage.reads for stage in stages)
  paths = settings.sampling.paths if has_supernet else 1
  fitted = dataclasses.replace(settings, training=_fit(settings.training, sizes, paths, mesh))
  recipes: dict[str, Recipe] = {'training': fitted.training}
  if any('finetune.' in stage.reads for stage in stages):
    recipes['finetune'] = fitted.finetuning
  for name, recipe in recipes.items():
    steps = recipe.epochs * recipe.steps_per_epoch(max(sizes))
    if steps > MOST_COUNTED:
      raise ValueError(
        f'{name}.epochs={recipe.epochs} means {steps:,} steps, more than can be counted; lower it.'
      )
  borrows = settings.has_gradient and settings.allocation.prior == 'transfer'
  if borrows and settings.transfer is None:
    allocation = dataclasses.replace(settings.allocation, prior='shifts')
    fitted = dataclasses.replace(fitted, allocation=allocation)
  return fitted


def _fit(
  recipe: TrainingSettings, sizes: Sequence[int], paths: int, mesh: jax.sharding.Mesh | None
) -> TrainingSettings:
  """A recipe with a batch that the images fill; see `fit_batches`."""
  size, fewest, devices = recipe.batch_size, min(sizes), 1 if mesh is None else mesh.size
  if size > fewest:
    parts = recipe.accumulate * paths * devices
    largest = fewest // parts * parts
    if not largest:
      raise ValueError(
        f'training.batch_size={size} is larger than the {fewest} training images; lower it.'
      )
    log.warning(
      'training.batch_size=%d is more than the %d training images; using %d.',
      size,
      fewest,
      largest,
    )
    recipe = dataclasses.replace(recipe, batch_size=largest)
  part = recipe.batch_size // recipe.accumulate
  meshes.require_divisible(mesh, part)
  if (part := part // devices) % paths:
    raise ValueError(
      f'sampling.paths={paths} must divide the {part} images of a supernet step on each device '
      '(training.batch_size, split by accumulate and devices); change one of the two.'
    )
  return recipe


def describe(adapted: Adapted, variables: Any, mesh: jax.sharding.Mesh | None = None) -> str:
  """One line on what is adapted, trained in full and frozen, in which precision and on what."""
  trainable, frozen = adapted.split(variables)
  axes = [f'{name} {size}' for name, size in mesh.shape.items()] if mesh else ()
  computed = getattr(adapted.model, 'dtype', None)
  precision = jnp.dtype(computed).name if computed else _dtypes(trainable)
  return (
    f'{len(adapted.spec)} layers of {type(adapted.model).__name__} are adapted; '
    f'{count(trainable["params"]):,} parameters in heads, {count(frozen):,} frozen '
    f'({_dtypes(frozen)}); computed in {precision} on {jax.device_count()} x '
    f'{jax.devices()[0].device_kind}{", mesh " * bool(axes)}{", ".join(axes)}'
  )


def count(tree: Any) -> int:
  """Number of parameters in a tree, or in its shapes."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _dtypes(tree: Any) -> str:
  return ', '.join(sorted({str(leaf.dtype) for leaf in jax.tree.leaves(tree)}))
