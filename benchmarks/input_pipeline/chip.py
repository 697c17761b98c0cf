"""How many images a TPU chip takes from its host, by the plan's arithmetic: no chip is needed."""

from glora_jax.models.vit import vit
from glora_jax.runs.config import RunSettings
from glora_jax.runs.planning.costs import cost_of
from glora_jax.runs.planning.machine import CHIPS
from glora_jax.runs.planning.plan import SHARES
from glora_jax.runs.programs import Workload, shape_of_run

COUNTS = {'train': 800, 'val': 200, 'test': 1000}
CHIP = 'v5e'


def rates() -> dict[str, tuple[float, ...]]:
  """Images a second of training steps of ViT-B/16 in bfloat16, at 45% and at 20% of the peak."""
  model = vit('B', 100, dtype='bfloat16', drop_path=0.1)
  run = shape_of_run(RunSettings(merge='lazy'), model, 224, COUNTS)
  operations = {
    'supernet': cost_of('supernet', run).operations,
    'lora': cost_of('subnet', run, Workload(subnet='lora')).operations,
  }
  return {
    name: tuple(CHIPS[CHIP].peak * share / number for share in SHARES)
    for name, number in operations.items()
  }
