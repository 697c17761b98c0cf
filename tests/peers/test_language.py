"""The benchmark of a language model, with a tiny one and random texts."""

import pytest

pytest.importorskip('torchax', reason='needs the peers extra')
pytest.importorskip('transformers', reason='needs the peers extra')
pytest.importorskip('peft', reason='needs the peers extra')
pytest.importorskip('timm', reason='needs the peers extra')

from benchmarks.language import study, tables, trainings
from benchmarks.language.methods import DOCUMENTATION, LORA, METHODS, MOOD, UNTRAINED


@pytest.mark.full  # a minute of compiling
def test_what_has_a_result_is_not_trained_again(tmp_path, monkeypatch, capsys):
  setting, folder = trainings.quick_setting(), str(tmp_path)
  study.train(setting, folder)
  results, sweeps = tables.read_results(folder), tables.read_sweeps(folder)
  jobs = {(method, seed) for method in METHODS for seed in range(setting.seeds)}
  jobs.add((UNTRAINED, 0))
  assert results.keys() == {(task, *job) for task in (MOOD, DOCUMENTATION) for job in jobs}
  again = trainings.train(setting, MOOD, LORA, 0, sweeps[LORA]['best'])  # as the sweep did
  assert again['scores'].tolist() == results[MOOD, LORA, 0]['scores'].tolist()

  for name in ('untrained', 'sweep', 'train'):
    monkeypatch.setattr(trainings, name, None)
  study.train(setting, folder)
  tables.show(folder)
  assert capsys.readouterr().out.count(LORA) >= 3
