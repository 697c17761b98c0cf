"""The sections of a config that belong to no other room: data, model, mesh and the like.

The other sections are `Recipe`, `Sampling`, `Consistency`, `Evolution` and `Augmentation`, which
stand where they are used, and check themselves by their own ranges, which a config's help prints.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from glora_jax.data import image, normalization
from glora_jax.data.task import Source
from glora_jax.method.presets import (
  GENOME_ENDING,
  GRADIENT,
  PRESET_NAMES,
  begins_as_preset,
  check_preset_name,
)
from glora_jax.method.space import SearchSpace
from glora_jax.models import weights
from glora_jax.models.vit import ACTIVATIONS
from glora_jax.runs.schema import field
from glora_jax.training.recipe import Recipe

DType = Literal['float32', 'bfloat16']
RematPolicy = Literal[
  'everything_saveable',
  'nothing_saveable',
  'dots_saveable',
  'dots_with_no_batch_dims_saveable',
]
ProfiledStage = Literal['supernet', 'baselines', 'search', 'finetune', 'head', 'training']

# What a structure comes from, where it is neither a preset nor a file.
SEARCH = 'search'  # or GRADIENT

# What a comparison compares; 'full' is all of GLoRA, 'finetuning' trains the base itself.
METHODS = ('linear', 'bitfit', 'lora', 'ssf', 'prompt', 'full', 'finetuning', 'search')
NO_PRESETS = ('finetuning', SEARCH, GRADIENT)

MOST_PIXELS = 4096  # of a side
MOST_PARTS = 1024  # of rank one, in a layer

# JAX takes the 32 bits of a seed.
LEAST_SEED, MOST_SEED = -(2**31), 2**32 - 1
TUNING_SEED = 1000  # from a comparison's first seed to that of the choice of learning rates

RANKS_OF_SEARCH = (4,)
RANKS_OTHERWISE = tuple(range(1, 9))


def check_method(name: str) -> None:
  """Checks the name of a method that a comparison can compare.

  Raises:
    ValueError: it is neither a preset's nor 'finetuning', 'search' or 'gradient'.
  """
  if name not in NO_PRESETS:
    check_preset_name(name)


def has_budget(method: str) -> bool:
  """Whether a method of a comparison is what a budget makes of it, and has a row for each."""
  return method in (SEARCH, GRADIENT)


def check_row(name: str) -> None:
  """Checks the name of what a run trains beside its winner.

  Raises:
    ValueError: it is neither a preset's nor 'gradient'.
  """
  if name != GRADIENT:
    check_preset_name(name)


def check_sha256(text: str) -> None:
  """Checks that a text can be a checksum.

  Raises:
    ValueError: it has not 64 hexadecimal digits.
  """
  if not re.fullmatch('[0-9a-fA-F]{64}', text):
    raise ValueError('it is no checksum, which has 64 hexadecimal digits.')


def check_structure(name: str) -> None:
  """Checks what a run's structure comes from, as far as it is known without a model.

  Raises:
    ValueError: it is neither 'search' nor 'gradient' nor a preset's name nor the path of a genome.
  """
  if name in (SEARCH, GRADIENT) or name.endswith(GENOME_ENDING):
    return
  if begins_as_preset(name):
    check_preset_name(name)
    return
  raise ValueError(
    f"it is neither 'search' nor 'gradient', no preset ({', '.join(PRESET_NAMES)}, with a rank or "
    f"a place as in 'lora:2@qkv'), and no genome file, whose name ends in {GENOME_ENDING}."
  )


@dataclasses.dataclass(frozen=True)
class DataSettings(Source):
  """Where the images come from, and how they are read."""

  resize: image.ResizeRule = field(
    'squash',
    "how an image becomes square: 'crop' keeps the aspect ratio and takes the middle",
  )
  skip_broken: bool = field(False, 'whether images that cannot be decoded are left out')
  cache: str | None = field(None, 'folder for decoded images; None keeps none')
  max_resident: int = field(
    4 * 2**30,
    'bytes of images of a split that stay on the device; larger splits are streamed',
    at_least=0,
    at_most=2**62,
  )
  workers: int = field(
    0, 'processes that decode what is streamed; 0 for threads', at_least=0, at_most=1024
  )


@dataclasses.dataclass(frozen=True)
class ModelSettings:
  """The pretrained backbone, and how it computes."""

  weights: str = field(
    weights.EMBEDDED,
    "'embedded', a path (a run's folder will do), an address, 'hf:owner/name[@revision]' on the "
    'Hugging Face hub, or a shortcut (`fetch.SHORTCUTS`)',
    nonempty=True,
  )
  sha256: str | None = field(
    None, 'checksum of the weights, 64 hexadecimal digits', check=check_sha256
  )
  image_size: int | None = field(
    None,
    'pixels of a side; None for what the weights were trained with',
    at_least=1,
    at_most=MOST_PIXELS,
  )
  patch_size: int | None = field(
    None,
    'pixels of a patch; None for what the weights were trained with',
    at_least=1,
    at_most=MOST_PIXELS,
  )
  normalization: str | None = field(
    None,
    'how pixels become numbers; None for what the weights were trained with',
    choices=tuple(normalization.NORMALIZATIONS),
  )
  num_heads: int | None = field(
    None, 'attention heads, where the file does not say', at_least=1, at_most=MOST_PIXELS
  )
  activation: str | None = field(
    None,
    "activation of the MLPs, where the file does not say; None for that of the weights' code base",
    choices=tuple(ACTIVATIONS),
  )
  drop_path: float = field(
    0.1, 'largest probability that training drops a residual branch', at_least=0, below=1
  )
  dtype: DType = field(
    'float32',
    "type of the computation; 'bfloat16' keeps supports, heads and the merging of both in float32",
  )
  base_dtype: DType = field('float32', 'type that the frozen weights are kept and saved in')
  remat: RematPolicy | None = field(
    None,
    'policy of `jax.checkpoint_policies` for activations; None keeps all of them',
  )
  unroll: int = field(
    1,
    'blocks in a step of the scan over them; the depth is fastest on CPU, and compiles longest',
    at_least=1,
  )


@dataclasses.dataclass(frozen=True)
class SpaceSettings:
  """The alleles on offer, the same for every layer."""

  ranks: tuple[int, ...] | None = field(
    None,
    'LoRA ranks on offer, ascending; None for (4,) where a supernet is searched, and for 1 to 8 '
    'otherwise',
    at_least=1,
    nonempty=True,
  )

  def __post_init__(self):
    self.search_space()  # refuses ranks that are not ascending

  def search_space(self, structure: str = 'search') -> SearchSpace:
    """The space that `glora_jax.adapt` takes.

    Args:
      structure: where the structure comes from: 'search', 'gradient', or a preset or a file, which
        may have any allele.

    Example:
      >>> SpaceSettings().search_space().ranks, SpaceSettings().search_space('gradient').ranks
      ((4,), (1, 2, 3, 4, 5, 6, 7, 8))
    """
    ranks = self.ranks
    if ranks is None:
      ranks = RANKS_OF_SEARCH if structure == 'search' else RANKS_OTHERWISE
    return SearchSpace.distinct(ranks) if structure == 'gradient' else SearchSpace(ranks=ranks)


@dataclasses.dataclass(frozen=True)
class Finetuning(Recipe):
  """How the winner of the search is trained on, from the supernet's weights."""

  epochs: int = field(100, 'passes over the training images; 0 for no finetuning', at_least=0)
  on: Literal['train', 'train+val'] = field(
    'train',
    "images to finetune on; 'train+val' with the number of epochs that was best on 'val' after "
    "training on 'train'",
  )


