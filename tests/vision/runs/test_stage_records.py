"""What the stages of a run left is read back with its shape checked; damage is one sentence."""

import numpy as np
import pytest

from glora_jax.files import write_tensors
from glora_jax.method.draws import random_genomes
from glora_jax.method.space import Layer, Spec
from glora_jax.search.archive import Archive
from glora_jax.vision.runs.stages.search import read_archive
from glora_jax.vision.runs.workdir import freeze_test_list

SPEC = Spec((Layer('dense', 8, 8),))


@pytest.mark.parametrize(
  'changes, reason',
  [
    ({'correct': np.array([1, 2, -3, 4])}, 'negative number of right answers'),
    ({'genomes': np.full((4, 1, 5), 9, np.int8)}, '9 for A of layer 0'),
  ],
)
def test_an_archive_that_cannot_be_is_named(changes, reason, tmp_path):
  path = str(tmp_path / 'archive.safetensors')
  genomes = random_genomes(np.random.default_rng(0), SPEC, 4)
  arrays = Archive.empty(SPEC).extended(genomes, [5, 7, 7, 1], [1.0, 2.0, 3.0, 4.0], 0).arrays()
  write_tensors(path, arrays, 'archive', {})
  assert len(read_archive(path, SPEC)) == 4
  write_tensors(path, {**arrays, **changes}, 'archive', {})
  with pytest.raises(ValueError, match=rf'archive.safetensors is damaged \(.*{reason}'):
    read_archive(path, SPEC)


def listed(version, result, structure):
  """The content of a list of one structure."""
  return {'version': version, 'result': result, 'structures': {'lora': structure}}


def test_a_frozen_list_is_the_same_where_other_devices_round_otherwise(tmp_path):
  structure = {'genome': [[0, 3, 0, 0, 0]], 'weights': 'fingerprint'}
  first = listed('1', 'lora', {**structure, 'val_accuracy': 0.905, 'val_loss': 0.31})
  again = listed('2', 'linear', {**structure, 'val_accuracy': 0.900, 'val_loss': 0.32})
  other = listed('1', 'lora', {**structure, 'weights': 'others'})
  for content in (first, again):
    assert freeze_test_list(tmp_path, content) == first
  with pytest.raises(ValueError, match='was frozen with other structures'):
    freeze_test_list(tmp_path, other)
