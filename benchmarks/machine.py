"""What every benchmark prints of the machine it ran on."""

import os
import platform

import jax


def describe() -> dict[str, str | int]:
  """Processor, cores, accelerator and versions, as JSON types."""
  cpu = platform.processor() or platform.machine()
  if os.path.exists('/proc/cpuinfo'):
    with open('/proc/cpuinfo') as file:
      cpu = next(
        (line.split(':')[1].strip() for line in file if line.startswith('model name')), cpu
      )
  return {
    'cpu': cpu,
    'cores': os.cpu_count(),
    'device': jax.devices()[0].device_kind,
    'jax': jax.__version__,
  }
