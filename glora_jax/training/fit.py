"""Training an adapted model on any data, with any loss."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from glora_jax import checks
from glora_jax import mesh as meshes
from glora_jax.compiling import keep_last
from glora_jax.files import Path
from glora_jax.mesh import device_key
from glora_jax.method.adapted import Adapted
from glora_jax.method.forward import Forward, Loss, check_data
from glora_jax.method.genomes import smallest_genome
from glora_jax.training.checkpoints import TrainingCheckpoints
from glora_jax.training.looks import Callback, Looks, Measure, measure_of
from glora_jax.training.loop import (
  LossFn,
  NonFiniteLossError,
  TrainState,
  are_several,
  minimize,
)
from glora_jax.training.recipe import Recipe
from glora_jax.training.sampling import Sampling

Sample = Callable[[jax.Array], Any]  # key -> genome, or genomes

# Folded into a step's key for `lora_dropout`. It is not small: key n of a split is fold_in(key, n).
LORA_STREAM = 2**32 - 1


def fit(
  adapted: Adapted,
  variables: Any,
  loss: Loss,
  batches: Any,
  recipe: Recipe,
  *,
  key: jax.Array,
  sample: Sample | None = None,
  tx: optax.GradientTransformation | None = None,
  scale_updates: Any = None,
  validate: Any = None,
  every: int | Literal['epoch'] = 'epoch',
  patience: int | None = None,
  callback: Callback | None = None,
  save: Path | None = None,
  state: TrainState | None = None,
  title: str = 'train',
  progress: bool = True,
  mesh: jax.sharding.Mesh | None = None,
) -> TrainState:
  """Trains the adapter and the heads of an adapted model, and returns the final state.

  A fixed structure computes only the terms that it has. With a free structure every step draws new
  structures: weight-sharing training of a supernet (GLoRA, section 3.3).

  An array of keys [n] trains n runs in one program (`vmap`), with the results of n separate runs:
  seeds, or learning rates to compare. On an accelerator several small runs cost little more than
  one; on a CPU nothing is gained.

  Args:
    adapted: the adapted model.
    variables: its variables, from `Adapted.init`. For several keys a list, a start for each; frozen
      arrays are those of the first.
    loss: `loss(forward, batch, key)` returns the mean over a batch, a scalar, or the pair of it and
      a dictionary of metrics, which are scalars too. `forward(*inputs, **kwargs)` runs the adapted
      model, see `method.forward.Forward`. For pairs (images, labels) use `classification()`.
      Like a jitted function it must be pure: if the next call has the same adapted model, loss and
      recipe, and data of the same shapes, nothing is traced or compiled again.
    batches: a data set or batches, in one of three kinds.

      - An array, or a tuple or dictionary of arrays [n, ...], is a data set. It lies on the device,
        and is shuffled and cut into batches by the recipe.
      - An object with a length and `batches(indices)` is a data set that is read during training:
        for indices int [steps, batch] it yields a tree of NumPy arrays [batch, ...] for each step.
      - A list or another iterable holds batches, trees of arrays [batch, ...]; a list of numbers in
        a tree counts as an array. It is iterated anew in each epoch. An interrupted run resumes
        exactly if every epoch has the same batches in the same order. A new shape is compiled anew.
        If a batch has fewer examples than the first of its epoch, its gradient is scaled down, so
        that every example has the same weight. Several processes must iterate the same batches;
        each sends the examples of its own devices.
    recipe: epochs, batch size and optimizer. If the number of batches is unknown, it needs `steps`.
    key: random key. It decides the order of a data set and, folded with the step, is the loss's
      key. For several runs an array of keys [n], as from `jax.random.split`; the data must then be
      a data set of arrays.
    sample: for a free structure, `key -> genome` int [layer, 5], or genomes [path, layer, 5], which
      cut the batch (on each device) into equal parts, one for each structure. None draws one genome
      uniformly, as `Sampling().draw` does.
    tx: an optimizer with its schedule, in place of the recipe's; the recipe then gives only
      `epochs`, `steps`, `batch_size`, `accumulate` and `lora_dropout`. With `optax.partition`
      or `optax.masked` arrays can have different optimizers.
    scale_updates: a factor on the optimizer's updates, for several runs factors [n]; with the
      recipe's optimizer they are factors on the learning rate. `sweep` compares learning rates.
    validate: what to measure every so many steps: a data set or a list of batches, whose mean loss
      and metrics `evaluate` gives, with this loss and the recipe's batch size; or a function
      `variables -> loss`, or `-> {'loss': ..., ...}`. The bar shows them as 'val_loss' and so on.
      For a loss that drops or augments, pass a function that evaluates without.
    every: number of steps between two looks, at which the training is measured, `callback` is
      called and the state is saved; 'epoch' is that of an epoch. The last step is a look, too.
    patience: number of looks without a lower validation loss after which the training stops. The
      result is then the state with the lowest. None trains to the end, and returns the last state.
    callback: `callback(step, metrics)`, to log: at each look, with the mean loss and metrics since
      the one before and what was measured, floats. True stops the training. For several runs they
      are NumPy arrays [n], NaN for a run that stopped.
    save: path of a folder that keeps the newest states. The same call with the same folder
      continues where it was interrupted, and ends with the same bytes; once it has ended, the call
      returns its result.
    state: state to continue from, of the same structure, optimizer and batch size; it is not
      changed. None starts from `variables`. A state in `save` comes first.
    title: text before the progress bar.
    progress: whether to show the bar.
    mesh: devices of all processes that every batch is split over; the trained state is replicated.
      Each device calls the loss with its own examples, the same key (see `mesh.device_key`) and the
      same structures; losses, metrics and gradients are averaged. Variables that are already on the
      mesh stay there, others are replicated. If some are sharded (`glora_jax.shard`), the loss is
      called once, with all examples. None for one device, and for several runs.

  Returns:
    The final state; `state.variables` are those of the model. If the loss or gradient of one of
    several runs is not finite, that run stops at its last good state (see its `step`) with a
    warning; the others go on.

  Raises:
    TypeError: an argument has the wrong type, the data are not all numbers, or the metrics are not
      a dictionary.
    ValueError: an argument is out of range, or the loss or a metric is not one number. `save` has
      another training, or all its states are damaged. `patience` has nothing to compare. The data
      have no examples, arrays of different lengths or, for `classification()`, a label that is not
      a class. The batch size does not fit the data or the mesh, or a batch or its paths do not
      divide into equal parts. An iterator would have to start again, the number of steps is
      unknown, or the length of the batches is wrong. `state` has other arrays or more steps than
      this training. Several runs lack a start or a factor each, have no arrays, or have a mesh,
      `patience` or `save`.
    OSError: `save` cannot be written.
    NonFiniteLossError: the loss or gradient of a single run became NaN or infinite; its `.state` is
      the last good one.

  Example:
    >>> import flax.linen as nn
    >>> import glora_jax
    >>> x = jax.random.normal(jax.random.key(0), (64, 4))
    >>> y = x @ jnp.array([1.0, 2.0, 3.0, 4.0])
    >>> model = nn.Dense(1)
    >>> params = model.init(jax.random.key(1), x)['params']
    >>> adapted = glora_jax.adapt(model, x, structure='lora:1')
    >>> def loss(forward, batch, key):
    ...   return jnp.mean((forward(batch['x'])[:, 0] - batch['y']) ** 2)
    >>> state = glora_jax.fit(
    ...   adapted,
    ...   adapted.init(jax.random.key(2), params),
    ...   loss,
    ...   {'x': x, 'y': y},
    ...   glora_jax.Recipe(epochs=50, batch_size=16, learning_rate=0.1),
    ...   key=jax.random.key(3),
    ...   progress=False,
    ... )
    >>> params = adapted.fold(state.variables)
    >>> bool(jnp.mean((model.apply({'params': params}, x)[:, 0] - y) ** 2) < 0.1)
    True
  """
  checks.validate(adapted, Adapted, 'adapted')
  loss_fn = step_loss(adapted, loss, sample, checks.validate(recipe, Recipe, 'recipe').lora_dropout)
  measure = measure_of(validate, adapted, loss, recipe.batch_size, mesh)
  _check_looks(measure, patience, callback, save, are_several(key))
  if are_several(key):
    trainable, frozen = split_starts(adapted, checks.validate(variables, Sequence, 'variables'))
  else:
    trainable, frozen = adapted.split(variables)
  with (
    _checked_data(loss, batches, adapted),
    _saved(save, recipe, key, scale_updates) as checkpoints,
  ):
    looks = Looks(measure, patience, callback, checkpoints)
    saved = None
    if checkpoints is not None:
      saved = looks.restore(_first_state(trainable, frozen, recipe, tx, mesh))
    if saved is not None and looks.is_done:
      return looks.chosen(saved)
    return looks.chosen(
      minimize(
        loss_fn,
        trainable,
        frozen,
        batches,
        recipe,
        key,
        tx=tx,
        scale_updates=scale_updates,
        state=saved or state,
        every=every,
        look=looks if looks.has_work() else None,
        title=title,
        progress=progress,
        mesh=mesh,
      )
    )


def _check_looks(
  measure: Measure | None,
  patience: int | None,
  callback: Callback | None,
  save: Path | None,
  are_several: bool,
) -> None:
  """Raises an error if the arguments of a training's looks do not fit together; see `fit`."""
  checks.validate(callback, Callable | None, 'callback')
  checks.validate(patience, int | None, 'patience', least=1)
  if patience is not None and measure is None:
    raise ValueError(f'patience={patience} compares validation losses; pass validate=, too.')
  if are_several and (patience is not None or save is not None):
    raise ValueError(
      'Runs side by side end together, and their states are not saved; leave patience and save '
      'out, or train one run after the other.'
    )


