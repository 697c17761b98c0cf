"""The context that all stages of a job share: made and checked before the first stage runs."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from glora_jax import mesh as meshes
from glora_jax.checks import shown
from glora_jax.method.adapted import Adapted
from glora_jax.method.draws import require_feasible
from glora_jax.vision.data import normalization
from glora_jax.vision.data.augment import Augmentation
from glora_jax.vision.data.pipeline import Images, choose_resident, open_images
from glora_jax.vision.data.task import Task
from glora_jax.vision.files import sha256_of
from glora_jax.vision.models.metadata import share_kept
from glora_jax.vision.runs.backbone import (
  Model,
  Stream,
  adapt_spaces,
  check_ranks,
  describe,
  fetch_task,
  is_beside,
  load_backbone,
  note_photographs,
  stream_key,
  variables_before_training,
)
from glora_jax.vision.runs.fitting import (
  choose_prior,
  count_images,
  fit_batches,
  note_batches,
)
from glora_jax.vision.runs.origins import identify_weights
from glora_jax.vision.runs.processes import over_devices
from glora_jax.vision.runs.settings import TRANSFER, RunSettings
from glora_jax.vision.runs.workdir import Stop, has_test_list

if TYPE_CHECKING:
  from glora_jax.vision.runs.stage import Mark, Stage

log = logging.getLogger(__name__)


def never() -> bool:
  """A `stop` that never asks to stop."""
  return False


def search_split_of(settings: RunSettings) -> str:
  """The split that the search scores structures on."""
  return 'val' if settings.protocol == 'honest' else 'test'


def train_split_of(settings: RunSettings) -> str:
  """The split that structures are chosen with: supernet, heads and gradients are trained on it."""
  return 'train' if settings.protocol == 'honest' else 'train+val'


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
  """The inputs of a stage other than the results of other stages.

  It is frozen: a walk adds `folders`, and gives each stage a copy with `before`, `dispatched`
  and `saved`.

  Attributes:
    settings: the config, with batches that fit the images; the keys of stages are made of these.
    workdir: folder for everything that is written.
    images: the images of the task.
    adapted: the adapted backbone.
    variables: its variables before any training.
    metadata: metadata of the weights: 'image_size', 'normalization' and more.
    stop: called whenever everything is saved; if it returns True, the job ends.
    facts: everything else that results depend on: 'images' (digests by split), 'classes' and
      'normalization'.
    contents: texts that stand for the files named in fields, by field: keys have these texts in
      place of the paths.
    beside: the space of baselines that the search's space lacks; None if it has all of them.
    mesh: the devices; None for a single one.
    shared: folder of the stages that several runs share; None if the workdir has all stages.
    folders: folders of the stages that are in `shared`, by name.
    compiled: scorers and predictors, by their maker and masked split (None for all others), and
      folds, by whether they are of the run's search space.
    before: records of the stages that came before this one, by name.
    dispatched: the function to call after every compiled call, so that a profiler can count it.
    saved: the function to call after a state of an unfinished stage was saved, which records the
      seconds until then.
  """

  settings: RunSettings
  workdir: str
  images: Images
  adapted: Adapted
  variables: dict[str, Any]
  metadata: dict[str, Any]
  stop: Stop = never
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  contents: Mapping[str, str] = dataclasses.field(default_factory=dict)
  beside: Model | None = None
  mesh: jax.sharding.Mesh | None = None
  shared: str | None = None
  folders: Mapping[str, str] = dataclasses.field(default_factory=dict)
  compiled: dict[tuple[Any, Any], Callable] = dataclasses.field(default_factory=dict)
  before: Mapping[str, Mark] = dataclasses.field(default_factory=dict)
  dispatched: Callable[[], None] = lambda: None
  saved: Callable[[], None] = lambda: None

  @property
  def task(self) -> Task:
    """The classes and splits."""
    return self.images.task

  @property
  def train_split(self) -> str:
    """See `train_split_of`; the chosen structure is trained on `settings.final_split`."""
    return train_split_of(self.settings)

  @property
  def search_split(self) -> str:
    """See `search_split_of`."""
    return search_split_of(self.settings)

  @property
  def devices(self) -> int:
    """Number of devices that a batch is split over."""
    return 1 if self.mesh is None else self.mesh.size

  @property
  def shards(self) -> int:
    """Parts of a batch with separate random draws for images and passes."""
    settings = self.settings
    probabilities = (settings.model.drop_path, settings.training.lora_dropout)
    drawn = (settings.augment, *probabilities, settings.sampling.paths)
    if drawn == (Augmentation(), 0, 0, 1) or not meshes.are_replicated(self.variables):
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
    """uint8 [batch, size, size, 3] to the normalized float32 that the backbone needs."""
    del key
    return normalization.normalize(images, self.metadata['normalization'])

  def augmented(self, images: jax.Array, key: jax.Array) -> jax.Array:
    """`preprocess` for a batch in training: augmented, then normalized."""
    return self.settings.augment.apply(
      key, images, self.metadata['image_size'], self.metadata['normalization']
    )


def make_context(
  given: RunSettings,
  stages: Sequence[Stage],
  workdir: str,
  stop: Stop = never,
  shared: str | None = None,
) -> Context:
  """Loads the backbone, gives it a new head for the task, adapts it, and checks all stages.

  Args:
    given: the config; the context's batches are no larger than the images allow.
    stages: all stages of the job.
    workdir: folder of the job; only a record of the images and one of the weights are written here.
    stop: see `job.begin`.
    shared: see `job.begin`.

  Raises:
    ValueError, OSError: anything that would make a stage fail, as far as it can be checked now.
  """
  titles = dict.fromkeys(stage.title for stage in stages if stage.has_folder)
  if (profile := given.watch.profile) not in (None, *titles):
    raise ValueError(
      f'watch.profile={shown(profile)} is not a stage of this job; give one of {", ".join(titles)}.'
    )
  given = choose_prior(given)
  mesh = over_devices(given.mesh.devices, given.mesh.fsdp)
  task, path = fetch_task(given, workdir)
  for note in task.notes:
    log.info('%s: %s', task.name, note)
  counts = count_images(task)
  splits = [split for stage in stages for split in stage.splits]
  settings = fit_batches(given, splits, counts, mesh)
  model, params, metadata = load_backbone(settings.model, path, task.num_classes)
  size = metadata['image_size']
  settings.augment.check_size(size)
  adapted, other = adapt_spaces(settings, model, size, mesh)
  check_ranks(adapted)
  require_feasible(adapted.spec, settings.budget)
  variables = variables_before_training(adapted, params, settings, mesh)
  beside = None
  if other is not None:
    beside = Model(other, other.init(stream_key(settings.seed, Stream.INIT), variables['params']))
  data = settings.data
  metadata['resize'] = data.resize or metadata.get('resize') or 'squash'
  images = Images(task, size, share=share_kept(metadata, None), workers=data.workers)
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
  facts_of_model = describe(adapted, variables, mesh)
  log.info('%s: %s; images of %d x %d pixels', task.name, facts_of_model, size, size)
  images = open_images(
    images,
    choose_resident(images, (context.train_split, settings.final_split), data.max_resident),
    skip_broken=data.skip_broken,
    cache=data.cache,
    folder=workdir,
    is_tested=has_test_list(workdir),
    mesh=mesh,
  )
  task = note_photographs(settings, images.task)
  left = count_images(task)  # fewer if broken ones are left out
  if left != counts:
    settings = fit_batches(given, splits, left, mesh)
  task = note_batches(task, given, settings, left)
  images = dataclasses.replace(images, task=task)
  facts = {
    'images': images.identities,
    'classes': task.classes,
    'normalization': metadata['normalization'],
  }
  contents = {'model.weights': identify_weights(settings.model, path, workdir)}
  is_prior = settings.has_gradient and settings.allocation.prior == 'transfer'
  if is_prior or settings.structure == TRANSFER:
    assert settings.transfer is not None  # else the prior is another one, or a check has failed
    contents['allocation.transfer'] = sha256_of(settings.transfer)
  context = dataclasses.replace(
    context, settings=settings, images=images, facts=facts, contents=contents
  )
  if left != counts:
    for stage in stages:
      stage.check(context)
  return context
