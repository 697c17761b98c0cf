"""The table of what was tried and which test answers it names tests that are there."""

import re

from places import ROOT


def test_every_test_that_the_table_names_is_there():
  lines = (ROOT / 'tests' / 'ROBUSTNESS.md').read_text().splitlines()
  rows = [line.split('|')[1:-1] for line in lines if line.startswith('| ')][1:]
  assert len(rows) > 90
  for kind, finding, answer in rows:
    named = re.findall(r'([\w/]+\.py)::(\w+)', answer)
    assert named or kind.strip() == 'E', finding
    for file, name in named:
      assert f'def {name}(' in (ROOT / 'tests' / file).read_text(), f'{file}::{name}'
