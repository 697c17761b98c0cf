"""Time and memory of reading a ViT-B/16 from the files of several code bases, each in a process of its own.

  python -m benchmarks.read_weights [--quick]

Writes 330 MB of random weights in each format into a temporary folder, then reads each file several times in fresh processes, in turn.
`seconds` is the median, with the file in the system's cache; `memory_over_file` is the growth of the process's resident memory at
its peak, memory maps included, over the file's size. `--quick` takes a ViT of width 192 and one repeat. The last line is JSON.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile

import jax
import numpy as np

from benchmarks import machine
from glora_jax.models import weights
from glora_jax.models.vit import vit

READ = """
import sys, time
from glora_jax.models import weights, containers, formats  # imports are not what is measured
import jax; jax.eval_shape(lambda: 0)
if sys.argv[1].endswith('.pth'): import torch
def status(name):
  with open('/proc/self/status') as file:
    return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024
with open('/proc/self/clear_refs', 'w') as file:
  file.write('5')  # starts the peak anew
before = status('VmRSS')
start = time.perf_counter()
model, params, _ = weights.load(sys.argv[1])
seconds = time.perf_counter() - start
print(seconds, status('VmHWM') - before)
"""


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--quick', action='store_true', help='a small ViT, one repeat')
  quick = parser.parse_args().quick
  model = vit('Ti' if quick else 'B', 0, activation='gelu_tanh')
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
  )['params']
  params = jax.tree.map(lambda spec: rng.standard_normal(spec.shape, np.float32), shapes)
  files = {
    'vit_jax': 'npz',
    'big_vision_scan': 'npz',
    'timm': 'safetensors',
    'hf_vit': 'safetensors',
    'glora_jax': 'safetensors',
  }
  if importlib.util.find_spec('torch'):
    files['timm (torch)'] = 'pth'
  rows = {name: [] for name in files}
  with tempfile.TemporaryDirectory() as folder:
    path = lambda name: os.path.join(folder, f'{name.replace(" ", "_")}.{files[name]}')
    for name in files:
      weights.save(
        path(name),
        model,
        params,
        {'image_size': 224, 'normalization': 'inception'},
        name.removesuffix(' (torch)'),
      )
    for _ in range(1 if quick else 5):
      for name in files:
        ran = subprocess.run(
          [sys.executable, '-c', READ, path(name)], check=True, capture_output=True, text=True
        )
        rows[name].append([float(value) for value in ran.stdout.split()])
    sizes = {name: os.path.getsize(path(name)) for name in files}
  result = {}
  print(f'{"":18s} {"MB":>6s} {"seconds":>8s} {"memory over file":>17s}')
  for name, values in rows.items():
    seconds, memory = (statistics.median(column) for column in zip(*values, strict=True))
    result[name] = {
      'seconds': round(seconds, 3),
      'memory_over_file': round(memory / sizes[name], 3),
    }
    print(f'{name:18s} {sizes[name] / 1e6:6.0f} {seconds:8.2f} {memory / sizes[name]:17.2f}')
  print(json.dumps({'benchmark': 'read_weights', 'machine': machine.describe(), **result}))


if __name__ == '__main__':
  main()
