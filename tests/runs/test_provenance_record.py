"""With what a run was made stays with it, whoever looks or goes on."""

import pytest

from glora_jax.files import write_json
from glora_jax.reports import page
from glora_jax.runs import origins

HERE = {'command': 'glora --config quickstart', 'versions': {'jax': '0.10'}, 'device': '1 x cpu'}
ELSEWHERE = {**HERE, 'device': '8 x TPU v5e'}


def test_every_process_that_differs_is_noted_once(tmp_path, monkeypatch):
  for made in (HERE, HERE, ELSEWHERE, HERE):
    monkeypatch.setattr(origins, 'current', lambda made=made: made)
    origins.note_process(tmp_path)
  assert page.distinct(origins.recorded_processes(tmp_path)) == [HERE, ELSEWHERE]


def test_a_damaged_record_is_one_sentence(tmp_path):
  write_json(tmp_path / origins.PROVENANCE, {'processes': [{'command': 1}]}, 'provenance')
  with pytest.raises(ValueError, match=r'provenance.json is damaged \(.*; remove it;'):
    origins.note_process(tmp_path)
