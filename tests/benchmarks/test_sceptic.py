"""The diagnostics of a finished run, which they leave alone; what is written of them agrees."""

import hashlib
import json
import pathlib
import re
import shutil
from typing import Any, NamedTuple

import numpy as np
import pytest
from places import ROOT

from benchmarks.sceptic import ablation, report
from benchmarks.sceptic.__main__ import main
from benchmarks.sceptic.diagnosis import diagnose
from benchmarks.sceptic.finished_run import FinishedRun, load, measure
from benchmarks.sceptic.statistics import partial_correlation, rank_correlation
from benchmarks.sceptic.supernet_ranks import spread_sizes
from glora_jax.files import read_json, write_json
from glora_jax.method.genomes import count_params
from glora_jax.method.space import TENSORS
from glora_jax.runs.config import default_config


def contents(workdir):
  """Time of change and digest of every file of a run, diagnostics apart."""
  files = [
    path for path in workdir.rglob('*') if path.is_file() and 'diagnostics' not in path.parts
  ]
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
  before, finished = contents(workdir), load(str(workdir))
  return Diagnosed(workdir, before, finished, diagnose(finished, seeds=2, subnets=2))


def test_diagnostics_change_no_file_of_the_run(diagnosed):
  assert contents(diagnosed.workdir) == diagnosed.before
  written = {path.name for path in (diagnosed.workdir / 'diagnostics').iterdir()}
  assert written == {'diagnostics.json', 'diagnostics.md', 'diagnostics.png'}


def test_the_winner_gets_what_the_run_says(diagnosed):
  result, answers = read_json(diagnosed.workdir / 'result.json'), diagnosed.answers
  for name, weights in (('winner_supernet', 'supernet'), ('winner', 'finetuned')):
    whole = answers['ablation'][weights]['whole']
    for metric in ('params', 'val_accuracy', 'test_accuracy'):
      assert whole[metric] == pytest.approx(result[name][metric])
  own = answers['random_search']['searched'][0]
  random = answers['random_search']['random'][1]
  assert own['evaluations'] == result['evaluations'] == random['evaluations']
  assert own['val_accuracy'] == pytest.approx(result['winner_supernet']['val_accuracy'])


def test_all_answers_are_about_subnets_within_the_budget(diagnosed):
  answers = diagnosed.answers
  assert all(subnet['params'] <= 1000 for subnet in answers['supernet_ranks']['subnets'])
  searches = answers['random_search']
  winners = [*searches['searched'], *searches['random']]
  assert all(winner['params'] <= 1000 for winner in winners)


def test_sizes_of_sampled_subnets_are_spread_up_to_the_budget(diagnosed):
  spec, number, budget = diagnosed.finished.run.adapted.spec, 8, 800
  sizes = count_params(spec, spread_sizes(np.random.default_rng(0), spec, number, budget))
  assert all(sizes <= budget / number * np.arange(1, number + 1))
  assert sizes[0] <= budget / number < budget / 2 < max(sizes)


def test_what_is_trained_alone_is_trained(diagnosed):
  run, ranks = diagnosed.finished.run, diagnosed.answers['supernet_ranks']
  [start] = measure(run, run.variables, [np.zeros((len(run.adapted.spec), 5))])
  assert ranks['steps'] == 3 * (800 // 16)
  subnets = [*ranks['subnets'], ranks['winner']]
  assert all(subnet['alone']['val_loss'] != start['val_loss'] for subnet in subnets)
  assert min(subnet['alone']['val_loss'] for subnet in subnets) < start['val_loss'] - 0.05


def test_switching_off_a_tensor_that_is_not_used_changes_nothing(diagnosed):
  genome = diagnosed.finished.winner.copy()
  genome[:, 0], genome[:, 1] = 0, 3
  answer = ablation.switch_off(diagnosed.finished.run, diagnosed.finished.supernet, genome)
  without = answer['without']
  assert without['A']['params_saved'] == 0
  assert set(without['A']['change'].values()) == {0.0}
  assert without['B']['params_saved'] > 0
  assert without['B']['change']['val_loss'] != 0
  saved = sum(without[tensor]['params_saved'] for tensor in TENSORS)
  assert saved == without['all']['params_saved'] == answer['whole']['params']


@pytest.fixture(scope='module')
def written(diagnosed):
  """The content of `diagnostics.json`, which is JSON in the strict sense."""
  text = (diagnosed.workdir / 'diagnostics' / 'diagnostics.json').read_text()
  return json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is no JSON'))


@pytest.fixture(scope='module')
def markdown(diagnosed):
  """The content of `diagnostics.md`."""
  return (diagnosed.workdir / 'diagnostics' / 'diagnostics.md').read_text()


def rows(markdown, start):
  """Cells of the table rows whose first cell starts with a text."""
  lines = [line for line in markdown.splitlines() if line.startswith(f'| {start}')]
  return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]


