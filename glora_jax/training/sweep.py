"""Which learning rate? The same training at several rates, and the best by validation loss."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax import checks
from glora_jax.checks import shown
from glora_jax.files import Path
from glora_jax.method.adapted import Adapted
from glora_jax.method.forward import Loss
from glora_jax.method.sample import check_key
from glora_jax.method.validation import as_data, size_of
from glora_jax.training.fit import Sample, fit
from glora_jax.training.looks import Callback, Measure, measure_of
from glora_jax.training.loop import NonFiniteLossError, TrainState
from glora_jax.training.recipe import Recipe

log = logging.getLogger(__name__)


class Sweep(NamedTuple):
  """The validation losses of several learning rates; printed, it is a table of them.

  Attributes:
    rates: the learning rates, float [n], ascending.
    losses: the validation loss of each, float [n]; infinite if it was not finite, or if the
      training diverged.
    recipe: the recipe with the best rate, to train again with.
    variables: the model's variables, trained with it.

  Example:
    >>> recipe = Recipe(learning_rate=0.01)
    >>> Sweep(np.array([0.01, 0.1, 1]), np.array([0.5, 0.75, np.inf]), recipe, variables={})
    learning rate  validation loss
             0.01              0.5  best
              0.1             0.75
                1         diverged
  """

  rates: np.ndarray
  losses: np.ndarray
  recipe: Recipe
  variables: Any

  def __repr__(self) -> str:
    lines = ['learning rate  validation loss']
    for rate, loss in zip(self.rates, self.losses, strict=True):
      text = f'{loss:.5g}' if math.isfinite(loss) else 'diverged'
      mark = '  best' if rate == self.recipe.learning_rate else ''
      lines.append(f'{rate:13.3g}  {text:>15}{mark}')
    return '\n'.join(lines)


def sweep(
  adapted: Adapted,
  variables: Any,
  loss: Loss,
  batches: Any,
  recipe: Recipe,
  *,
  rates: Any,
  validate: Any,
  key: jax.Array,
  side_by_side: bool = False,
  sample: Sample | None = None,
  every: int | Literal['epoch'] = 'epoch',
  patience: int | None = None,
  callback: Callback | None = None,
  save: Path | None = None,
  on_rate: Callable[[float, float], None] | None = None,
  progress: bool = True,
  mesh: jax.sharding.Mesh | None = None,
) -> Sweep:
  """Trains at several learning rates, and returns the losses and the best variables.

  Each training has the result of `fit` with `recipe.with_rate(rate)`, up to rounding, from the same
  start and with the same key. All of them are compiled once. A training that diverges counts as the
  worst. If the best rate is the lowest or the highest, a warning names rates to try next.

  Args:
    adapted: the adapted model.
    variables: its variables, from `Adapted.init`.
    loss: see `fit`.
    batches: see `fit`; if `side_by_side`, a data set of arrays. They are iterated anew for each
      rate.
    recipe: epochs, batch size and optimizer; the ends of its schedule change with the rate.
    rates: learning rates, [n], ascending; `np.geomspace(1e-4, 1e-2, 5)` for instance.
    validate: held-out examples, or a function of the variables, see `fit`; the lowest loss is the
      best. It is measured at the end of each training, and at each look if `patience`, `callback`
      or `save` is given. If the structure is free, it is a function, which chooses the genomes.
    key: random key of every training.
    side_by_side: whether to train all rates in one program (`vmap`). On an accelerator several
      small trainings cost little more than one, but each needs its memory. Otherwise they are
      trained one after the other, and only the best variables are kept.
    sample: see `fit`.
    every: see `fit`.
    patience: see `fit`; it stops each training by itself.
    callback: see `fit`; it is called for the training of every rate.
    save: path of a folder with the states of each rate's training, see `fit`. The same call with it
      continues where it was interrupted, with the same result. None if `side_by_side`.
    on_rate: called with each rate and its validation loss (infinite if it diverged), to print or
      log them.
    progress: whether to show a bar.
    mesh: devices; see `fit`. None if `side_by_side`.

  Returns:
    The losses, the recipe with the best rate, and the variables that it trained.

  Raises:
    TypeError: as in `fit`.
    ValueError: the rates are not ascending numbers above 0, `batches` is an iterator, no validation
      loss is finite, or as in `fit`.
    OSError: `save` cannot be written.

  Example:
    >>> import flax.linen as nn
    >>> import glora_jax
    >>> x = jax.random.normal(jax.random.key(0), (96, 4))
    >>> y = x @ jnp.array([1.0, 2.0, 3.0, 4.0])
    >>> model = nn.Dense(1)
    >>> adapted = glora_jax.adapt(model, x, structure='lora:1')
    >>> variables = adapted.init(jax.random.key(1), model.init(jax.random.key(2), x)['params'])
    >>> def loss(forward, batch, key):
    ...   return jnp.mean((forward(batch['x'])[:, 0] - batch['y']) ** 2)
    >>> found = glora_jax.sweep(
    ...   adapted,
    ...   variables,
    ...   loss,
    ...   {'x': x[:64], 'y': y[:64]},
    ...   glora_jax.Recipe(epochs=10, batch_size=16),
    ...   rates=[0.1, 1.0, 10.0],
    ...   validate={'x': x[64:], 'y': y[64:]},
    ...   key=jax.random.key(3),
    ...   progress=False,
    ... )
    >>> found.recipe.learning_rate
    1.0
  """
  measure = measure_of(validate, adapted, loss, recipe.batch_size, mesh)
  if measure is None:
    raise ValueError('validate=None compares no rates; pass held-out examples.')
  rates = _checked_rates(rates, batches, save, side_by_side)
  check_key(key)
  checks.validate(recipe, Recipe, 'recipe')
  is_looked_at = not (patience is None and callback is None and save is None)

  # A schedule is part of the compiled steps, so other recipes would be compiled anew. One recipe's
  # steps with the rate as an argument are compiled once, see `test_sweep.py`.
  def train(variables: Any, key: jax.Array, rates: Any) -> TrainState:
    name = ' '.join(f'{rate:.3g}' for rate in np.atleast_1d(rates))
    return fit(
      adapted,
      variables,
      loss,
      batches,
      recipe,
      key=key,
      sample=sample,
      scale_updates=np.divide(rates, recipe.learning_rate),
      validate=measure if is_looked_at else None,
      every=every,
      patience=patience,
      callback=callback,
      save=None if save is None else os.path.join(save, f'rate {float(rates):.6g}'),
      title=f'rate {name}',
      progress=progress,
      mesh=mesh,
    )

  def in_turn() -> Iterator[Any]:
    for rate in rates:
      try:
        yield train(variables, key, rate).variables
      except NonFiniteLossError:
        yield None

  def at_once() -> Iterator[Any]:
    state = train([variables] * len(rates), jnp.stack([key] * len(rates)), rates)
    num_steps = recipe.num_steps(recipe.steps_per_epoch(size_of(as_data(batches))))
    for step, trained in zip(state.step, state.variables, strict=True):
      yield trained if step == num_steps else None

  losses, best = _losses_and_best(at_once() if side_by_side else in_turn(), measure, rates, on_rate)
  if best is None:
    raise ValueError(
      f'No validation loss is finite at rates={shown(rates)}; lower the rates, or check the '
      'examples and the pretrained weights.'
    )
  chosen = losses.index(min(losses))
  _warn_of_end(rates, chosen)
  return Sweep(np.array(rates), np.array(losses), recipe.with_rate(rates[chosen]), best)


def _checked_rates(rates: Any, batches: Any, save: Path | None, side_by_side: bool) -> list[float]:
  """The rates as a list; for the errors see `sweep`."""
  rates = checks.validate(rates, list[float], 'rates', above=0)
  if not rates or rates != sorted(set(rates)):
    raise ValueError(f'rates={shown(rates)} must be one or more numbers in ascending order.')
  if side_by_side and save is not None:
    raise ValueError(
      'Rates side by side end together, so there is nothing to save; leave save out.'
    )
  if isinstance(batches, Iterator):
    raise ValueError(
      'batches is an iterator, which is empty after the first rate; pass a list or another '
      'iterable that starts anew for each.'
    )
  return rates


def _losses_and_best(
  runs: Iterator[Any],
  measure: Measure,
  rates: list[float],
  on_rate: Callable[[float, float], None] | None,
) -> tuple[list[float], Any]:
  """The validation loss of each rate's variables, infinite if it diverged, and the best of them.

  Args:
    runs: variables trained with each rate; None if the training diverged.
    measure: gives the validation loss of variables.
    rates: see `sweep`.
    on_rate: see `sweep`.
  """
  losses: list[float] = []
  best = None
  for rate, trained in zip(rates, runs, strict=True):
    loss = math.inf if trained is None else measure(trained)['loss']
    loss = loss if math.isfinite(loss) else math.inf
    if loss < min(losses, default=math.inf):
      best = trained
    losses.append(loss)
    del trained  # its memory is for the next run
    log.info('learning rate %.3g: validation loss %.5g', rate, loss)
    if on_rate is not None:
      on_rate(rate, loss)
  return losses, best


def _warn_of_end(rates: list[float], best: int) -> None:
  """Warns if the best rate is the lowest or the highest, and names rates to try next."""
  if len(rates) > 1 and best in (0, len(rates) - 1):
    rate = rates[best]
    ratio = rate / rates[1 if best == 0 else -2]
    log.warning(
      'The best learning rate, %.3g, is at an end of the list; try %.3g and %.3g next.',
      rate,
      rate * ratio,
      rate * ratio**2,
    )
