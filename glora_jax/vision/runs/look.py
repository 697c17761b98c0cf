"""A look before a run: all that is available (`--list`) or ready (`--check`), images (`--show`)."""

from __future__ import annotations

import os
import textwrap
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from glora_jax.checks import listed, shown
from glora_jax.files import atomic
from glora_jax.method.presets import PRESETS, TARGETS
from glora_jax.vision.data import catalog, pipeline
from glora_jax.vision.data.normalization import statistics
from glora_jax.vision.data.task import Part, Source, Task
from glora_jax.vision.files import require_free
from glora_jax.vision.models import fetch
from glora_jax.vision.models.checkpoint import hub_name
from glora_jax.vision.models.metadata import share_kept
from glora_jax.vision.models.weights import EMBEDDED
from glora_jax.vision.runs.backbone import metadata_here
from glora_jax.vision.runs.cells import runs_of
from glora_jax.vision.runs.config import check_config
from glora_jax.vision.runs.fields import meanings_of
from glora_jax.vision.runs.fitting import count_images, tell_few_steps
from glora_jax.vision.runs.processes import require_devices
from glora_jax.vision.runs.settings import RunSettings
from glora_jax.vision.runs.terminal import user_errors

NUMBER_OF_IMAGES = 8
NUMBER_OF_DRAWS = 2  # rows of augmented images
DEFAULT_SIZE = 224  # of most published weights, which are not downloaded for a look
_NORMALIZATION = 'imagenet'
_MOST_CLASSES_LISTED = 20
_SIDE, _GAP, _FONT_SIZE = 224, 14, 20  # pixels


@user_errors()
def check(config: ml_collections.ConfigDict | RunSettings) -> bool:
  """Prints whether the data of every task of a config is ready; returns whether all are.

  Nothing is downloaded or prepared.

  Raises:
    FileNotFoundError: the weights are a path that does not exist.
    ValueError: a field is wrong, or the weights are a name that timm does not have.
  """
  settings = check_config(config)
  runs_of(settings)  # which checks the fields of each
  weights = str(hub_name(settings.model.weights))
  if ':' not in weights and weights not in fetch.SHORTCUTS:  # neither an address nor on a hub
    fetch.fetch(weights)
  if state := dict(_weights()).get(weights):
    print(f'weights {weights}: {state}')
  names = catalog.expand(settings.task)
  number_ready = 0
  for name in names:
    is_ready, lines = _report(name, settings)
    number_ready += is_ready
    print('\n'.join(lines), flush=True)
  print(f'\n{number_ready} of {len(names)} ready.')
  return number_ready == len(names)


def _report(name: str, settings: RunSettings) -> tuple[bool, list[str]]:
  """Whether a task is ready, and lines on missing data, or on numbers of images by class."""
  data, splits = settings.data, []
  try:
    task = catalog.find(name, data)
    missing = task.missing()
    if not missing and catalog.has_files(name, data):
      splits = _splits(task)  # with broken images, if these may not be left out
      task = pipeline.open_images(pipeline.Images(task, 0), skip_broken=data.skip_broken).task
    notes = [f'  note: {note}' for note in task.notes]
    if missing:
      return False, [f'{name}: MISSING', f'  {missing}', *notes]
    if note := tell_few_steps(settings, count_images(task)):
      notes.append(f'  note: {note}')
    return True, [f'{name}: ready, {task.origin}', *notes, *_splits(task)]
  except (ValueError, OSError, ImportError) as error:
    return False, [f'{name}: NOT READY', f'  {error}', *splits]


def _splits(task: Task) -> list[str]:
  """A line for each split; see `_describe`."""
  return [f'  {split:6} {_describe(task, split)}' for split in task.splits]


def _describe(task: Task, split: str) -> str:
  """Images and classes of a split in one line; with few classes, the count of each."""
  labels = task.open(split).labels
  counts = np.bincount(labels, minlength=task.num_classes)
  present = counts[counts > 0]
  more = f' to {present.max()}' if present.max() > present.min() else ''
  line = (
    f'{len(labels):,} images, {len(present)} of {task.num_classes} classes, '
    f'{present.min()}{more} each'
  )
  if task.num_classes <= _MOST_CLASSES_LISTED:
    pairs = zip(task.classes, counts, strict=True)
    line += ': ' + ', '.join(f'{name} {count}' for name, count in pairs)
  if split == 'train' and not counts.all():
    line += f'; none of {listed(task.classes[n] for n in np.flatnonzero(counts == 0))}'
  return line


@user_errors()
def show(
  config: ml_collections.ConfigDict | RunSettings, path: str, *, overwrite: bool = False
) -> None:
  """Draws a batch of a config's training images with their labels, at the size of the model.

  The first row is only resized; the others are augmented, as in training. Prints the path.

  Args:
    config: config of a run; its seed chooses the images.
    path: path of the PNG.
    overwrite: whether to replace an existing file; images of the task and its CSV are never
      replaced.

  Raises:
    ValueError: a field is wrong, or the task stands for several tasks.
    OSError: the images cannot be read, or the picture cannot be written.
  """
  settings = check_config(config)
  require_devices()
  names = catalog.expand(settings.task)
  if names != [settings.task]:
    raise ValueError(
      f'task={shown(settings.task)} stands for {len(names)} tasks, but --show draws one; give '
      f'--config.task={names[0]}, for instance.'
    )
  task = catalog.find(settings.task, settings.data)
  require_free(path, overwrite, _inputs(task) if overwrite else ())
  examples = task.open('train')
  order = np.random.default_rng(settings.seed % 2**64).permutation(len(examples.labels))
  metadata = metadata_here(settings.model)
  size = settings.model.image_size or metadata.get('image_size')
  size = size if isinstance(size, int) else DEFAULT_SIZE  # a run needs square ones
  images, labels = pipeline.load(
    Part(examples, order[:NUMBER_OF_IMAGES]),
    size,
    share=share_kept(metadata, settings.data.resize),
    skip_broken=settings.data.skip_broken,
  )
  mean, deviation = map(np.array, statistics(_NORMALIZATION))
  rows = {'resized': images}
  for number in range(NUMBER_OF_DRAWS):
    key = jax.random.fold_in(jax.random.key(settings.seed), number)
    augmented = settings.augment.apply(key, jnp.asarray(images), size, _NORMALIZATION)
    pixels = np.round((np.asarray(augmented) * deviation + mean) * 255)
    rows[f'augmented {number + 1}'] = np.clip(pixels, 0, 255).astype(np.uint8)
  contact_sheet(path, rows, [task.classes[label] for label in labels])
  print(path)


