"""The page and the notebook that compile for a TPU slice."""

import re
from importlib.util import find_spec

import nbformat
import pytest
from places import ROOT

PAGE = (ROOT / 'docs' / 'howto' / 'machines.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)\n```', PAGE, re.DOTALL)


def test_the_notebook_has_the_lines_of_the_page():
  notebook = nbformat.read(ROOT / 'notebooks' / 'tpu.ipynb', as_version=4)
  assert any(BLOCKS[1] in cell.source for cell in notebook.cells)


@pytest.mark.slow
@pytest.mark.skipif(find_spec('libtpu') is None, reason='the TPU compiler is not there: libtpu')
def test_the_page_prints_the_memory_of_a_chip(capsys):
  exec('\n'.join(BLOCKS), {})
  sizes = re.findall(r'(.*): ([\d.]+) MiB of arguments, ([\d.]+) MiB', capsys.readouterr().out)
  assert [name for name, *_ in sizes] == ['training steps', 'scoring']
  assert all(float(size) > 0.1 for _, *both in sizes for size in both)
