"""What is recorded of a run: metrics and events of exactly the steps that count, and a trace."""

import itertools
import shutil
import struct
import sys
import types

import jax.numpy as jnp
import pytest

from glora_jax.errors import UserError
from glora_jax.vision.files import read_lines
from glora_jax.vision.runs import monitoring
from glora_jax.vision.runs.config import check_config, default_config


def metrics_of(workdir, stage, step=0, before=(), board=None):
  """The metrics of a stage in a folder of the workdir."""
  folders = [workdir / each for each in before]
  return monitoring.Metrics(workdir, stage, workdir / stage, step, folders, board)


def read(folder):
  """The lines of metrics in a folder."""
  return read_lines(folder / 'metrics.jsonl', 'metrics', monitoring.Line)


def test_metrics_drop_cut_off_lines_and_what_came_after_the_step_that_is_resumed(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  for stage, before in (('first', []), ('second', ['first'])):
    metrics = metrics_of(tmp_path, stage, 0, before)
    for step in (1, 2, 3):
      metrics.write(step, {'loss': 0.1 * step})
  whole = path.read_text()
  with open(tmp_path / 'second' / path.name, 'a') as file:
    file.write('{"stage": "second", "st')
  metrics = metrics_of(tmp_path, 'second', 1, ['first'])
  for step in (2, 3):
    metrics.write(step, {'loss': 0.1 * step})
  assert path.read_text() == whole
  metrics.write(4, {'val_loss': float('inf')})
  assert [line['step'] for line in read(tmp_path)] == [1, 2, 3, 1, 2, 3, 4]
  assert read(tmp_path)[-1]['val_loss'] is None


def test_metrics_are_of_the_folders_that_the_stages_have_now_in_their_order(tmp_path):
  """A stage that was removed has no lines, one that is as it was before has its old ones back."""
  stages = ('first', 'gone', 'second')
  for number, stage in enumerate(stages):
    metrics_of(tmp_path, stage, 0, stages[:number]).write(1, {'loss': 1.0})
  (tmp_path / 'first').rename(tmp_path / 'first.old')
  metrics_of(tmp_path, 'first').write(1, {'loss': 7.0})
  shutil.rmtree(tmp_path / 'first')
  (tmp_path / 'first.old').rename(tmp_path / 'first')
  metrics_of(tmp_path, 'second', 1, ['first'])
  found = [(line['stage'], line['loss']) for line in read(tmp_path)]
  assert found == [('first', 1), ('second', 1)]


def shown_events(folder):
  """(step, name, value) as TensorBoard shows them.

  A start drops what earlier files have from its step on.
  """
  from tensorboardX.proto.event_pb2 import Event, SessionLog

  events = []
  for path in sorted(folder.iterdir()):
    content, at = path.read_bytes(), 0
    while at < len(content):
      (length,) = struct.unpack_from('<Q', content, at)
      event = Event.FromString(content[at + 12 : at + 12 + length])
      at += 16 + length
      if event.session_log.status == SessionLog.START:
        events = [shown for shown in events if shown[0] < event.step]
      events += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
  return events


def test_events_of_a_resumed_stage_have_every_step_once_though_the_clock_goes_back(
  tmp_path, monkeypatch
):
  pytest.importorskip('tensorboardX')
  monkeypatch.setattr(monitoring.time, 'time', itertools.count(1e9, -3600).__next__)
  # Steps 4 and 5 were not saved, and come again; the last time nothing is left.
  for start, end, slope in ((0, 5, 1), (3, 6, 10), (6, 6, 0)):
    metrics = metrics_of(tmp_path, 'training/linear', start, board=str(tmp_path / 'board'))
    for step in range(start + 1, end + 1):
      metrics.write(step, {'loss': slope * step})
  losses = enumerate([1, 2, 3, 40, 50, 60], 1)
  assert shown_events(tmp_path / 'board') == [(step, 'loss', loss) for step, loss in losses]


def test_what_is_wrong_with_a_function_of_the_users_is_one_sentence(tmp_path, monkeypatch):
  """A name is checked with the config; what it raises does not lose the line."""
  functions = types.SimpleNamespace(fails=lambda workdir, line: 1 / 0, takes_none=lambda: None)
  monkeypatch.setitem(sys.modules, 'of_user', functions)
  config = default_config()
  for name in ('of_user:none', 'nowhere:log', 'of user:log', ''):
    config.watch.call = name
    with pytest.raises(UserError, match=f"^watch.call='{name}' fails with .*\\.$"):
      check_config(config)
  for name, wrong in (('fails', 'ZeroDivisionError: division'), ('takes_none', 'TypeError: .* 2 ')):
    config.watch.call = f'of_user:{name}'
    call = check_config(config).watch.call
    metrics = monitoring.Metrics(tmp_path, name, tmp_path / name, 0, (), call=call)
    with pytest.raises(UserError, match=f"^watch.call='of_user:{name}' fails with {wrong}.*\\.$"):
      metrics.write(1, {'loss': 0.5})
    assert len(read(tmp_path / name)) == 1


@pytest.mark.parametrize('dispatches, traced', [(1, None), (6, 3)])
def test_a_trace_is_of_the_dispatches_after_the_first(tmp_path, caplog, dispatches, traced):
  caplog.set_level('INFO', 'glora_jax')
  for wanted in (True, False):
    with monitoring.profile(str(tmp_path / str(wanted)), wanted) as dispatched:
      for _ in range(dispatches):
        jnp.arange(3.0).sum().block_until_ready()
        dispatched()
  assert (f'Traced dispatches: {traced}, in {tmp_path}' in caplog.text) == bool(traced)
  assert [path.name for path in tmp_path.iterdir()] == ['True']
