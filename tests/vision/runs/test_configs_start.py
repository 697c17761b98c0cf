"""Every config starts: with `tiny=True`, in seconds.

On the digits: that the data sets of the configs open is in `tests/vision/data`.
"""

import pytest
from places import CONFIGS, get_config

from glora_jax.vision.runs import experiment, suite
from glora_jax.vision.runs.workdir import Stopped

# Their steps compile for 20 seconds; tests of augmentations and of a searched run have the parts.
LONG = ('fewshot', 'generalization', 'vtab')
NAMES = [path.stem for path in sorted(CONFIGS.glob('*.py'))]


@pytest.mark.parametrize(
  'name, steps',
  [
    *((name, name not in LONG) for name in NAMES),
    *(pytest.param(name, True, marks=pytest.mark.full) for name in LONG),
  ],
)
def test_a_tiny_config_starts(name, steps, tmp_path):
  """Up to the first steps, or until these would be compiled."""
  before = {'own': 'beans,', 'vtab': 'dtd,', 'fewshot': 'oxford_pets,'}.get(name, '')
  config = get_config(name, f'{before}tiny=True')
  config.task = 'digits'
  config.checkpoint_epochs = 1

  def stop():
    """Whether there is a training state, which is named by its step."""
    return not steps or any(path.name.isdigit() for path in tmp_path.rglob('*') if path.is_dir())

  run = suite.run if name == 'compare' else experiment.run
  with pytest.raises(Stopped):
    run(config, str(tmp_path), stop)
  assert stop()


def test_a_published_dinov2_gets_images_of_the_usual_size_and_other_weights_their_own(tmp_path):
  (tmp_path / 'dinov2').touch()
  names = ('dinov2-S/14', 'hf:facebook/dinov2-base', 'in21k-B/16', tmp_path / 'dinov2')
  sizes = [get_config('own', f'beans,weights={name}').model.image_size for name in names]
  assert sizes == [224, 224, None, None]