@dataclasses.dataclass(frozen=True)
class AllocationSettings:
  """How a structure is read off a gradient (`glora_jax.allocate`)."""

  head_epochs: int = field(
    6, 'epochs for which the head is trained alone before the gradient is taken', at_least=1
  )
  folds: int = field(
    8, 'parts of the training images, each of which judges what the others choose', at_least=2
  )
  max_rank: int = field(
    8, 'most rank-one parts that a layer can get of A or of B', at_least=1, at_most=MOST_PARTS
  )

  prior: Literal['shifts'] | None = field(
    'shifts',
    'what a gradient that is mostly noise borrows from: the one of telling which way the same '
    'images were shifted; None for nothing',
  )

  def epochs(self, borrowed: bool = False) -> int:
    """The epochs that head and gradient count as.

    A gradient passes twice over the images, forward and back. A head trains on features that one
    pass forward gives, a third of an epoch; what that makes is rounded up.

    Args:
      borrowed: whether there were two of both, the task's and its prior's.
    """
    return 5 if borrowed else 3

  def shortened(self, recipe: Recipe, borrowed: bool = False) -> Recipe:
    """A recipe for what has been paid for head and gradient already: that many epochs fewer.

    Args:
      recipe: how a structure is trained that was given.
      borrowed: see `epochs`.

    Raises:
      ValueError: nothing is left for the training.
    """
    spent = self.epochs()
    left = recipe.epochs - spent
    if left < max(1, recipe.warmup_epochs):
      raise ValueError(
        f'epochs={recipe.epochs} leave too little to a structure from a gradient: head and '
        f'gradient count as {spent}, {recipe.warmup_epochs} warm up; give more epochs.'
      )
    more = self.epochs(borrowed) - spent
    return dataclasses.replace(recipe, epochs=max(left - more, recipe.warmup_epochs, 1))

  def spared(self, recipe: Recipe, borrowed: bool = False) -> int:
    """The epochs by which `shortened` makes a recipe shorter: fewer than `epochs` where few are."""
    return recipe.epochs - self.shortened(recipe, borrowed).epochs


