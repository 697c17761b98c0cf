"""The config of a run: all fields, how they depend on each other, and how they are read.

`RunSettings` has them with their defaults. A config file returns an `ml_collections.ConfigDict`
that `default_config` made, and the command line changes its fields. `check_config` turns it into
`RunSettings` once, before anything starts, and only these travel on. To print all fields with
types, defaults, ranges and meanings:

    python -m glora_jax.main --help_config=all
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import ml_collections

from glora_jax.checks import field, kinds_of, listed, shown, validate
from glora_jax.errors import UserError
from glora_jax.files import load_json
from glora_jax.method import draws
from glora_jax.search.evolution import Evolution
from glora_jax.training.consistency import Consistency
from glora_jax.training.recipe import Recipe
from glora_jax.training.sampling import Sampling
from glora_jax.vision.data.augment import Augmentation
from glora_jax.vision.data.catalog import expand
from glora_jax.vision.models.weights import EMBEDDED, EMBEDDED_TRANSFER
from glora_jax.vision.runs.sections import (
  GRADIENT,
  LEAST_SEED,
  MOST_SEED,
  SEARCH,
  TRANSFER,
  AllocationSettings,
  DataSettings,
  DistributedSettings,
  Finetuning,
  MeshSettings,
  ModelSettings,
  ReportSettings,
  Section,
  SpaceSettings,
  SuiteSettings,
  TrainingSettings,
  WatchSettings,
  check_presets,
  check_structure,
)

NEEDED = (  # most often; `--help_config` shows these
  'task',
  'protocol',
  'structure',
  'seed',
  'budget',
  'presets',
  'model.weights',
  'model.image_size',
  'model.dtype',
  'augment.flip',
  'training.epochs',
  'training.batch_size',
  'training.learning_rate',
  'finetune.epochs',
)
_BOOLEANS = {'True': True, 'False': False}


@dataclasses.dataclass(frozen=True)
class OwnSettings(Section):
  """Settings of a single task of a suite.

  Attributes:
    budget: as `budget`.
    learning_rate: as `training.learning_rate`.
  """

  budget: float | None = field(None, least=0)
  learning_rate: float = field(1e-4, above=0)


@dataclasses.dataclass(frozen=True)
class RunSettings(Section):
  """The config of a run or a suite.

  The defaults are the official code's recipe and search, on the task and backbone of the package.

  Attributes:
    task: name of the task, or of several, such as 'vtab/all'.
    protocol: 'honest' searches on the validation images; 'paper' trains on train+val and searches
      on test, which every table and page of it states.
    structure: where the structure comes from: 'search' (train a supernet and search it), 'gradient'
      (allocated from one gradient, see `allocation`), 'transfer' (allocated from other
      tasks' scores of the backbone, `allocation.transfer`), 'finetuning' (the whole base is
      trained), a preset ('lora:2@qkv', see `glora_jax.preset`), or the path of a genome.json.
    train_on: images to train on once structure and rate are chosen or given; 'train+val' adds the
      validation images, which then measure nothing; protocol='paper' always adds them.
    seed: seed of all randomness.
    budget: most trained parameters, without the head, a whole number; None for no limit.
    component_dropout: probability that a training step drops a rank-one part of a LoRA of A or B;
      the others are scaled up to keep the mean (MLAE, arXiv 2405.18897).
    presets: baselines in addition to the linear probe, each trained alone with the same recipe:
      presets such as 'hira:2' or 'lora:2@qkv' (`glora_jax.preset`); with structure='search' also
      'gradient'. None for no baseline at all, not even the linear probe.
    test: whether to read the test images; without them a run ends with the accuracies on the
      validation images, to choose by, and folds nothing.
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
  budget: float | None = field(None, least=0)
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
    check_structure(self.structure)
    check_presets('presets', self.presets or (), (GRADIENT,))
    object.__setattr__(self, 'budget', draws.check_budget(self.budget))
    mistakes = list(_mistakes(self))
    try:
      self.finetuning  # noqa: B018, checks that its fields fit together
    except ValueError as error:
      mistakes.append(f'finetune.{error}')
    if self.has_gradient:
      try:
        self.allocation.shortened(self.training)
      except ValueError as error:
        mistakes.append(f'training.{error}')
    if mistakes:
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
    """Whether each task stands for several runs."""
    suite = self.suite
    return bool(suite.structures or suite.budgets or suite.rates) or suite.seeds > 1

  @property
  def is_suite(self) -> bool:
    """Whether it stands for several runs."""
    return self.is_grid or len(expand(self.task)) > 1

  @property
  def transfer(self) -> str | None:
    """Path of other tasks' scores of the backbone; None if there are none."""
    own = EMBEDDED_TRANSFER if self.model.weights == EMBEDDED else None
    return own if self.allocation.transfer is None else os.path.expanduser(self.allocation.transfer)


