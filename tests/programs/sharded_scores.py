"""Scores a population on meshes of three shapes, as one device does."""

import pathlib
import re
import sys

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from conftest import randomized

import glora_jax
from glora_jax.method.genomes import random_genomes
from glora_jax.models.vit import ViT
from glora_jax.search import scoring

model = ViT(4, patch_size=8, width=12, depth=2, num_heads=2)
images = jax.random.normal(jax.random.key(0), (23, 16, 16, 3))
labels = jax.random.randint(jax.random.key(1), (23,), 0, 4)
params = randomized(model.init(jax.random.key(2), images[:1])['params'], 1)
for merge in ('up_front', 'lazy'):
  adapted = glora_jax.adapt(model, images[:1], merge=merge)
  variables = adapted.init(jax.random.key(3), params)
  variables = {**variables, 'glora': randomized(variables['glora'], 2)}
  genomes = random_genomes(np.random.default_rng(0), adapted.spec, 11)
  expected = scoring.make_scorer(adapted)(variables, genomes, images, labels)
  for shape in ((1, 8), (2, 4), (8, 1)) if merge == 'up_front' else ((2, 4),):
    mesh = jax.make_mesh(shape, ('candidate', 'data'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    score = scoring.make_scorer(adapted, mesh=mesh, chunk=2, block=8)
    for _ in range(3):
      found = score(variables, genomes, images, labels)
      np.testing.assert_array_equal(found[0], expected[0])
      np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
    assert score._cache_size() == 1
    one, other = (
      scoring.make_predictor(adapted, mesh=on, block=8)(variables, genomes[1], images)
      for on in (None, mesh)
    )
    np.testing.assert_array_equal(other.classes, one.classes)
    np.testing.assert_allclose(other.probabilities, one.probabilities, rtol=1e-5)
    assert other.classes.sharding.is_fully_replicated
    text = score.lower(variables, genomes, images, labels).compile().as_text()
    parts = {part.split(' ', 1)[0].lstrip('%'): part for part in text.split('\n\n')}
    bodies = [parts[name] for name in re.findall(r'body=%?([\w.-]+)', text)]
    collective = (
      r'(?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\('
    )
    counted = [len(re.findall(collective, body)) for body in bodies]
    assert bodies
    print(merge, shape, max(counted))
