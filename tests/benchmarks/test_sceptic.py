"""The questions to a finished run: it is left alone, and answers are about its own subnets."""

import hashlib
import json
import pathlib
import shutil
from typing import Any, NamedTuple

import numpy as np
import pytest
from places import ROOT

from benchmarks import sceptic
from benchmarks.sceptic import FinishedRun, partial_correlation, rank_correlation
from glora_jax.files import read_json, write_json
from glora_jax.method.genomes import count_params
from glora_jax.runs.config import default_config


def contents(workdir):
  """Time of change and digest of every file of a run."""
  files = [path for path in workdir.rglob('*') if path.is_file()]
  return {
    str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
    for path in files
  }


class Diagnosed(NamedTuple):
  """A run that was asked, with what its workdir held before, and the answers."""

  workdir: pathlib.Path
  before: dict[str, Any]
  finished: FinishedRun
  answers: dict[str, Any]


@pytest.fixture(scope='module')
def diagnosed(tmp_path_factory):
  """A copy of a finished run of a tiny ViT, made by version 0.1.0: nothing has to be trained."""
  folder = tmp_path_factory.mktemp('sceptic')
  shutil.copytree(ROOT / 'tests' / 'data' / 'v0.1.0', folder, dirs_exist_ok=True)
  workdir = folder / 'finished'
  config = read_json(workdir / 'config.json')
  config['model']['weights'] = str(folder / 'tiny.safetensors')
  config['data']['dir'] = str(folder / 'tfds')
  write_json(workdir / 'config.json', config)
  before, finished = contents(workdir), sceptic.load(str(workdir))
  return Diagnosed(workdir, before, finished, sceptic.diagnose(finished, searches=2, subnets=2))


@pytest.mark.full
def test_questions_change_no_file_of_the_run(diagnosed):
  assert contents(diagnosed.workdir) == diagnosed.before


@pytest.mark.full
def test_the_winner_gets_what_the_run_says(diagnosed):
  result = read_json(diagnosed.workdir / 'result.json')['winner_supernet']
  own = diagnosed.answers['chance']['searched'][0]
  for metric in ('params', 'val_accuracy', 'test_accuracy'):
    assert own[metric] == pytest.approx(result[metric])


@pytest.mark.full
def test_all_answers_are_about_subnets_within_the_budget(diagnosed):
  answers = diagnosed.answers
  scores = [
    *answers['chance']['searched'],
    *answers['chance']['random'],
    *answers['ranks']['supernet'],
  ]
  assert len(scores) == 6
  assert all(each['params'] <= 1000 for each in scores)


@pytest.mark.full
def test_sizes_of_sampled_subnets_are_spread_up_to_the_budget(diagnosed):
  spec, number, budget = diagnosed.finished.run.adapted.spec, 8, 800
  rng = np.random.default_rng(0)
  sizes = count_params(spec, sceptic.spread_sizes(rng, spec, number, budget))
  assert all(sizes <= budget / number * np.arange(1, number + 1))
  assert sizes[0] <= budget / number < budget / 2 < max(sizes)


@pytest.mark.full
def test_what_is_trained_alone_is_trained(diagnosed):
  run, ranks = diagnosed.finished.run, diagnosed.answers['ranks']
  [start] = sceptic.measure(run, run.variables, [np.zeros((len(run.adapted.spec), 5))])
  losses = [scores['val_loss'] for scores in ranks['alone']]
  assert min(losses) < start['val_loss'] - 0.05
  assert losses != [scores['val_loss'] for scores in ranks['supernet']]


@pytest.mark.full
def test_the_table_and_the_last_line_hold_the_answers(diagnosed):
  json.dumps(diagnosed.answers, allow_nan=False)
  table = sceptic.rows(diagnosed.answers)
  accuracies = [each['test_accuracy'] for each in diagnosed.answers['chance']['searched']]
  assert table[0][0] == 'winner of a search, mean of 2'
  assert table[0][2].startswith(f'{np.mean(accuracies):.3f} ±')


def test_the_partial_correlation_is_the_one_of_what_size_leaves_over():
  rng = np.random.default_rng(0)
  x, y, z = rng.permutation(12), rng.permutation(12), rng.permutation(12)

  def residual(a):
    return a - np.polyval(np.polyfit(z, a, 1), z)

  xy, xz, yz = (rank_correlation(*pair) for pair in ((x, y), (x, z), (y, z)))
  expected = np.corrcoef(residual(x), residual(y))[0, 1]
  assert partial_correlation(xy, xz, yz) == pytest.approx(expected)
  assert partial_correlation(xy, 1.0, yz) is None
  assert rank_correlation(x, np.ones(12)) is None


def test_a_run_by_the_papers_protocol_is_refused_in_one_sentence(tmp_path, monkeypatch):
  config = default_config()
  config.protocol = 'paper'
  (tmp_path / 'config.json').write_text(config.to_json())
  monkeypatch.setattr('sys.argv', ['sceptic', '--workdir', str(tmp_path)])
  with pytest.raises(SystemExit, match=r"^error: The run in .* has protocol='paper'"):
    sceptic.main()