def _mistakes(settings: RunSettings) -> Iterator[str]:
  """Sentences about fields that contradict each other."""
  if settings.structure != SEARCH and settings.protocol != 'honest':
    yield (
      f"protocol={settings.protocol!r} is for structure='search' alone, which searches on the test "
      f"set; give train_on='train+val' to train structure={settings.structure!r} on all images."
    )
  if settings.final_split != 'train' and not settings.test:
    yield (
      f'test=False leaves no images to measure on: protocol={settings.protocol!r} and '
      f'train_on={settings.train_on!r} train on all others; give test=True.'
    )
  if (steps := settings.training.steps) is not None:
    yield f'training.steps={steps} must be None: a run trains by epochs; give training.epochs.'
  if settings.final_split != 'train' and settings.training.keep == 'best':
    yield (
      "training.keep='best' needs validation images that are not trained on; give 'last', or "
      "train_on='train'."
    )
  if settings.train_on == 'train+val' and settings.structure == SEARCH:
    if settings.protocol == 'honest' and not settings.finetunes:
      yield (
        "finetune.epochs=0 leaves nothing to train on both with train_on='train+val': the supernet "
        "is trained on 'train'; give epochs."
      )
  if settings.structure not in (SEARCH, GRADIENT) and GRADIENT in (settings.presets or ()):
    yield (
      f"presets={settings.presets!r} has 'gradient', which is a baseline for structure='search' "
      f"alone; leave it out, or give structure='gradient' and {settings.structure!r} as a preset."
    )
  if settings.suite.settings and not settings.is_suite:
    yield (
      f'suite.settings has budgets and learning rates by task, but task={settings.task!r} is one; '
      'name it in the argument of the config file.'
    )
  if settings.structure == TRANSFER:
    yield from _mistakes_of_transfer(settings)


def _mistakes_of_transfer(settings: RunSettings) -> Iterator[str]:
  """Sentences about fields that structure='transfer' needs."""
  if settings.transfer is None:
    yield (
      f'There are no scores of other tasks for model.weights={settings.model.weights!r}; give a '
      "file of them as allocation.transfer, or structure='gradient'."
    )
  if settings.budget is None:
    yield "budget=None does not say how much structure='transfer' may train; give a number."


def default_config() -> ml_collections.ConfigDict:
  """The defaults of `RunSettings` as a config whose fields can be changed.

  It accepts any value: `check_config` names all that are wrong at once. A field that is None keeps
  its type, by which text of a command line is read.

  Example:
    >>> config = default_config()
    >>> config.training.epochs = 100
    >>> check_config(config).training.epochs
    100
  """
  return _as_config(RunSettings(), RunSettings)


def _as_config(value: Any, kind: Any) -> Any:
  """A value of an annotated type as a `ConfigDict` has it."""
  if dataclasses.is_dataclass(value):
    items, kinds = vars(value), kinds_of(type(value))
  elif isinstance(value, Mapping):
    _, kind = typing.get_args(kind)
    items, kinds = value, dict.fromkeys(value, kind)
  elif value is not None:
    return value
  else:
    kind, *_ = typing.get_args(kind)  # of a union with None
    kind = typing.get_origin(kind) or kind
    return ml_collections.config_dict.placeholder(str if kind is Literal else kind)
  entries = {name: _as_config(item, kinds[name]) for name, item in items.items()}
  return ml_collections.ConfigDict(entries, type_safe=False)


