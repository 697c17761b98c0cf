"""The user's own images: a folder with a subfolder for each class, a CSV of paths and labels, or any TFDS data set.

What comes unsplit is split once: stratified, by a fixed seed, 80% to train, 10% each to val and test; the split is written into the
workdir, and a resumed run reads it there.
"""

from __future__ import annotations

import os

import numpy as np

from glora_jax.data import tfds
from glora_jax.data.examples import Files, Part
from glora_jax.data.label_files import read_csv, require_files
from glora_jax.data.splits import deal
from glora_jax.data.task import Source, Task
from glora_jax.files import read_json, write_json

KINDS = ('folder', 'csv', 'tfds')
EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
SHARES, SEED = (0.8, 0.1, 0.1), 0
SPLITS = ('train', 'val', 'test')
_OTHER_NAMES = {
  'val': ('val', 'valid', 'validation'),
  'train': ('train', 'training'),
  'test': ('test', 'testing'),
}


def task(kind: str, path: str, source: Source, workdir: str | None = None) -> Task:
  """A task on the user's own images.

  Args:
    kind: of `KINDS`.
    path: of the folder or CSV; the name of the TFDS data set.
    source: `dir` and `version` are used for TFDS.
    workdir: where `split.json` is kept; None makes the same split again every time.

  Raises:
    ValueError, FileNotFoundError: the path is not there or not such a thing; a class has no images, or fewer than there are splits.
  """
  path = path if kind == 'tfds' else os.path.abspath(os.path.expanduser(path))
  split_file = os.path.join(workdir, 'split.json') if workdir else None
  return {'folder': _from_folder, 'csv': _from_csv, 'tfds': _from_tfds}[kind](
    path, source, split_file
  )


def _subfolders(folder):
  return sorted(
    entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith('.')
  )


def _scan(folder: str, classes: tuple[str, ...]) -> Files:
  """All images below the class folders, in the order of their names."""
  paths, labels = [], []
  for label, name in enumerate(classes):
    for parent, folders, names in os.walk(os.path.join(folder, name)):
      folders.sort()
      found = [
        os.path.join(parent, entry)
        for entry in sorted(names)
        if entry.lower().endswith(EXTENSIONS) and not entry.startswith('.')
      ]
      paths += found
      labels += [label] * len(found)
  if empty := [classes[n] for n in range(len(classes)) if n not in set(labels)]:
    raise ValueError(
      f'{folder}: no images in the class folders {", ".join(empty)}; an image is a file ending in {", ".join(EXTENSIONS)}. '
      'Fill or remove them.'
    )
  return Files(paths, labels)


def _from_folder(folder, source, split_file):
  del source
  if not os.path.isdir(folder):
    raise FileNotFoundError(
      f'There is no folder {folder}; one with a subfolder of images for each class is expected.'
    )
  inside = _subfolders(folder)
  ready = {
    split: next((name for name in _OTHER_NAMES[split] if name in inside), None) for split in SPLITS
  }
  if ready['train'] and set(inside) <= {name for names in _OTHER_NAMES.values() for name in names}:
    return _from_split_folders(folder, ready, split_file)
  if len(inside) < 2:
    raise ValueError(
      f'{folder} has {len(inside)} subfolders; two or more are expected, one for each class, or train, val and test with '
      'such folders inside.'
    )
  return _dealt(f'folder:{folder}', tuple(inside), _scan(folder, tuple(inside)), folder, split_file)


def _from_split_folders(folder, ready, split_file):
  """`train/` must be there; what is missing of `val/` and `test/` is dealt from it."""
  train = os.path.join(folder, ready['train'])
  classes = tuple(_subfolders(train))
  if len(classes) < 2:
    raise ValueError(
      f'{train} has {len(classes)} subfolders; two or more are expected, one for each class.'
    )
  for name in filter(None, (ready['val'], ready['test'])):
    if strange := sorted(set(_subfolders(os.path.join(folder, name))) - set(classes)):
      raise ValueError(
        f'{os.path.join(folder, name)} has classes that {train} has not: {", ".join(strange)}.'
      )
  given = {}
  for split in ('val', 'test'):
    if ready[split]:
      base = os.path.join(folder, ready[split])
      present = tuple(name for name in classes if os.path.isdir(os.path.join(base, name)))
      files = _scan(base, present)
      given[split] = Files(
        files.paths, [classes.index(present[label]) for label in files.given_labels]
      )
  pool = _scan(train, classes)
  if len(given) == 2:
    splits = {'train': pool, **given}
    return Task(
      f'folder:{folder}',
      classes,
      {name: lambda files=files: files for name, files in splits.items()},
      f'the folder {folder}',
    )
  missing = [split for split in ('val', 'test') if split not in given]
  shares = (1 - 0.1 * len(missing), *([0.1] * len(missing)))
  parts = _parts(pool, ('train', *missing), shares, split_file, classes, folder)
  splits = {**parts, **given}
  note = f'{" and ".join(missing)} were dealt from train, stratified, seed {SEED}: 10% each.'
  return Task(
    f'folder:{folder}',
    classes,
    {name: lambda part=part: part for name, part in splits.items()},
    f'the folder {folder}',
    (note,),
  )


