"""Commands that can be started many times, killed, stopped for a while, and compared."""

import csv
import dataclasses
import io
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
FEW_SHOT = {  # of digits, as lists that are easily written
  'data.source': 'lists',
  'training.batch_size': 32,
}
KINDS: dict[str, dict[str, Any]] = {  # what is killed, and its fields besides quickstart:search's
  'search': {},
  'gradient': {'structure': 'gradient'},
  'suite': {'task': 'fewshot/oxford_pets/16/all', **FEW_SHOT},
  'grid': {  # the gradient chooses from two rates, whose runs share a head and a gradient
    'task': 'fewshot/oxford_pets/16/0',
    **FEW_SHOT,
    'suite.structures': ('lora', 'finetuning', 'search', 'gradient'),
    'suite.budgets': (20_000,),
    'suite.rates': (1e-3, 4e-3),
    'suite.rate.lora': 4e-3,
    'suite.rate.finetuning': 1e-3,
    'suite.rate.search': 4e-3,
    'training.epochs': 8,
    'finetune.epochs': 2,
    'search.generations': 2,
    'search.population': 6,
    'search.parents': 3,
    'search.mutations': 3,
    'search.crossovers': 3,
    'checkpoint_epochs': 4,
  },
  'two': {},
}
COMPARED = (
  'adapter.safetensors',
  'metrics.jsonl',
  'genome.json',
  'predictions.csv',
  'test_list.json',
)
# Lines of the log at which a stage of a run begins, or a suite goes on to another run.
BEGINNING = re.compile(r'^(?:\S+: stage \d|(?:Checking|Trying a rate|Training|Testing): ).*', re.M)

Contents = dict[str, bytes]


class Kill(NamedTuple):
  """A signal, and when it is sent.

  Attributes:
    signal: SIGKILL, SIGTERM, or SIGSTOP, after which the process goes on.
    after: seconds after the start, or after a beginning.
    beginning: number of the beginning, from 1, in the order of the log; 0 for the start.
    process: number of the process that gets it.
    pause: seconds that a SIGSTOP lasts.
  """

  signal: signal.Signals
  after: float
  beginning: int = 0
  process: int = 0
  pause: float = 0.0

  def __str__(self):
    since = f'after beginning {self.beginning}' if self.beginning else 'after the start'
    return f'{self.signal.name} to process {self.process}, {self.after:.1f} s {since}'


class Start(NamedTuple):
  """How a start of a command ended.

  Attributes:
    code: exit code of its first process, or of the one that was killed.
    was_killed: whether one was.
    begun: seconds after the start at which each beginning was logged.
  """

  code: int
  was_killed: bool
  begun: list[float]


@dataclasses.dataclass(frozen=True)
class Killable:
  """A run or a suite: the same command each time.

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

  def start(self, kill: Kill | None = None) -> Start:
    """Starts it, kills it if asked to, and waits until all its processes have ended."""
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
      begun, is_time = self._watch(processes, kill, before)
      victim = processes[0]
      if kill is not None and is_time:
        victim = processes[kill.process]
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
      return Start(code, is_time, begun)

  def _watch(
    self, processes: Sequence[subprocess.Popen], kill: Kill | None, before: int
  ) -> tuple[list[float], bool]:
    """Notes when what begins, until the moment of a kill has come or a process has ended.

    Returns:
      Seconds of the beginnings; whether the moment came.
    """
    start, begun = time.monotonic(), []
    while all(process.poll() is None for process in processes):
      now = time.monotonic() - start
      begun += [now] * (len(BEGINNING.findall(self.log[before:])) - len(begun))
      if kill is not None and kill.beginning <= len(begun):
        if now >= kill.after + [0.0, *begun][kill.beginning]:
          return begun, True
      time.sleep(POLL)
    return begun, False

  def _commands(self) -> list[list[str]]:
    fields = {**KINDS[self.kind], **self.fields}
    if 'data.source' in fields:
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

  def place(self) -> str:
    """Where the last start was: the last line of its log at which something begins or ends."""
    lines = [
      line for line in self.log.splitlines() if re.search(BEGINNING.pattern + '|: done ', line)
    ]
    return lines[-1] if lines else 'preparing'

  def contents(self) -> Contents:
    """All that must be identical, by name, without times."""
    found = {}
    for path in sorted(self.workdir.rglob('*')):
      name = str(path.relative_to(self.workdir))
      if path.name == 'result.json':
        result = without_seconds(json.loads(path.read_text()))
        found[name] = json.dumps(result, sort_keys=True).encode()
      elif path.name == 'table.csv':
        rows = [*csv.DictReader(io.StringIO(path.read_text()))]
        found[name] = json.dumps(without_seconds(rows)).encode()
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
