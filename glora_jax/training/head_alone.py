"""Trains only the head, on features that the frozen body computes once for every image.

The model is cut by its traced function (its jaxpr): that works for any model, and whatever follows
the head belongs to the second half.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

from glora_jax import mesh as meshes
from glora_jax.compiling import reported
from glora_jax.limits import check_callable, check_type
from glora_jax.method.adapted import Adapted
from glora_jax.method.genomes import smallest_genome
from glora_jax.method.program import CALLS, gathering, result_of
from glora_jax.method.sample import Preprocess, unchanged
from glora_jax.method.supports import COLLECTION
from glora_jax.method.validation import (
  as_numbers,
  check_collections,
  check_labelled,
  check_only_arrays,
)
from glora_jax.training.batches import ImageStream, given, in_rows, rows_in_order
from glora_jax.training.loop import LossFn, fit
from glora_jax.training.losses import make_loss
from glora_jax.training.recipe import Recipe


@dataclasses.dataclass(frozen=True, eq=False)
class Halves:
  """A function of trained arrays, frozen arrays and a batch, in two halves; see `halve`.

  Attributes:
    first: jaxpr of the first half, of frozen arrays and a batch.
    second: jaxpr of the second half, of trained arrays, frozen arrays and features.
    consts: what both jaxprs hold besides.
    outputs: structure of what the function returns.
  """

  first: Jaxpr
  second: Jaxpr
  consts: Sequence[Any]
  outputs: Any

  def body(self, frozen: Any, batch: Any) -> jax.Array:
    """The features of a batch, [batch, ...]: what the second half reads of the first."""
    leaves = jax.tree.leaves((frozen, batch))
    (features,) = jax.core.eval_jaxpr(self.first, self.consts, *leaves)
    return features

  def head(self, trained: Any, frozen: Any, features: jax.Array) -> Any:
    """What the function returns, by the features of its batch."""
    leaves = jax.tree.leaves((trained, frozen, features))
    return jax.tree.unflatten(self.outputs, jax.core.eval_jaxpr(self.second, self.consts, *leaves))


def halve(
  function: Callable[[Any, Any, Any], Any], trained: Any, frozen: Any, batch: Any
) -> Halves | None:
  """Cuts a function in two where what is trained comes in.

  Args:
    function: `(trained, frozen, batch) -> outputs`, trees of arrays.
    trained: tree of arrays or shapes.
    frozen: likewise.
    batch: likewise; the arrays' first axis is that of the examples.

  Returns:
    The halves, for batches of this very size: `function(trained, frozen, batch)` is
    `head(trained, frozen, body(frozen, batch))`. None where the second half reads anything of the
    batch but one array with a row for every example.

  Example:
    >>> import jax.numpy as jnp
    >>> def model(head, body, images):
    ...   return jnp.tanh(images @ body) @ head
    >>> head, body, images = jnp.ones((3, 2)), jnp.ones((8, 3)), jnp.ones((4, 8))
    >>> halves = halve(model, head, body, images)
    >>> features = halves.body(body, images)
    >>> features.shape, halves.head(head, body, features).shape
    ((4, 3), (4, 2))
  """

  def twice_as_long(leaf: Any) -> jax.ShapeDtypeStruct:
    number, *rest = np.shape(leaf)
    return jax.ShapeDtypeStruct((2 * number, *rest), leaf.dtype)

  number = np.shape(jax.tree.leaves(batch)[0])[0]
  halves, shapes = _cut(function, trained, frozen, batch)
  if [shape[:1] for shape in shapes] != [(number,)]:
    return None
  # The first axis may be another that is as long as the batch, that of a sequence for instance.
  try:
    _, shapes_of_twice = _cut(function, trained, frozen, jax.tree.map(twice_as_long, batch))
  except Exception:  # whatever a model says to a batch that it was not made for
    return None
  return halves if shapes_of_twice == [(2 * number, *shapes[0][1:])] else None


def _cut(
  function: Callable[[Any, Any, Any], Any], trained: Any, frozen: Any, batch: Any
) -> tuple[Halves, list[tuple[int, ...]]]:
  """The halves, and the shapes of what the second reads of the first but for frozen arrays."""
  arguments = trained, frozen, batch
  closed, outputs = jax.make_jaxpr(function, return_shape=True)(*arguments)
  closed = jax.make_jaxpr(functools.partial(_flat, closed))(*jax.tree.leaves(arguments))
  jaxpr = closed.jaxpr
  num_trained, num_frozen = (len(jax.tree.leaves(tree)) for tree in (trained, frozen))
  of_trained, rest = jaxpr.invars[:num_trained], jaxpr.invars[num_trained:]
  after = _dependents(jaxpr, of_trained)
  of_batch = _dependents(jaxpr, rest[num_frozen:]) - after
  # What depends on frozen arrays alone stands in both; a compiler drops what is not read.
  early = [equation for equation in jaxpr.eqns if after.isdisjoint(equation.outvars)]
  late = [equation for equation in jaxpr.eqns if of_batch.isdisjoint(equation.outvars)]
  read = [variable for equation in late for variable in _variables(equation.invars)]
  across = list(of_batch.intersection([*read, *_variables(jaxpr.outvars)]))
  halves = Halves(
    jaxpr.replace(invars=rest, outvars=across, eqns=early),
    jaxpr.replace(invars=[*of_trained, *rest[:num_frozen], *across], eqns=late),
    closed.consts,
    jax.tree.structure(outputs),
  )
  return halves, [getattr(variable.aval, 'shape', ()) for variable in across]


def _flat(program: ClosedJaxpr, *arguments: Any) -> list[Any]:
  """What a program gives, without a call of another, so that these can be cut as well."""
  jaxpr = program.jaxpr
  values: dict[Any, Any] = dict(zip(jaxpr.constvars, program.consts, strict=True))
  values |= zip(jaxpr.invars, arguments, strict=True)

  def read(atoms: Iterable[Any]) -> list[Any]:
    return [atom.val if isinstance(atom, Literal) else values[atom] for atom in atoms]

  for equation in jaxpr.eqns:
    inputs = read(equation.invars)
    is_call = equation.primitive.name in CALLS
    results = _flat(equation.params['jaxpr'], *inputs) if is_call else result_of(equation, inputs)
    values |= zip(equation.outvars, results, strict=True)
  return read(jaxpr.outvars)


def _variables(atoms: Iterable[Any]) -> Iterator[Var]:
  return (atom for atom in atoms if not isinstance(atom, Literal))


def _dependents(jaxpr: Jaxpr, sources: Iterable[Var]) -> set[Var]:
  """All variables that depend on some."""
  found = set(sources)
  for equation in jaxpr.eqns:
    if not found.isdisjoint(_variables(equation.invars)):
      found.update(equation.outvars)
  return found


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
      mesh: devices that the batches are split over.

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
    program = jax.jit(
      self.halves(self.batch_size).body,
      out_shardings=None if mesh is None else meshes.replicated(mesh),
      compiler_options=meshes.options_of_one_pass(),
    )
    return reported('features', program)


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
  """Trains only the head, as `allocate` needs it: a linear probe for a few epochs.

  The frozen body runs once over the images; every epoch then trains the head on these features. Up
  to rounding the result is that of training only the head in the whole model. A model whose head
  reads more than one array with a row for each image runs whole in every epoch.

  Args:
    adapted: the adapted model.
    variables: its variables; supports in them do not matter.
    images: the whole training set on the device, [n, ...], or a stream of it; see `fit`.
    labels: int [n].
    recipe: how to train; a few epochs at about twice the later learning rate are enough.
    key: random key of the order of the images.
    preprocess: `(images, None) -> inputs` of the model, without augmentation; None for images that
      are inputs already.
    mesh: devices; see `fit`.
    progress: whether to show a bar.
    **apply_kwargs: further arguments of the model, except those that make it random.

  Returns:
    The variables with the trained head.

  Raises:
    ValueError: `adapted` is not an adapted model or has no head, the variables are those of
      another, `preprocess` is not a function, or as in `fit`.
    NonFiniteLossError: as in `fit`.

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
      'The adapted model has no head (heads=None), so there is nothing to train alone; pass '
      'heads= to adapt.'
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
