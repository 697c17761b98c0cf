"""What all stages of a run share: settings, task data, adapted backbone, random keys, scores."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.data import augment, normalization, pipeline
from glora_jax.data.task import Task
from glora_jax.files import write_json
from glora_jax.method.adapted import Adapted
from glora_jax.method.presets import parse_preset_name
from glora_jax.method.space import Spec
from glora_jax.runs.config import RunSettings
from glora_jax.runs.sections import GRADIENT, NO_PRESETS, SEARCH
from glora_jax.runs.workdir import Stopped
from glora_jax.search.scoring import Predictions, make_predictor, make_scorer

log = logging.getLogger(__name__)

STREAMED_BLOCK = 1024  # images of a stream that are scored at once


class Stream(enum.IntEnum):
  """What a random key is for.

  Equal numbers would make equal draws; other numbers would make a resumed run another one.
  """

  INIT = 0
  SUPERNET = 1
  BASELINE = 2
  SEARCH = 3
  FINETUNE_CHOICE = 4
  FINETUNE = 5
  HEAD = 6
  STRUCTURE = 7
  TRAINING = 8
  PRIOR = 9


def stream_key(seed: int, stream: Stream) -> jax.Array:
  """The random key of a seed for one purpose."""
  return jax.random.fold_in(jax.random.key(seed), int(stream))


class Candidate(NamedTuple):
  """A subnet that will be tested.

  Attributes:
    variables: the model's variables that it is tested with.
    genome: its alleles, int8 [layer, 5].
    adapted: the adapted backbone that these are of; None for the run's own.
  """

  variables: Any
  genome: np.ndarray
  adapted: Adapted | None = None


class Place(NamedTuple):
  """A space of subnets: the backbone adapted with it, and what training starts from.

  Attributes:
    adapted: the adapted backbone.
    variables: its variables before any training.
  """

  adapted: Adapted
  variables: Any


def is_beside(spec: Spec, name: str) -> bool:
  """Whether a row of the table needs another space than the one that is searched.

  Args:
    spec: the layers, with the alleles that the search has.
    name: 'gradient', 'search', 'finetuning', or a preset's name.
  """
  if name in NO_PRESETS:
    return name == GRADIENT
  rank = parse_preset_name(name).rank
  return rank is not None and any(rank not in layer.space.ranks for layer in spec)


def stage_names(settings: RunSettings) -> tuple[str, ...]:
  """The stages of a config's job, in their order.

  Example:
    >>> stage_names(RunSettings(structure='lora:2'))
    ('structure', 'baselines', 'training', 'test', 'report')
  """
  if settings.job == 'compare':
    return ('tuning', 'training', 'test', 'report')
  searches = settings.structure == SEARCH
  structure = ('head', 'structure') if settings.has_gradient else ('structure',) * (not searches)
  middle = (
    ('supernet', 'baselines', 'search', 'finetune') if searches else ('baselines', 'training')
  )
  return (*structure, *middle, 'test', 'report')


@dataclasses.dataclass
class Run:
  """What all stages of a run share.

  Attributes:
    settings: the config, checked.
    workdir: folder for everything that is written.
    task: the images and labels.
    adapted: the adapted backbone.
    variables: its variables before any training.
    metadata: what the weights' file says of itself: 'image_size', 'normalization' and more.
    seconds: time of every stage so far, as in `seconds.json`.
    stop: asked wherever everything is saved; where it says True, the run ends.
    beside: the space of what is trained beside a search; None where all is in the search's.
    mesh: the devices; None on a single one.
    splits: the splits that were read.
    scorers: compiled scores, by masked split; None for all others.
    predictors: compiled predictions, likewise.
  """

  settings: RunSettings
  workdir: str
  task: Task
  adapted: Adapted
  variables: dict[str, Any]
  metadata: dict[str, Any]
  seconds: dict[str, float]
  stop: Callable[[], bool]
  beside: Place | None = None
  mesh: jax.sharding.Mesh | None = None
  splits: dict[str, pipeline.Split] = dataclasses.field(default_factory=dict)
  scorers: dict[str | None, Callable] = dataclasses.field(default_factory=dict)
  predictors: dict[str | None, Callable] = dataclasses.field(default_factory=dict)

  @property
  def train_split(self) -> str:
    """The split that the supernet and the baselines are trained on."""
    return 'train' if self.settings.protocol == 'honest' else 'train+val'

  @property
  def search_split(self) -> str:
    """The split that the search scores subnets on."""
    return 'val' if self.settings.protocol == 'honest' else 'test'

  @property
  def loss_options(self) -> dict[str, Any]:
    """What every training loss of the run has in common."""
    alpha = self.settings.augment.mixup
    return {
      'mix': functools.partial(augment.mixup, alpha=alpha) if alpha else None,
      'consistency': self.settings.consistency,
      # A ViT's images know nothing of each other; sharded weights want the whole batch at once.
      'independent_images': self.settings.mesh.base == 'replicated',
      'train': True,
    }

  def place(self, name: str) -> Place:
    """The space of a row of the table, by its name."""
    if self.beside is not None and is_beside(self.adapted.spec, name):
      return self.beside
    return Place(self.adapted, self.variables)

  def path(self, *names: str) -> str:
    """A path within the workdir."""
    return os.path.join(self.workdir, *names)

  def key(self, stream: Stream) -> jax.Array:
    """The random key of the run's seed for one purpose."""
    return stream_key(self.settings.seed, stream)

  def data(self, split: str) -> pipeline.Split:
    """A split, read once: on the device where it is small, else a stream with its labels."""
    if split in self.splits:
      return self.splits[split]
    data, size = self.settings.data, self.metadata['image_size']
    examples = self.task.open(split)
    options = {'rule': data.resize, 'title': split}  # broken images were found before the run
    if self.is_resident(len(examples.labels)):
      loaded = pipeline.load(examples, size, cache=data.cache, **options)
      found = pipeline.Split(*meshes.hold(self.mesh, tuple(loaded)))
    else:
      stream = pipeline.Stream(examples, size, workers=data.workers, **options)
      found = pipeline.Split(stream, stream.labels)
    self.splits[split] = found
    return found

  def is_resident(self, number: int) -> bool:
    """Whether a split of so many images stays on the device."""
    size = self.metadata['image_size']
    return number * size * size * 3 <= self.settings.data.max_resident

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
    scorer = self._compiled(self.scorers, make_scorer, split)
    images, labels = self.data(split)
    if not isinstance(images, pipeline.Stream):
      return scorer(variables, genomes, images, labels)
    correct: Any = 0
    loss: Any = 0.0
    for block in meshes.blocks(self.mesh, images, STREAMED_BLOCK):
      block_correct, block_loss = scorer(variables, genomes, *block)
      correct = correct + np.asarray(block_correct)
      loss = loss + np.asarray(block_loss, np.float64)
    return correct, loss

  def accuracy(self, variables: Any, genome: np.ndarray, split: str) -> float:
    """Share of a split's images that a single subnet gets right."""
    correct, _ = self.score(variables, jnp.asarray(genome)[None], split)
    return int(correct[0]) / len(self.data(split).labels)

  def predict(self, variables: Any, genome: np.ndarray, split: str) -> Predictions:
    """What a single subnet answers for every image of a split, as NumPy arrays [image]."""
    predictor = self._compiled(self.predictors, make_predictor, split)
    images = self.data(split).images
    blocks = [images]
    if isinstance(images, pipeline.Stream):
      blocks = (block for block, _ in meshes.blocks(self.mesh, images, STREAMED_BLOCK))
    parts = [predictor(variables, jnp.asarray(genome), block) for block in blocks]
    return Predictions(
      *(np.concatenate([np.asarray(x) for x in column]) for column in zip(*parts, strict=True))
    )

  def pixels(self, split: str, indices: np.ndarray) -> np.ndarray:
    """The images of a split at indices [image], uint8 [image, size, size, 3].

    A process may ask alone: resident images are whole on every device.
    """
    images = self.data(split).images
    if isinstance(images, pipeline.Stream):
      return next(images.batches(np.asarray(indices)[None])).images
    return np.asarray(images.addressable_data(0)[np.asarray(indices)])

  @contextlib.contextmanager
  def stage(self, name: str) -> Iterator[None]:
    """Measures a stage; what an interrupted run spent on it counts, too.

    Raises:
      Stopped: the run is asked to stop before it.
    """
    if self.stop():
      raise Stopped(f'before the stage {name}', self.workdir)
    names = stage_names(self.settings)
    count = f', stage {names.index(name) + 1} of {len(names)}' if name in names else ''
    log.info('%s: begins%s', name, count)
    before = self.seconds.get(name, 0.0)
    start = time.perf_counter()
    try:
      yield
    except BaseException:
      with contextlib.suppress(OSError):  # on a full disk what went wrong first is what matters
        self._note_seconds(name, before + time.perf_counter() - start)
      raise
    self._note_seconds(name, before + time.perf_counter() - start)
    log.info('%s: done, %.1f s', name, self.seconds[name])

  def _note_seconds(self, name: str, seconds: float) -> None:
    self.seconds[name] = round(seconds, 2)
    if meshes.primary():
      write_json(self.path('seconds.json'), self.seconds, 'seconds')

  def _compiled(self, made: dict[str | None, Callable], make: Callable, split: str) -> Callable:
    """The scorer or predictor of a split; splits without a mask share theirs."""
    masked = split if split in self.task.masked else None
    if masked not in made:
      made[masked] = make(
        self.adapted, self.preprocess, classes=self.task.mask(split), mesh=self.mesh
      )
    return made[masked]
