"""The config of a run: all of its fields, their defaults, and what they demand of each other.

`RunSettings` is the schema. A config file returns an `ml_collections.ConfigDict` that
`default_config` made from it; `check_config` turns one back into `RunSettings` before anything
starts. All fields with types, defaults, ranges and meanings are printed by

    python -m glora_jax.main --help_config=all
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import ml_collections
import pydantic
from pydantic import AfterValidator, Field

from glora_jax.data.augment import Augmentation
from glora_jax.data.catalog import expand
from glora_jax.files import load_json
from glora_jax.limits import listed, plain, shown
from glora_jax.method import draws
from glora_jax.models.weights import EMBEDDED, EMBEDDED_KNOWN
from glora_jax.runs import schema
from glora_jax.runs.sections import (
  GRADIENT,
  KNOWN,
  LEAST_SEED,
  MOST_SEED,
  SEARCH,
  TUNING_SEED,
  AllocationSettings,
  Comparison,
  DataSettings,
  DistributedSettings,
  Finetuning,
  MeshSettings,
  ModelSettings,
  ReportSettings,
  SpaceSettings,
  SuiteSettings,
  TrainingSettings,
  WatchSettings,
  check_structure,
  preset_or,
)
from glora_jax.search.evolution import Evolution
from glora_jax.settings import (
  Integer,
  Name,
  Number,
  Several,
  Text,
  Whole,
  declared,
  passing,
  sentences,
  taken,
)
from glora_jax.training.consistency import Consistency
from glora_jax.training.recipe import Recipe
from glora_jax.training.sampling import Sampling

NEEDED = (  # by people; `--help_config` shows these
  'job',
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


Budget = Annotated[Number, AfterValidator(draws.check_budget)]


@declared
class OwnSettings:
  """What a task of a suite can have of its own."""

  budget: Budget | None = Field(default=None, description='as `budget`')
  learning_rate: Number = Field(default=1e-4, gt=0, description='as `training.learning_rate`')


@declared
class RunSettings:
  """All that a config says of a run, a comparison or a suite.

  The defaults are the recipe and the search of the official code, on the task and the backbone that
  come with the package.
  """

  job: Literal['adapt', 'compare'] = Field(
    default='adapt',
    description="'adapt' searches a structure for the task, 'compare' puts methods side by side "
    'on it',
  )
  task: Text = Field(
    default='digits', description="name of the task; 'vtab/all' and the like stand for several"
  )
  data: DataSettings = DataSettings()
  protocol: Literal['honest', 'paper'] = Field(
    default='honest',
    description="images that are searched on: 'honest' takes the validation images; 'paper' trains "
    'on train+val, searches on test, and says so wherever its numbers appear',
  )
  structure: Annotated[Text, passing(check_structure)] = Field(
    default=SEARCH,
    description="where the structure comes from: 'search' (a supernet is trained and searched), "
    "'gradient' (read off one gradient, `allocation`), 'known' (what pays on the backbone by other "
    "tasks, `allocation.known`), a preset ('lora:2@qkv', see `glora_jax.preset`), or the path of a "
    'genome.json',
  )
  seed: Integer = Field(
    default=42, ge=LEAST_SEED, le=MOST_SEED, description='seed of all randomness'
  )
  model: ModelSettings = ModelSettings()
  space: SpaceSettings = SpaceSettings()
  budget: Budget | None = Field(
    default=None,
    description='most trained parameters, head not counted, a whole number; None for no limit',
  )
  augment: Augmentation = Augmentation()
  training: TrainingSettings = TrainingSettings()
  sampling: Sampling = Sampling()
  consistency: Consistency = Consistency()
  component_dropout: Number = Field(
    default=0.0,
    ge=0,
    lt=1,
    description='probability that a step leaves out a rank-one part of a LoRA of A or B; the '
    'others count for more, so that the mean stays (MLAE, arXiv 2405.18897)',
  )
  search: Evolution = Evolution()
  finetune: Finetuning = Finetuning()
  allocation: AllocationSettings = AllocationSettings()
  presets: Several[Annotated[Text, preset_or(GRADIENT)]] = Field(
    default=(),
    description='baselines beside the linear probe, each trained alone by the same recipe: '
    "'lora', 'hira:2', 'lora:2@qkv' and the like (`glora_jax.preset`), and beside a search "
    "'gradient'",
  )
  report: ReportSettings = ReportSettings()
  checkpoint_epochs: Whole = Field(
    default=10, ge=1, description='epochs between two saved training states'
  )
  mesh: MeshSettings = MeshSettings()
  compare: Comparison = Comparison()
  distributed: DistributedSettings = DistributedSettings()
  suite: SuiteSettings = SuiteSettings()
  watch: WatchSettings = WatchSettings()

  def __post_init__(self):
    mistakes = list(_mistakes(self))
    if self.job == 'compare':
      mistakes += _mistakes_of_comparison(self)
    try:
      self.finetuning  # noqa: B018, whose fields may not fit together
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
    """The recipe by which a searched structure is trained on, from the supernet's weights."""
    return self.finetune.recipe(self.training)

  @property
  def finetunes(self) -> bool:
    """Whether a run trains its searched structure on."""
    return self.protocol == 'honest' and self.finetune.epochs > 0

  @property
  def has_gradient(self) -> bool:
    """Whether a structure is read off a gradient."""
    if self.job == 'compare':
      return GRADIENT in self.compare.methods
    return self.structure == GRADIENT or GRADIENT in self.presets

  @property
  def known(self) -> str | None:
    """Path of what is known of the backbone; None where nothing is."""
    own = EMBEDDED_KNOWN if self.model.weights == EMBEDDED else None
    return own if self.allocation.known is None else os.path.expanduser(self.allocation.known)