def _saved(
  folder: Path | None, recipe: Recipe, key: jax.Array, scale_updates: Any
) -> contextlib.AbstractContextManager[TrainingCheckpoints | None]:
  """The checkpoints of a training in a folder; None without one."""
  if folder is None:
    return contextlib.nullcontext()
  about = {
    **dataclasses.asdict(recipe),
    'key': np.asarray(jax.random.key_data(key)).tolist(),
    'scale_updates': scale_updates and float(scale_updates),
  }
  return TrainingCheckpoints(folder, about)


def _first_state(
  trainable: Any,
  frozen: Any,
  recipe: Recipe,
  tx: optax.GradientTransformation | None,
  mesh: jax.sharding.Mesh | None,
) -> TrainState:
  """A state with the arrays of a training, for reading a saved one."""
  # The number of steps changes no array of the optimizer's state.
  optimizer = recipe.optimizer(per_epoch=1) if tx is None else tx
  first, opt_state = meshes.replicate(mesh, (trainable, optimizer.init(trainable)))
  return TrainState(first, opt_state, 0, frozen)


@contextlib.contextmanager
def _checked_data(loss: Loss, data: Any, adapted: Adapted) -> Generator[None]:
  """Checks data before a training, and after it, when the loss knows the number of classes."""
  check_data(loss, data, adapted)
  try:
    yield
  except NonFiniteLossError:
    check_data(loss, data, adapted)
    raise
  check_data(loss, data, adapted)


