"""The backbone of a run before training: task, weights, new head, adapter and devices."""

from __future__ import annotations

import dataclasses
import enum
import functools
import logging
import os
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.method import sharding
from glora_jax.method.adapt import adapt
from glora_jax.method.adapted import Adapted, name_of, with_space
from glora_jax.method.presets import parse_preset_name
from glora_jax.method.space import Spec
from glora_jax.search.allocation import Allocation
from glora_jax.vision.data.catalog import find, require_apart
from glora_jax.vision.data.task import Task
from glora_jax.vision.models import weights
from glora_jax.vision.models.fetch import fetch, known_normalization
from glora_jax.vision.models.metadata import Metadata, require_normalization
from glora_jax.vision.models.vit import ViT
from glora_jax.vision.runs.origins import find_weights
from glora_jax.vision.runs.settings import (
  GRADIENT,
  NO_PRESETS,
  SEARCH,
  TRANSFER,
  ModelSettings,
  RunSettings,
)

log = logging.getLogger(__name__)

_SIDE_OF_PHOTOGRAPHS = 100  # pixels, of the smallest
_LOOKED_AT = 9  # images, as a folder may have all sizes
_NOTE = (
  'The small backbone of the package has only seen gray images of 28 x 28 pixels, so it is for '
  'trials only. For results add weights=dinov2-S/14 to the arguments of the config, as in '
  'own:FOLDER,weights=dinov2-S/14.'
)


@enum.unique
class Stream(enum.IntEnum):
  """The purposes of random keys.

  Equal numbers would give equal draws; changed numbers would change a resumed run.
  """

  INIT = 0
  SUPERNET = 1
  BASELINE = 2
  SEARCH = 3
  FINETUNE = 5
  HEAD = 6
  STRUCTURE = 7
  TRAINING = 8
  PRIOR = 9


def stream_key(seed: int, stream: Stream) -> jax.Array:
  """The random key of a seed for one purpose."""
  return jax.random.fold_in(jax.random.key(seed), int(stream))


class Model(NamedTuple):
  """An adapted backbone and its variables, before or after a training.

  Attributes:
    adapted: the adapted backbone, fixed to a structure if that one is trained or tested.
    variables: its variables.
    best_epoch: epoch of its training that was best on the validation images; None if these were
      not used.
    allocation: the allocation that chose the structure; None for other structures.
  """

  adapted: Adapted
  variables: Any
  best_epoch: int | None = None
  allocation: Allocation | None = None

  @property
  def genome(self) -> np.ndarray:
    """The forms of its structure, int8 [layer, 5]."""
    assert self.adapted.genome is not None
    return self.adapted.genome


def is_beside(spec: Spec, name: str) -> bool:
  """Whether a baseline needs a space that differs from the searched one.

  Args:
    spec: the layers, with the forms that the search has.
    name: 'gradient', 'transfer', 'search', 'finetuning', or a preset's name.
  """
  if name in NO_PRESETS:
    return name in (GRADIENT, TRANSFER)
  rank = parse_preset_name(name).rank
  return rank is not None and any(rank not in layer.space.ranks for layer in spec)


def fetch_task(settings: RunSettings, workdir: str) -> tuple[Task, str]:
  """(the task, the path of the weights), both on disk.

  Raises:
    ValueError: the cache of decoded images is in the folder of the task's images; or see `find`.
    FileNotFoundError, OSError: images or weights are missing.
  """
  model, cache = settings.model, settings.data.cache
  if cache is not None:
    require_apart(settings.task, os.path.expanduser(cache), 'data.cache')
  with meshes.primary_first('prepare'):
    # Opening prepares the data; some class names are known only then.
    find(settings.task, settings.data).open('train')
    path = find_weights(model, workdir)
  return find(settings.task, settings.data).opened(), path


def load_backbone(
  settings: ModelSettings, path: str, num_classes: int
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
  """(model, params, metadata) with a new head, at the size and precision of the config."""
  loaded = weights.load(path, **_hints(settings))
  model, params, metadata = weights.refit(
    *loaded,
    num_classes=num_classes,
    image_size=settings.image_size,
    patch_size=settings.patch_size,
  )
  if (source := metadata.get('source')) and source.is_written:
    # Raises now if the format could not be written at the end.
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep='/')
    source.fit(model, flat)
  dtype = None if settings.dtype == 'float32' else settings.dtype
  if isinstance(model, ViT):
    model = model.clone(
      drop_path=settings.drop_path, remat=settings.remat, unroll=settings.unroll, dtype=dtype
    )
  elif dtype is not None:
    raise ValueError(
      f"model.dtype='{dtype}' is only for the ViT, but {model.__name__} runs as PyTorch's module; "
      'leave it out.'
    )
  if not isinstance(metadata['image_size'], int):
    raise ValueError(
      f'The weights are for images of {metadata["image_size"]}, but a run needs square ones; give '
      'model.image_size.'
    )
  normalization = require_normalization(
    path, settings.normalization or metadata.get('normalization'), 'model.normalization'
  )
  return model, params, {**metadata, 'normalization': normalization}