def _mistakes(settings: RunSettings) -> Iterator[str]:
  """Sentences about fields that do not get what they demand of each other."""
  if settings.structure != SEARCH and settings.protocol != 'honest':
    yield (
      f"protocol={settings.protocol!r} must be 'honest' with structure={settings.structure!r}: the "
      "paper's searches on the test set."
    )
  if settings.structure not in (SEARCH, GRADIENT) and GRADIENT in settings.presets:
    yield (
      f"presets={settings.presets!r} has 'gradient', which stands beside a search alone, and "
      f'structure={settings.structure!r} is given; leave it out of presets, or give '
      "structure='gradient' and the other one as a preset."
    )
  compares = settings.job == 'compare'
  if settings.structure == KNOWN or (compares and KNOWN in settings.compare.methods):
    if settings.known is None:
      yield (
        f'Nothing is known of model.weights={settings.model.weights!r}; give a file of its values '
        "as allocation.known, or structure='gradient'."
      )
    if settings.budget is None and not compares:
      yield "budget=None leaves open how much of structure='known' is trained; give a number."


def _mistakes_of_comparison(settings: RunSettings) -> Iterator[str]:
  """The same of what a comparison demands."""
  for name, only, reason in (
    ('protocol', 'honest', 'a comparison tests last'),
    ('finetune.on', 'train', 'all methods learn from the same images'),
    ('budget', None, 'a comparison has compare.budgets'),
    ('presets', (), 'a comparison has compare.methods'),
    ('structure', SEARCH, 'a comparison has compare.methods'),
    ('report.result', None, 'a comparison calls none of its methods the result'),
  ):
    if (value := operator.attrgetter(name)(settings)) != only:
      yield f'{name}={value!r} must be {only!r}: {reason}.'
  training, compare, own = settings.training, settings.compare, settings.finetune.epochs
  if own >= training.epochs:
    yield (
      f'finetune.epochs={own} are a part of training.epochs={training.epochs} in a comparison, and '
      'must be fewer.'
    )
  if SEARCH in compare.methods and training.warmup_epochs > (left := training.epochs - own):
    yield (
      f'training.warmup_epochs={training.warmup_epochs} is more than the {left} epochs that '
      f'finetune.epochs={own} leave to the supernet in a comparison; lower one of the two.'
    )
  if settings.seed + TUNING_SEED + compare.seeds > MOST_SEED:
    yield (
      f'seed={settings.seed} leaves no room for the {compare.seeds} seeds of a comparison; give a '
      'lower one.'
    )


def default_config() -> ml_collections.ConfigDict:
  """The defaults of `RunSettings` as a config whose fields can be changed.

  Example:
    >>> config = default_config()
    >>> config.training.epochs = 100
    >>> check_config(config).training.epochs
    100
  """
  return schema.to_config_dict(RunSettings())


def check_config(config: ml_collections.ConfigDict | RunSettings) -> RunSettings:
  """Reads a config.

  Args:
    config: a config with all fields of `default_config`; settings are returned as they are.

  Returns:
    Its values, by section.

  Raises:
    ValueError: fields are unknown or missing, or have values that cannot be: a line for each.
    ImportError: a field needs a package that is not installed.
  """
  if isinstance(config, RunSettings):
    return config
  values = config.to_dict()
  missing = [
    f'{name} is missing; start from config.default_config().'
    for name in _missing(RunSettings(), values)
  ]
  try:
    settings = pydantic.TypeAdapter(RunSettings).validate_python(values)
  except pydantic.ValidationError as error:
    raise ValueError('\n'.join([*missing, sentences(error)])) from None
  if missing:
    raise ValueError('\n'.join(missing))
  if settings.watch.tensorboard and importlib.util.find_spec('tensorboardX') is None:
    raise ImportError(
      'watch.tensorboard=True needs a package that is not there; pip install tensorboardX.'
    )
  return settings


def _missing(section: Any, values: Mapping[str, Any], prefix: str = '') -> Iterator[str]:
  """Dotted names of the fields and sections that a config lacks."""
  for name, value in vars(section).items():
    if name not in values:
      yield prefix + name
    elif dataclasses.is_dataclass(value) and isinstance(values[name], Mapping):
      yield from _missing(value, values[name], f'{prefix}{name}.')


