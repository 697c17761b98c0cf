"""The notebooks run from top to bottom, in a real kernel, on small settings."""

import nbclient
import nbformat
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

NOTEBOOKS = sorted(path.name for path in (ROOT / 'notebooks').glob('*.ipynb'))


def read(name):
  return nbformat.read(ROOT / 'notebooks' / name, as_version=4)


def photos(folder):
  """Images of two classes, ten each."""
  rng = np.random.default_rng(0)
  for number in range(20):
    path = folder / ('dark', 'light')[number % 2] / f'{number}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 100, (30, 30, 3), np.uint8) + np.uint8(number % 2 * 120)).save(
      path
    )
  return folder


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_a_notebook_is_stored_without_outputs_and_small(name):
  notebook = read(name)
  assert not any(cell.get('outputs') or cell.get('execution_count') for cell in notebook.cells)
  assert (ROOT / 'notebooks' / name).stat().st_size < 20_000


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_a_notebook_runs(name, tmp_path):
  notebook = read(name)
  for cell in notebook.cells:
    if 'parameters' in cell.metadata.get('tags', ()):
      cell.source += (
        f"\nWORKDIR, EPOCHS = '{tmp_path}', 1\nREAL_TASK, REAL_WEIGHTS = 'folder:{photos(tmp_path / 'photos')}', 'embedded'"
        '\nREAL_EPOCHS, RUN_REAL_TASK = 1, True'
      )
    # Fewer and smaller generations, and batches that a folder of twenty images can fill.
    cell.source = cell.source.replace(
      'population=30, generations=6, parents=10, mutations=15, crossovers=15',
      'population=4, generations=1, parents=2, mutations=2, crossovers=2',
    )
    cell.source = cell.source.replace(
      'REAL_EPOCHS, warmup_epochs', 'REAL_EPOCHS, batch_size=4, warmup_epochs'
    )
    cell.source = cell.source.replace(
      'REAL_EPOCHS // 4), warmup_epochs', 'REAL_EPOCHS // 4), batch_size=4, warmup_epochs'
    )
  nbclient.NotebookClient(notebook, timeout=300, kernel_name='python3').execute()
  outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
  assert 'test accuracy' in ''.join(output.get('text', '') for output in outputs)
  assert not any(output.output_type == 'error' for output in outputs)
  if name == 'quickstart.ipynb':
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 5
    assert (
      sum(
        '| winner, finetuned |' in output.get('data', {}).get('text/markdown', '')
        for output in outputs
      )
      == 2
    )
