"""Time and memory of reading a ViT-B/16 from the files of several code bases.

  python -m benchmarks.read_weights [--quick]

Writes 330 MB of random weights in each format into a temporary folder, then reads each file several
times in fresh processes, in turn. `seconds` is the median, with the file in the system's cache;
`memory_over_file` is the growth of the process's resident memory at its peak, memory maps included,
over the file's size. `--quick` takes a ViT of width 192 and one repeat. The last line is JSON.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.machinery.output import make_parser, print_result, print_table

# The two others are imported when a file is read, which is not to be measured.
from glora_jax.models import containers, formats, weights  # noqa: F401
from glora_jax.models.vit import ViT, vit

REPEATS, QUICK_REPEATS = 5, 1
METADATA = {'image_size': 224, 'normalization': 'inception'}
SUFFIXES = {
  'vit_jax': 'npz',
  'big_vision_scan': 'npz',
  'timm': 'safetensors',
  'hf_vit': 'safetensors',
  'glora_jax': 'safetensors',
}
TORCH_ROW = 'timm (torch)'


class Reading(NamedTuple):
  """What one process saw of reading one file."""

  seconds: float
  bytes_grown: float


def memory(field: str) -> int:
  """Bytes of a field of this process's status: 'VmRSS' is resident now, 'VmHWM' its peak."""
  with open('/proc/self/status') as file:
    return next(int(line.split()[1]) for line in file if line.startswith(field)) * 1024


def read(path: str) -> Reading:
  """Reads a file in this process, which has done nothing before."""
  jax.eval_shape(lambda: 0)
  if path.endswith('.pth'):
    import torch  # noqa: F401
  with open('/proc/self/clear_refs', 'w') as file:
    file.write('5')  # starts the peak anew
  before = memory('VmRSS')
  start = time.perf_counter()
  loaded = weights.load(path)
  seconds = time.perf_counter() - start
  grown = memory('VmHWM') - before
  del loaded
  return Reading(seconds, grown)


def read_in_new_process(path: str) -> Reading:
  """What `read` returns in a process of its own."""
  command = [sys.executable, '-m', 'benchmarks.read_weights', '--read', path]
  finished = subprocess.run(command, check=True, capture_output=True, text=True)
  return Reading(*json.loads(finished.stdout.splitlines()[-1]))


def random_params(model: ViT) -> Any:
  """Parameters of a model for images of 224 pixels, float32."""
  rng = np.random.default_rng(0)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  return jax.tree.map(lambda spec: rng.standard_normal(spec.shape, np.float32), shapes)


def write_files(folder: str, model: ViT, suffixes: dict[str, str]) -> dict[str, str]:
  """Writes the same weights in each format; paths by format."""
  params = random_params(model)
  paths = {}
  for name, suffix in suffixes.items():
    paths[name] = os.path.join(folder, f'{name.replace(" ", "_")}.{suffix}')
    weights.save(paths[name], model, params, METADATA, name.removesuffix(' (torch)'))
  return paths


def measure(model: ViT, repeats: int) -> dict[str, dict[str, float]]:
  """Median seconds, and memory over the file's size, by format; prints the table."""
  suffixes = SUFFIXES | ({TORCH_ROW: 'pth'} if importlib.util.find_spec('torch') else {})
  with tempfile.TemporaryDirectory() as folder:
    paths = write_files(folder, model, suffixes)
    sizes = {name: os.path.getsize(path) for name, path in paths.items()}
    rounds = [
      {name: read_in_new_process(path) for name, path in paths.items()} for _ in range(repeats)
    ]
  result, rows = {}, []
  for name, size in sizes.items():
    readings = [by_name[name] for by_name in rounds]
    seconds, grown = (statistics.median(column) for column in zip(*readings, strict=True))
    result[name] = {'seconds': round(seconds, 3), 'memory_over_file': round(grown / size, 3)}
    rows.append((name, f'{size / 1e6:.0f}', f'{seconds:.2f}', f'{grown / size:.2f}'))
  print_table(('', 'MB', 'seconds', 'memory over file'), rows)
  return result


def main() -> None:
  """Measures and prints; or reads one file, in a process that the former started."""
  parser = make_parser(__doc__, 'a small ViT, one repeat')
  parser.add_argument('--read', help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.read:
    print(json.dumps(read(arguments.read)))
    return
  quick = arguments.quick
  model = vit('Ti' if quick else 'B', 0, activation='gelu_tanh')
  print_result('read_weights', measure(model, QUICK_REPEATS if quick else REPEATS))


if __name__ == '__main__':
  main()
