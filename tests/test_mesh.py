"""Several devices, which are simulated, and several processes do what one does."""

import pytest
from joining import run_on_eight, run_two

from glora_jax.method.sharding import sharded_axis


@pytest.mark.parametrize(
  'shape, axis', [((768, 3072), 1), ((64, 16, 24), 2), ((64, 3, 5), None), ((), None)]
)
def test_the_largest_axis_that_fits_is_sharded_and_no_stack(shape, axis):
  assert sharded_axis(shape, 8) == axis


@pytest.mark.slow
@pytest.mark.parametrize(
  'name', ['eight_devices', 'sharded_params', 'sharded_nnx', 'sharded_allocation']
)
def test_eight_devices_train_score_allocate_and_fold_as_one(name):
  run_on_eight(f'programs/{name}')


def test_joined_processes_wait_share_arrays_and_read_their_part(tmp_path):
  run_two('programs/two_processes', tmp_path)
