"""Whether our ViT makes of a photograph what onnxruntime makes of it with the wheel's graph."""

import re
import tempfile
from typing import Any

import flax
import jax
import numpy as np

from benchmarks.transfer.onnx_weights import (
  NORMALIZATION,
  Tensors,
  require_module,
  write_folder,
)
from glora_jax.data import image, normalization
from glora_jax.models import weights

GRAPH_IMAGE_SIZE = 224
TOLERANCE = 1e-3  # of the largest value, without rounding


def photograph() -> np.ndarray:
  """A photograph of a Chinese temple from scikit-learn, normalized, float32 [1, 224, 224, 3]."""
  import sklearn.datasets

  picture = image.from_array(sklearn.datasets.load_sample_image('china.jpg'))
  resized = image.resize(picture, GRAPH_IMAGE_SIZE)
  return np.asarray(normalization.normalize(resized[None], NORMALIZATION))


def graph_tokens(model: Any, blocks: int, images: np.ndarray) -> np.ndarray:
  """What onnxruntime makes of images, were the encoder to end after so many blocks.

  Args:
    model: an `onnx.ModelProto`.
    blocks: how many are run.
    images: normalized, float32 [batch, height, width, 3].

  Returns:
    Tokens after the last LayerNorm, float32 [batch, token, width].
  """
  onnx, runtime = require_module('onnx'), require_module('onnxruntime')
  shortened = onnx.ModelProto()
  shortened.CopyFrom(model)
  output_of = {node.name: node.output[0] for node in shortened.graph.node}
  ends = [name for name in output_of if re.fullmatch(r'/backbone/encoder/layer\.\d+/Add_1', name)]
  last = output_of[f'/backbone/encoder/layer.{len(ends) - 1}/Add_1']
  wanted = output_of[f'/backbone/encoder/layer.{blocks - 1}/Add_1']
  for node in shortened.graph.node:
    if node.name.startswith('/backbone/layernorm/'):
      inputs = [wanted if name == last else name for name in node.input]
      del node.input[:]
      node.input.extend(inputs)
  tokens = output_of['/backbone/layernorm/Add_1']
  del shortened.graph.output[:]
  shortened.graph.output.append(onnx.ValueInfoProto(name=tokens))
  session = runtime.InferenceSession(
    shortened.SerializeToString(), providers=['CPUExecutionProvider']
  )
  channels_first = images.transpose(0, 3, 1, 2)
  return session.run([tokens], {session.get_inputs()[0].name: channels_first})[0]


def our_tokens(path: str, images: np.ndarray) -> np.ndarray:
  """What our ViT makes of images, from a checkpoint that our loader reads.

  Args:
    path: path of the checkpoint's folder.
    images: normalized, float32 [batch, size, size, 3].

  Returns:
    Tokens after the last LayerNorm, float32 [batch, token, width].
  """
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
  images = photograph()
  depth = sum(name.endswith('.norm1.weight') for name in tensors)
  whole = graph_tokens(model, depth, images)
  with tempfile.TemporaryDirectory() as folder:
    write_folder(folder, tensors)
    difference = np.abs(our_tokens(folder, images) - whole).max()
  largest = np.abs(whole).max()
  if not difference <= TOLERANCE * largest:  # also where either is no number
    raise ValueError(
      f'Our ViT and the graph differ by {difference:.3g} on a photograph, where values go up to '
      f'{largest:.3g}; the weights are not read rightly.'
    )
  cut = graph_tokens(model, blocks, images)
  written = our_tokens(path, images) - cut
  return {
    'all_blocks': float(difference),
    'largest_value': float(largest),
    'written': float(np.abs(written).max()),
    'largest_written_value': float(np.abs(cut).max()),
    'written_relative': float(np.linalg.norm(written) / np.linalg.norm(cut)),
  }
