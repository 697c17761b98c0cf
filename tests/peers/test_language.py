"""The study of a language model, with a tiny one and random texts."""

import pytest

from benchmarks.study.language import STUDY
from benchmarks.study.study import read_results, run


@pytest.mark.full  # a minute of compiling
def test_what_has_a_result_is_not_trained_again(tmp_path, monkeypatch):
  study, folder = STUDY.tiny(), str(tmp_path)
  run(study, folder)
  results = read_results(folder)
  jobs = [*study.plan(results)]
  assert {(*job[:3], job.seed) for job in jobs} == {
    (*method, seed) for method, found in results.items() for seed in found
  }
  again = study.train(jobs[1])
  assert {**again, 'job': [*jobs[1]]} == results[jobs[1][:3]][jobs[1].seed]

  monkeypatch.setattr(type(study), 'train', None)
  run(study, folder)
