"""The notebooks run from top to bottom, in a real kernel."""

import nbclient
import nbformat
import pytest
from conftest import ROOT


@pytest.mark.parametrize('name', sorted(path.name for path in (ROOT / 'notebooks').glob('*.ipynb')))
def test_a_notebook_runs_and_is_stored_without_outputs(name):
  notebook = nbformat.read(ROOT / 'notebooks' / name, as_version=4)
  assert not any(cell.get('outputs') for cell in notebook.cells)
  nbclient.NotebookClient(notebook, timeout=300, kernel_name='python3').execute()
  printed = ''.join(output.get('text', '') for cell in notebook.cells for output in cell.get('outputs', ()))
  assert 'test accuracy' in printed
