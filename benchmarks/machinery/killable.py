"""Commands that can be started many times, killed, stopped for a while, and compared."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from glora_jax.data import pipeline
from glora_jax.data.catalog import find
from glora_jax.files import read_json

ROOT = pathlib.Path(__file__).parent.parent.parent
ENDED, SAVED = 0, 75  # exit codes: finished, and stopped with everything saved
_SUITE, _SEEDS = 'oxford_pets', (0, 1, 2)  # a few-shot task whose lists are easily written
_SUITE_IMAGES = {'train': 160, 'val': 40, 'test': 80}
_ALONE = 10.0  # seconds that a process may go on without the one that was killed
_POLL = 0.01

KINDS = {'quickstart': 1, 'gradient': 1, 'suite': 1, 'comparison': 1, 'two': 2}  # and processes

Contents = dict[str, bytes]


class Kill(NamedTuple):
  """A signal, and when it is sent.

  Attributes:
    signal: SIGKILL, SIGTERM, or SIGSTOP, after which the process goes on.
    after: seconds after the start, or after a stage has begun.
    stage: the stage; empty for the start.
    process: number of the process that gets it.
    pause: seconds that a SIGSTOP lasts.
  """

  signal: signal.Signals
  after: float
  stage: str = ''
  process: int = 0
  pause: float = 0.0

  def __str__(self):
    since = f'after {self.stage} has begun' if self.stage else 'after the start'
    return f'{self.signal.name} to process {self.process}, {self.after:.1f} s {since}'

  def is_answered_by(self, code: int) -> bool:
    """Whether a run that got the signal in time may end with this exit code."""
    return (
      code
      in {
        signal.SIGKILL: (-signal.SIGKILL,),
        signal.SIGTERM: (-signal.SIGTERM, SAVED),
        signal.SIGSTOP: (ENDED,),
      }[self.signal]
    )


@dataclasses.dataclass(frozen=True)
class Killable:
  """A run, a suite or a comparison: the same command each time.

  Attributes:
    kind: key of `KINDS`.
    folder: for all that it writes, the log of all starts included.
    shared: folder for compiled programs, and for images that are read alone.
    fields: of the config, in place of the quickstart's.
  """

  kind: str
  folder: pathlib.Path
  shared: pathlib.Path
  fields: Mapping[str, Any]

  @property
  def workdir(self) -> pathlib.Path:
    """What the command writes into."""
    return self.folder / 'run'

  @property
  def log(self) -> str:
    """What all starts have printed."""
    return (self.folder / 'log.txt').read_text(errors='replace')

  def start(self, kill: Kill | None = None) -> tuple[int, bool]:
    """Starts it, kills it where asked to, and waits until all its processes have ended.

    Returns:
      The exit code of its first process, or of the one that was killed; whether one was.
    """
    self.folder.mkdir(parents=True, exist_ok=True)
    before = len(self.log) if (self.folder / 'log.txt').exists() else 0
    environment = {
      **os.environ,
      'JAX_COMPILATION_CACHE_DIR': str(self.shared / 'xla'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    with open(self.folder / 'log.txt', 'a') as log:
      processes = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, cwd=ROOT, env=environment)
        for command in self._commands()
      ]
      if kill is None or not self._wait(processes, kill, before):
        return _end(processes, processes[0]), False
      victim = processes[kill.process]
      victim.send_signal(kill.signal)
      if kill.signal == signal.SIGSTOP:
        time.sleep(kill.pause)
        victim.send_signal(signal.SIGCONT)
      return _end(processes, victim), True

  def _wait(self, processes: Sequence[subprocess.Popen], kill: Kill, before: int) -> bool:
    """Waits for the moment of a kill; whether it came before a process ended."""
    moment = None if kill.stage else time.monotonic() + kill.after
    begins = re.compile(rf'^{re.escape(kill.stage)}(/[^:]*)?: begins', re.M)
    while all(process.poll() is None for process in processes):
      now = time.monotonic()
      if moment is None and begins.search(self.log, before):
        moment = now + kill.after
      if moment is not None and now >= moment:
        return True
      time.sleep(_POLL)
    return False

  def _commands(self) -> list[list[str]]:
    processes = KINDS[self.kind]
    command = [sys.executable, '-m', 'glora_jax.main']
    command += ['--config', str(ROOT / 'configs' / 'quickstart.py')]
    command += ['--workdir', str(self.workdir)]
    fields = {**fields_of(self.kind, self.shared), **self.fields}
    command += [f'--config.{name}={value}' for name, value in fields.items()]
    if processes == 1:
      return [command]
    with socket.create_server(('localhost', 0)) as server:
      coordinator = f'localhost:{server.getsockname()[1]}'
    command += [f'--config.distributed.coordinator={coordinator}']
    command += [f'--config.distributed.num_processes={processes}']
    return [[*command, f'--config.distributed.process_id={number}'] for number in range(processes)]

  def stage(self) -> str:
    """The stage that the last start was in."""
    marks = re.findall(r'^(\w+)(?:/.*)?: (begins|done)', self.log, re.M)
    if not marks:
      return 'preparing'
    name, state = marks[-1]
    return name if state == 'begins' else f'after {name}'

  def seconds(self) -> dict[str, float]:
    """The time of every stage, of the first task of a suite."""
    return read_json(sorted(self.workdir.rglob('result.json'))[0], 'result')['seconds']

  def contents(self) -> Contents:
    """All that must be identical, by name, without times."""
    found = {}
    for path in sorted(self.workdir.rglob('*')):
      name = str(path.relative_to(self.workdir))
      if path.name == 'result.json':
        result = without_seconds(json.loads(path.read_text()))
        found[name] = json.dumps(result, sort_keys=True).encode()
      elif path.name in _COMPARED or path.parent.name == 'folded':
        found[name] = path.read_bytes()
    return found


_COMPARED = ('adapter.safetensors', 'metrics.jsonl', 'genome.json', 'test_list.json')


def _end(processes: Sequence[subprocess.Popen], first: subprocess.Popen) -> int:
  """The exit code of one process, once all have ended."""
  code = first.wait()
  for process in processes:
    try:
      process.wait(_ALONE if code < 0 else None)
    except subprocess.TimeoutExpired:  # it waits for the one that is gone
      process.kill()
      process.wait()
  return code


def without_seconds(content: Any, names: Sequence[str] = ('seconds',)) -> Any:
  """JSON without the times in it, which have these names."""
  if isinstance(content, list):
    return [without_seconds(item, names) for item in content]
  if not isinstance(content, dict):
    return content
  return {
    name: without_seconds(value, names) for name, value in content.items() if name not in names
  }


def fields_of(kind: str, shared: pathlib.Path) -> dict[str, Any]:
  """Fields of the quickstart's config that make it one of `KINDS`."""
  if kind == 'gradient':
    return {'structure': 'gradient'}
  if kind == 'comparison':
    return {
      'job': 'compare',
      'budget': None,
      'compare.methods': ('linear', 'lora', 'full', 'search', 'gradient'),
      'compare.seeds': 1,
      'compare.budgets': (20_000,),
      'compare.rates': (1e-3, 4e-3),
      'mesh.devices': 'one',
      'presets': (),
    }
  if kind == 'suite':
    root = shared / 'lists'
    if not root.exists():
      write_few_shot_lists(root / _SUITE)
    return {
      'task': f'fewshot/{_SUITE}/16/all',
      'data.source': 'lists',
      'data.root': str(root),
      'training.batch_size': 32,
    }
  return {}


def write_few_shot_lists(folder: pathlib.Path) -> None:
  """Writes digits as the few-shot data of one data set, with three seeds."""
  (folder / 'annotations').mkdir(parents=True)
  (folder / 'images').mkdir()
  digits = find('digits')
  for split, number in _SUITE_IMAGES.items():
    images, labels = pipeline.load(digits.open(split), 28)
    names = [f'{split}{index}.png' for index in range(number)]
    for name, image in zip(names, images, strict=False):
      Image.fromarray(image).save(folder / 'images' / name)
    lines = [f'{name} {label}' for name, label in zip(names, labels, strict=False)]
    for seed in _SEEDS if split == 'train' else (None,):
      suffix = '' if seed is None else f'.num_shot_16.seed_{seed}'
      chosen = lines if seed is None else lines[seed :: len(_SEEDS)]
      (folder / 'annotations' / f'{split}_meta.list{suffix}').write_text('\n'.join(chosen))
