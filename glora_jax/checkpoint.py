"""What training leaves: its states (orbax), and adapters (safetensors)."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from glora_jax import reparam, space
from glora_jax.adapt import COLLECTION, Adapted
from glora_jax.files import Path, read_tensors, write_tensors
from glora_jax.merge import flatten, get, replace
from glora_jax.models.containers import open_tensors
from glora_jax.models.formats import FORMATS, grouped
from glora_jax.models.translate import finite, require
from glora_jax.models.vit import ViT
from glora_jax.models.weights import fingerprint
from glora_jax.training import TrainState

log = logging.getLogger(__name__)


class TrainingCheckpoints:
  """The states of one training run in a folder; the newest that can be read is where it goes on.

  Every state is saved with a checksum: orbax does not notice when the numbers in its files have changed.

  Example:
    >>> with TrainingCheckpoints(folder) as checkpoints:   # doctest: +SKIP
    ...   state = fit(..., state=checkpoints.latest(template), on_dispatch=lambda state, _: checkpoints.save(state))
  """

  def __init__(self, folder: Path):
    self._folder = os.path.abspath(folder)
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True, cleanup_tmp_directories=True)
    with self._writing():
      self._manager = ocp.CheckpointManager(self._folder, options=options)

  def __enter__(self) -> TrainingCheckpoints:
    return self

  def __exit__(self, kind, *exception) -> None:
    try:
      self.wait()
      with self._writing():
        self._manager.close()
    except OSError:
      if kind is None:  # else what went wrong first is what matters
        raise

  @property
  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def latest(self, template: TrainState) -> TrainState | None:
    """The newest state that is whole, with the structure, shapes and types of the template; None where there is none yet.

    Newer ones that are damaged are named in a warning and removed, since training goes over their steps again.

    Raises:
      ValueError: there are some, and all are damaged.
    """
    damaged = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        tree = self._restore(step, (template.trainable, template.opt_state))
      except Exception as error:  # whatever orbax, tensorstore and JSON make of damaged files
        damaged[step] = _reason(error)
        continue
      for other, reason in damaged.items():
        log.warning('The training state of step %d in %s is damaged (%s); going on from step %d.', other, self._folder, reason, step)
        with self._writing():
          self._manager.delete(other)
      return TrainState(*tree, step)
    if damaged:
      step, reason = next(iter(damaged.items()))
      raise ValueError(f'None of the training states in {self._folder} can be read (steps {", ".join(map(str, damaged))}; {step}: {reason}). '
                       'Remove that folder, and this training starts again from its beginning.')
    return None

  def _restore(self, step, tree):
    tree, saved = self._manager.restore(step, args=ocp.args.StandardRestore((tree, _checksum(tree))))
    if int(_checksum(tree)) != int(saved):
      raise ValueError('its numbers are not those that were saved')
    return tree

  def save(self, state: TrainState) -> None:
    """Saves in the background; an equal step that is there already is left alone.

    Raises:
      OSError: this state, or the one before it, cannot be written.
    """
    if state.step != self._manager.latest_step():
      # A copy: the training loop donates the state's own buffers to its next step, while this is still being written.
      copied = jax.tree.map(jnp.copy, (state.trainable, state.opt_state))
      with self._writing():
        self._manager.save(state.step, args=ocp.args.StandardSave((copied, _checksum(copied))))

  def wait(self) -> None:
    """Returns when what is being saved is on disk.

    Raises:
      OSError: it cannot be written.
    """
    with self._writing():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _writing(self):
    try:
      yield
    except Exception as error:  # from orbax's threads, of many types
      raise OSError(f'The training state cannot be written to {self._folder} ({_reason(error)}). What was saved before is kept; make '
                    'room or give permission, and start the same command again.') from error


@jax.jit
def _checksum(tree):
  """A number, uint32, that depends on every bit of a tree of arrays; a sum that wraps around, so the same however they are sharded."""
  total = jnp.uint32(0)
  for number, leaf in enumerate(jax.tree.leaves(tree)):
    width = 8 * min(leaf.dtype.itemsize, 4)
    bits = leaf.astype(jnp.uint8) if leaf.dtype == bool else jax.lax.bitcast_convert_type(leaf, f'uint{width}')
    bits = bits.astype(jnp.uint32)
    bits = (bits ^ bits >> 15) * jnp.uint32(0x2C1B3C6D)  # or changes of two numbers could cancel out
    total += jnp.uint32(2 * number + 1) * jnp.sum(bits ^ bits >> 12, dtype=jnp.uint32)
  return total


def _reason(error):
  """The system's own words where it is the system that refused, else the beginning of a library's many."""
  text = str(error).strip() or type(error).__name__
  refusals = (os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG))
  return next((words for words in refusals if words in text), text.splitlines()[0][:160])


def save_adapter(path: Path, adapted: Adapted, variables: Any, genome: Any, **metadata: Any) -> None:
  """Writes one subnet as one safetensors file: only the numbers that its genome uses, the heads, and the model's other collections.

  Tensors are named `glora/<layer>/<support>`, `params/<path>` and, batch statistics for instance, `<collection>/<path>`. The
  metadata holds genome, spec and a fingerprint of the frozen parameters, so that `load_adapter` knows what the file belongs to.

  Args:
    path: of the file.
    adapted, variables, genome: the subnet; one genome [rows, 5].
    **metadata: more to remember, JSON types.
  """
  genome = space.canonicalize(adapted.spec, genome)
  trainable, frozen = adapted.split(variables)
  others = {name: value for name, value in frozen.items() if name != 'params'}
  tensors = {'/'.join(p): nn.meta.unbox(value) for p, value in flatten({'params': trainable['params'], **others}).items()}
  for name, index, parts, supports in _used(adapted, trainable[COLLECTION], genome):
    for support, part in parts.items():
      tensors[f'glora/{name}/{support}'] = np.asarray(nn.meta.unbox(supports[support]))[(*index, *part)]
  described = {
      'spec': [repr(layer) for layer in adapted.spec], 'base': fingerprint(frozen['params']),
      **space.genome_to_json(adapted.spec, genome), **metadata}
  write_tensors(path, tensors, 'adapter', described)


def load_adapter(path: Path, adapted: Adapted, params: Any) -> tuple[dict[str, Any], np.ndarray]:
  """Reads what `save_adapter` wrote onto the base that it was trained on.

  Args:
    path: of the file.
    adapted: the same model, adapted with the same space.
    params: the base's parameters; their heads are replaced.

  Returns:
    (variables, genome), ready for `adapted.apply` and `adapted.fold`; supports that the genome does not use are zero, and the
    model's other collections are those that were saved.

  Raises:
    ValueError: the file is damaged, or belongs to another model, space or base; the sentence says which.
  """
  tensors, metadata = read_tensors(path, 'adapter')
  theirs, ours = metadata['spec'], [repr(layer) for layer in adapted.spec]
  if theirs != ours:
    row = next((n for n, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1]), min(len(theirs), len(ours)))
    at = lambda layers: layers[row] if row < len(layers) else 'no such layer'
    raise ValueError(f'The adapter {path} belongs to another model or search space. It has {len(theirs)} layers, and this '
                     f'model {len(ours)}; the first that differs is layer {row}: {at(theirs)} there, {at(ours)} here.')
  genome = space.genome_from_json(adapted.spec, metadata)
  variables = adapted.init(jax.random.key(0), params)
  trainable, frozen = adapted.split(variables)
  if (found := fingerprint(frozen['params'])) != metadata['base']:
    raise ValueError(f"The adapter {path} was trained on other base weights (SHA-256 {metadata['base'][:12]}..., and these are "
                     f'{found[:12]}...); load it onto those.')
  supports = jax.tree.map(lambda value: np.zeros(value.shape, value.dtype), trainable[COLLECTION])
  for name, index, parts, module in _used(adapted, nn.meta.unbox(supports), genome):
    for support, part in parts.items():
      module[support][(*index, *part)] = tensors.pop(f'glora/{name}/{support}')
  others = flax.traverse_util.unflatten_dict(tensors, sep='/')
  heads, expected = flatten(others.pop('params', {})), nn.meta.unbox(flatten(trainable['params']))
  if heads.keys() != expected.keys() or any(heads[p].shape != expected[p].shape for p in heads):
    raise ValueError(f'The adapter {path} has the heads {_shapes(heads)}, and this model has {_shapes(expected)}.')
  new = trainable['params']
  for p, value in heads.items():
    new = replace(new, p, value)
  return adapted.join({'params': new, COLLECTION: supports}, {**frozen, **others}), genome


def load_official_supernet(path: Path, adapted: Adapted, params: Any) -> dict[str, Any]:
  """Reads what the official PyTorch code saves, supports and head of a timm ViT, onto the base that it was trained on.

  The official base is `ViT-B_16.npz` as timm computes it: load that with `activation='gelu'`.

  Args:
    path: of the `.pt` file (PyTorch must be there; it is read with `weights_only=True`), or its tensors as safetensors or npz.
    adapted: the ViT of `models/vit.py`, adapted with tied storage; its largest rank is that of the file.
    params: the base's parameters, with a head of the file's number of classes; the head is replaced.

  Returns:
    Variables for `adapted.apply`.

  Raises:
    ValueError: every tensor that is missing, unexpected or misshaped is named.
  """
  if not isinstance(adapted.model, ViT) or not adapted.model.num_classes or not all(layer.space.tied for layer in adapted.spec):
    raise ValueError('An official supernet goes onto the ViT of glora_jax.models.vit, with a head (num_classes above 0), adapted with a '
                     'tied SearchSpace.')
  tensors = open_tensors(path)
  timm = FORMATS['timm']
  names = {rule.ours: rule.theirs[0].removesuffix('.weight') for rule in timm.rules(adapted.model, timm.variant)}
  variables = adapted.init(jax.random.key(0), params)
  trainable, frozen = adapted.split(variables)
  supports = jax.tree.map(lambda value: np.zeros(value.shape, value.dtype), nn.meta.unbox(trainable[COLLECTION]))
  places, expected = {}, {}
  for group in adapted.groups:
    for index, _ in group.slices():
      layer = names['/'.join((*group.path, 'kernel'))].format(*index)
      for ours, theirs, transposed in _OFFICIAL:
        module = get(supports, group.path)
        if ours in module:
          shape = module[ours].shape[len(index):]
          places[f'{layer}.{theirs}'] = module, ours, index, transposed
          expected[f'{layer}.{theirs}'] = shape[::-1] if transposed else shape
  heads = trainable['params']['head']
  expected.update({'head.weight': heads['kernel'].shape[::-1], 'head.bias': heads['bias'].shape})
  require(tensors, {name: spec.shape for name, spec in tensors.specs.items()}, expected)
  if odd := [name for name in expected if tensors.specs[name].dtype is None]:
    raise ValueError(f'{tensors.path}: {grouped(odd)} hold no floating-point numbers.')
  read = lambda name: finite(tensors.path, name, tensors.read(name))
  for name, (module, ours, index, transposed) in places.items():
    value = read(name)
    module[ours][index] = value.T if transposed else value
  dtype = nn.meta.unbox(heads['kernel']).dtype
  head = {'kernel': read('head.weight').T.astype(dtype), 'bias': read('head.bias').astype(dtype)}
  return adapted.join({'params': {'head': head}, COLLECTION: supports}, frozen)


# The supports' names here and there, and whether they are transposed.
_OFFICIAL = (('A_down', 'Au', True), ('A_up', 'Ad', True), ('B_down', 'Bu', True), ('B_up', 'Bd', True),
             ('C_down', 'Cd', False), ('C_up', 'Cu', False), ('D', 'D', False), ('E', 'E', False))


def _shapes(flat):
  return ', '.join(f'{"/".join(path)} {value.shape}' for path, value in sorted(flat.items())) or 'none'


def _used(adapted, supports, genome):
  """(name of the layer, index in its stack, used parts, supports of its module) for every row."""
  for group in adapted.groups:
    for index, row in group.slices():
      parts = reparam.used_parts(genome[row].tolist(), group.space.ranks, group.has_bias, group.space.tied)
      yield adapted.spec.layers[row].name, index, parts, get(supports, group.path)
