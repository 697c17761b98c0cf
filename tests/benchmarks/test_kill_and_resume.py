"""What the benchmark that kills compares, and when it kills."""

import random

from benchmarks.kill_and_resume import differences, plan_kills
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


def test_kills_come_in_each_part_of_a_command():
  clock = [1.0, 1.1, 5.0, 5.2, 9.0]  # four beginnings, and the end
  kills = [plan_kills(number, 8, clock, random.Random(number), 0.0)[0] for number in range(8)]
  assert [kill.beginning for kill in kills[1::2]] == [1, 2, 3, 4]
  for number, kill in enumerate(kills):
    start = [0, *clock][kill.beginning]
    least, most = (start, [0, *clock][kill.beginning + 1])
    if not kill.beginning:
      least, most = (number * clock[-1] / 8, (number + 2) * clock[-1] / 8)
    assert least <= start + kill.after <= most
