"""A Ray cluster: joining one, what its nodes have, and what a job takes of them."""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
from collections.abc import Mapping, Sequence

from glora_jax.files import first_line
from glora_jax.limits import shown

ACCELERATORS = ('TPU', 'GPU')  # as Ray calls them; the first that a cluster has is what runs take
# Of others than Ray, that say to `mesh.initialize` that a process is one of several.
_MEMBERSHIPS = (
  'JAX_COORDINATOR_ADDRESS',
  'JAX_NUM_PROCESSES',
  'JAX_PROCESS_ID',
  'OMPI_COMM_WORLD_SIZE',
  'SLURM_STEP_NODELIST',
  'TPU_WORKER_HOSTNAMES',
)
_PORT_SECONDS, _CONNECTING_SECONDS, _STARTING_SECONDS = 5, 30, 300


def leave_others() -> None:
  """Makes this process stay alone, in whichever cluster it was started; before JAX is used."""
  for name in _MEMBERSHIPS:
    os.environ.pop(name, None)


def connect(address: str) -> None:
  """Connects this process to a Ray cluster.

  Raises:
    OSError: nobody answers at the address.
    RuntimeError: the cluster cannot be joined.
  """
  os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')  # of a cluster that is started
  os.environ.setdefault('RAY_DEDUP_LOGS', '0')  # runs say the same, each of itself
  import ray

  logging.getLogger('ray').setLevel(logging.ERROR)
  if ray.is_initialized():
    return
  address = address or os.environ.get('RAY_ADDRESS', '')
  _require_port(address)
  errors: list[Exception] = []

  def join() -> None:
    try:
      ray.init(address or None, configure_logging=False, logging_level=logging.ERROR)
    except Exception as error:
      errors.append(error)

  # In a thread, since Ray waits for minutes, and takes the handlers of signals in the main one.
  thread = threading.Thread(target=join, daemon=True)
  thread.start()
  seconds = _CONNECTING_SECONDS if address else _STARTING_SECONDS
  thread.join(seconds)
  if thread.is_alive():
    raise _no_answer(address or 'this machine', f'nothing in {seconds} seconds')
  if errors:
    where = f' at {shown(address)}' if address else ''
    raise RuntimeError(
      f'The Ray cluster{where} cannot be joined: {first_line(errors[0])}'
    ) from errors[0]


def _require_port(address: str) -> None:
  """Raises OSError where nobody listens at 'HOST:PORT'; other forms are left to Ray."""
  host, _, port = address.rpartition(':')
  if not host or not port.isdigit() or '/' in host:
    return
  try:
    socket.create_connection((host.strip('[]'), int(port)), _PORT_SECONDS).close()
  except (OSError, OverflowError) as error:
    raise _no_answer(address, first_line(error)) from error


def _no_answer(address: str, reason: str) -> OSError:
  return OSError(
    f'No Ray cluster answers at {shown(address)} ({reason}); `ray start --head` prints the address '
    'of the one that it starts.'
  )


def parse_resources(text: str | None) -> dict[str, float]:
  """Amounts by name.

  Raises:
    ValueError: the text has another form.

  Example:
    >>> parse_resources('GPU=0.5,CPU=8')
    {'GPU': 0.5, 'CPU': 8.0}
  """
  if text is None:
    return {}
  amounts = {}
  for part in text.split(','):
    name, _, amount = part.partition('=')
    try:
      amounts[name] = float(amount)
    except ValueError:
      amounts[name] = math.nan
    if not name or not 0 < amounts[name] < math.inf:
      raise ValueError(
        f'--runner.resources={shown(text)}: {shown(part)} is no NAME=NUMBER above 0, as GPU=1 or '
        'TPU=4,CPU=8.'
      )
  return amounts


def nodes() -> list[dict[str, float]]:
  """The resources of every node that is alive."""
  import ray

  return [node['Resources'] for node in ray.nodes() if node['Alive']]


def default_resources(nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """What a job takes where nothing is given.

  Example:
    >>> default_resources([{'CPU': 8.0}, {'CPU': 64.0, 'GPU': 8.0}])
    {'GPU': 1.0}
    >>> default_resources([{'CPU': 8.0}, {'CPU': 64.0}])
    {'CPU': 8.0}
  """
  for name in ACCELERATORS:
    if any(node.get(name) for node in nodes):
      return {name: 1.0}
  return {'CPU': min((node['CPU'] for node in nodes if node.get('CPU')), default=1.0)}


def fits_somewhere(needed: Mapping[str, float]) -> bool:
  """Whether a node that is alive has all that a job takes."""
  return any(
    all(node.get(name, 0) >= amount for name, amount in needed.items()) for node in nodes()
  )


def lacking(needed: Mapping[str, float]) -> str:
  """The sentence where no node has what a job takes."""
  has = sorted({_amounts(node) for node in nodes()})
  return f'No node of the Ray cluster has {_amounts(needed)}; they have {" or ".join(has)}.'


def _amounts(resources: Mapping[str, float]) -> str:
  """Amounts in words, without those that Ray gives to every node."""
  hidden = ('memory', 'object_store_memory')
  shown_names = [name for name in resources if name not in hidden and ':' not in name]
  return ', '.join(f'{name}={resources[name]:g}' for name in shown_names) or 'no cores'