@keep_last
def step_loss(
  adapted: Adapted, loss: Loss, sample: Sample | None = None, lora_dropout: float = 0.0
) -> LossFn:
  """A loss for `minimize`, of the trainable and frozen parts of `Adapted.split`.

  Args:
    adapted: the adapted model.
    loss: see `fit`.
    sample: see `fit`.
    lora_dropout: see `Recipe`.

  Raises:
    TypeError: `loss` or `sample` is not a function.
    ValueError: there is a `sample`, but the structure is fixed.
  """
  checks.validate(loss, Callable, 'loss')
  if adapted.genome is not None and sample is not None:
    raise ValueError(
      'sample draws structures, but this one is fixed; leave sample out, or free the structure '
      'with adapted.fix(None).'
    )
  sample = functools.partial(Sampling().draw, spec=adapted.spec) if sample is None else sample
  checks.validate(sample, Callable, 'sample')

  def loss_fn(trainable, frozen, batch, key):
    genome = None
    if adapted.genome is None:
      # The loss gets the same key; `classification` uses the other two of these splits.
      genome = sample(jax.random.split(key, 3)[0])
    forward = Forward(adapted, adapted.join(trainable, frozen), genome)
    if lora_dropout:
      drop_key = device_key(jax.random.fold_in(key, LORA_STREAM))
      forward = forward.dropping_inputs(drop_key, lora_dropout)
    return loss(forward, batch, key)

  return loss_fn


