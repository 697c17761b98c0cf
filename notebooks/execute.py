"""Executes notebooks, and stores them with their outputs.

  python notebooks/execute.py quickstart own_images

They run in an empty folder. Progress and logs are left out, and pictures are made small.
"""

import argparse
import base64
import io
import os
import tempfile

import nbclient
import nbformat
from PIL import Image

HERE = os.path.dirname(os.path.abspath(__file__))
COLORS = 128  # of a picture's palette
MOST_WIDTH = 1000  # pixels
TIMEOUT = 900  # seconds for a cell
EIGHT_DEVICES = {'XLA_FLAGS': '--xla_force_host_platform_device_count=8'}
ENVIRONMENTS = {'tpu': {'JAX_PLATFORMS': 'cpu', **EIGHT_DEVICES}}  # by notebook


def execute(name: str) -> None:
  """Executes a notebook beside this file in place."""
  path = os.path.join(HERE, f'{name}.ipynb')
  notebook = nbformat.read(path, as_version=4)
  with tempfile.TemporaryDirectory() as folder:
    place = {'metadata': {'path': folder}}
    client = nbclient.NotebookClient(notebook, timeout=TIMEOUT, resources=place)
    client.execute(env={**os.environ, **ENVIRONMENTS.get(name, {})})
  for cell in notebook.cells:
    cell.metadata.pop('execution', None)  # the seconds at which it ran
    if cell.cell_type == 'code':
      cell.outputs = [small(output) for output in cell.outputs if output.get('name') != 'stderr']
  notebook.metadata.language_info = {'name': 'python'}
  text = nbformat.writes(notebook).replace(f'{folder}/', '')  # whose name says nothing
  with open(path, 'w', encoding='utf-8') as file:
    file.write(text + '\n')
  print(f'{path}: {os.path.getsize(path) / 1000:.0f} kB')


def small(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
  """An output whose picture has few pixels and colors."""
  data = output.get('data', {})
  if 'image/png' in data:
    picture = Image.open(io.BytesIO(base64.b64decode(data['image/png']))).convert('RGB')
    picture.thumbnail((MOST_WIDTH, MOST_WIDTH * 4))
    file = io.BytesIO()
    picture.quantize(COLORS, Image.Quantize.MAXCOVERAGE).save(file, 'png', optimize=True)
    data['image/png'] = base64.b64encode(file.getvalue()).decode()
  return output


def main() -> None:
  """Executes the notebooks that the command line names."""
  known = sorted(name[:-6] for name in os.listdir(HERE) if name.endswith('.ipynb'))
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('names', nargs='+', choices=known, metavar='NAME', help=', '.join(known))
  for name in parser.parse_args().names:
    execute(name)


if __name__ == '__main__':
  main()
