"""Signals: a second one ends at once."""

import signal

from glora_jax import main


def test_a_second_signal_of_its_kind_ends_at_once():
  before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
  try:
    stop = main.catch_signals()
    assert not stop()
    signal.raise_signal(signal.SIGINT)
    assert stop()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
  finally:
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
      signal.signal(number, handler)
