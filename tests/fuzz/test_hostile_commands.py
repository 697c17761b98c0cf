"""Commands on wrong files and flags: the right exit code, one line, and no other file changed."""

import os
import re
import shutil
import subprocess
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import given
from judging import cases, contents, flaw_of, new_place
from spoiling import damaged, spoil
from test_hostile_images import PNG, write_classes

SECONDS = 120
CONFIGS = (
  *('from glora_jax.runs.config import default_config as get_config', 'x = ', 'import nothing'),
  *('def get_config():\n  return {}', 'def get_config():\n  1 / 0', 'get_config = 3', '\0', ''),
)
FIELDS = (
  *('seed=x', 'seed=-1', 'nothing=1', 'supernet=1', 'supernet.epochs=-1', 'model.image_size=99995'),
  *('task=folder:/nothing', 'task=', 'search.mode=x', 'model.weights=/dev/null', 'budget=10k'),
  *('model.weights=none.npz', 'supernet.batch_size=5000'),
)
FLAGS = ('--top=0', '--top=x', '--json', '--batch-size=1', '--num-heads=7', '--resize=crop', '--x')


def convert(draw, given, backbone):
  words = [draw(st.sampled_from([backbone, '/dev/null', 'nothing', str(given)]))]
  outputs = ['out.safetensors', 'out.npz', 'out', 'no/where/x.npz', '/dev/full', str(given)]
  if draw(st.booleans()):
    words += [draw(st.sampled_from([*outputs, str(given / 'diary.txt')]))]
    words += draw(st.sampled_from([[], ['--format', 'timm'], ['--format', 'x']]))
  return words + draw(st.sampled_from([[], ['--num-heads', '7'], ['--image-size', '99995']]))


def predict(draw, given, backbone):
  (given / 'x.png').write_bytes(draw(damaged(PNG)))
  model = draw(st.sampled_from([backbone, '/dev/null', 'nothing', str(given)]))
  images = draw(st.sampled_from([str(given), str(given / 'x.png'), '/dev/null', 'nothing']))
  flags = draw(st.lists(st.sampled_from(FLAGS), max_size=2, unique=True))
  return ['--model', model, *flags, images]


def main(draw, given, backbone):
  path = given / 'my config.py'
  path.write_text(draw(st.sampled_from(CONFIGS)))
  fields = draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=2, unique=True))
  work = draw(st.sampled_from(['work', str(given), str(given / 'diary.txt')]))
  # A wrong field comes last; without one the default task would be fetched.
  fields = [f'task=folder:{given / "photos"}', f'model.weights={backbone}', *fields]
  words = ['--config', str(path), '--workdir', work]
  return [*words, *(f'--config.{field}' for field in fields)]


@pytest.mark.slow
@pytest.mark.parametrize('words_of', [convert, predict, main])
@cases(0.04, shrinks=False)
@given(data=st.data())
def test_a_command_works_or_says_in_one_line_why_not(words_of, data, backbone):
  with new_place() as place:
    write_classes(place.given / 'photos')
    (place.given / 'diary.txt').write_text('dear diary')
    model = shutil.copy(backbone, place.given / 'model.safetensors')
    if data.draw(st.booleans()):
      spoil(data.draw, model)
    words = words_of(data.draw, place.given, str(model))
    before = contents(place.given)
    done = subprocess.run(
      [sys.executable, '-m', f'glora_jax.{words_of.__name__}', *words],
      capture_output=True,
      timeout=SECONDS,
      env={**os.environ, 'XDG_CACHE_HOME': str(place.current)},
    )
    assert contents(place.given) == before, words
  errors = done.stderr.decode(errors='surrogateescape')
  assert 'Traceback' not in errors, (words, errors)
  assert done.returncode in (0, 1, 2), (words, done.returncode, errors)
  if done.returncode:
    line = re.findall(r'error: (.*)', errors)[-1]  # each image that cannot be read has one, too
    assert not flaw_of(line if done.returncode == 1 else f'{line}.'), (words, line)