@dataclasses.dataclass(frozen=True)
class MeshSettings:
  """The devices of a run."""

  devices: Literal['all', 'one'] = field('all', "devices to use; 'one' leaves the others alone")
  base: Literal['replicated', 'sharded'] = field(
    'replicated', "place of the frozen weights; 'sharded' keeps a part of them on each device"
  )
  fsdp: int | None = field(
    None,
    "devices of a process that share one copy of the weights with base='sharded'; None for one "
    'copy for all devices',
    at_least=1,
  )


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What a comparison compares (`comparison.run`)."""

  methods: Sequence[str] = field(
    METHODS,
    "names of presets ('lora:2@qkv', see `glora_jax.preset`), 'finetuning' (full fine-tuning), "
    "'search' and 'gradient'; these two and one with ranks that rise have a row for each budget",
    check=check_method,
    nonempty=True,
  )
  budgets: Sequence[int] = field(
    (20_000, 40_000),
    'most trained parameters of a structure that is chosen, ascending; a row of the table each',
    at_least=0,
  )
  seeds: int = field(5, "number of seeds, from the config's on", at_least=1, at_most=TUNING_SEED)
  rates: Sequence[float] = field(
    (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
    'learning rates that each method chooses from',
    above=0,
    nonempty=True,
  )
  rate: Mapping[str, float | None] = field(
    dict.fromkeys((*PRESET_NAMES, *NO_PRESETS)),
    'learning rate of each method where it is chosen already; None, or no entry, to choose',
    above=0,
    check=check_method,
  )

  def __post_init__(self):
    if not any(map(has_budget, self.methods)):
      return
    if not self.budgets or list(self.budgets) != sorted(set(self.budgets)):
      raise ValueError(
        f'compare.budgets={tuple(self.budgets)} must be ascending numbers of parameters, '
        'at least one.'
      )


@dataclasses.dataclass(frozen=True)
class DistributedSettings:
  """Several processes as one run; None for what the environment says."""

  coordinator: str | None = field(None, 'HOST:PORT of process 0')
  num_processes: int | None = field(None, 'number of processes', at_least=1)
  process_id: int | None = field(None, 'number of this process, from 0 on', at_least=0)


@dataclasses.dataclass(frozen=True)
class SuiteSettings:
  """A task that stands for several, as 'vtab/all'."""

  settings: Mapping[str, Any] = field(
    {}, "a task's own 'budget' and 'learning_rate', by task (`config.with_settings`)"
  )
  prepare: bool = field(
    False,
    'whether data that needs no manual download is fetched and prepared; otherwise tasks whose '
    'data is missing are left out',
  )


@dataclasses.dataclass(frozen=True)
class WatchSettings:
  """What is recorded of a run beside its results; a resumed run may have other values."""

  tensorboard: bool = field(
    False,
    'whether the metrics are written as events to WORKDIR/tensorboard, too; needs tensorboardX',
  )
  profile: ProfiledStage | None = field(
    None, 'stage of which dispatches are traced into WORKDIR/profile'
  )