def check_config(config: ml_collections.ConfigDict | RunSettings) -> RunSettings:
  """Reads a config.

  Args:
    config: a config with all fields of `default_config`; settings are returned as they are.

  Returns:
    Its values, by section.

  Raises:
    TypeError: the config is neither.
    UserError: fields are unknown, missing or have wrong values: a line for each.
    ImportError: a field needs a package that is not installed.
  """
  if isinstance(config, RunSettings):
    return config
  if not isinstance(config, ml_collections.ConfigDict):
    raise TypeError(
      f'config is a {type(config).__name__}; pass the ConfigDict that config.default_config() '
      'makes, with your values.'
    )
  settings = read(RunSettings, config.to_dict())
  if settings.watch.tensorboard and importlib.util.find_spec('tensorboardX') is None:
    raise ImportError(
      'watch.tensorboard=True needs tensorboardX, which is not installed; pip install tensorboardX.'
    )
  return settings


def read(section: type, values: Mapping[str, Any], prefix: str = '') -> Any:
  """Settings from nested values.

  Args:
    section: class of the settings.
    values: values of its fields by name; those of a nested section are a mapping, too.
    prefix: of the dotted names in the sentences of the error.

  Raises:
    UserError: a field is missing or unknown, or a value has another type or is not allowed; a line
      for each mistake.
  """
  fields = {each.name: each for each in dataclasses.fields(section)}
  known, mistakes = {}, []
  for name in dict.fromkeys((*fields, *values)):
    dotted = f'{prefix}{name}'
    try:
      if name not in values:
        raise ValueError(f'{dotted} is missing; start from config.default_config().')
      value = values[name]
      if name not in fields:
        raise ValueError(f'{dotted}={shown(value)} is unknown; remove it, or correct its name.')
      if dataclasses.is_dataclass(kind := kinds_of(section)[name]):
        known[name] = read(kind, validate(value, dict, dotted), f'{dotted}.')
      else:
        known[name] = validate(value, kind, dotted, **fields[name].metadata)
    except (TypeError, ValueError) as error:
      mistakes.append(str(error))
  try:
    if not mistakes:
      return section(**known)
  except (TypeError, ValueError) as error:  # of checks that a section does itself
    mistakes = [prefix + line for line in str(error).splitlines()]
  raise UserError('\n'.join(mistakes))


