"""Progress bars: on a terminal, and nowhere else."""

import io
import sys

import pytest
from places import ROOT

from glora_jax import progress


class Stream(io.StringIO):
  """Standard error, a terminal or not."""

  def __init__(self, is_terminal):
    super().__init__()
    self.isatty = lambda: is_terminal


@pytest.mark.parametrize('is_terminal, wanted', [(True, True), (True, False), (False, True)])
def test_a_bar_is_drawn_if_it_is_wanted_and_somebody_watches(monkeypatch, is_terminal, wanted):
  monkeypatch.setattr(sys, 'stderr', Stream(is_terminal))
  monkeypatch.setattr(progress, 'SOON', 0)
  assert [*progress.progress_bar(range(3), 'training', wanted=wanted)] == [0, 1, 2]
  assert ('training' in sys.stderr.getvalue()) == (is_terminal and wanted)


def test_all_bars_are_made_here():
  files = (ROOT / 'glora_jax').rglob('*.py')
  assert [path.name for path in files if 'import tqdm' in path.read_text()] == ['progress.py']
