"""A head that is trained alone, on features that the frozen body gives once for every image."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.limits import check_callable, check_type
from glora_jax.method.adapted import Adapted
from glora_jax.method.genomes import smallest_genome
from glora_jax.method.program import gathering
from glora_jax.method.sample import Preprocess, unchanged
from glora_jax.method.supports import COLLECTION
from glora_jax.method.validation import (
  as_numbers,
  check_collections,
  check_labelled,
  check_only_arrays,
)
from glora_jax.training.batches import ImageStream, given, in_rows, rows_in_order
from glora_jax.training.halves import Halves, halve
from glora_jax.training.loop import LossFn, fit
from glora_jax.training.losses import make_loss
from glora_jax.training.recipe import Recipe


@dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class HeadAlone(Adapted):
  """The head of an adapted model: its smallest structure, by which nothing else is trained.

  Its inputs are features: what the base model's head reads of its body. The body is applied once,
  as for a test, so nothing is random here that a model does at random in training.

  Attributes:
    halves: of a number of images, the base model cut where the head begins.
    batch_size: number of images in a step, or in a part of it.
  """

  halves: Callable[[int], Halves]
  batch_size: int

  @classmethod
  def find(
    cls,
    adapted: Adapted,
    variables: Mapping[str, Any],
    preprocess: Preprocess,
    images: jax.ShapeDtypeStruct,
    **apply_kwargs: Any,
  ) -> HeadAlone | None:
    """The head of a model, if what it reads is one array with a row for every image.

    Args:
      adapted: the adapted model.
      variables: its variables.
      preprocess: `(images, None) -> inputs` of the model.
      images: shape of the images of a step, or of a part of it.
      **apply_kwargs: further arguments of the model.
    """

    def outputs(head: Any, rest: Any, images: jax.Array) -> Any:
      params = adapted.full_precision(adapted.join({'params': head}, rest)['params'])
      call = functools.partial(_apply, adapted.model, rest, preprocess(images, None), apply_kwargs)
      return call(params) if adapted.mesh is None else gathering(call, params, adapted.mesh)

    head, rest = jax.eval_shape(functools.partial(_head_and_rest, adapted), variables)

    @functools.cache
    def halves(number: int) -> Any:
      rows = jax.ShapeDtypeStruct((number, *images.shape[1:]), images.dtype)
      return halve(outputs, head, rest, rows)

    if halves(len(images)) is None:
      return None
    smallest = adapted.fix(smallest_genome(adapted.spec))
    return cls(**vars(smallest), halves=halves, batch_size=len(images))

  def split(
    self, variables: Mapping[str, Any], *, supports: bool = True
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trainable, frozen): the head, and all else as it is."""
    del supports
    trainable, frozen = super().split(variables, supports=False)
    return {**trainable, COLLECTION: {}}, frozen

  def apply(self, variables: Mapping[str, Any], features: jax.Array, **unused: Any) -> Any:
    """The model's outputs for the features of a batch; a head alone does nothing at random."""
    del unused
    return self.halves(len(features)).head(*_head_and_rest(self, variables), features)

  def loss(self) -> LossFn:
    """What training minimizes; its images are features."""
    return make_loss(self)

  def features(
    self,
    variables: Mapping[str, Any],
    images: jax.Array | np.ndarray | ImageStream,
    labels: jax.Array | np.ndarray,
    mesh: jax.sharding.Mesh | None = None,
  ) -> jax.Array:
    """What the head reads, for all images.

    Args:
      variables: the variables of the adapted model.
      images: the whole training set [n, ...], or a stream of it.
      labels: int [n].
      mesh: devices that the batches are dealt to.

    Returns:
      [n, ...].
    """
    rest = meshes.settle(mesh, self.body_of(variables))
    program = self.features_program(mesh)
    rows = rows_in_order(len(labels), self.batch_size)
    parts = [program(rest, batch) for batch, _ in in_rows(images, labels, rows, mesh)]
    found = np.concatenate([np.asarray(part) for part in parts])[: len(labels)]
    return jax.device_put(found) if mesh is None else meshes.replicate(mesh, found)

  def body_of(self, variables: Mapping[str, Any]) -> dict[str, Any]:
    """All variables of the base model but its head."""
    return _head_and_rest(self, variables)[1]

  def features_program(self, mesh: jax.sharding.Mesh | None = None) -> Any:  # a compiled function
    """The compiled `(body_of(variables), images) -> features` of a batch."""
    return jax.jit(
      self.halves(self.batch_size).body,
      out_shardings=None if mesh is None else meshes.replicated(mesh),
      compiler_options=meshes.options_of_one_pass(),
    )


def _apply(model: Any, rest: Any, inputs: Any, options: Mapping[str, Any], params: Any) -> Any:
  return model.apply({**rest, 'params': params}, inputs, **options)