def _inputs(task: Task) -> Iterator[str]:
  """The path of a task's CSV or folder, and those of all images that are files."""
  yield task.name.partition(':')[2]
  for split in task.splits:
    examples = task.open(split)
    paths = (examples[index].path for index in range(len(examples.labels)))
    yield from filter(None, paths)


def contact_sheet(path: str, rows: Mapping[str, np.ndarray], labels: Sequence[str]) -> None:
  """Writes a PNG of rows of images.

  Args:
    path: path of the PNG.
    rows: the images of each row, uint8 [n, height, width, 3], by its title.
    labels: the heading of each column.
  """
  try:
    font = ImageFont.truetype('DejaVuSans.ttf', _FONT_SIZE)
  except OSError:  # not on this machine; Pillow's own font has ASCII only
    font = ImageFont.load_default(_FONT_SIZE)
  step = _SIDE + _GAP
  left = round(max(map(font.getlength, rows))) + 2 * _GAP
  top = _FONT_SIZE + 2 * _GAP
  sheet = Image.new('RGB', (left + step * len(labels), top + step * len(rows)), 'white')
  draw = ImageDraw.Draw(sheet)
  for column, label in enumerate(labels):
    short = label
    while font.getlength(short) > _SIDE:
      short = short.removesuffix('…')[:-1] + '…'
    place = (left + column * step + _SIDE / 2, top - _GAP)
    draw.text(place, short, 'black', font, anchor='ms')
  for row, (title, images) in enumerate(rows.items()):
    y = top + row * step
    draw.text((left - _GAP, y + _SIDE / 2), title, 'dimgray', font, anchor='rm')
    for column, image in enumerate(images):
      is_small = len(image) <= _SIDE  # so that its pixels can be seen
      resampling = Image.Resampling.NEAREST if is_small else Image.Resampling.BICUBIC
      tile = Image.fromarray(image).resize((_SIDE, _SIDE), resampling)
      sheet.paste(tile, (left + column * step, y))
  with atomic(path) as temporary:
    sheet.save(temporary, 'png')


def inventory(configs: Mapping[str, str]) -> str:
  """Everything that is available or ready on this machine; nothing is downloaded or prepared.

  Args:
    configs: the purpose of each config of the package, by name.
  """
  structure = meanings_of(RunSettings)['structure']
  return '\n'.join(
    [
      'Configs: --config NAME[:ARGUMENTS]',
      *_rows(configs.items()),
      '',
      'Structures: --config.structure=NAME',
      textwrap.fill(structure, 100, initial_indent='  ', subsequent_indent='  '),
      '',
      'Presets: --config.structure=NAME, or as baselines --config.presets="(\'NAME\',)"',
      f'  {", ".join(PRESETS)}',
      f'  with a rank (lora:2) and a target (lora:2@qkv): {", ".join(TARGETS)}, or a regular',
      '  expression for layer names',
      '',
      'Tasks: --config.task=NAME',
      *_rows(_tasks(Source())),
      '',
      'Weights: --config.model.weights=NAME',
      *_rows(_weights()),
    ]
  )


def _rows(rows: Iterable[tuple[str, str]]) -> list[str]:
  """Lines of names and their meanings."""
  return [
    textwrap.fill(meaning, 100, initial_indent=f'  {name:25} ', subsequent_indent=' ' * 28)
    for name, meaning in rows
  ]


def _tasks(source: Source) -> Iterator[tuple[str, str]]:
  yield 'digits', 'from scikit-learn; no download'
  for kind, family in catalog.FAMILIES.items():
    ready = [name for name in catalog.data_sets(kind) if catalog.is_ready(name, source)]
    names = ', '.join(map(str, family.parts.get('NAME', ())))
    which = f' ({", ".join(name.split("/")[1] for name in ready)})' if ready and names else ''
    title = f'{family.title}: {names}' if names else family.title
    yield '/'.join((kind, *family.parts)), f'{title}; ready: {len(ready)}{which}'
  yield 'folder:PATH', 'your images: a folder with one subfolder per class'
  yield 'csv:PATH', 'your images: a table of paths and labels'
  yield 'tfds:NAME', 'any image classification data set of TFDS'


def _weights() -> Iterator[tuple[str, str]]:
  yield EMBEDDED, 'in the package: a small ViT trained on Fashion-MNIST'
  for name, published in fetch.SHORTCUTS.items():
    is_here = os.path.exists(fetch.path_in_cache(published.url))
    host = urllib.parse.urlsplit(published.url).hostname
    yield name, f'{"downloaded" if is_here else "not downloaded yet,"} from {host}'
  yield 'PATH', 'a file or folder of timm, transformers, big_vision, ...'
  yield 'hf:OWNER/NAME', "from the Hugging Face hub; needs the package 'huggingface_hub'"
  yield 'timm:NAME', "the same, with timm's name"
