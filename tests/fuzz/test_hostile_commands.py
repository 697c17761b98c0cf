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
from spoiling import spoil
from test_hostile_images import write_classes

SECONDS = 120
CONFIGS = (
  *('from glora_jax.runs.config import default_config as get_config'),
  *('def get_config():\n  return {}', 'def get_config():\n  1 / 0', '\0'),
)
FIELDS = (
  *('seed=x', 'nothing=1', 'training=1', 'model.image_size=99995', 'task=folder:/nothing'),
  *('model.weights=/dev/null', 'budget=10k', 'training.batch_size=5000'),
)
# Flags and words of each command; `MODEL` and `GIVEN` are a checkpoint and the strangers' folder.
WORDS = {
  'convert': (
    ['--format=x', '--format=timm', '--num-heads=7', '--image-size=99995'],
    ['MODEL', '/dev/null', 'nothing', 'GIVEN'],
    ['out.npz', 'out', 'no/where/x.npz', '/dev/full', 'GIVEN', 'GIVEN/diary.txt'],
  ),
  'predict': (
    ['--top=0', '--top=x', '--json', '--num-heads=7', '--x'],
    ['--model=MODEL', '--model=/dev/null', '--model=GIVEN'],
    ['GIVEN', 'GIVEN/photos/a/0.png', '/dev/null', 'nothing'],
  ),
  # A wrong field comes last; without one the default task would be fetched.
  'main': (
    [f'--config.{field}' for field in FIELDS],
    ['--workdir=work', '--workdir=GIVEN', '--workdir=GIVEN/diary.txt'],
    ['--config=GIVEN/my config.py'],
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize('command', WORDS)
@cases(0.03, shrinks=False)
@given(data=st.data())
def test_a_command_works_or_says_in_one_line_why_not(command, data, backbone):
  with new_place() as place:
    given = place.given
    write_classes(given / 'photos')
    (given / 'diary.txt').write_text('dear diary')
    (given / 'my config.py').write_text(data.draw(st.sampled_from(CONFIGS)))
    model = shutil.copy(backbone, given / 'model.safetensors')
    for path in (model, given / 'photos' / 'a' / '0.png'):
      if data.draw(st.booleans()):
        spoil(data.draw, path)
    flags, *words = WORDS[command]
    words = [data.draw(st.sampled_from(choices)) for choices in words]
    if command == 'main':
      words += [f'--config.task=folder:{given / "photos"}', '--config.model.weights=MODEL']
    words += data.draw(st.lists(st.sampled_from(flags), min_size=1, max_size=2, unique=True))
    before = contents(given)
    done = subprocess.run(
      [sys.executable, '-m', f'glora_jax.{command}']
      + [word.replace('MODEL', str(model)).replace('GIVEN', str(given)) for word in words],
      capture_output=True,
      timeout=SECONDS,
      env={**os.environ, 'XDG_CACHE_HOME': str(place.current)},
    )
    assert contents(given) == before, words
  errors = done.stderr.decode(errors='surrogateescape')
  assert 'Traceback' not in errors, (words, errors)
  assert done.returncode in (0, 1, 2), (words, done.returncode, errors)
  if done.returncode:
    line = re.findall(r'error: (.*)', errors)[-1]  # each image that cannot be read has one, too
    assert not flaw_of(line if done.returncode == 1 else f'{line}.'), (words, line)
