"""A suite of three tasks that is read in no time: two training images for each of three seeds."""

import numpy as np
from PIL import Image

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), np.uint8)


def write_few_shot_lists(folder):
  """Two training images for each of three seeds, and images that all of them share."""
  (folder / 'images').mkdir(parents=True)
  lists = {f'train_meta.list.num_shot_1.seed_{seed}': f't{seed}' for seed in range(3)}
  for name, prefix in {**lists, 'val_meta.list': 'v', 'test_meta.list': 'w'}.items():
    for label in range(2):
      Image.fromarray(PIXELS[label]).save(folder / 'images' / f'{prefix}{label}.png')
    (folder / name).write_text(f'{prefix}0.png 0\n{prefix}1.png 1\n')
