"""The tables of what was tried and which test answers it name tests that are there."""

import re

from places import ROOT


def test_every_test_that_the_tables_name_is_there():
  lines = (ROOT / 'tests' / 'ROBUSTNESS.md').read_text().splitlines()
  tables = [line.split('|')[1:-1] for line in lines if line.startswith('| ')]
  rows = [row for row in tables if row[0].strip()]  # those of headers say no kind
  assert len(rows) > 120
  for kind, finding, answer in rows:
    named = re.findall(r'([\w/]+\.py)::(\w+)', answer)
    assert named or kind.strip() == 'E', finding
    for file, name in named:
      assert f'def {name}(' in (ROOT / 'tests' / file).read_text(), f'{file}::{name}'
