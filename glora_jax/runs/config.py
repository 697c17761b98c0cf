"""The config of a run: its defaults, what its fields may be, and the workdir that belongs to it."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from glora_jax.data import augment, image, normalization
from glora_jax.data.task import Source
from glora_jax.method import genomes, presets, space
from glora_jax.models import weights
from glora_jax.models.vit import ACTIVATIONS
from glora_jax.search import evolution
from glora_jax.training.losses import Consistency, Sampling
from glora_jax.training.recipe import Recipe

PROFILED_STAGES = ('supernet', 'baselines', 'search', 'finetune')
PROTOCOLS = ('honest', 'paper')
DTYPES = ('float32', 'bfloat16')
MESH = {'devices': ('all', 'one'), 'base': ('replicated', 'sharded')}
JOBS = ('adapt', 'compare')  # that have these fields
METHODS = (
  *presets.PRESET_NAMES,
  'finetuning',
  'search',
)  # of a comparison; 'full' is all of GLoRA, 'finetuning' trains the base itself
REMAT_POLICIES = (
  'everything_saveable',
  'nothing_saveable',
  'dots_saveable',
  'dots_with_no_batch_dims_saveable',
)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What a comparison compares (`comparison.run`).

  Attributes:
    methods: names of presets, 'finetuning' (full fine-tuning), 'search'.
    budgets: most trained parameters of what is searched, ascending; a row each.
    seeds: how many, from the config's on.
    rates: learning rates that each method chooses from.
    rate: of each method, where it is chosen already; None to choose.
  """

  methods: Sequence[str] = METHODS
  budgets: Sequence[int] = (20_000, 40_000)
  seeds: int = 5
  rates: Sequence[float] = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
  rate: Mapping[str, float | None] = dataclasses.field(
    default_factory=lambda: dict.fromkeys(METHODS)
  )

  def __post_init__(self):
    for name in self.methods:
      if name not in METHODS:
        raise ValueError(
          f"compare.methods: '{name}' is unknown; the methods are {', '.join(METHODS)}."
        )
    if self.seeds < 1 or not self.methods:
      raise ValueError(
        f'compare.seeds={self.seeds} must be at least 1, and compare.methods={tuple(self.methods)} not empty.'
      )
    if (
      not self.rates
      or min([*self.rates, *(rate for rate in self.rate.values() if rate is not None)]) <= 0
    ):
      raise ValueError(
        f'compare.rates={tuple(self.rates)} and compare.rate are learning rates, all above 0, at least one to choose from.'
      )
    if 'search' in self.methods and (
      not self.budgets or list(self.budgets) != sorted(set(map(genomes.check_budget, self.budgets)))
    ):
      raise ValueError(
        f'compare.budgets={tuple(self.budgets)} must be ascending numbers of parameters, at least one.'
      )


