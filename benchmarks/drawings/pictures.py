"""Two kinds of drawings in 38 classes each; every other one is for development.

Clip art: the 38 largest topics of Debian's `openclipart-png` (public domain). 16 drawings of each
are there to learn from, up to 32 others to test on.

Emoji: the 38 largest sub-categories of those that both Twitter (CC-BY 4.0) and Google (SIL OFL 1.1,
Apache 2.0) drew; the packages are MIT's. Eight emoji of a sub-category are there to learn from, as
Twitter drew them, and up to 32 others to test on, as Google drew them: another hand, and nothing
that was learned from.

Nothing of the pictures goes into the repository. Those with the same pixels count once, and none
with two topics.
"""

import contextlib
import functools
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps
from safetensors.numpy import load_file

from benchmarks.machinery.packages import Package, read_package
from benchmarks.structures.tasks import distinct
from glora_jax.files import write_safetensors
from glora_jax.vision.data.pipeline import Split

FOLDER = os.path.join('runs', 'drawings')
SIZE = 70  # pixels; emoji have 64
CLASSES = 19  # of each half
TESTS = 32  # most of a class
LEARNED = {'clip_art': 16, 'emoji': 8}  # of a class
CLIP_ART = Package(
  'http://deb.debian.org/debian/pool/main/o/openclipart/openclipart-png_0.18+dfsg-19_all.deb',
  'f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02',
)
_NPM = 'https://registry.npmjs.org/emoji-datasource-{0}/-/emoji-datasource-{0}-16.0.0.tgz'
EMOJI = {
  'twitter': Package(
    _NPM.format('twitter'), 'f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877'
  ),
  'google': Package(
    _NPM.format('google'), 'fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438'
  ),
}


def prepare(folder: str) -> None:
  """Writes the pictures of both kinds; the packages lie in a folder, or are downloaded to it.

  Raises:
    ValueError: a download is not the file that was looked at.
  """
  os.makedirs(FOLDER, exist_ok=True)
  for kind, (pictures, classes) in {'clip_art': clip_art(folder), 'emoji': emoji(folder)}.items():
    labels = np.unique(classes, return_inverse=True)[1]
    kept = functools.reduce(np.intersect1d, (distinct(hand, labels) for hand in pictures))
    names, counts = np.unique(np.array(classes)[kept], return_counts=True)
    largest = names[np.sort(np.argsort(-counts, kind='stable')[: 2 * CLASSES])]
    kept = kept[np.isin(np.array(classes)[kept], largest)]
    labels = np.searchsorted(largest, np.array(classes)[kept])
    write_safetensors(_path(kind), {'pictures': pictures[:, kept], 'labels': labels}, {})
    print(f'{kind}: {len(kept):,} drawings of {", ".join(largest)}')


def clip_art(folder: str) -> tuple[np.ndarray, list[str]]:
  """Pictures uint8 [1, n, SIZE, SIZE, 3] of all topics, and the topic of each."""
  package = read_package(CLIP_ART, folder)
  header = package.index(b'data.tar')  # of a member of the archive: 60 bytes, its size from 48
  archive = package[header + 60 :][: int(package[header + 48 : header + 58])]
  found = {}
  for path, content in _files(archive, r'/png/[^/]+/[^/]+/.*\.png$'):  # others are of no topic
    with contextlib.suppress(Image.DecompressionBombError):  # 200 million pixels
      found[path] = '/'.join(path.partition('/png/')[2].split('/')[:2]), picture(content)
  topics, pictures = zip(*(found[path] for path in sorted(found)), strict=True)
  return np.stack(pictures)[None], list(topics)


def emoji(folder: str) -> tuple[np.ndarray, list[str]]:
  """Pictures uint8 [2, n, SIZE, SIZE, 3] by Twitter and Google, and their sub-categories."""
  files = {
    path: content
    for package in EMOJI.values()
    for path, content in _files(read_package(package, folder), r'/64/|/emoji\.json$')
  }
  listed = [
    each
    for each in json.loads(files['package/emoji.json'])
    if all(each[f'has_img_{hand}'] for hand in EMOJI)
  ]
  hands = (
    [picture(files[f'package/img/{hand}/64/{each["image"]}']) for each in listed] for hand in EMOJI
  )
  return np.array(list(hands)), [each['subcategory'] for each in listed]


def _files(archive: bytes, wanted: str) -> Iterator[tuple[str, bytes]]:
  """Paths and contents of the files in a tar archive whose paths a regular expression matches."""
  with tarfile.open(fileobj=io.BytesIO(archive)) as members:
    for member in members:
      if member.isfile() and re.search(wanted, member.name):
        yield member.name, members.extractfile(member).read()


def picture(content: bytes) -> np.ndarray:
  """A drawing on a white square, uint8 [SIZE, SIZE, 3]."""
  drawing = Image.open(io.BytesIO(content)).convert('RGBA')
  paper = Image.new('RGBA', drawing.size, 'white')
  paper.alpha_composite(drawing)
  return np.asarray(ImageOps.pad(paper.convert('RGB'), (SIZE, SIZE), color='white'))


def _path(kind: str) -> str:
  return os.path.join(FOLDER, f'{kind}.safetensors')


@functools.lru_cache(maxsize=2)
def _load(kind: str) -> dict[str, np.ndarray]:
  """The pictures and labels of a kind.

  Raises:
    FileNotFoundError: they were not prepared; the sentence says how.
  """
  path = _path(kind)
  if not os.path.exists(path):
    raise FileNotFoundError(f'There is no {path}; python -m benchmarks.drawings prepare makes it.')
  return load_file(path)


@functools.lru_cache(maxsize=4)
def draw(task: str, seed: int) -> dict[str, Split]:
  """Drawings to test on, the same for every seed, and those to learn from.

  Args:
    task: 'clip_art' or 'emoji', for the classes for development followed by '.development'.
    seed: draws what is learned from.
  """
  kind, _, is_development = task.partition('.')
  found, learned = _load(kind), LEARNED[kind]
  labels, rows = found['labels'], {'train': [], 'test': []}
  for label in range(0 if is_development else 1, 2 * CLASSES, 2):
    members = np.random.default_rng(0).permutation(np.flatnonzero(labels == label))
    test, others = np.split(members, [min(TESTS, len(members) - learned)])
    rows['train'] += [*np.random.default_rng(seed).permutation(others)[:learned]]
    rows['test'] += [*test]
  rows['train'] = np.random.default_rng(seed).permutation(rows['train'])
  hands = {'train': found['pictures'][0], 'test': found['pictures'][-1]}
  return {
    name: Split(hands[name][part], (labels[part] // 2).astype(np.int32))
    for name, part in rows.items()
  }
