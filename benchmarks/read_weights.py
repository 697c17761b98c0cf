"""Time and memory of reading a ViT-B/16 from the files of several code bases.

  python -m benchmarks.read_weights [--quick]

Writes 330 MB of random weights in each format into a temporary folder, then reads each file several
times in fresh processes, in turn. `seconds` is the median, with the file in the system's cache;
`memory_over_file` is the growth of the process's resident memory at its peak, memory maps included,
over the file's size. `--quick` takes a ViT of width 192 and one repeat. The last line is JSON.
"""

import argparse
import collections
import importlib.util
import json
import os
import tempfile
import time

import jax
import numpy as np

from benchmarks.machinery.measuring import in_new_process, make_parser, print_result, print_table
from glora_jax.models import weights
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


def memory(field: str) -> int:
  """Bytes of a field of this process's status: 'VmRSS' is resident now, 'VmHWM' its peak."""
  with open('/proc/self/status') as file:
    return next(int(line.split()[1]) for line in file if line.startswith(field)) * 1024


def read(path: str) -> tuple[float, int]:
  """Seconds and bytes grown of reading a file in this process, which has done nothing before."""
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
  return seconds, grown


def measure(model: ViT, repeats: int) -> dict[str, dict[str, float]]:
  """Median seconds, and memory over the file's size, by format; prints the table."""
  suffixes = SUFFIXES | ({TORCH_ROW: 'pth'} if importlib.util.find_spec('torch') else {})
  rng = np.random.default_rng(0)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  params = jax.tree.map(lambda spec: rng.standard_normal(spec.shape, np.float32), shapes)
  sizes, readings = {}, collections.defaultdict(list)
  with tempfile.TemporaryDirectory() as folder:
    paths = {name: f'{folder}/{name}.{suffix}' for name, suffix in suffixes.items()}
    for name, path in paths.items():
      weights.save(path, model, params, METADATA, name.removesuffix(' (torch)'))
      sizes[name] = os.path.getsize(path)
    for name, path in [*paths.items()] * repeats:
      readings[name].append(in_new_process('read_weights', '--read', path))
  rows = []
  for name, size in sizes.items():
    seconds, grown = np.median(readings[name], axis=0)
    rows.append((name, size / 1e6, seconds, grown / size))
  print_table({'': '', 'MB': '.0f', 'seconds': '.2f', 'memory over file': '.2f'}, rows)
  return {name: {'seconds': row[1], 'memory_over_file': row[2]} for name, *row in rows}


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
