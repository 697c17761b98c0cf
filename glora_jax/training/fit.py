"""Training an adapted model on any data, with any loss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from glora_jax.checks import validate
from glora_jax.method.adapted import Adapted
from glora_jax.method.forward import Forward, Loss
from glora_jax.method.genomes import smallest_genome
from glora_jax.training.loop import LossFn, NonFiniteLossError, TrainState, are_several, minimize
from glora_jax.training.recipe import Recipe
from glora_jax.training.sampling import Sampling

Sample = Callable[[jax.Array], Any]


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
  rates: Any = None,
  state: TrainState | None = None,
  stop_epoch: int | None = None,
  steps_per_dispatch: int = 50,
  on_dispatch: Callable[[TrainState, dict[str, Any]], None] | None = None,
  title: str = 'train',
  progress: bool = True,
  mesh: jax.sharding.Mesh | None = None,
) -> TrainState:
  """Trains an adapted model: its adapter and heads, by the recipe.

  A fixed structure computes only the terms that it has. With a free structure every step draws new
  structures: weight-sharing training of a supernet (GLoRA, section 3.3).

  An array of keys [n] trains n runs in one program by `vmap`, with the results of n separate runs:
  seeds, or learning rates to compare. On an accelerator small runs together cost little more than
  one; on CPU nothing is gained.

  Args:
    adapted: the adapted model.
    variables: its variables, from `Adapted.init`; for several keys a list of them, a start for
      each. What is not trained is that of the first.
    loss: `loss(forward, batch, key)` returns the mean over a batch, a scalar, or a pair of it and a
      dictionary of metrics, scalars, too. `forward(*inputs, **kwargs)` runs the adapted model, see
      `method.forward.Forward`. The usual one for (images, labels) is `classification()`.
    batches: what a step trains on. An array, or a tuple or dictionary of arrays [n, ...], is a data
      set: it lies on the device, and is shuffled and cut by the recipe. So is an object with a
      length and `batches(indices)`, which yields the examples of these indices, as trees of NumPy
      arrays. A list or another iterable holds batches, trees of arrays [batch, ...]; it is iterated
      anew in each epoch, so each must have the same batches in the same order if an interrupted
      run is to resume exactly. Batches of another shape are compiled once more; one with fewer
      examples than the first counts for less, each example alike. Every process of several gives
      the same batches, and sends its own rows.
    recipe: epochs, batches and optimizer. If the number of batches is unknown, give its `steps`.
    key: random key. It decides the order of a data set and, folded with the step, goes to the loss.
      For several runs an array of keys [n], as from `jax.random.split`, and a data set of arrays.
    sample: for a free structure, `key -> genome` int [layer, 5], or genomes [path, layer, 5], which
      cut the batch (on each device) into as many equal parts, each through its own structure. None
      draws one uniformly, as `Sampling().draw` does.
    tx: the optimizer, with its schedule; then only epochs, steps, batch size and parts of the
      recipe count. `optax.partition` and `optax.masked` treat arrays differently. None for the
      recipe's.
    rates: for several runs, factors on the optimizer's updates, [n]; with the recipe's optimizer
      they are factors on the learning rate.
    state: state to continue from, of the same structure, optimizer and batch size; it is not
      changed. None starts from `variables`.
    stop_epoch: the epoch of the recipe's schedule to stop after; None goes to its end.
    steps_per_dispatch: most steps per compiled call, after each of which progress is shown and
      `on_dispatch` called.
    on_dispatch: called with the state and the mean metrics since the last call, to save or log
      them. The state's arrays are valid until it returns, as the next steps reuse their memory:
      copy what you keep. For several runs the means are NumPy arrays [n], NaN where one stopped.
    title: text before the progress bar.
    progress: whether to show the bar.
    mesh: devices of all processes that every batch is split over; the trained state is replicated.
      The loss is called on every device, with its examples, the same key (see `mesh.device_key`)
      and the same structures, and losses, metrics and gradients are averaged. Variables that are
      already on the mesh stay there; if some are sharded (`glora_jax.shard`), the loss is called
      once, with the whole batch. The rest is replicated. None for one device, and for several runs.

  Returns:
    The final state; `state.variables` are those of the model. If the loss or gradient of one of
    several runs is not finite, that run stops at its last good state (see its `step`) with a
    warning; the others go on.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is out of range; the arrays of the data have different lengths, or a
      label is not a class; the loss or a metric is not a number; the batch size does not fit the
      data or the mesh; an iterator is to be iterated twice, or goes on at a later step; the number
      of steps is unknown; `state` has other arrays or more steps than this training; or several
      runs lack a start or rate each, or have no arrays, or a mesh.
    NonFiniteLossError: the loss or gradient of a single run became NaN or infinite; its `.state` is
      the last good one.

  Example:
    >>> import flax.linen as nn
    >>> import glora_jax
    >>> x = jax.random.normal(jax.random.key(0), (64, 4))
    >>> y = x @ jnp.array([1.0, 2.0, 3.0, 4.0])
    >>> model = nn.Dense(1)
    >>> params = model.init(jax.random.key(1), x)['params']
    >>> adapted = glora_jax.adapt(model, x, structure='lora:1', heads=None)
    >>> def loss(forward, batch, key):
    ...   return jnp.mean((forward(batch['x'])[:, 0] - batch['y']) ** 2)
    >>> state = glora_jax.fit(
    ...   adapted,
    ...   adapted.init(jax.random.key(2), params),
    ...   loss,
    ...   {'x': x, 'y': y},
    ...   glora_jax.Recipe(epochs=50, batch_size=16, learning_rate=0.1, warmup_epochs=1),
    ...   key=jax.random.key(3),
    ...   progress=False,
    ... )
    >>> params = adapted.fold(state.variables)
    >>> bool(jnp.mean((model.apply({'params': params}, x)[:, 0] - y) ** 2) < 0.1)
    True
  """
  validate(adapted, Adapted, 'adapted')
  loss_fn = step_loss(adapted, loss, sample)
  check = functools.partial(_check_data, loss, batches)
  check()
  trainable, frozen = halves(adapted, variables, are_several(key))
  try:
    state = minimize(
      loss_fn,
      trainable,
      frozen,
      batches,
      recipe,
      key,
      tx=tx,
      rates=rates,
      state=state,
      stop_epoch=stop_epoch,
      steps_per_dispatch=steps_per_dispatch,
      on_dispatch=on_dispatch,
      title=title,
      progress=progress,
      mesh=mesh,
    )
  except NonFiniteLossError:
    check()  # now the loss knows how many classes there are
    raise
  check()
  return state


def _check_data(loss: Loss, batches: Any) -> None:
  """Lets a loss that knows what its data must be, `classification()`, look at a data set."""
  if isinstance(batches, tuple | dict) and hasattr(loss, 'check'):
    loss.check(batches)


def step_loss(adapted: Adapted, loss: Loss, sample: Sample | None = None) -> LossFn:
  """A loss as `minimize` calls it: of the halves of `Adapted.split`, a batch and the step's key.

  Args:
    adapted: the adapted model.
    loss: see `fit`.
    sample: see `fit`.

  Raises:
    TypeError: an argument is no function.
    ValueError: `sample` is given and the structure is fixed.
  """
  validate(loss, Callable, 'loss')
  if adapted.genome is not None and sample is not None:
    raise ValueError(
      'sample draws structures, but this one is fixed; leave sample out, or free the structure '
      'with adapted.fix(None).'
    )
  sample = functools.partial(Sampling().draw, spec=adapted.spec) if sample is None else sample
  validate(sample, Callable, 'sample')

  def loss_fn(trainable, frozen, batch, key):
    genome = None
    if adapted.genome is None:
      genome = sample(jax.random.split(key, 3)[0])
    return loss(Forward(adapted, adapted.join(trainable, frozen), genome), batch, key)

  return loss_fn


def halves(adapted: Adapted, variables: Any, are_several: bool) -> tuple[Any, Any]:
  """(trainable, frozen) of variables; of several starts the former with an axis [n] for them."""
  if not are_several:
    return adapted.split(variables)
  validate(variables, Sequence, 'variables')
  split = [adapted.split(each) for each in variables]
  trainable = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(half for half, _ in split))
  return trainable, split[0][1]


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
  """Trains only the head, as `allocate` needs it, for a few epochs.

  The frozen body runs in every step, and nothing is differentiated but the head.

  Args:
    adapted: the adapted model.
    variables: its variables, whose supports are used only where every structure has some.
    loss: see `fit`; leave out what makes the model random, dropout for instance.
    batches: see `fit`.
    recipe: how to train; a few epochs at about twice the later learning rate are enough.
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
    >>> recipe = glora_jax.Recipe(epochs=20, batch_size=16, learning_rate=0.1, warmup_epochs=1)
    >>> loss, data = glora_jax.classification(), (x, labels)
    >>> probe = glora_jax.linear_probe(
    ...   adapted, variables, loss, data, recipe, key=jax.random.key(3), progress=False
    ... )
    >>> logits = Mlp().apply({'params': probe['params']}, x)
    >>> bool((logits.argmax(-1) == labels).mean() > 0.9)
    True
  """
  validate(adapted, Adapted, 'adapted')
  if not adapted.places.head_paths:
    raise ValueError(
      'The adapted model has no head (heads=None), so there is nothing to train alone; pass '
      'heads= to adapt.'
    )
  probe = adapted.fix(smallest_genome(adapted.spec))
  trainable, frozen = probe.split(variables, adapter=False)
  state = minimize(
    step_loss(probe, loss),
    trainable,
    frozen,
    batches,
    recipe,
    key,
    title='head',
    progress=progress,
    mesh=mesh,
  )
  return {**variables, 'params': state.variables['params']}