def split_starts(adapted: Adapted, starts: Sequence[Any]) -> tuple[Any, Any]:
  """(trainable, frozen) of several runs: a start's trainable arrays each, the first one's frozen.

  Args:
    adapted: the adapted model.
    starts: variables of each run.

  Returns:
    The trainable arrays, stacked along a new first axis [run], and the frozen ones.
  """
  trainable, frozen = zip(*map(adapted.split, starts), strict=True)
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trainable), frozen[0]


@keep_last
def _without_choices(adapted: Adapted) -> Adapted:
  """The adapted model with its smallest structure."""
  return adapted.fix(smallest_genome(adapted.spec))


def linear_probe(
  adapted: Adapted,
  variables: Any,
  loss: Loss,
  batches: Any,
  recipe: Recipe,
  *,
  key: jax.Array,
  mesh: jax.sharding.Mesh | None = None,
  progress: bool = True,
) -> dict[str, Any]:
  """Trains only the head for a few epochs, and returns the variables: the start for `allocate`.

  Every step runs the frozen body, and differentiates only the head.

  Args:
    adapted: the adapted model.
    variables: its variables; the adapter matters only if the search space requires some form.
    loss: see `fit`; it should run the model without dropout.
    batches: see `fit`.
    recipe: how to train; a few epochs, at about twice the learning rate of the training that
      follows, are enough.
    key: random key.
    mesh: devices; see `fit`.
    progress: whether to show a bar.

  Returns:
    The variables with the trained head.

  Raises:
    TypeError: as in `fit`.
    ValueError: the adapted model has no head, or as in `fit`.
    NonFiniteLossError: as in `fit`.

  Example:
    >>> import flax.linen as nn
    >>> import glora_jax
    >>> class Mlp(nn.Module):
    ...   @nn.compact
    ...   def __call__(self, x):
    ...     return nn.Dense(2, name='head')(nn.relu(nn.Dense(8, name='hidden')(x)))
    >>> x = jax.random.normal(jax.random.key(0), (64, 4))
    >>> labels = (x[:, 0] > 0).astype(int)
    >>> adapted = glora_jax.adapt(Mlp(), x)
    >>> variables = adapted.init(jax.random.key(1), Mlp().init(jax.random.key(2), x)['params'])
    >>> recipe = glora_jax.Recipe(epochs=20, batch_size=16, learning_rate=0.1)
    >>> loss, data = glora_jax.classification(), (x, labels)
    >>> probe = glora_jax.linear_probe(
    ...   adapted, variables, loss, data, recipe, key=jax.random.key(3), progress=False
    ... )
    >>> logits = Mlp().apply({'params': probe['params']}, x)
    >>> bool((logits.argmax(-1) == labels).mean() > 0.9)
    True
  """
  checks.validate(adapted, Adapted, 'adapted')
  if not adapted.places.head_paths:
    raise ValueError(
      'The adapted model has no head (heads=None), so a linear probe has nothing to train; pass '
      'heads= to adapt.'
    )
  probe = _without_choices(adapted)
  trainable, frozen = probe.split(variables, adapter=False)
  with _checked_data(loss, batches, probe):
    state = minimize(
      step_loss(probe, loss),
      trainable,
      frozen,
      batches,
      recipe,
      key,
      title='linear probe',
      progress=progress,
      mesh=mesh,
    )
  return {**variables, 'params': state.variables['params']}
