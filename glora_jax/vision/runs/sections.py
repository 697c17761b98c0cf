"""The sections of a config that are declared nowhere else: data, model, mesh and so on.

The other sections, `Recipe`, `Sampling`, `Consistency`, `Evolution` and `Augmentation`, are
declared where they are used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from glora_jax.method.presets import (
  GENOME_ENDING,
  GRADIENT,
  KNOWN,
  PRESET_NAMES,
  begins_as_preset,
  parse_preset_name,
)
from glora_jax.method.space import SearchSpace
from glora_jax.training.recipe import Recipe
from glora_jax.vision.data import image, normalization
from glora_jax.vision.data.task import Source
from glora_jax.vision.models import weights
from glora_jax.vision.models.blocks import ACTIVATIONS
from glora_jax.vision.settings import (
  FILLED,
  Flag,
  Integer,
  Name,
  Number,
  Several,
  Text,
  Whole,
  declared,
  passing,
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
SEARCH = 'search'  # or GRADIENT, or KNOWN
FOUND = (SEARCH, GRADIENT, KNOWN)  # a comparison has a row of them for each budget

# What a comparison compares; 'full' is all of GLoRA, 'finetuning' trains the base itself.
METHODS = ('linear', 'bitfit', 'lora', 'ssf', 'prompt', 'full', 'finetuning', 'search')
NO_PRESETS = ('finetuning', *FOUND)

MOST_PIXELS = 4096  # of a side
MOST_PARTS = 1024  # of rank one, in a layer

# JAX takes the 32 bits of a seed.
LEAST_SEED, MOST_SEED = -(2**31), 2**32 - 1
TUNING_SEED = 1000  # from a comparison's first seed to that of the choice of learning rates

RANKS_OF_SEARCH = (4,)
RANKS_OTHERWISE = tuple(range(1, 9))


def preset_or(*others: str) -> AfterValidator:
  """For `Annotated`: checks that a string is the name of a preset, or one of some others."""

  def check(name: str) -> None:
    if name not in others:
      parse_preset_name(name)

  return passing(check)


def check_structure(name: str) -> None:
  """Checks the name of a run's structure, as far as that is possible without a model.

  Raises:
    ValueError: it is not in `FOUND`, not a preset's name and not the path of a genome.
  """
  if name in FOUND or name.endswith(GENOME_ENDING):
    return
  if begins_as_preset(name):
    parse_preset_name(name)
    return
  raise ValueError(
    f'it must be {", ".join(FOUND)}, a preset ({", ".join(PRESET_NAMES)}, with a rank or '
    f"a place as in 'lora:2@qkv'), or a genome file, whose name ends in {GENOME_ENDING}."
  )


METHOD = preset_or(*NO_PRESETS)
Rates = Mapping[Annotated[Name, METHOD], Annotated[Number, Field(gt=0)] | None]


@declared
class DataSettings(Source):
  """Where the images come from, and how they are read."""

  resize: image.ResizeRule = Field(
    default='squash',
    description="how images become square: 'squash' scales each side, 'crop' keeps the aspect "
    'ratio and takes the middle',
  )
  skip_broken: Flag = Field(
    default=False, description='whether to leave out images that cannot be decoded'
  )
  cache: Text | None = Field(default=None, description='folder for decoded images; None for none')
  max_resident: Integer = Field(
    default=4 * 2**30,
    ge=0,
    le=2**62,
    description='most bytes of each split to keep on the device; a larger one is streamed',
  )
  workers: Whole = Field(
    default=0, ge=0, le=1024, description='processes that decode streamed images; 0 for threads'
  )


@declared
class ModelSettings:
  """The pretrained backbone, and how it computes."""

  weights: Annotated[Text, FILLED] = Field(
    default=weights.EMBEDDED,
    description="'embedded', a path (also of a run's folder), a URL, 'hf:owner/name[@revision]' on "
    "the Hugging Face hub, or a shortcut such as 'dinov2-S/14' (`fetch.SHORTCUTS`)",
  )
  sha256: Annotated[str, Field(strict=True, pattern='^[0-9a-fA-F]{64}$')] | None = Field(
    default=None, description='checksum of the weights, 64 hexadecimal digits'
  )
  image_size: Whole | None = Field(
    default=None,
    ge=1,
    le=MOST_PIXELS,
    description='pixels of a side of an image; None for what the weights were trained with',
  )
  patch_size: Whole | None = Field(
    default=None,
    ge=1,
    le=MOST_PIXELS,
    description='pixels of a side of a patch; None for what the weights were trained with',
  )
  normalization: NormalizationName | None = Field(
    default=None,
    description='how pixels are normalized; None for what the weights were trained with',
  )
  num_heads: Whole | None = Field(
    default=None, ge=1, le=MOST_PIXELS, description='attention heads, if the file does not say'
  )
  activation: ActivationName | None = Field(
    default=None,
    description="activation of the MLPs, if the file does not say; None for that of the weights' "
    'code base',
  )
  drop_path: Number = Field(
    default=0.1,
    ge=0,
    lt=1,
    description='largest probability of dropping a residual branch in training',
  )
  dtype: DType = Field(
    default='float32',
    description="type of the computation; with 'bfloat16', supports, heads and the merging of both "
    'stay in float32',
  )
  base_dtype: DType = Field(
    default='float32', description='type in which the frozen weights are kept and saved'
  )
  remat: RematPolicy | None = Field(
    default=None,
    description='policy of `jax.checkpoint_policies` for activations; None keeps all of them',
  )
  unroll: Whole = Field(
    default=1,
    ge=1,
    description='blocks in a step of the scan over blocks; all of them are fastest on CPU, and '
    'compile longest',
  )


@declared
class SpaceSettings:
  """The search space, the same for every layer."""

  ranks: Annotated[Several[Annotated[Whole, Field(ge=1)]], FILLED] | None = Field(
    default=None,
    description="LoRA ranks on offer, ascending; None for (4,) with structure='search', and for 1 "
    'to 8 otherwise',
  )

  def __post_init__(self):
    self.search_space()  # checks that ranks ascend

  def search_space(self, structure: str = 'search') -> SearchSpace:
    """The space that `glora_jax.adapt` takes.

    Args:
      structure: where the structure comes from: 'search', 'gradient', 'known', or a preset or a
        file, which may use any allele.

    Example:
      >>> SpaceSettings().search_space().ranks, SpaceSettings().search_space('gradient').ranks
      ((4,), (1, 2, 3, 4, 5, 6, 7, 8))
    """
    ranks = self.ranks
    if ranks is None:
      ranks = RANKS_OF_SEARCH if structure == 'search' else RANKS_OTHERWISE
    is_bought = structure in (GRADIENT, KNOWN)
    return SearchSpace.distinct(ranks) if is_bought else SearchSpace(ranks=ranks)


@declared
class TrainingSettings(Recipe):
  """How everything is trained, and which weights are kept."""

  keep: Literal['best', 'last'] = Field(
    default='last',
    description="weights of a fixed structure to keep: of the 'last' epoch, or of the 'best' on "
    "the validation images among about twenty; with 200 validation images 'best' was behind on all "
    'tasks measured',
  )


@declared
class ReportSettings:
  """What a run calls its result."""

  result: Text | None = Field(
    default=None,
    description="name of the structure to fold as the result: 'search', 'gradient', 'lora:2' and "
    'so on; None for the one with the best validation accuracy within the budget (with '
    "protocol='paper' the searched one)",
  )


@declared
class Finetuning:
  """How the finetuning of a searched structure differs from `training`."""

  epochs: Whole = Field(
    default=100, ge=0, description='passes over the training images; 0 for no finetuning'
  )
  warmup_epochs: Whole | None = Field(
    default=None,
    ge=0,
    description="epochs of linear warm-up; None for training's, but at most `epochs`",
  )
  learning_rate: Number | None = Field(
    default=None, gt=0, description="peak of the schedule; None for training's"
  )

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


@declared
class AllocationSettings:
  """How a structure is allocated from a gradient (`glora_jax.allocate`)."""

  head_epochs: Whole = Field(
    default=6,
    ge=1,
    description='epochs of training the head alone before the gradient is taken',
  )
  max_rank: Whole = Field(
    default=8,
    ge=1,
    le=MOST_PARTS,
    description='largest LoRA rank that a layer can get for A or for B',
  )
  prior: Literal['shifts', 'known'] | None = Field(
    default='known',
    description="what a noisy gradient borrows from: 'known' (values known for the backbone; "
    "'shifts' if there are none), 'shifts' (the gradient of telling which way the same images were "
    'shifted), None for nothing',
  )
  known: Text | None = Field(
    default=None,
    description='file of values known for the backbone (`search.known.write`), for '
    "structure='known' and prior='known'; None for those of the 'embedded' backbone",
  )

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


@declared
class MeshSettings:
  """The devices of a run."""

  devices: Literal['all', 'one'] = Field(
    default='all', description="devices to use; 'one' leaves the others alone"
  )
  base: Literal['replicated', 'sharded'] = Field(
    default='replicated',
    description="place of the frozen weights: whole on each device, or 'sharded' across devices",
  )
  fsdp: Whole | None = Field(
    default=None,
    ge=1,
    description="with base='sharded', devices of a process that share one copy of the weights; "
    'None for one copy across all devices',
  )


@declared
class Comparison:
  """What a comparison compares (`comparison.run`)."""

  methods: Annotated[Several[Annotated[Text, METHOD]], FILLED] = Field(
    default=METHODS,
    description="names of presets ('lora:2@qkv', see `glora_jax.preset`), 'finetuning' (full "
    "fine-tuning), 'search', 'gradient' and 'known'; the last three have a row for each budget",
  )
  budgets: Several[Annotated[Whole, Field(ge=0)]] = Field(
    default=(20_000, 40_000),
    description="most trained parameters of 'search', 'gradient' and 'known', ascending; a row of "
    'the table each',
  )
  seeds: Whole = Field(
    default=5, ge=1, le=TUNING_SEED, description='number of seeds, counted up from `seed`'
  )
  rates: Annotated[Several[Annotated[Number, Field(gt=0)]], FILLED] = Field(
    default=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
    description='learning rates to choose from for each method',
  )
  rate: Rates = Field(
    default=dict.fromkeys((*PRESET_NAMES, *NO_PRESETS)),
    description='learning rate by method; None or no entry to choose it on the validation images',
  )

  def __post_init__(self):
    if set(FOUND).isdisjoint(self.methods):
      return
    if not self.budgets or list(self.budgets) != sorted(set(self.budgets)):
      raise ValueError(
        f'budgets={self.budgets} must be ascending numbers of parameters, at least one.'
      )


@declared
class DistributedSettings:
  """Several processes as one run; None takes a value from the environment."""

  coordinator: Text | None = Field(default=None, description='HOST:PORT of process 0')
  num_processes: Whole | None = Field(default=None, ge=1, description='number of processes')
  process_id: Whole | None = Field(
    default=None, ge=0, description='number of this process, counted from 0'
  )


@declared
class SuiteSettings:
  """A task that stands for several, such as 'vtab/all'."""

  settings: Mapping[Name, Any] = Field(
    default={},
    description="'budget' and 'learning_rate' of single tasks, by task (`config.with_settings`)",
  )
  prepare: Flag = Field(
    default=False,
    description='whether to download and prepare data that needs no manual download; otherwise '
    'tasks without data are left out',
  )


@declared
class WatchSettings:
  """What is recorded besides the results; a resumed run may change it."""

  tensorboard: Flag = Field(
    default=False,
    description='whether to write the metrics to WORKDIR/tensorboard as well; needs tensorboardX',
  )
  profile: Text | None = Field(
    default=None,
    description="stage to profile, such as 'supernet'; traces are in WORKDIR/profile",
  )
