"""The benchmark that kills: where the kills come, and what it compares."""

import signal
import sys

from benchmarks.kill_and_resume import differences
from benchmarks.machinery import killable
from benchmarks.machinery.killable import Kill, Killable
from glora_jax.files import write_json


def test_a_kill_comes_when_its_stage_has_begun_and_the_start_ends(tmp_path, monkeypatch):
  program = 'import sys, time; print("search: stage ", file=sys.stderr, flush=True); time.sleep(60)'
  monkeypatch.setattr(killable, 'ALONE', 0.1)
  monkeypatch.setattr(Killable, '_commands', lambda job: [[sys.executable, '-c', program]] * 2)
  job = Killable('two', tmp_path, tmp_path, {})
  ending = job.start(Kill(signal.SIGKILL, 0.01, 'search', process=1))
  assert ending == (-signal.SIGKILL, True)
  assert job.stage() == 'search'


def test_results_are_compared_without_their_times(tmp_path):
  found = []
  for seconds in (1.0, 2.0):
    job = Killable('suite', tmp_path / str(seconds), tmp_path, {})
    task = job.workdir / 'a'
    (task / 'folded').mkdir(parents=True)
    rows = [{'accuracy': 0.5, 'seconds': seconds}]
    write_json(task / 'result.json', {'seconds': {'test': seconds}, 'rows': rows}, 'result')
    (task / 'folded' / 'model').write_bytes(b'1')
    found.append(job.contents())
    assert job.seconds() == {'test': seconds}
  assert found[0].keys() == {'a/result.json', 'a/folded/model'}
  assert not differences(*found)
  assert differences(found[0], {}) == ['a/folded/model', 'a/result.json']
