"""A suite of three tasks that is read in no time: two training images for each of three seeds."""

from label_lists import write_images


def write_few_shot_lists(folder):
  """Two training images for each of three seeds, and images that all of them share."""
  lists = {f'train_meta.list.num_shot_1.seed_{seed}': f't{seed}' for seed in range(3)}
  for name, prefix in {**lists, 'val_meta.list': 'v', 'test_meta.list': 'w'}.items():
    write_images(folder / 'images', [f'{prefix}{label}.png' for label in range(2)])
    (folder / name).write_text(f'{prefix}0.png 0\n{prefix}1.png 1\n')
