"""Whether GLoRA does on somebody's model what it should: one call, one table.

A model that nobody here wrote may use its parameters in ways that no test of this package knows.
`check` runs the model itself and measures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.limits import check_type
from glora_jax.method.adapted import Adapted
from glora_jax.method.quantized import has_quantized, requantize
from glora_jax.method.subnet import Call
from glora_jax.method.summary import align
from glora_jax.method.supports import COLLECTION
from glora_jax.method.trace.events import CHOSEN
from glora_jax.method.trial import Trial, close_over_others
from glora_jax.tree import flatten, path_name

_ANY = float('inf')  # tolerance of what is reported and not judged
_MOST_NAMED = 3  # arrays that a row names


@dataclasses.dataclass(frozen=True)
class CheckRow:
  """One thing that must hold.

  Attributes:
    name: the thing.
    measured: how far it is from holding; 0 is exactly.
    tolerance: the largest `measured` with which it holds; infinite where it is only reported.
    note: what was measured, and where it does not hold.
  """

  name: str
  measured: float
  tolerance: float
  note: str

  @property
  def ok(self) -> bool:
    """Whether it holds."""
    return self.measured <= self.tolerance


class _Cells(NamedTuple):
  """A line of the table, as text."""

  check: str
  measured: str
  tolerance: str
  ok: str
  note: str


@dataclasses.dataclass(frozen=True)
class Check:
  """What `check` found; printed, it is a table.

  Attributes:
    rows: the things that must hold.

  Example:
    >>> from glora_jax import Check
    >>> from glora_jax.method.check import CheckRow
    >>> found = Check((CheckRow('identity at start', 2e-3, 1e-5, 'against the base model'),))
    >>> print(found)
    check              measured  tolerance  ok
    identity at start     0.002      1e-05  NO  against the base model
    >>> found.ok
    False
  """

  rows: tuple[CheckRow, ...]

  @property
  def ok(self) -> bool:
    """Whether all of it holds."""
    return all(row.ok for row in self.rows)

  def __str__(self) -> str:
    header = _Cells('check', 'measured', 'tolerance', 'ok', '')
    return '\n'.join(align([header, *map(_cells, self.rows)], ('measured', 'tolerance')))


def _cells(row: CheckRow) -> _Cells:
  verdict = 'yes' if row.ok else 'NO'
  return _Cells(row.name, f'{row.measured:.2g}', f'{row.tolerance:.2g}', verdict, row.note)


def check(adapted: Adapted, variables: Mapping[str, Any], *inputs: Any, **kwargs: Any) -> Check:
  """Measures on the model itself whether GLoRA does there what it should.

  That every subnet of fresh supports is the base model; that folded parameters in the untouched
  model give what `apply` gives, and a fixed subnet too; that every support on offer gets a gradient
  and that a step of an optimizer moves them and the heads and nothing else. Outputs are compared
  relative to the largest of them, at the highest precision of matrix products that the device has.
  The genomes are the largest and as many as it takes for every allele on offer to occur in every
  layer. Supports and heads are those of the variables with noise on them, so that no term is zero.
  Reported, and not judged, are the share of the parameters in matrices that are not adapted and,
  of a quantized base, the error of quantizing the folded parameters again, in weights and in
  outputs.
  About six programs are compiled.

  Args:
    adapted: the adapted model, of `adapt` or any other way; of an attached NNX model what
      `glora_jax.nnx.as_adapted` returns.
    variables: what `adapted.init` returned, with the model's other collections if it has any.
    *inputs: inputs of the model, arrays with values.
    **kwargs: further arguments of its call, `train=False` or `rngs` for instance.

  Returns:
    A table with a row for each of these things.

  Raises:
    ValueError: the model is not adapted, the variables are of another one, variables or inputs are
      only shapes, or the model returns no floating-point array.

  Example:
    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> import glora_jax
    >>> model, x = nn.Dense(3), jnp.ones((2, 4))
    >>> adapted = glora_jax.adapt(model, x)
    >>> variables = adapted.init(jax.random.key(1), model.init(jax.random.key(0), x)['params'])
    >>> found = glora_jax.check(adapted, variables, x)
    >>> [row.name for row in found.rows if not row.ok], found.ok
    ([], True)
  """
  check_type(adapted, Adapted, 'adapted')
  adapted.check_variables(variables)
  _check_values(variables, (inputs, kwargs))
  adapted, variables = close_over_others(adapted, variables)
  trial = Trial(adapted, variables, Call(inputs, kwargs))
  with jax.default_matmul_precision('highest'):
    return Check(
      (
        *_compare_outputs(trial),
        _untouched(trial),
        *_train(trial),
        *_requantize(trial),
        _cover(adapted),
      )
    )


def _check_values(variables: Any, arguments: Any) -> None:
  for owner, tree in {'variables': variables, 'inputs': arguments}.items():
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree)):
      raise ValueError(
        f'check runs the model, and these {owner} are only shapes (jax.ShapeDtypeStruct); pass '
        'arrays.'
      )


def _compare_outputs(trial: Trial) -> Iterator[CheckRow]:
  """Rows about what should be the same outputs."""
  variables, number = trial.variables, f'{len(trial.genomes)} genomes'
  base = trial.base(trial.start)
  identity = [_error(trial.apply(trial.start, genome), base) for genome in trial.genomes]
  folding = []
  for genome in trial.genomes:
    folded = {**variables, 'params': trial.fold(variables, genome)}
    folding.append(_error(trial.base(folded), trial.apply(variables, genome)))
  fixing = [_error(trial.fixed(), trial.apply(variables, trial.thin))]
  for name, errors, note in (
    ('identity at start', identity, f'fresh supports and the base model, {number}'),
    ('fold against apply', folding, f'folded into the untouched model, {number}'),
    ('fix against apply', fixing, 'the subnet with as little of A as there can be'),
  ):
    yield CheckRow(name, float(np.max(errors)), trial.tolerance, f'max|dy| / max|y|: {note}')


def _error(actual: jax.Array, expected: jax.Array) -> float:
  """The largest difference relative to the largest number, which may be zero if nothing differs."""
  reference = np.asarray(expected, np.float64)
  difference = np.abs(np.asarray(actual, np.float64) - reference).max()
  largest = np.abs(reference).max()
  if difference == 0:
    return 0.0
  return float(difference / largest) if largest else float('inf')


def _untouched(trial: Trial) -> CheckRow:
  """Fold changes kernels and biases that rows cover, and nothing else."""
  params = jax.jit(trial.adapted.full_precision)(trial.variables['params'])
  covered = {
    path_name(path)
    for group in trial.adapted.groups
    for site in group.members
    for path in (site.kernel_path, site.bias_path or ())
  }
  changed = _changed(params, trial.fold(trial.variables, trial.genomes[0])) - covered
  return _count('fold leaves the rest', changed, 'parameters without a row that changed')


def _train(trial: Trial) -> Iterator[CheckRow]:
  """Rows about gradients, and about a step of an optimizer."""
  largest, *others = trial.genomes
  gradients, after = trial.step(largest)
  reached = _nonzero(trial.adapted, gradients[COLLECTION])
  for genome in others:
    gradients, _ = trial.step(genome)
    reached |= _nonzero(trial.adapted, gradients[COLLECTION])
  missing = _on_offer(trial.adapted, trial.genomes) - reached
  yield _count('gradients reach supports', missing, 'supports on offer without a gradient')

  changed = _changed(trial.variables, after)
  trainable, _ = trial.adapted.split(trial.variables)
  trained = {path_name(path) for path in flatten(trainable)}
  yield _count('frozen stays frozen', changed - trained, 'frozen arrays that a step changed')
  yield _count('trained moves', trained - changed, 'supports and heads that a step left alone')


def _requantize(trial: Trial) -> Iterator[CheckRow]:
  """Of a quantized base, what is lost where folded parameters are quantized as it was."""
  old = trial.variables['params']
  if not has_quantized(old):
    return
  folded = trial.fold(trial.variables, trial.genomes[0])
  rounded = trial.adapted.full_precision(requantize(folded, old))
  pairs = zip(jax.tree.leaves(rounded), jax.tree.leaves(folded), strict=True)
  weights = max(_error(new, kernel) for new, kernel in pairs)
  before, after = (trial.base({**trial.variables, 'params': p}) for p in (folded, rounded))
  note = 'folded and quantized again as the base is; reported alone'
  yield CheckRow('requantized weights', weights, _ANY, f'max|dw| / max|w|: {note}')
  yield CheckRow('requantized outputs', _error(after, before), _ANY, f'max|dy| / max|y|: {note}')


def _cover(adapted: Adapted) -> CheckRow:
  """What is not adapted, but for what a user left out."""
  coverage = adapted.coverage()
  others = [matrix for matrix in coverage.uncovered if matrix.reason not in CHOSEN]
  share = sum(matrix.share for matrix in others)
  note = f'share of matrices not adapted ({len(others)}: adapted.coverage()); reported alone'
  return CheckRow('not covered', share, _ANY, note)


def _count(name: str, wrong: set[str], note: str) -> CheckRow:
  """A row of which nothing may be wrong, with the names of what is."""
  named = [*sorted(wrong)[:_MOST_NAMED], *['...'] * (len(wrong) > _MOST_NAMED)]
  return CheckRow(name, len(wrong), 0, f'{note}: {", ".join(named)}' if wrong else note)


def _changed(before: Any, after: Any) -> set[str]:
  """Names of the arrays that are not the same in two trees of the same paths."""
  old, new = flatten(before), flatten(after)
  pairs = [(value, new[path]) for path, value in old.items()]
  differs = np.asarray(jax.jit(_differences)(pairs))
  return {path_name(path) for path, changed in zip(old, differs, strict=True) if changed}


def _differences(pairs: Sequence[tuple[Any, Any]]) -> jax.Array:
  """Whether the two differ, for each pair of arrays, in equal boxes if they are in any."""
  return jnp.stack([jnp.any(nn.meta.unbox(old) != nn.meta.unbox(new)) for old, new in pairs])


def _nonzero(adapted: Adapted, gradients: Any) -> set[str]:
  """Names of the supports, layer by layer, whose gradient is finite and not zero."""
  flat = flatten(gradients)
  found = set()
  for group in adapted.groups:
    names = [path[-1] for path in flat if path[:-1] == group.path]
    for name in names:
      array = jax.tree.leaves(flat[*group.path, name])[0]
      numbers = np.asarray(array, np.float64).reshape(len(group.rows), -1)
      reached = (np.isfinite(numbers) & (numbers != 0)).any(axis=1)
      found |= {f'{adapted.spec.layers[row].name} {name}' for row in np.array(group.rows)[reached]}
  return found


def _on_offer(adapted: Adapted, genomes: np.ndarray) -> set[str]:
  """Names of the supports, layer by layer, that some of the genomes read."""
  return {
    f'{adapted.spec.layers[row].name} {name}'
    for group in adapted.groups
    for row in group.rows
    for genome in genomes
    for name in group.used_parts(genome[row].tolist())
  }
