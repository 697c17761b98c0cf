"""Real commands in processes of their own."""

import os
import random
import re
import subprocess
import sys

from benchmarks.fuzz.checkpoints import originals
from benchmarks.fuzz.oracle import Case, Fault, RefusedByCommand
from benchmarks.fuzz.pictures import PNG, encoded
from benchmarks.fuzz.place import Place
from benchmarks.fuzz.tables import write_images
from benchmarks.fuzz.values import damaged
from glora_jax.models.formats.table import FORMATS

LIMIT = 120.0  # seconds
USAGE = 2  # exit code of argparse
CONFIGS = (
  *('from glora_jax.runs.config import default_config as get_config', 'x = ', 'import nothing'),
  *('def get_config():\n  return {}', 'def get_config():\n  1 / 0', 'get_config = 3', '\0', ''),
  'from glora_jax.runs.config import default_config\ndef get_config(x):\n  return default_config()',
)
FIELDS = (
  *('seed=x', 'seed=-1', 'nothing=1', 'supernet=1', 'supernet.epochs=-1', 'model.image_size=99995'),
  *('task=folder:/nothing', 'task=', 'search.mode=x', 'data.dir=\0', 'compare.rates=("a",)'),
  *('model.weights=/dev/null', 'model.weights=none.npz', 'budget=10k', 'supernet.batch_size=5000'),
)
FLAGS = ('--top=0', '--top=x', '--json', '--batch-size=1', '--num-heads=7', '--resize=crop', '--x')


def convert(rng: random.Random, place: Place) -> Case:
  """A checkpoint looked into or converted."""
  source = rng.choice([*originals(place.path('shared')), '/dev/null', 'nothing', place.given])
  words = [source]
  if rng.random() < 0.6:
    words.append(rng.choice(['out.safetensors', 'out.npz', 'out', 'no/where/x.npz', '/dev/full']))
    words += rng.choice([[], ['--format', rng.choice(list(FORMATS))]])
  words += rng.choice(
    [[], ['--num-heads', '7'], ['--image-size', rng.choice(['0', '16', '99995'])]]
  )
  return _command(place, 'convert', words)


def predict(rng: random.Random, place: Place) -> Case:
  """Images classified, of which some cannot be read."""
  for number in range(rng.randrange(3)):
    content = encoded(rng) if rng.random() < 0.5 else damaged(rng, PNG)
    place.write('images', f'{number}{rng.choice(["", chr(0xDCFF)])}.png', content=content)
  model = rng.choice([*originals(place.path('shared')), '/dev/null', 'nothing'])
  images = rng.choice([place.path('given', 'images'), place.given, '/dev/null', 'nothing'])
  flags = rng.sample(FLAGS, rng.choice([0, 0, 1, 2]))
  return _command(place, 'predict', ['--model', model, *flags, images])


def run(rng: random.Random, place: Place) -> Case:
  """A run that is refused: its config or a field of it is wrong."""
  path = place.write('my config.py', content=rng.choice(CONFIGS).encode())
  write_images(place)  # for the default task, TFDS would leave folders behind
  fields = rng.sample(FIELDS, rng.choice([1, 1, 2]))
  words = ['--config', path, '--workdir', place.workdir, f'--config.task=folder:{place.given}']
  return _command(place, 'main', [*words, *(f'--config.{field}' for field in fields)])


def _command(place: Place, name: str, words: list[str]) -> Case:
  """A command in the workdir, or in the folder above it where it makes its own."""
  words = [word for word in words if '\0' not in word]
  folder = place.workdir if name == 'convert' else place.path('here')

  def attempt() -> str:
    os.makedirs(folder, exist_ok=True)
    command = [sys.executable, '-m', f'glora_jax.{name}', *words]
    try:
      done = subprocess.run(command, cwd=folder, capture_output=True, timeout=LIMIT)
    except subprocess.TimeoutExpired as error:
      raise Fault(f'longer than {LIMIT:g} s', 'hang') from error
    finally:
      if name == 'convert' and not os.listdir(folder):
        os.rmdir(folder)
    return _answer(done)

  return Case(f'{name} {words}', attempt, limit=LIMIT + 20)


def _answer(done: subprocess.CompletedProcess) -> str:
  """What a command printed, or what it refused."""
  errors = done.stderr.decode(errors='surrogateescape')
  if 'Traceback' in errors or done.returncode < 0:
    raise Fault(f'exit code {done.returncode}: {errors[-1500:]}', 'traceback')
  if done.returncode == 0:
    return done.stdout.decode(errors='replace')
  sentences = re.findall(r'error: (.*)', errors)
  if done.returncode not in (1, USAGE) or not sentences:
    raise Fault(f'exit code {done.returncode}, no sentence: {errors[-500:]}')
  raise RefusedByCommand(f'{sentences[-1]}{"" if done.returncode == 1 else "."}')