def default_config() -> ml_collections.ConfigDict:
  """The library's defaults: the recipe and search of the official code, on the embedded task and backbone."""
  official = dataclasses.asdict(Recipe())
  return ml_collections.ConfigDict(
    {
      'job': 'adapt',
      'task': 'digits',
      'data': {
        'dir': ml_collections.config_dict.placeholder(str),  # of TFDS; None for its default
        'source': ml_collections.config_dict.placeholder(
          str
        ),  # 'tfds', 'noah', 'lists'; None for the task's first
        'root': ml_collections.config_dict.placeholder(str),  # folder of 'noah' and 'lists'
        'version': ml_collections.config_dict.placeholder(
          str
        ),  # of the TFDS data set, in place of the benchmark's
        'resize': 'squash',  # 'crop' keeps the aspect ratio and takes the middle
        'skip_broken': False,  # leave out images that cannot be decoded
        'cache': ml_collections.config_dict.placeholder(
          str
        ),  # folder for decoded images; None keeps none
        'max_resident': 4
        * 2**30,  # bytes of images that stay on the device; larger splits are streamed
        'workers': 0,  # processes that decode what is streamed; 0 for threads
      },
      'protocol': 'honest',  # 'paper' trains on train+val, searches on test, and says so wherever its numbers appear
      'seed': 42,
      'model': {
        'weights': weights.EMBEDDED,  # or a path, an address with its sha256, a name in fetch.SHORTCUTS
        'sha256': ml_collections.config_dict.placeholder(str),
        'image_size': ml_collections.config_dict.placeholder(
          int
        ),  # None for the one that the weights were trained with
        'patch_size': ml_collections.config_dict.placeholder(int),  # likewise
        'normalization': ml_collections.config_dict.placeholder(str),  # likewise
        'num_heads': ml_collections.config_dict.placeholder(int),  # where the file does not say
        'activation': ml_collections.config_dict.placeholder(
          str
        ),  # None for that of the code base the file comes from
        'drop_path': 0.1,
        'dtype': 'float32',  # of the computation; 'bfloat16' keeps supports, heads and the merging of both in float32
        'base_dtype': 'float32',  # that the frozen weights are kept and saved in
        'remat': ml_collections.config_dict.placeholder(
          str
        ),  # a policy of jax.checkpoint_policies; None keeps all activations
      },
      'merge': 'auto',  # 'up_front', 'lazy'
      'space': {'ranks': (4,)},
      'budget': ml_collections.config_dict.placeholder(
        float
      ),  # most trained parameters, head not counted; None: no limit
      'augment': dataclasses.asdict(augment.Augmentation()),
      'supernet': official,
      'sampling': dataclasses.asdict(Sampling()),  # of the supernet's subnets
      'consistency': dataclasses.asdict(Consistency()),  # regularizes every training
      'search': dataclasses.asdict(evolution.Evolution()),
      'finetune': {
        **official,
        'epochs': 100,
        'on': 'train',
      },  # 'train+val': with the number of epochs chosen on train/val
      'presets': (),  # baselines beside the linear probe, each trained alone by the supernet's recipe
      'checkpoint_epochs': 10,  # between two saved training states
      'mesh': {
        'devices': 'all',  # 'one' leaves the others alone
        'base': 'replicated',  # 'sharded' keeps a part of the frozen weights on each device
      },
      'compare': {
        **dataclasses.asdict(Comparison()),
        'rate': {name: ml_collections.config_dict.placeholder(float) for name in METHODS},
      },
      'distributed': {  # several processes as one run; None for what the environment says
        'coordinator': ml_collections.config_dict.placeholder(str),  # host:port of process 0
        'num_processes': ml_collections.config_dict.placeholder(int),
        'process_id': ml_collections.config_dict.placeholder(int),
      },
      'suite': {  # of a task that stands for several, as 'vtab/all'
        'settings': {},  # task -> its own 'budget' and 'learning_rate'; see suite.with_settings
        'prepare': False,  # fetch and prepare what needs no manual download; otherwise tasks whose data is not there are left out
      },
      'watch': {  # changes no result, so a resumed run may have other values
        'tensorboard': False,  # the metrics as events in WORKDIR/tensorboard, too; needs tensorboardX
        'profile': ml_collections.config_dict.placeholder(
          str
        ),  # stage of which some dispatches are traced into WORKDIR/profile
      },
    }
  )


def parse_arguments(text: str, defaults: dict[str, Any]) -> tuple[str, dict[str, Any]]:
  """Splits what stands behind the colon of `--config FILE:ARGUMENTS`, as 'cifar100,source=noah,rank=4'.

  Args:
    text: one value without a name first, then `name=value`.
    defaults: of the names that may be given; values take the type of the default, and whole numbers are numbers where it is None.

  Returns:
    (the first value, all names with their values).

  Raises:
    ValueError: an unknown name, or a value of another type.
  """
  first, *rest = text.split(',')
  given = dict(defaults)
  for part in rest:
    name, equals, value = part.partition('=')
    if name not in defaults or not equals:
      raise ValueError(
        f"'{part}' in the config's arguments is unknown; NAME=VALUE is expected, with the names {', '.join(defaults)}."
      )
    kind = type(defaults[name]) if defaults[name] is not None else int if value.isdigit() else str
    try:
      given[name] = kind(value)
    except ValueError as error:
      raise ValueError(
        f"'{part}' in the config's arguments: {name} is of type {kind.__name__}."
      ) from error
  return first, given