def test_json_and_headline_hold_the_answers(diagnosed, written):
  assert written == diagnosed.answers
  assert json.dumps(report.headline(written))


def test_the_report_shows_the_searches_of_the_json(written, markdown):
  [own] = rows(markdown, 'searched 1')
  winner = written['random_search']['searched'][0]
  assert own[1:] == [
    str(winner['evaluations']),
    f'{winner["params"]:,}',
    f'{100 * winner["val_accuracy"]:.1f}',
    f'{100 * winner["test_accuracy"]:.1f}',
    f'{winner["val_loss"]:.3f}',
    f'{winner["test_loss"]:.3f}',
  ]


def test_the_report_shows_the_subnets_of_the_json(written, markdown):
  _, row = rows(markdown, 'random 2')  # the first is of the searches
  subnet = written['supernet_ranks']['subnets'][1]
  assert [row[1], row[-2], row[-1]] == [
    f'{subnet["params"]:,}',
    f'{subnet["supernet"]["test_loss"]:.3f}',
    f'{subnet["alone"]["test_loss"]:.3f}',
  ]


@pytest.mark.parametrize('tensor', TENSORS)
def test_the_report_shows_the_ablations_of_the_json(written, markdown, tensor):
  for row, weights in zip(rows(markdown, f'{tensor}, '), ('supernet', 'finetuned'), strict=True):
    scores = written['ablation'][weights]['without'][tensor]
    assert [row[1], row[3], row[5]] == [
      f'{scores["params_saved"]:,}',
      f'{100 * scores["change"]["test_accuracy"]:+.1f}',
      f'{scores["change"]["test_loss"]:+.3f}',
    ]


def test_the_report_is_labelled_shows_the_gap_and_its_picture_is_there(
  diagnosed, written, markdown
):
  assert 'DIAGNOSTIC' in markdown
  gain = written['generalization']['winner_over_first']
  assert f'{100 * gain["accuracy_gap"]:+.1f} points and {gain["loss_gap"]:+.3f} of loss' in markdown
  picture = re.search(r'\]\((\S+\.png)\)', markdown).group(1)
  assert (diagnosed.workdir / 'diagnostics' / picture).exists()


def test_the_partial_correlation_is_the_one_of_what_size_leaves_over():
  rng = np.random.default_rng(0)
  x, y, z = rng.permutation(12), rng.permutation(12), rng.permutation(12)

  def rho(a, b):
    return rank_correlation(a, b)['spearman']

  def residual(a):
    return a - np.polyval(np.polyfit(z, a, 1), z)

  expected = np.corrcoef(residual(x), residual(y))[0, 1]
  assert partial_correlation(rho(x, y), rho(x, z), rho(y, z)) == pytest.approx(expected)
  assert partial_correlation(rho(x, y), rho(z, z), rho(y, z)) is None
  assert rho(x, np.ones(12)) is None


def test_a_run_by_the_papers_protocol_is_refused_in_one_sentence(tmp_path, monkeypatch):
  config = default_config()
  config.protocol = 'paper'
  (tmp_path / 'config.json').write_text(config.to_json())
  monkeypatch.setattr('sys.argv', ['sceptic', '--workdir', str(tmp_path)])
  with pytest.raises(SystemExit, match=r"^error: The run in .* has protocol='paper'"):
    main()
