"""What is recorded of a run: metrics and events of exactly the steps that count, and a trace."""

import itertools
import json
import struct

import jax.numpy as jnp
import pytest

from glora_jax.records import read_lines
from glora_jax.runs import monitoring


def test_metrics_drop_cut_off_lines_and_what_came_after_the_step_that_is_resumed(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  for stage in ('first', 'second'):
    metrics = monitoring.Metrics(path, stage, 0)
    for step in (1, 2, 3):
      metrics.write(step, {'loss': 0.1 * step})
  whole = path.read_text()
  path.write_text(whole + '{"stage": "second", "st')
  metrics = monitoring.Metrics(path, 'second', 1)
  for step in (2, 3):
    metrics.write(step, {'loss': 0.1 * step})
  assert path.read_text() == whole
  steps = [line['step'] for line in read_lines(path, 'metrics', monitoring.Line)]
  assert steps == [1, 2, 3, 1, 2, 3]
  stamp = json.loads(whole.splitlines()[0])
  assert stamp == {'glora_jax': {'kind': 'metrics', 'format': 1}}


def test_a_value_that_is_not_finite_is_null_in_metrics(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  monitoring.Metrics(path, 'first', 0).write(1, {'val_loss': float('inf')})
  assert [line['val_loss'] for line in read_lines(path, 'metrics', monitoring.Line)] == [None]


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


def test_events_of_a_resumed_stage_have_every_step_once_and_are_on_disk_at_once(tmp_path):
  pytest.importorskip('tensorboardX')
  # Steps 4 and 5 were not saved, and come again; the last time nothing is left.
  for start, end, slope in ((0, 5, 1), (3, 6, 10), (6, 6, 0)):
    metrics = monitoring.Metrics(
      tmp_path / 'metrics.jsonl', 'baselines/linear', start, str(tmp_path / 'board')
    )
    for step in range(start + 1, end + 1):
      metrics.write(step, {'loss': slope * step, 'accuracy': 0.5})
  losses = [1, 2, 3, 40, 50, 60]
  assert shown_events(tmp_path / 'board' / 'baselines' / 'linear') == [
    event
    for step, loss in enumerate(losses, 1)
    for event in ((step, 'loss', loss), (step, 'accuracy', 0.5))
  ]


def test_a_clock_that_goes_back_loses_no_event(tmp_path, monkeypatch):
  pytest.importorskip('tensorboardX')
  monkeypatch.setattr(monitoring.time, 'time', itertools.count(1e9, -3600).__next__)
  for start in (0, 2):
    metrics = monitoring.Metrics(tmp_path / 'metrics.jsonl', 'training', start, str(tmp_path))
    for step in (start + 1, start + 2):
      metrics.write(step, {'loss': step})
  (tmp_path / 'metrics.jsonl').unlink()
  losses = [value for _, name, value in shown_events(tmp_path / 'training') if name == 'loss']
  assert losses == [1, 2, 3, 4]


@pytest.mark.parametrize('dispatches, traced', [(0, None), (1, None), (2, 1), (6, 3)])
def test_a_trace_is_of_the_dispatches_after_the_first(tmp_path, caplog, dispatches, traced):
  caplog.set_level('INFO', 'glora_jax')
  with monitoring.profiled(str(tmp_path), wanted=True) as dispatched:
    for _ in range(dispatches):
      jnp.arange(3.0).sum().block_until_ready()
      dispatched()
  assert caplog.records[-1].getMessage() == (
    f'Traced dispatches: {traced}, in {tmp_path}'
    if traced
    else 'There was nothing to trace after the first dispatch.'
  )
  assert bool(list(tmp_path.rglob('*.xplane.pb'))) == (dispatches > 0)
  with monitoring.profiled(str(tmp_path / 'other'), wanted=False) as dispatched:
    dispatched()
    dispatched()
  assert not (tmp_path / 'other').exists()