def parse_arguments(
  text: str, defaults: dict[str, Any], choices: Sequence[str] | None = None
) -> tuple[str, dict[str, Any]]:
  """Splits the part of `--config FILE:ARGUMENTS` after the colon, 'cifar100,source=noah,rank=4'.

  Args:
    text: an optional value without a name, which may be a path with commas, then any number of
      `name=value`.
    defaults: the known names with their default values, or with a type for a default of None. A
      value gets the type of its default.
    choices: allowed first values, '' for none; None allows any.

  Returns:
    (the first value, or ''; all names with their values).

  Raises:
    ValueError: an unknown or repeated name, a value of another type, or a first value that is not
      among the choices.

  Example:
    >>> parse_arguments('cifar100,rank=4', {'source': str, 'rank': 8})
    ('cifar100', {'source': None, 'rank': 4})
    >>> parse_arguments('tiny=True', {'tiny': False})
    ('', {'tiny': True})
  """
  first, *parts = re.split(r'(?:^|,)(?=\w+=)', text)
  if choices is not None and first not in choices:
    expected = ', '.join([*filter(None, choices), *(f'{name}=VALUE' for name in defaults)])
    raise ValueError(f'{shown(first)} is not an argument of this config; it takes {expected}.')
  given: dict[str, Any] = {}
  for part in parts:
    name, _, value = part.partition('=')
    if name not in defaults or name in given:
      raise ValueError(
        f"{shown(part)} in the config's arguments is unknown or repeated; give NAME=VALUE, with "
        f'the names {", ".join(defaults)}.'
      )
    default = defaults[name]
    kind = default if isinstance(default, type) else type(default)
    try:
      given[name] = _BOOLEANS[value] if kind is bool else kind(value)
    except (KeyError, ValueError) as error:
      expected = 'True or False' if kind is bool else f'of type {kind.__name__}'
      raise ValueError(
        f"{shown(part)} in the config's arguments: {name} must be {expected}."
      ) from error
  others = {name: None if isinstance(x, type) else x for name, x in defaults.items()}
  return first, {**others, **given}


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Shrinks a config until it runs in seconds; its results mean nothing.

  Few epochs, one generation of four structures, the backbone of the package, no cache of decoded
  images. Task, images and structure stay.

  Args:
    config: a config, which is changed.

  Returns:
    The same config.

  Example:
    >>> check_config(shrink(default_config())).training.epochs
    4
  """
  config.model.weights = EMBEDDED
  config.data.cache = None
  config.training.update(epochs=4, warmup_epochs=0)  # head and gradient count as two
  config.allocation.head_epochs = 1
  config.search.update(population=4, generations=1, parents=2, mutations=2, crossovers=2)
  config.finetune.update(epochs=1, warmup_epochs=0)
  return config


def with_settings(config: ml_collections.ConfigDict, path: str | None) -> ml_collections.ConfigDict:
  """A config with budgets and learning rates by task from a file.

  The file is JSON, `{"cifar100": {"budget": 860000, "learning_rate": 1e-4}}`. A task is named
  without its benchmark: 'cifar100', 'food101/4/0'. 'food101' or 'food101/4' stands for all tasks
  below it; the longest name that fits counts. All other fields stay as they are.

  Args:
    config: the config to be changed; the content of the file becomes part of it.
    path: path of the file; None changes nothing.

  Raises:
    OSError: the file cannot be read.
    ValueError: the file has other content; the sentence says what.
  """
  if path is None:
    return config
  path = os.path.expanduser(path)
  given = load_json(path, 'settings= takes JSON')
  found = settings_by_task(given, config.task, path)
  if list(found) == [config.task]:
    own = found[config.task]
    config.budget = own.get('budget', config.budget)
    if (rate := own.get('learning_rate')) is not None:
      config.training.learning_rate = config.finetune.learning_rate = rate
  else:
    config.suite.settings = ml_collections.ConfigDict(given)
  return config


def settings_by_task(given: Any, task: str, where: str) -> dict[str, dict[str, Any]]:
  """The budget and learning rate of every task that a name stands for, as far as they are given.

  Args:
    given: budget and learning rate by task, named as in `with_settings`.
    task: a config's task, whose benchmark the names belong to.
    where: how the sentence of an error begins: path of the file, or name of the config's field.

  Raises:
    ValueError: a name, type or value is wrong.

  Example:
    >>> given = {'food101': {'budget': 900}, 'food101/4': {'budget': 500}}
    >>> settings_by_task(given, 'fewshot/food101/4/0', 'F')
    {'fewshot/food101/4/0': {'budget': 500.0}}
  """
  benchmark = task.partition('/')[0]
  tasks = expand(task)
  known = {name for each in (*expand(f'{benchmark}/all'), *tasks) for name in _names_of(each)}
  checked = {}
  for name, own in validate(given, Mapping[str, Mapping], where).items():
    settings = read(OwnSettings, {**vars(OwnSettings()), **own}, f'{where}.{name}.')
    draws.check_budget(settings.budget)
    checked[name] = {field: getattr(settings, field) for field in own}
    if name not in known:
      near = difflib.get_close_matches(name, known) or sorted(known)
      raise ValueError(f"{where}: '{name}' is not a task of {benchmark}; give {listed(near)}.")
  found = {}
  for each in tasks:
    found[each] = {}
    for name in _names_of(each):
      found[each] |= checked.get(name, {})
  return found


def _names_of(task: str) -> list[str]:
  """The names in a file that stand for a task: 'food101' and 'food101/4' of 'fewshot/food101/4'."""
  _, *parts = task.split('/')
  return ['/'.join(parts[: n + 1]) for n in range(len(parts))]