def _hints(settings: ModelSettings) -> dict[str, Any]:
  """The facts about the weights in the config, in case the file does not have them."""
  return {
    'num_heads': settings.num_heads,
    'activation': settings.activation,
    'normalization': settings.normalization or known_normalization(settings.weights),
  }


def metadata_here(settings: ModelSettings) -> Metadata:
  """The metadata of the weights of a run; empty if they are not on this machine."""
  name = settings.weights
  if name != weights.EMBEDDED and not os.path.exists(os.path.expanduser(name)):
    return {}
  return weights.load(fetch(name), **_hints(settings)).metadata


def adapt_spaces(
  settings: RunSettings, model: Any, size: int, mesh: jax.sharding.Mesh | None = None
) -> tuple[Adapted, Adapted | None]:
  """The model adapted with the run's space, and with the space of baselines that need another one.

  Args:
    settings: the config.
    model: the backbone.
    size: side of its images.
    mesh: devices of the run.
  """
  sample = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  space = settings.space.search_space(settings.structure)
  # A sharded base is gathered where it is used.
  gathered = mesh if settings.mesh.base == 'sharded' else None
  attach = functools.partial(adapt, model) if isinstance(model, ViT) else model.adapt
  adapted = dataclasses.replace(attach(sample, space=space), mesh=gathered)
  is_searched = settings.structure == SEARCH
  if is_searched and any(is_beside(adapted.spec, name) for name in settings.presets or ()):
    return adapted, with_space(adapted, settings.space.search_space(GRADIENT))
  return adapted, None


def variables_before_training(
  adapted: Adapted, params: Any, settings: RunSettings, mesh: jax.sharding.Mesh | None
) -> dict[str, Any]:
  """The variables before training, in their types and on their devices."""
  base_dtype = jnp.dtype(settings.model.base_dtype)
  params = flax.traverse_util.path_aware_map(
    lambda path, x: x if path in adapted.places.head_paths else x.astype(base_dtype), params
  )
  key = stream_key(settings.seed, Stream.INIT)
  if mesh is None:
    return adapted.init(key, jax.tree.map(jnp.asarray, params))
  # From the host to their devices: a large base need not fit one of them.
  trainable, frozen = adapted.split(adapted.init(key, params))
  place = sharding.shard_arrays if settings.mesh.base == 'sharded' else meshes.replicate
  return adapted.join(meshes.replicate(mesh, trainable), place(mesh, frozen))


def check_ranks(adapted: Adapted) -> None:
  """Raises ValueError if a LoRA rank of the search space is too large for every layer."""
  sides = [min(layer.in_features, layer.out_features) for layer in adapted.spec]
  ranks = {rank for layer in adapted.spec for rank in layer.space.ranks}
  if beyond := [rank for rank in sorted(ranks) if rank > max(sides)]:
    raise ValueError(
      f'space.ranks has {beyond[0]}, but no layer of the model can have a rank above {max(sides)}; '
      'lower it.'
    )


def describe(adapted: Adapted, variables: Any, mesh: jax.sharding.Mesh | None = None) -> str:
  """One line: layers adapted, parameters trained in full and frozen, precision and devices."""
  trainable, frozen = adapted.split(variables)
  axes = [f'{name} {size}' for name, size in mesh.shape.items()] if mesh else ()
  computed = getattr(adapted.model, 'dtype', None)
  precision = jnp.dtype(computed).name if computed else _dtypes(trainable)
  return (
    f'{len(adapted.spec)} layers of {name_of(adapted.model)} are adapted; '
    f'{count(trainable["params"]):,} parameters in heads, {count(frozen):,} frozen '
    f'({_dtypes(frozen)}); computed in {precision} on {jax.device_count()} x '
    f'{jax.devices()[0].device_kind}{", mesh " * bool(axes)}{", ".join(axes)}'
  )


def count(tree: Any) -> int:
  """Number of parameters in a tree, or in its shapes."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _dtypes(tree: Any) -> str:
  return ', '.join(sorted({str(leaf.dtype) for leaf in jax.tree.leaves(tree)}))


def note_photographs(settings: RunSettings, task: Task) -> Task:
  """The task with a note, which is logged, if the package's backbone is used for photographs."""
  if settings.model.weights != weights.EMBEDDED:
    return task
  examples = task.open('train')
  some = np.linspace(0, len(examples.labels) - 1, _LOOKED_AT, dtype=int)
  if max(min(examples[n].image().size) for n in some) < _SIDE_OF_PHOTOGRAPHS:
    return task
  log.warning(_NOTE)
  return dataclasses.replace(task, notes=(*task.notes, _NOTE))
