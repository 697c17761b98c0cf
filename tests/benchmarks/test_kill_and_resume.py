"""What the benchmark that kills compares."""

from benchmarks.kill_and_resume import differences
from benchmarks.machinery.killable import Killable
from glora_jax.files import write_json


def test_results_are_compared_without_their_times(tmp_path):
  found = []
  for seconds in (1.0, 2.0):
    job = Killable('suite', tmp_path / str(seconds), tmp_path, {})
    task = job.workdir / 'a'
    (task / 'folded').mkdir(parents=True)
    rows = [{'accuracy': 0.5, 'seconds': seconds}]
    write_json(task / 'result.json', {'seconds': {'test': seconds}, 'rows': rows}, 'result')
    (task / 'folded' / 'model').write_bytes(b'1')
    (job.workdir / 'table.csv').write_text(f'task,accuracy,seconds\na,0.5,{seconds}\n')
    found.append(job.contents())
  assert found[0].keys() == {'a/result.json', 'a/folded/model', 'table.csv'}
  assert not differences(*found)
  assert differences(found[0], {}) == ['a/folded/model', 'a/result.json', 'table.csv']