def check_config(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for the first field that is unknown, missing, or has a value that cannot be."""

  def compare(given, known, prefix):
    for name in given:
      if name not in known:
        raise ValueError(
          f"The config field '{prefix}{name}' is unknown; there are: {', '.join(sorted(known))}."
        )
    for name in known:
      if name not in given:
        raise ValueError(
          f"The config field '{prefix}{name}' is missing; start from config.default_config()."
        )
      if (
        isinstance(known[name], ml_collections.ConfigDict) and name != 'settings'
      ):  # whose names are tasks
        compare(given[name], known[name], f'{prefix}{name}.')

  compare(config, default_config(), '')
  if config.job not in JOBS:
    raise ValueError(f"job='{config.job}' is unknown; it is one of {', '.join(JOBS)}.")
  if config.job == 'compare':
    _check_comparison(config)
  if config.protocol not in PROTOCOLS:
    raise ValueError(
      f"protocol='{config.protocol}' is unknown; it is one of {', '.join(PROTOCOLS)}."
    )
  if config.finetune.on not in ('train', 'train+val'):
    raise ValueError(
      f"finetune.on='{config.finetune.on}' is unknown; it is 'train' or 'train+val'."
    )
  for name in config.presets:
    if name not in presets.PRESET_NAMES:
      raise ValueError(
        f"presets: '{name}' is unknown; the presets are {', '.join(presets.PRESET_NAMES)}."
      )
  if not config.model.weights:
    raise ValueError(
      "model.weights is empty; 'embedded', a path, an address or a shortcut is expected."
    )
  if not 0 <= config.model.drop_path < 1:
    raise ValueError(f'model.drop_path={config.model.drop_path} must be at least 0 and below 1.')
  if config.model.remat is not None and config.model.remat not in REMAT_POLICIES:
    raise ValueError(
      f"model.remat='{config.model.remat}' is unknown; it is one of {', '.join(REMAT_POLICIES)}."
    )
  if config.checkpoint_epochs < 1:
    raise ValueError(f'checkpoint_epochs={config.checkpoint_epochs} must be at least 1.')
  if config.model.activation is not None and config.model.activation not in ACTIVATIONS:
    raise ValueError(
      f"model.activation='{config.model.activation}' is unknown; it is one of {', '.join(ACTIVATIONS)}."
    )
  for name in ('dtype', 'base_dtype'):
    if config.model[name] not in DTYPES:
      raise ValueError(
        f"model.{name}='{config.model[name]}' is unknown; it is one of {', '.join(DTYPES)}."
      )
  for name, values in MESH.items():
    if config.mesh[name] not in values:
      raise ValueError(
        f"mesh.{name}='{config.mesh[name]}' is unknown; it is one of {', '.join(values)}."
      )
  for name in ('image_size', 'patch_size', 'num_heads'):
    if (value := config.model[name]) is not None and value < 1:
      raise ValueError(f'model.{name}={value} must be at least 1.')
  if config.watch.profile is not None and config.watch.profile not in PROFILED_STAGES:
    raise ValueError(
      f"watch.profile='{config.watch.profile}' is unknown; it is one of {', '.join(PROFILED_STAGES)}."
    )
  if config.watch.tensorboard and importlib.util.find_spec('tensorboardX') is None:
    raise ImportError(
      "watch.tensorboard=True needs a package that is not there; pip install 'glora_jax[tensorboard]'."
    )
  augment.Augmentation(**config.augment)
  genomes.check_budget(config.budget)
  space.SearchSpace(**config.space)
  evolution.Evolution(**config.search)
  Recipe(**config.supernet)
  Sampling(**config.sampling)
  Consistency(**config.consistency)
  finetune_recipe(config)
  if config.data.resize not in image.RULES:
    raise ValueError(
      f"data.resize='{config.data.resize}' is unknown; it is one of {', '.join(image.RULES)}."
    )
  if config.data.max_resident < 0 or config.data.workers < 0:
    raise ValueError(
      f'data.max_resident={config.data.max_resident} and data.workers={config.data.workers} cannot be negative.'
    )
  if (
    config.model.normalization is not None
    and config.model.normalization not in normalization.NORMALIZATIONS
  ):
    raise ValueError(
      f"model.normalization='{config.model.normalization}' is unknown; it is one of {', '.join(normalization.NORMALIZATIONS)}."
    )


def _check_comparison(config):
  Comparison(**config.compare)
  for name, wanted, why in (
    ('protocol', 'honest', 'a comparison tests last'),
    ('finetune.on', 'train', 'all methods learn from the same images'),
    ('budget', None, 'a comparison has compare.budgets'),
    ('presets', (), 'a comparison has compare.methods'),
  ):
    group, _, field = name.rpartition('.')
    value = (config[group] if group else config)[field]
    if value != wanted:
      raise ValueError(f'{name}={value!r} must be {wanted!r}: {why}.')
  if config.finetune.epochs >= config.supernet.epochs:
    raise ValueError(
      f'finetune.epochs={config.finetune.epochs} are a part of supernet.epochs={config.supernet.epochs} in a comparison, and '
      'must be fewer.'
    )


def data_source(config: ml_collections.ConfigDict) -> Source:
  return Source(**{name: config.data[name] for name in ('dir', 'source', 'root', 'version')})


def finetune_recipe(config: ml_collections.ConfigDict) -> Recipe:
  return Recipe(**{name: value for name, value in config.finetune.items() if name != 'on'})
