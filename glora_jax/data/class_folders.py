"""Folders with a subfolder of images for each class, alone or once for each split."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

from glora_jax.data.examples import Files
from glora_jax.data.image import EXTENSIONS, files_below, is_image
from glora_jax.limits import listed, printable

log = logging.getLogger(__name__)

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
  'train': ('train', 'training'),
  'val': ('val', 'valid', 'validation'),
  'test': ('test', 'testing'),
}
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}


def subfolders(folder: str) -> list[str]:
  """The names of the folders in a folder, sorted; what begins with a dot is left out.

  Raises:
    OSError: the folder cannot be listed.
  """
  try:
    names = os.listdir(folder)
  except OSError as error:
    raise OSError(f'The folder {folder} cannot be listed ({error.strerror}).') from error
  return sorted(
    name for name in names if not name.startswith('.') and os.path.isdir(os.path.join(folder, name))
  )


def split_folders(folder: str) -> dict[str, str]:
  """The folders of splits in a folder by split, 'train' among them; none where it holds classes.

  Upper and lower case are the same. A single folder `train` with images in it, beside other
  folders, is a class.

  Raises:
    ValueError: there are folders of splits, but no 'train', two of one split, or others as well.
  """
  inside = subfolders(folder)
  named = [name for name in inside if name.lower() in SPLIT_OF]
  others = [name for name in inside if name not in named]
  if not named or (others and _is_a_class(folder, named)):
    return {}
  found = listed(named)
  expected = 'train, and val and test where there are such, with the class folders inside'
  if others:
    raise ValueError(
      f'{folder} has folders of splits ({found}) beside others ({listed(others)}); expected are '
      f'class folders alone, or {expected}. Move away what is neither; classes that are called '
      f'{found} can be given by a CSV.'
    )
  by_split: dict[str, list[str]] = {}
  for name in named:
    by_split.setdefault(SPLIT_OF[name.lower()], []).append(name)
  if 'train' not in by_split:
    raise ValueError(
      f'{folder} has folders of splits ({found}), but no train; expected are {expected}.'
    )
  for split, names in by_split.items():
    if len(names) > 1:
      raise ValueError(
        f'{folder} has {len(names)} folders for the split {split}: {listed(names)}; one is '
        'expected.'
      )
  return {
    split: os.path.join(folder, by_split[split][0]) for split in SPLIT_NAMES if split in by_split
  }


def _is_a_class(folder: str, named: Sequence[str]) -> bool:
  """Whether the one folder that is called as a split holds the images of a class."""
  return len(named) == 1 and not subfolders(os.path.join(folder, named[0]))


def scan(folder: str, classes: Sequence[str]) -> Files:
  """All images below the class folders, in the order of their names.

  Warnings say which endings the files have that are left aside, and that images beside the class
  folders are.

  Args:
    folder: folder that holds the class folders; one for each class that occurs.
    classes: names of the class folders, in the order of the labels.

  Raises:
    ValueError: a class folder holds no images, or leads back to the folder.
  """
  paths, labels, empty, others = [], [], [], []
  for label, name in enumerate(classes):
    class_folder = os.path.join(folder, name)
    if not os.path.isdir(class_folder):
      continue
    _require_below(folder, class_folder)
    files = files_below(class_folder)
    images = list(filter(is_image, files))
    others += [file for file in files if not is_image(file)]
    paths += images
    labels += [label] * len(images)
    if not images:
      empty.append(name)
  if empty:
    raise ValueError(
      f'{folder}: no images in the class folders {listed(empty)}; '
      f'an image is a file ending in {", ".join(EXTENSIONS)}. Fill or remove them.'
    )
  names = (name for name in os.listdir(folder) if is_image(name) and not name.startswith('.'))
  loose = [name for name in names if os.path.isfile(os.path.join(folder, name))]
  if loose:
    log.warning(
      '%d images lie in %s itself and in no class folder, and are left aside, %s for instance.',
      len(loose),
      printable(folder),
      printable(min(loose)),
    )
  if others:
    endings = sorted({os.path.splitext(file)[1].lower() or 'no ending' for file in others})
    log.warning(
      '%d files below %s are no images by their endings (%s), and are left aside.',
      len(others),
      printable(folder),
      listed(endings),
    )
  return Files(paths, labels)


def _require_below(folder: str, class_folder: str) -> None:
  """Raises ValueError where a class folder is a link to what holds it."""
  target = os.path.realpath(class_folder)
  above = os.path.realpath(folder)
  if os.path.commonpath([target, above]) == target:
    raise ValueError(
      f'The class folder {class_folder} is a link to {target}, which holds the other classes, too; '
      'remove it.'
    )
