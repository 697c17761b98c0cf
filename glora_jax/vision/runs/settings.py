"""All fields of a config: `RunSettings`, its sections, and which fields contradict each other.

Types, ranges, defaults and meanings are declared here; those of the sections `Recipe`, `Sampling`,
`Consistency`, `Evolution` and `Augmentation` where they are used. To print all fields:

    python -m glora_jax.main --help_config=all
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from glora_jax.checks import field, shown, validate_fields
from glora_jax.method.presets import PRESETS
from glora_jax.method.space import SearchSpace
from glora_jax.search.evolution import Evolution
from glora_jax.training.consistency import Consistency
from glora_jax.training.recipe import Recipe
from glora_jax.training.sampling import Sampling
from glora_jax.vision.data import image, normalization
from glora_jax.vision.data.augment import Augmentation
from glora_jax.vision.data.catalog import expand
from glora_jax.vision.data.task import Source
from glora_jax.vision.models.vit import ACTIVATIONS
from glora_jax.vision.models.weights import EMBEDDED, EMBEDDED_TRANSFER
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

# Origins of a structure other than a preset or a file.
NO_PRESETS = (FINETUNING, *FOUND)

MOST_PIXELS = 4096  # of a side
MOST_PARTS = 1024  # of rank one, in a layer
MOST_BUDGET = 2**62  # parameters

# JAX uses 32 bits of a seed.
LEAST_SEED, MOST_SEED = -(2**31), 2**32 - 1
CHOOSING_SEED = 1000  # from a suite's first seed to that of the choice of learning rates

RANKS_OF_SEARCH = (4,)
RANKS_OTHERWISE = tuple(range(1, 9))


def check_structures(
  field: str, names: Iterable[str], others: Sequence[str] = NO_PRESETS, files: bool = False
) -> None:
  """Checks names of structures, as far as that is possible without a model.

  Raises:
    ValueError: one is not a preset's name, not among the others, and not the path of a genome.
  """
  for name in names:
    if name in others or (files and name.endswith(GENOME_ENDING)):
      continue
    try:
      check_preset(name)
    except ValueError as error:
      ending = f', and paths of genomes, which end in {GENOME_ENDING}' if files else ''
      raise ValueError(
        f'{field}: {error} Other structures are {", ".join(others)}{ending}.'
      ) from None


class Section:
  """Settings that check their fields by their annotations and limits."""

  def __post_init__(self):
    validate_fields(self)


@dataclasses.dataclass(frozen=True)
class DataSettings(Source):
  """Where the images come from, and how they are read.

  Attributes:
    resize: how images become square: 'squash' scales each side, 'crop' keeps the aspect ratio and
      cuts out the middle. None uses the rule in the weights' config, or 'squash' if it has none.
    skip_broken: whether to leave out images that cannot be decoded.
    cache: folder for decoded images; None for none.
    max_resident: most bytes of images to keep on a device, for all splits together. Training images
      come first, and splits that no longer fit are streamed.
    workers: processes that decode streamed images; 0 for threads.
    balance: how classes of different sizes count alike in training: 'sample' draws each class
      equally often in an epoch, whose number of steps stays the same; 'loss' weighs each image with
      the inverse frequency of its class, with mean 1; 'none' does neither.
  """

  resize: image.ResizeRule | None = None
  skip_broken: bool = False
  cache: str | None = None
  max_resident: int = field(4 * 2**30, least=0, most=2**62)
  workers: int = field(0, least=0, most=1024)
  balance: Literal['none', 'sample', 'loss'] = 'none'


@dataclasses.dataclass(frozen=True)
class ModelSettings(Section):
  """The pretrained backbone, and how it computes.

  Attributes:
    weights: 'embedded', a path (also of a run's folder), a URL, 'hf:owner/name[@revision]' on the
      Hugging Face hub, 'timm:NAME', or a shortcut such as 'dinov2-S/14' (`fetch.SHORTCUTS`). A
      model that is not a plain ViT runs as the PyTorch module of timm or transformers, in float32
      and without `drop_path`, `remat` and `unroll`.
    sha256: checksum of the weights, 64 hexadecimal digits.
    image_size: pixels of a side of an image; None for the size that the weights were trained with.
    patch_size: pixels of a side of a patch; None for the size that the weights were trained with.
    normalization: how pixels are normalized; None for how they were when the weights were trained.
    num_heads: attention heads, if the file does not have their number.
    activation: activation of the MLPs, if the file does not have it; None for that of the weights'
      code base.
    drop_path: largest probability of dropping a residual branch in training.
    dtype: type of the computation; with 'bfloat16', adapter, heads and the merging of both stay in
      float32.
    base_dtype: type in which the frozen weights are stored and saved.
    remat: policy of `jax.checkpoint_policies` for activations; None keeps all of them.
    unroll: blocks in a step of the scan over blocks; all of them are fastest on CPU, and compile
      longest.
  """

  weights: str = EMBEDDED
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
    ranks: LoRA ranks to choose from, ascending; None for (4,) with structure='search', and for 1 to
      8 otherwise.
  """

  ranks: tuple[int, ...] | None = field(None, least=1)

  def __post_init__(self):
    super().__post_init__()
    self.search_space()  # checks that ranks ascend

  def search_space(self, structure: str = 'search') -> SearchSpace:
    """The space for `glora_jax.adapt`.

    Args:
      structure: origin of the structure: 'search', 'gradient', 'transfer', or a preset or a file,
        which may use any form.

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
  """How everything is trained, as in the official GLoRA code by default; which weights are kept.

  Attributes:
    keep: weights of a fixed structure to keep: of the 'last' epoch, or of the 'best' on the
      validation images among about twenty. With 200 validation images, 'best' was less accurate on
      all tasks that were measured.
    label_smoothing: share of every label that is spread evenly over all classes in training.
  """

  epochs: int = field(500, least=0)
  learning_rate: float = field(1e-4, above=0)
  initial_learning_rate: float = field(1e-6, least=0)
  final_learning_rate: float = field(1e-5, least=0)
  warmup: float = field(0.02, least=0, most=1)
  keep: Literal['best', 'last'] = 'last'
  label_smoothing: float = field(0.0, least=0, below=1)


@dataclasses.dataclass(frozen=True)
class ReportSettings(Section):
  """How a run chooses its result.

  Attributes:
    result: names of the structures that may be the result, 'search' or 'lora:2' for instance. If
      there are several, the best on the validation images is the result, whatever the budget. ()
      for the one in `structure`.
    metric: the metric on the validation images that chooses the result, the epoch for
      `training.keep` and the rate of `suite.rates`: 'accuracy', or 'balanced' for the mean accuracy
      over classes. A search ranks by `search.fitness`.
  """

  result: tuple[str, ...] = ()
  metric: Literal['accuracy', 'balanced'] = 'accuracy'

  @property
  def chooses_by(self) -> str:
    """Name of the measurement that is compared."""
    return 'val_accuracy' if self.metric == 'accuracy' else 'val_balanced_accuracy'


@dataclasses.dataclass(frozen=True)
class Finetuning(Section):
  """How the finetuning of a searched structure differs from `training`.

  Attributes:
    epochs: passes over the training images; 0 for no finetuning.
    warmup: share of all steps in which the learning rate rises linearly.
    learning_rate: peak of the schedule; None for that of `training`.
  """

  epochs: int = field(100, least=0)
  warmup: float = field(0.1, least=0, most=1)
  learning_rate: float | None = field(None, above=0)

  def recipe(self, training: Recipe) -> Recipe:
    """The whole recipe.

    Example:
      >>> Finetuning(epochs=5).recipe(Recipe(learning_rate=0.01)).learning_rate
      0.01
    """
    rate = self.learning_rate
    return dataclasses.replace(
      training,
      epochs=self.epochs,
      warmup=self.warmup,
      learning_rate=training.learning_rate if rate is None else rate,
    )


@dataclasses.dataclass(frozen=True)
class AllocationSettings(Section):
  """How a structure is allocated from a gradient (`glora_jax.allocate`).

  Attributes:
    head_epochs: epochs of the linear probe before the gradient is computed.
    head_rate: learning rate of the linear probe at the schedule's peak; None for twice
      `training.learning_rate`.
    max_rank: largest LoRA rank that a layer can get for A or for B.
    prior: scores that are mixed with those of a noisy gradient: 'transfer' (scores from other tasks
      of the backbone; 'shifts' if there are none), 'shifts' (scores from one gradient of the same
      images, shifted, with the direction of the shift as the label), None for no prior.
    transfer: file of other tasks' scores of the backbone (`search.transfer.write`), for
      structure='transfer' and prior='transfer'; None for those of the 'embedded' backbone.
  """

  head_epochs: int = field(6, least=1)
  head_rate: float | None = field(None, above=0)
  max_rank: int = field(8, least=1, most=MOST_PARTS)
  prior: Literal['shifts', 'transfer'] | None = 'transfer'
  transfer: str | None = None

  def epochs(self, borrowed: bool = False) -> int:
    """The epochs that linear probe and gradient count as.

    The gradient needs one pass over the images, forward and back. The probe trains on features from
    a forward pass, a third of an epoch. The sum is rounded up. Measured, they take longer
    (`docs/concepts/gradient.md`).

    Args:
      borrowed: whether the prior was used; 'shifts' needs another probe and gradient.
    """
    return 3 if borrowed and self.prior == 'shifts' else 2

  def shortened(self, recipe: Recipe, borrowed: bool = False) -> Recipe:
    """A recipe without the epochs that linear probe and gradient count as; warm-up is as long.

    Args:
      recipe: how a given structure is trained.
      borrowed: see `epochs`.

    Raises:
      ValueError: too few epochs are left for the training.
    """
    spent = self.epochs()
    if recipe.epochs <= spent:
      raise ValueError(
        f'epochs={recipe.epochs} is too few for a structure from a gradient: linear probe and '
        f'gradient count as {spent}; give more epochs.'
      )
    epochs = max(1, recipe.epochs - self.epochs(borrowed))
    warmup = min(1.0, recipe.warmup * recipe.epochs / epochs)
    return dataclasses.replace(recipe, epochs=epochs, warmup=warmup)

  def spared(self, recipe: Recipe, borrowed: bool = False) -> int:
    """The number of epochs that `shortened` removes: fewer than `epochs` if a recipe has few."""
    return recipe.epochs - self.shortened(recipe, borrowed).epochs


@dataclasses.dataclass(frozen=True)
class MeshSettings(Section):
  """The devices of a run.

  Attributes:
    devices: devices to use; 'one' leaves the others alone.
    base: placement of the frozen weights: 'replicated' on each device, or 'sharded' across them.
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
    rate: learning rate by structure ('lora' also stands for 'lora:2'); None or no entry for the
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
    check_structures('structures', self.structures, files=True)
    check_structures('rate', self.rate)
    for name in ('structures', 'budgets', 'rates'):
      if len(set(values := getattr(self, name))) < len(values):
        raise ValueError(f'{name}={values} has one value twice; leave it out.')
    if list(self.budgets) != sorted(self.budgets):
      raise ValueError(f'budgets={self.budgets} must be ascending numbers of parameters.')

  def rate_of(self, structure: str) -> float | None:
    """The learning rate of a structure; None if it is chosen from `rates`.

    Example:
      >>> SuiteSettings(rate={'lora': 1e-3}).rate_of('lora:2@qkv')
      0.001
    """
    base = re.split('[:@]', structure)[0]
    return self.rate.get(structure) or self.rate.get(base)


@dataclasses.dataclass(frozen=True)
class WatchSettings(Section):
  """Records besides the results; a resumed run may change them.

  Attributes:
    tensorboard: whether to write the metrics to WORKDIR/tensorboard as well; needs tensorboardX.
    profile: stage to profile, such as 'supernet'; traces are in WORKDIR/profile.
    call: function that is called with the workdir and each line of `metrics.jsonl`, as
      'MODULE:FUNCTION' with the module on PYTHONPATH.
  """

  tensorboard: bool = False
  profile: str | None = None
  call: str | None = None


@dataclasses.dataclass(frozen=True)
class RunSettings(Section):
  """The config of a run or a suite.

  The defaults are the official code's recipe and search, on the task and backbone of the package:
  a supernet trained for 500 epochs, and a search.

  Attributes:
    task: name of the task. Only of 'vtab', 'fewshot' and 'generalization' it may be several, such
      as 'vtab/all'.
    protocol: 'honest' searches on the validation images; 'paper' trains on train+val and searches
      on test, which every table and page of such a run states.
    structure: origin of the structure: 'search' (train a supernet and search it), 'gradient'
      (allocated from one gradient, see `allocation`), 'transfer' (allocated from other tasks'
      scores of the backbone, `allocation.transfer`), 'finetuning' (the whole base is trained), a
      preset ('lora:2@qkv', see `glora_jax.preset`), or the path of a genome.json.
    train_on: images to train on after structure and rate are chosen; 'train+val' adds the
      validation images, whose accuracy is then not measured. protocol='paper' always adds them.
    seed: seed of all randomness.
    budget: most trained parameters, without the head; None for no limit.
    component_dropout: probability that a training step drops a rank-one part of a LoRA of A or B;
      the others are scaled up to keep the mean (MLAE, arXiv 2405.18897).
    presets: baselines in addition to the linear probe, each trained alone with the same recipe:
      presets such as 'hira:2' or 'lora:2@qkv' (`glora_jax.preset`); with structure='search' also
      'gradient'. None for no baseline at all, not even the linear probe.
    test: whether to read the test images. Without them a run ends with the accuracies on the
      validation images, for choosing settings, and folds nothing.
    checkpoint_epochs: epochs between two saved training states.
  """

  task: str = 'digits'
  data: DataSettings = DataSettings()
  protocol: Literal['honest', 'paper'] = 'honest'
  structure: str = SEARCH
  train_on: Literal['train', 'train+val'] = 'train'
  seed: int = field(42, least=LEAST_SEED, most=MOST_SEED)
  model: ModelSettings = ModelSettings()
  space: SpaceSettings = SpaceSettings()
  budget: int | None = field(None, least=0, most=MOST_BUDGET)
  augment: Augmentation = Augmentation()
  training: TrainingSettings = TrainingSettings()
  sampling: Sampling = Sampling()
  consistency: Consistency = Consistency()
  component_dropout: float = field(0.0, least=0, below=1)
  search: Evolution = Evolution()
  finetune: Finetuning = Finetuning()
  allocation: AllocationSettings = AllocationSettings()
  presets: tuple[str, ...] | None = ()
  test: bool = True
  report: ReportSettings = ReportSettings()
  checkpoint_epochs: int = field(10, least=1)
  mesh: MeshSettings = MeshSettings()
  distributed: DistributedSettings = DistributedSettings()
  suite: SuiteSettings = SuiteSettings()
  watch: WatchSettings = WatchSettings()

  def __post_init__(self):
    super().__post_init__()
    check_structures('structure', [self.structure], files=True)
    check_structures('presets', self.presets or (), (GRADIENT,))
    if self.suite.structures or self.suite.budgets:
      return  # each run has others, and checks them (`cells.runs_of`)
    if mistakes := [*_mistakes(self)]:
      raise ValueError('\n'.join(mistakes))

  @property
  def finetuning(self) -> Recipe:
    """The recipe that finetunes a searched structure from the supernet's weights."""
    return self.finetune.recipe(self.training)

  @property
  def finetunes(self) -> bool:
    """Whether a run finetunes its searched structure."""
    return self.protocol == 'honest' and self.finetune.epochs > 0

  @property
  def final_split(self) -> str:
    """The split that structures are trained on once they are chosen or given."""
    return 'train+val' if self.protocol == 'paper' else self.train_on

  @property
  def has_gradient(self) -> bool:
    """Whether a structure is allocated from a gradient."""
    return self.structure == GRADIENT or GRADIENT in (self.presets or ())

  @property
  def is_grid(self) -> bool:
    """Whether there are several runs for each task."""
    suite = self.suite
    return bool(suite.structures or suite.budgets or suite.rates) or suite.seeds > 1

  @property
  def is_suite(self) -> bool:
    """Whether the config stands for several runs."""
    return self.is_grid or len(expand(self.task)) > 1

  @property
  def transfer(self) -> str | None:
    """Path of the scores from other tasks of the backbone; None if there are none."""
    own = EMBEDDED_TRANSFER if self.model.weights == EMBEDDED else None
    return own if self.allocation.transfer is None else os.path.expanduser(self.allocation.transfer)


def _mistakes(settings: RunSettings) -> Iterator[str]:
  """Sentences about fields that contradict each other."""
  try:
    settings.finetuning  # noqa: B018, checks that its fields fit together
  except ValueError as error:
    yield f'finetune.{error}'
  try:
    if settings.has_gradient:
      settings.allocation.shortened(settings.training)
  except ValueError as error:
    yield f'training.{error}'
  for is_wrong, sentence in _contradictions(settings):
    if is_wrong:
      yield sentence


def _contradictions(settings: RunSettings) -> Iterator[tuple[bool, str]]:
  """Whether fields contradict each other, and the sentence about it."""
  structure, training = settings.structure, settings.training
  is_honest = settings.protocol == 'honest'
  trains_on_all = settings.final_split != 'train'
  yield (
    structure != SEARCH and not is_honest,
    f"protocol={settings.protocol!r} is for structure='search' only, which searches on the test "
    f"set; give train_on='train+val' to train structure={structure!r} on all images.",
  )
  yield (
    trains_on_all and not settings.test,
    f'test=False leaves no images to measure on: protocol={settings.protocol!r} and '
    f'train_on={settings.train_on!r} train on all others; give test=True.',
  )
  yield (
    training.steps is not None,
    f'training.steps={training.steps} must be None: a run trains by epochs; give training.epochs.',
  )
  yield (
    trains_on_all and len(settings.report.result) > 1,
    f'report.result={settings.report.result} needs validation images that are not trained on, to '
    "choose by; give one structure, or train_on='train'.",
  )
  yield (
    trains_on_all and training.keep == 'best',
    "training.keep='best' needs validation images that are not trained on; give 'last', or "
    "train_on='train'.",
  )
  yield (
    trains_on_all and is_honest and structure == SEARCH and not settings.finetunes,
    "finetune.epochs=0 leaves no training on train_on='train+val', because the supernet is trained "
    "on 'train'; give epochs.",
  )
  yield (
    structure not in (SEARCH, GRADIENT) and GRADIENT in (settings.presets or ()),
    f"presets={settings.presets!r} has 'gradient', which is a baseline for structure='search' "
    f"only; leave it out, or give structure='gradient' and {structure!r} as a preset.",
  )
  yield (
    bool(settings.suite.settings) and not settings.is_suite,
    f'suite.settings has budgets and learning rates by task, but task={settings.task!r} is one; '
    'name it in the argument of the config file.',
  )
  yield (
    structure == TRANSFER and settings.transfer is None,
    f'There are no scores of other tasks for model.weights={settings.model.weights!r}; give a '
    "file of them as allocation.transfer, or structure='gradient'.",
  )
  yield (
    structure == TRANSFER and settings.budget is None,
    "budget=None is not possible with structure='transfer'; give a number of parameters.",
  )