def parse_arguments(
  text: str, defaults: dict[str, Any], choices: Sequence[str] | None = None
) -> tuple[str, dict[str, Any]]:
  """Splits the part of `--config FILE:ARGUMENTS` after the colon, 'cifar100,source=noah,rank=4'.

  Args:
    text: a value without a name first, which may be left out, then `name=value`.
    defaults: the names that may be given, with their values where they are not, or their type where
      None stands for that. A value takes the type of its default; where that is None, digits are a
      whole number and all else is text.
    choices: what the first value can be, where not anything; '' stands for none.

  Returns:
    (the first value, '' where there is none; all names with their values).

  Raises:
    ValueError: an unknown name, one that is given twice, a value of another type, or a first value
      that is no choice.

  Example:
    >>> parse_arguments('cifar100,rank=4', {'source': None, 'rank': 8})
    ('cifar100', {'source': None, 'rank': 4})
    >>> parse_arguments('tiny=True', {'tiny': False})
    ('', {'tiny': True})
  """
  parts = text.split(',')
  beginnings = [','.join(parts[:length]) for length in range(len(parts), 0, -1)]
  first = next(filter(os.path.exists, beginnings), None)  # a path may have commas
  if first is None:
    first = '' if parts[0].partition('=')[0] in defaults else parts[0]
  if choices is not None and first not in choices:
    expected = ', '.join([*filter(None, choices), *(f'{name}=VALUE' for name in defaults)])
    raise ValueError(f"{shown(first)} behind the config's name is unknown; it takes {expected}.")
  given: dict[str, Any] = {}
  for part in text.removeprefix(first).removeprefix(',').split(',') if text != first else ():
    name, equals, value = part.partition('=')
    if name not in defaults or name in given or not equals:
      raise ValueError(
        f"{shown(part)} in the config's arguments is unknown, or there twice; NAME=VALUE is "
        f'expected, with the names {", ".join(defaults)}; a path with a comma in it must be there.'
      )
    default = defaults[name]
    kind = default if isinstance(default, type) else type(default)
    if default is None:
      kind = int if value.isdigit() else str
    try:
      given[name] = _BOOLEANS[value] if kind is bool else kind(value)
    except (KeyError, ValueError) as error:
      expected = 'True or False' if kind is bool else f'of type {kind.__name__}'
      raise ValueError(f"{shown(part)} in the config's arguments: {name} is {expected}.") from error
  others = {name: None if isinstance(x, type) else x for name, x in defaults.items()}
  return first, {**others, **given}


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Makes a config of `default_config` start in seconds; what it finds is worth nothing.

  Few epochs, one generation of four structures, two methods of a comparison, the backbone that
  comes with the package. Task and structure stay, and so do the images, which are not stored
  decoded.

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
  config.compare.update(methods=('linear', 'lora:2'), seeds=1)
  return config


def with_settings(config: ml_collections.ConfigDict, path: str | None) -> ml_collections.ConfigDict:
  """A config with the budgets and learning rates of a file.

  The file is JSON, `{"cifar100": {"budget": 860000, "learning_rate": 1e-4}}`. A task is named
  without its benchmark: 'cifar100', 'food101/4/0'. The beginning of several names, 'food101' or
  'food101/4', stands for all of them; where more than one fits, the longest counts. What is not
  given stays as in the config.

  Args:
    config: the config to be changed; the content of the file becomes part of it.
    path: path of the file; None changes nothing.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it holds something else; the sentence says what.
  """
  if path is None:
    return config
  path = os.path.expanduser(path)
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f"There is no file '{path}'; settings= takes a JSON file of budgets and learning rates by "
      'task.'
    )
  settings = load_json(path, 'settings= takes JSON')
  check_settings(settings, config.task, path)
  if expand(config.task) == [config.task]:
    own = settings_of(settings, config.task)
    config.budget = plain(own.get('budget', config.budget))
    if (rate := own.get('learning_rate')) is not None:
      config.training.learning_rate = config.finetune.learning_rate = float(rate)
  else:
    config.suite.settings = ml_collections.ConfigDict(settings)
  return config


def check_settings(settings: Any, task: str, where: str) -> None:
  """Checks settings by task.

  Args:
    settings: task's name -> its budget and learning rate.
    task: a config's task, which says of which benchmark the names are.
    where: the beginning of the sentence: path of the file, or name of the config's field.

  Raises:
    ValueError: a name, type or value cannot be.
  """
  benchmark = task.partition('/')[0]
  names = dict.fromkeys((*expand(f'{benchmark}/all'), *expand(task)))
  known = [name.partition('/')[2] for name in names]
  for name in taken(settings, where, Mapping[Name, OwnSettings]):
    if not any(_stands_for(name, task) for task in known):
      near = difflib.get_close_matches(name, known) or known
      raise ValueError(f"{where}: '{name}' is no task of {benchmark}; there are {listed(near)}.")


def settings_of(settings: Mapping[str, Any], task: str) -> dict[str, Any]:
  """The budget and learning rate that settings have for a single task; the longest name counts."""
  name = task.partition('/')[2]
  own: dict[str, Any] = {}
  for given in sorted((given for given in settings if _stands_for(given, name)), key=len):
    own |= settings[given]
  return own


def _stands_for(name: str, task: str) -> bool:
  return task == name or task.startswith(f'{name}/')