def _from_csv(path, source, split_file):
  del source
  rows, root = read_csv(path)
  seen = {}
  for number, name, _ in rows:
    if name in seen:
      raise ValueError(
        f'{path}, line {number}: {name} occurs a second time, first in line {seen[name]}.'
      )
    seen[name] = number
  names = sorted(
    {label for *_, label in rows},
    key=lambda label: (0, int(label), '') if label.isdigit() else (1, 0, label),
  )
  if len(names) < 2:
    raise ValueError(f'{path} has the one label {names[0]!r}; two or more are needed to classify.')
  number_of = {label: number for number, label in enumerate(names)}
  files = Files(
    [os.path.join(root, name) for _, name, _ in rows], [number_of[label] for *_, label in rows]
  )
  require_files(files.paths, f'that {path} names')
  return _dealt(f'csv:{path}', tuple(names), files, path, split_file)


def _from_tfds(name, source, split_file):
  builder = tfds.find_builder(name, source.dir, source.version)
  features = builder.info.features
  if not {'image', 'label'} <= set(features) or not getattr(features['label'], 'num_classes', None):
    raise ValueError(
      f"TFDS {name} has the features {', '.join(features)}; an 'image' and a 'label' with classes are expected."
    )
  classes = tuple(features['label'].names or map(str, range(features['label'].num_classes)))
  whole = {}

  def read(split):
    if split not in whole:
      tfds.prepare(builder)
      whole[split] = tfds.read(
        builder, split, lambda example: example['image'], lambda example: int(example['label'])
      )
    return whole[split]

  def opened(split):
    def examples():
      tfds.prepare(builder)
      there = {
        ours: next((name for name in names if name in builder.info.splits), None)
        for ours, names in _OTHER_NAMES.items()
      }
      if there['train'] is None:
        raise ValueError(
          f"TFDS {name} has the splits {', '.join(builder.info.splits)}; a 'train' is expected."
        )
      if there[split] and split != 'train':
        return read(there[split])
      missing = [other for other in ('val', 'test') if not there[other]]
      if not missing:
        return read(there['train'])
      shares = (1 - 0.1 * len(missing), *([0.1] * len(missing)))
      return _parts(
        read(there['train']), ('train', *missing), shares, split_file, classes, f'TFDS {name}'
      )[split]

    return examples

  note = f'Splits that the data set lacks were dealt from train, stratified, seed {SEED}: 10% each.'
  return Task(
    f'tfds:{name}',
    classes,
    {split: opened(split) for split in SPLITS},
    f'TFDS {builder.info.full_name}',
    (note,),
    missing=tfds.missing(builder),
  )


def _dealt(name, classes, examples, origin, split_file):
  parts = _parts(examples, SPLITS, SHARES, split_file, classes, origin)
  note = f'Split by glora_jax, stratified, seed {SEED}: 80% train, 10% val, 10% test.'
  return Task(
    name,
    classes,
    {split: lambda part=part: part for split, part in parts.items()},
    str(origin),
    (note,),
  )


def _parts(examples, splits, shares, split_file, classes, origin) -> dict[str, Part]:
  """The examples dealt to splits, as `split_file` says where it is there, which must be of the same examples."""
  labels = examples.labels
  few = [
    f'{classes[n]} ({count})'
    for n, count in enumerate(np.bincount(labels, minlength=len(classes)))
    if count < len(splits)
  ]
  if few:
    raise ValueError(
      f'{origin}: every class needs at least {len(splits)} images to be split into {", ".join(splits)}; '
      f'too few in {", ".join(few)}.'
    )
  if split_file and os.path.exists(split_file):
    saved = read_json(split_file)
    if saved['identity'] != examples.identity:
      raise ValueError(
        f'The images of {origin} have changed since {split_file} was made; take a new workdir, or remove that file and '
        'with it the claim that the results of this workdir are of the same split.'
      )
    indices = [saved[split] for split in splits]
  else:
    indices = deal(labels, shares, SEED)
    if split_file:
      os.makedirs(os.path.dirname(split_file), exist_ok=True)
      write_json(
        split_file,
        {
          'identity': examples.identity,
          **{split: part.tolist() for split, part in zip(splits, indices, strict=True)},
        },
      )
  return {
    split: Part(examples, np.asarray(part, np.int64))
    for split, part in zip(splits, indices, strict=True)
  }
