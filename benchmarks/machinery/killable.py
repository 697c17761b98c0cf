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

from benchmarks.machinery.embedded_task import digits
from glora_jax.files import read_json

ROOT = pathlib.Path(__file__).parents[2]
ENDED, SAVED = 0, 75  # exit codes: finished, and stopped with everything saved
SUITE_IMAGES = {'train': 160, 'val': 40, 'test': 80}
SUITE_SEEDS = 3
ALONE = 10.0  # seconds that a process may go on without the one that was killed
POLL = 0.01
ANSWERS = {  # exit codes of a run that got a signal in time
  signal.SIGKILL: (-signal.SIGKILL,),
  signal.SIGTERM: (-signal.SIGTERM, SAVED),
  signal.SIGSTOP: (ENDED,),
}
KINDS: dict[str, dict[str, Any]] = {  # what is killed, and its fields besides quickstart:search's
  'search': {},
  'gradient': {'structure': 'gradient'},
  'suite': {  # of a few-shot task whose lists are easily written
    'task': 'fewshot/oxford_pets/16/all',
    'data.source': 'lists',
    'training.batch_size': 32,
  },
  'comparison': {
    'job': 'compare',
    'budget': None,
    'compare.methods': ('linear', 'lora', 'full', 'search', 'gradient'),
    'compare.seeds': 1,
    'compare.budgets': (20_000,),
    'compare.rates': (1e-3, 4e-3),
    'mesh.devices': 'one',
    'presets': (),
  },
  'two': {},
}
COMPARED = ('adapter.safetensors', 'metrics.jsonl', 'genome.json', 'test_list.json')

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


@dataclasses.dataclass(frozen=True)
class Killable:
  """A run, a suite or a comparison: the same command each time.

  Attributes:
    kind: key of `KINDS`.
    folder: for all that it writes, the log of all starts included.
    shared: folder for compiled programs, and for images that are read alone.
    fields: of the config, in place of the kind's.
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
    environment = {
      **os.environ,
      'JAX_COMPILATION_CACHE_DIR': str(self.shared / 'xla'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    with open(self.folder / 'log.txt', 'a') as log:
      before = len(self.log)
      processes = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, cwd=ROOT, env=environment)
        for command in self._commands()
      ]
      victim, was_killed = processes[0], False
      if kill is not None and self._wait(processes, kill, before):
        victim, was_killed = processes[kill.process], True
        victim.send_signal(kill.signal)
        if kill.signal == signal.SIGSTOP:
          time.sleep(kill.pause)
          victim.send_signal(signal.SIGCONT)
      code = victim.wait()
      for process in processes:
        try:
          process.wait(ALONE if code < 0 else None)
        except subprocess.TimeoutExpired:  # it waits for the one that is gone
          process.kill()
          process.wait()
      return code, was_killed

  def _wait(self, processes: Sequence[subprocess.Popen], kill: Kill, before: int) -> bool:
    """Waits for the moment of a kill; whether it came before a process ended."""
    moment = None if kill.stage else time.monotonic() + kill.after
    begins = re.compile(rf'^{re.escape(kill.stage)}(/[^:]*)?: stage ', re.M)
    while all(process.poll() is None for process in processes):
      if moment is None and begins.search(self.log[before:]):
        moment = time.monotonic() + kill.after
      if moment is not None and time.monotonic() >= moment:
        return True
      time.sleep(POLL)
    return False

  def _commands(self) -> list[list[str]]:
    fields = {**KINDS[self.kind], **self.fields}
    if self.kind == 'suite':
      root = self.shared / 'lists'
      if not root.exists():
        write_few_shot_lists(root / 'oxford_pets')
      fields['data.root'] = root
    command = [sys.executable, '-m', 'glora_jax.main', f'--workdir={self.workdir}']
    command += [f'--config={ROOT / "configs" / "quickstart.py"}:search']
    command += [f'--config.{name}={value}' for name, value in fields.items()]
    if self.kind != 'two':
      return [command]
    with socket.create_server(('localhost', 0)) as server:
      coordinator = f'localhost:{server.getsockname()[1]}'
    command += [f'--config.distributed.coordinator={coordinator}']
    command += ['--config.distributed.num_processes=2']
    return [[*command, f'--config.distributed.process_id={number}'] for number in range(2)]

  def stage(self) -> str:
    """The stage that the last start was in."""
    marks = re.findall(r'^(\w+)(?:/.*)?: (stage|done) ', self.log, re.M)
    name, state = marks[-1] if marks else ('preparing', 'stage')
    return name if state == 'stage' else f'after {name}'

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
      elif path.name in COMPARED or path.parent.name == 'folded':
        found[name] = path.read_bytes()
    return found


def without_seconds(content: Any, names: Sequence[str] = ('seconds',)) -> Any:
  """JSON without the times in it, which have these names."""
  if isinstance(content, list):
    return [without_seconds(item, names) for item in content]
  if not isinstance(content, dict):
    return content
  return {
    name: without_seconds(value, names) for name, value in content.items() if name not in names
  }


def write_few_shot_lists(folder: pathlib.Path) -> None:
  """Writes digits as the few-shot data of one data set, with three seeds."""
  for name in ('annotations', 'images'):
    (folder / name).mkdir(parents=True)
  for split, (images, labels) in digits().items():
    lines = []
    for index in range(SUITE_IMAGES[split]):
      Image.fromarray(images[index]).save(folder / 'images' / f'{split}{index}.png')
      lines.append(f'{split}{index}.png {labels[index]}')
    lists = {'': lines}
    if split == 'train':
      seeds = range(SUITE_SEEDS)
      lists = {f'.num_shot_16.seed_{seed}': lines[seed::SUITE_SEEDS] for seed in seeds}
    for suffix, chosen in lists.items():
      (folder / 'annotations' / f'{split}_meta.list{suffix}').write_text('\n'.join(chosen))
