"""Writes `tests/vision/fixtures/`.

Each family's model as its own library saves it, images, and the logits that the library gives; and
of the two code bases in Flax, whose files only hold parameters, these and their logits:

  pip install -e '.[test,peers]'
  git clone https://github.com/google-research/vision_transformer
  git clone https://github.com/google-research/big_vision
  PYTHONPATH=vision_transformer:big_vision python -m tests.peers.make_fixtures
"""

import pathlib
import shutil
import sys
import types

import jax
import numpy as np
from flax.traverse_util import flatten_dict

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
  for name, model in flax_models().items():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 24, 24, 3)).astype(np.float32)
    params = jax.tree.map(
      lambda leaf, rng=rng: rng.normal(0, 0.3, leaf.shape).astype(np.float32),
      model.init(jax.random.key(0), images, train=False)['params'],
    )
    logits = model.apply({'params': params}, images, train=False)
    logits = logits[0] if isinstance(logits, tuple) else logits
    values = {'images': images, 'logits': logits, 'params': params}
    np.savez_compressed(FIXTURES / f'{name}.npz', **flatten_dict(values, sep='/'))
    print(name, logits.shape)


def flax_models():
  """Models of width 12, depth 2, 3 heads, patch 8, by the names of their files."""
  sys.modules['big_vision.utils'] = types.ModuleType('utils')  # needs TensorFlow; no ViT needs it
  from big_vision.models import vit
  from vit_jax import models_vit

  patches = types.SimpleNamespace(size=(8, 8))
  encoder = {'num_layers': 2, 'mlp_dim': 20, 'num_heads': 3}
  classic = {'patches': patches, 'transformer': encoder, 'hidden_size': 12}
  shape = {'patch_size': (8, 8), 'width': 12, 'depth': 2, 'mlp_dim': 20, 'num_heads': 3}
  return {
    'in21k': models_vit.VisionTransformer(4, representation_size=12, **classic),
    'headless': models_vit.VisionTransformer(0, **classic),
    'big_vision': vit.Model(4, pool_type='tok', **shape),
    'big_vision_gap': vit.Model(4, **shape),
    'scanned': vit.Model(4, pool_type='tok', scan=True, **shape),
    'sincos': vit.Model(4, posemb='sincos2d', **shape),
  }


if __name__ == '__main__':
  main()
