"""The sections of a config that are declared nowhere else: data, model, mesh and so on.

The other sections, `Recipe`, `Sampling`, `Consistency`, `Evolution` and `Augmentation`, are
declared where they are used.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any, Literal

from glora_jax.checks import field, shown, validate_fields
from glora_jax.method.presets import PRESETS, begins_as_preset
from glora_jax.method.space import SearchSpace
from glora_jax.training.recipe import Recipe
from glora_jax.vision.data import image, normalization
from glora_jax.vision.data.task import Source
from glora_jax.vision.models import weights
from glora_jax.vision.models.blocks import ACTIVATIONS
from glora_jax.vision.structure_names import (
  FINETUNING,
  FOUND,
  GENOME_ENDING,
  GRADIENT,
  SEARCH,
  TRANSFER,
  check_preset,
)

DType = Literal['float32', 'bfloat16']
NormalizationName = Literal[*normalization.NORMALIZATIONS]  # pyrefly: ignore
ActivationName = Literal[*ACTIVATIONS]  # pyrefly: ignore
RematPolicy = Literal[
  'everything_saveable',
  'nothing_saveable',
  'dots_saveable',
  'dots_with_no_batch_dims_saveable',
]

# Where a structure comes from, if not from a preset or a file.
NO_PRESETS = (FINETUNING, *FOUND)

MOST_PIXELS = 4096  # of a side
MOST_PARTS = 1024  # of rank one, in a layer

# JAX takes the 32 bits of a seed.
LEAST_SEED, MOST_SEED = -(2**31), 2**32 - 1
CHOOSING_SEED = 1000  # from a suite's first seed to that of the choice of learning rates

RANKS_OF_SEARCH = (4,)
RANKS_OTHERWISE = tuple(range(1, 9))


def check_presets(field: str, names: Collection[str], others: Collection[str]) -> None:
  """Raises ValueError unless the names of a field are presets, or among some others."""
  for name in names:
    if name not in others:
      try:
        check_preset(name)
      except ValueError as error:
        raise ValueError(f'{field}: {error}') from None


def check_structure(name: str, field: str = 'structure') -> None:
  """Checks the name of a run's structure, as far as that is possible without a model.

  Raises:
    ValueError: it is not in `NO_PRESETS`, not a preset's name and not the path of a genome.
  """
  if name in NO_PRESETS or name.endswith(GENOME_ENDING):
    return
  if begins_as_preset(name):
    check_presets(field, [name], ())
    return
  raise ValueError(
    f'{field}={shown(name)} must be {", ".join(NO_PRESETS)}, a preset ({", ".join(PRESETS)}, '
    "with a rank or a place as in 'lora:2@qkv'), or a genome file, whose name ends in "
    f'{GENOME_ENDING}.'
  )


class Section:
  """Settings that check their fields by their annotations and limits."""

  def __post_init__(self):
    validate_fields(self)


@dataclasses.dataclass(frozen=True)
class DataSettings(Source):
  """Where the images come from, and how they are read.

  Attributes:
    resize: how images become square: 'squash' scales each side, 'crop' keeps the aspect ratio and
      takes the middle.
    skip_broken: whether to leave out images that cannot be decoded.
    cache: folder for decoded images; None for none.
    max_resident: most bytes of images to keep on a device, for all splits together. Training images
      come first, and splits that no longer fit are streamed.
    workers: processes that decode streamed images; 0 for threads.
  """

  resize: image.ResizeRule = 'squash'
  skip_broken: bool = False
  cache: str | None = None
  max_resident: int = field(4 * 2**30, least=0, most=2**62)
  workers: int = field(0, least=0, most=1024)


@dataclasses.dataclass(frozen=True)
class ModelSettings(Section):
  """The pretrained backbone, and how it computes.

  Attributes:
    weights: 'embedded', a path (also of a run's folder), a URL, 'hf:owner/name[@revision]' on the
      Hugging Face hub, or a shortcut such as 'dinov2-S/14' (`fetch.SHORTCUTS`).
    sha256: checksum of the weights, 64 hexadecimal digits.
    image_size: pixels of a side of an image; None for what the weights were trained with.
    patch_size: pixels of a side of a patch; None for what the weights were trained with.
    normalization: how pixels are normalized; None for what the weights were trained with.
    num_heads: attention heads, if the file does not say.
    activation: activation of the MLPs, if the file does not say; None for that of the weights' code
      base.
    drop_path: largest probability of dropping a residual branch in training.
    dtype: type of the computation; with 'bfloat16', adapter, heads and the merging of both stay in
      float32.
    base_dtype: type in which the frozen weights are kept and saved.
    remat: policy of `jax.checkpoint_policies` for activations; None keeps all of them.
    unroll: blocks in a step of the scan over blocks; all of them are fastest on CPU, and compile
      longest.
  """

  weights: str = weights.EMBEDDED
  sha256: str | None = None
  image_size: int | None = field(None, least=1, most=MOST_PIXELS)
  patch_size: int | None = field(None, least=1, most=MOST_PIXELS)
  normalization: NormalizationName | None = None
  num_heads: int | None = field(None, least=1, most=MOST_PIXELS)
  activation: ActivationName | None = None
  drop_path: float = field(0.1, least=0, below=1)
  dtype: DType = 'float32'
  base_dtype: DType = 'float32'
  remat: RematPolicy | None = None
  unroll: int = field(1, least=1)

  def __post_init__(self):
    super().__post_init__()
    if not self.weights:
      raise ValueError("weights='' must not be empty.")
    if self.sha256 is not None and not re.fullmatch('[0-9a-fA-F]{64}', self.sha256):
      raise ValueError(f'sha256={shown(self.sha256)} must be 64 hexadecimal digits.')


@dataclasses.dataclass(frozen=True)
class SpaceSettings(Section):
  """The search space, the same for every layer.

  Attributes:
    ranks: LoRA ranks on offer, ascending; None for (4,) with structure='search', and for 1 to 8
      otherwise.
  """

  ranks: tuple[int, ...] | None = field(None, least=1)

  def __post_init__(self):
    super().__post_init__()
    self.search_space()  # checks that ranks ascend

  def search_space(self, structure: str = 'search') -> SearchSpace:
    """The space that `glora_jax.adapt` takes.

    Args:
      structure: where the structure comes from: 'search', 'gradient', 'transfer', or a preset or a
        file, which may use any form.

    Example:
      >>> SpaceSettings().search_space().ranks, SpaceSettings().search_space('gradient').ranks
      ((4,), (1, 2, 3, 4, 5, 6, 7, 8))
    """
    ranks = self.ranks
    if ranks is None:
      ranks = RANKS_OF_SEARCH if structure == SEARCH else RANKS_OTHERWISE
    is_bought = structure in (GRADIENT, TRANSFER)
    return SearchSpace.distinct(ranks) if is_bought else SearchSpace(ranks=ranks)


@dataclasses.dataclass(frozen=True)
class TrainingSettings(Recipe):
  """How everything is trained, and which weights are kept.

  Attributes:
    keep: weights of a fixed structure to keep: of the 'last' epoch, or of the 'best' on the
      validation images among about twenty; with 200 validation images 'best' was behind on all
      tasks measured.
  """

  keep: Literal['best', 'last'] = 'last'


@dataclasses.dataclass(frozen=True)
class ReportSettings(Section):
  """What a run calls its result.

  Attributes:
    result: name of the structure to fold as the result: 'search', 'gradient', 'lora:2' and so on;
      None for the one with the best validation accuracy within the budget (with protocol='paper'
      the searched one).
  """

  result: str | None = None


@dataclasses.dataclass(frozen=True)
class Finetuning(Section):
  """How the finetuning of a searched structure differs from `training`.

  Attributes:
    epochs: passes over the training images; 0 for no finetuning.
    warmup_epochs: epochs of linear warm-up; None for training's, but at most `epochs`.
    learning_rate: peak of the schedule; None for training's.
  """

  epochs: int = field(100, least=0)
  warmup_epochs: int | None = field(None, least=0)
  learning_rate: float | None = field(None, above=0)

  def recipe(self, training: Recipe) -> Recipe:
    """The whole recipe.

    Example:
      >>> Finetuning(epochs=5).recipe(Recipe(epochs=50, warmup_epochs=10)).warmup_epochs
      5
    """
    warmup, rate = self.warmup_epochs, self.learning_rate
    return dataclasses.replace(
      training,
      epochs=self.epochs,
      warmup_epochs=min(training.warmup_epochs, self.epochs) if warmup is None else warmup,
      learning_rate=training.learning_rate if rate is None else rate,
    )


@dataclasses.dataclass(frozen=True)
class AllocationSettings(Section):
  """How a structure is allocated from a gradient (`glora_jax.allocate`).

  Attributes:
    head_epochs: epochs of training the head alone before the gradient is taken.
    head_rate: learning rate of the head at the schedule's peak; None for twice
      `training.learning_rate`.
    max_rank: largest LoRA rank that a layer can get for A or for B.
    prior: what a noisy gradient borrows from: 'transfer' (other tasks' scores of the backbone;
      'shifts' if there are none), 'shifts' (the gradient of telling which way the same images were
      shifted), None for nothing.
    transfer: file of other tasks' scores of the backbone (`search.transfer.write`), for
      structure='transfer' and prior='transfer'; None for those of the 'embedded' backbone.
  """

  head_epochs: int = field(6, least=1)
  head_rate: float | None = field(None, above=0)
  max_rank: int = field(8, least=1, most=MOST_PARTS)
  prior: Literal['shifts', 'transfer'] | None = 'transfer'
  transfer: str | None = None

  def epochs(self, borrowed: bool = False) -> int:
    """The epochs that head and gradient count as.

    The gradient takes one pass over the images, forward and back; the head trains on features from
    a forward pass, a third of an epoch. The sum is rounded up.

    Args:
      borrowed: whether the prior was used; 'shifts' trains a head and takes a gradient itself.
    """
    return 3 if borrowed and self.prior == 'shifts' else 2

  def shortened(self, recipe: Recipe, borrowed: bool = False) -> Recipe:
    """A recipe with fewer epochs, by those that head and gradient count as.

    Args:
      recipe: how a given structure is trained.
      borrowed: see `epochs`.

    Raises:
      ValueError: too few epochs are left for the training.
    """
    spent, least = self.epochs(), max(1, recipe.warmup_epochs)
    if recipe.epochs - spent < least:
      raise ValueError(
        f'epochs={recipe.epochs} is too few for a structure from a gradient: head and gradient '
        f'count as {spent}, warm-up takes {recipe.warmup_epochs}; give more epochs.'
      )
    return dataclasses.replace(recipe, epochs=max(recipe.epochs - self.epochs(borrowed), least))

  def spared(self, recipe: Recipe, borrowed: bool = False) -> int:
    """The epochs by which `shortened` shortens a recipe: fewer than `epochs` if it has few."""
    return recipe.epochs - self.shortened(recipe, borrowed).epochs


@dataclasses.dataclass(frozen=True)
class MeshSettings(Section):
  """The devices of a run.

  Attributes:
    devices: devices to use; 'one' leaves the others alone.
    base: place of the frozen weights: whole on each device, or 'sharded' across devices.
    fsdp: with base='sharded', devices of a process that share one copy of the weights; None for one
      copy across all devices.
  """

  devices: Literal['all', 'one'] = 'all'
  base: Literal['replicated', 'sharded'] = 'replicated'
  fsdp: int | None = field(None, least=1)

  def __post_init__(self):
    super().__post_init__()
    if self.fsdp is not None and self.base != 'sharded':
      raise ValueError(f"fsdp={self.fsdp} has no effect with base={self.base!r}; give 'sharded'.")


@dataclasses.dataclass(frozen=True)
class DistributedSettings(Section):
  """Several processes as one run; None takes a value from the environment.

  Attributes:
    coordinator: HOST:PORT of process 0.
    num_processes: number of processes.
    process_id: number of this process, counted from 0.
  """

  coordinator: str | None = None
  num_processes: int | None = field(None, least=1)
  process_id: int | None = field(None, least=0)


@dataclasses.dataclass(frozen=True)
class SuiteSettings(Section):
  """Many runs as one: all combinations of tasks, structures, budgets and seeds.

  Attributes:
    structures: structures that are trained, each in a separate run without baselines; () for the
      config's structure and its baselines.
    budgets: most trained parameters of 'search', 'gradient' and 'transfer', ascending; () for
      `budget`.
    seeds: number of seeds, counted up from `seed`.
    rates: learning rates to choose from on the validation images, for each task and structure, with
      a seed that is not tested; () for `training.learning_rate`.
    rate: learning rate by structure ('lora' stands for 'lora:2', too); None or no entry for the
      best of `rates`.
    settings: 'budget' and 'learning_rate' of single tasks, by task (`config.with_settings`).
    prepare: whether to download and prepare data that needs no manual download; otherwise tasks
      without data are left out.
  """

  structures: tuple[str, ...] = ()
  budgets: tuple[int, ...] = field((), least=0)
  seeds: int = field(1, least=1, most=CHOOSING_SEED)
  rates: tuple[float, ...] = field((), above=0)
  rate: Mapping[str, float | None] = dataclasses.field(
    default_factory=lambda: dict.fromkeys((*PRESETS, *NO_PRESETS)), metadata={'above': 0}
  )
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  prepare: bool = False

  def __post_init__(self):
    super().__post_init__()
    for name in self.structures:
      check_structure(name, 'structures')
    check_presets('rate', self.rate, NO_PRESETS)
    for name in ('structures', 'budgets', 'rates'):
      if len(set(values := getattr(self, name))) < len(values):
        raise ValueError(f'{name}={values} has one value twice; leave it out.')
    if list(self.budgets) != sorted(self.budgets):
      raise ValueError(f'budgets={self.budgets} must be ascending numbers of parameters.')

  def rate_of(self, structure: str) -> float | None:
    """The learning rate that is given for a structure; None if it is to be chosen.

    Example:
      >>> SuiteSettings(rate={'lora': 1e-3}).rate_of('lora:2@qkv')
      0.001
    """
    base = re.split('[:@]', structure)[0]
    return self.rate.get(structure) or self.rate.get(base)


@dataclasses.dataclass(frozen=True)
class WatchSettings(Section):
  """What is recorded besides the results; a resumed run may change it.

  Attributes:
    tensorboard: whether to write the metrics to WORKDIR/tensorboard as well; needs tensorboardX.
    profile: stage to profile, such as 'supernet'; traces are in WORKDIR/profile.
  """

  tensorboard: bool = False
  profile: str | None = None