def _head_and_rest(adapted: Adapted, variables: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
  """The head's parameters, and all variables of the base model but these."""
  trainable, frozen = Adapted.split(adapted, variables, supports=False)
  rest = {name: value for name, value in frozen.items() if name != COLLECTION}
  return trainable['params'], rest


def warm_head(
  adapted: Adapted,
  variables: Mapping[str, Any],
  images: jax.Array | np.ndarray | ImageStream,
  labels: jax.Array | np.ndarray,
  recipe: Recipe,
  key: jax.Array,
  *,
  preprocess: Preprocess | None = None,
  mesh: jax.sharding.Mesh | None = None,
  progress: bool = True,
  **apply_kwargs: Any,
) -> dict[str, Any]:
  """Trains the head alone, as `allocate` wants it: a linear probe for a few epochs.

  The frozen body runs once over the images; every epoch is of the head on what that gave. The head
  is that of training the model with nothing else trained, up to rounding. A model whose head reads
  more than one array with a row for each image is trained as a whole, epoch by epoch.

  Args:
    adapted: the adapted model.
    variables: its variables; supports in them do not matter.
    images: the whole training set on the device, [n, ...], or a stream of it; see `fit`.
    labels: int [n].
    recipe: how to train; few epochs and about twice the rate of what follows do.
    key: random key of the order of the images.
    preprocess: `(images, None) -> inputs` of the model, without augmentation; None for images that
      are inputs already.
    mesh: devices; see `fit`.
    progress: whether to show a bar.
    **apply_kwargs: further arguments of the model; not those that make it random.

  Returns:
    The variables with the trained head.

  Raises:
    ValueError: `adapted` is no adapted model or has no head, the variables are those of another,
      `preprocess` is no function, or as `fit` does.
    NonFiniteLossError: as `fit` does.

  Example:
    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> import glora_jax
    >>> class Mlp(nn.Module):
    ...   @nn.compact
    ...   def __call__(self, x):
    ...     return nn.Dense(2, name='head')(nn.relu(nn.Dense(8, name='hidden')(x)))
    >>> x = jax.random.normal(jax.random.key(0), (64, 4))
    >>> labels = (x[:, 0] > 0).astype(int)
    >>> adapted = glora_jax.adapt(Mlp(), x)
    >>> variables = adapted.init(jax.random.key(1), Mlp().init(jax.random.key(2), x)['params'])
    >>> warm = glora_jax.warm_head(
    ...   adapted,
    ...   variables,
    ...   x,
    ...   labels,
    ...   glora_jax.Recipe(epochs=20, batch_size=16, learning_rate=0.1, warmup_epochs=1),
    ...   jax.random.key(3),
    ...   progress=False,
    ... )
    >>> logits = Mlp().apply({'params': warm['params']}, x)
    >>> bool((logits.argmax(-1) == labels).mean() > 0.9)
    True
  """
  images, labels = _checked(adapted, variables, images, labels, recipe)
  if mesh is None and not isinstance(images, ImageStream):
    images, labels = meshes.hold(None, (images, labels))  # or every batch would bring all of them
  preprocess = unchanged if preprocess is None else preprocess
  check_callable(preprocess, 'preprocess')
  if mesh is not None:
    meshes.require_mesh(mesh)
    meshes.require_divisible(mesh, recipe.batch_size // recipe.accumulate)
  per_epoch = recipe.steps_per_epoch(len(labels))
  shape = step_shape(images, recipe)
  head = HeadAlone.find(adapted, variables, preprocess, shape, **apply_kwargs)
  if head is None:
    learner = adapted.fix(smallest_genome(adapted.spec))
    loss = make_loss(learner, lambda images, key: preprocess(images, None), **apply_kwargs)
  else:
    learner, loss = head, head.loss()
    images = head.features(variables, images, labels, mesh)
  trainable, frozen = learner.split(variables)
  state = fit(
    loss,
    trainable,
    frozen,
    images,
    labels,
    recipe,
    key,
    steps_per_dispatch=per_epoch,
    title='head',
    progress=progress,
    mesh=mesh,
  )
  return {**variables, 'params': learner.join(state.trainable, frozen)['params']}


def _checked(
  adapted: Adapted, variables: Any, images: Any, labels: Any, recipe: Recipe
) -> tuple[Any, Any]:
  """The images and labels as arrays, a stream as it is; ValueError where one cannot be."""
  check_type(adapted, Adapted, 'adapted')
  check_type(recipe, Recipe, 'recipe')
  if not adapted.head_paths:
    raise ValueError(
      'The adapted model has no head (heads=None), so there is nothing to train alone; give '
      '`adapt` the heads, by their names for instance.'
    )
  check_collections(variables, ('params',))
  adapted.check_params(variables['params'])
  check_only_arrays('variables', variables)
  labels = as_numbers('labels', labels)
  if not isinstance(images, ImageStream):
    images = as_numbers('images', images)
    check_labelled(images, labels)
  return images, labels


def step_shape(
  images: jax.Array | np.ndarray | ImageStream, recipe: Recipe
) -> jax.ShapeDtypeStruct:
  """Shape of the images of a step, or of its parts, one after the other."""
  if isinstance(images, ImageStream):
    images, _ = next(given(images, np.zeros((1, 1), np.int32)))
  size = recipe.batch_size // recipe.accumulate
  return jax.ShapeDtypeStruct((size, *images.shape[1:]), images.dtype)
