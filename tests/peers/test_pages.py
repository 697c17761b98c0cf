"""The code of the documentation's pages runs; `.ci/full` builds the pages with what it prints."""

import subprocess
import sys

import pytest
from places import ROOT, code_of, environment

CODE = {
  str(path.relative_to(ROOT)): '\n'.join(code_of(path, '{code-cell}'))
  for path in sorted((ROOT / 'docs').rglob('*.md'))
}


RUN = 'docs/howto/from_python.md'  # a whole run, whose calls `tests/vision/runs` has


@pytest.mark.parametrize(
  'page',
  [
    pytest.param(page, marks=[pytest.mark.full] * (page == RUN))
    for page, code in CODE.items()
    if code
  ],
)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  if 'XLA_FLAGS' not in CODE[page]:
    exec(CODE[page], {})
    return
  words = [sys.executable, '-c', CODE[page]]  # it begins with the number of devices
  ran = subprocess.run(words, env=environment(8), capture_output=True, text=True)
  assert ran.returncode == 0, ran.stderr[-3000:]
