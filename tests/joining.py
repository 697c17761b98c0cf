"""Programs below `tests`: two processes that join, or one with eight devices."""

import socket
import subprocess

from places import ROOT, environment, program

# Seconds after which a process hangs: ten times what the longest one takes on a quiet machine.
HANG = 600
PIPES = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True, 'cwd': ROOT}


def free_port():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


def finish(*processes):
  """Standard output of each."""
  printed = [process.communicate(timeout=HANG) for process in processes]
  for process, (_, errors) in zip(processes, printed, strict=True):
    assert process.returncode == 0, errors[-3000:]
  return [output for output, _ in printed]


def run_on_eight(name):
  """Runs a program below `tests` on eight simulated devices; what it prints."""
  [printed] = finish(subprocess.Popen(program(name), env=environment(8), **PIPES))
  return printed


def run_two(name, *arguments):
  """Runs a program below `tests` as two processes of a device each."""
  words = [*program(name), str(free_port())]
  started = [
    subprocess.Popen([*words, number, *map(str, arguments)], env=environment(1), **PIPES)
    for number in '01'
  ]
  finish(*started)
