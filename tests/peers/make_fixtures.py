"""Writes `tests/vision/fixtures/`.

Each family's model as its own library saves it, images, and the logits that the library gives:

  pip install -e '.[test,peers]' && python -m tests.peers.make_fixtures
"""

import pathlib
import shutil

import numpy as np

from tests.peers import families

FIXTURES = pathlib.Path(__file__).parent.parent / 'vision' / 'fixtures'
OTHER_SIZE = 56  # at which transformers interpolates its position embeddings


def main():
  for name in families.FAMILIES:
    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    model = families.build(name)
    families.write(model, folder)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    values = {'images': images, 'logits': families.logits(model, images)}
    if name.startswith('hf_'):
      values['large_images'] = rng.normal(size=(1, OTHER_SIZE, OTHER_SIZE, 3)).astype(np.float32)
      values['large_logits'] = families.logits(model, values['large_images'])
    np.savez_compressed(folder / 'expected.npz', **values)
    print(name, values['logits'].shape)


if __name__ == '__main__':
  main()
