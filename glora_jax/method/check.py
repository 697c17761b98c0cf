"""Whether GLoRA works as it should on a given model: one call, one table.

A model may use its parameters in ways that no test of this package covers. `check` runs the model
itself and measures.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from glora_jax.limits import check_type
from glora_jax.method.adapted import Adapted
from glora_jax.method.coverage import align
from glora_jax.method.genomes import alleles_at, largest_genome
from glora_jax.method.groups import parts_read
from glora_jax.method.quantized import has_quantized, requantize
from glora_jax.method.sample import Sample, is_array
from glora_jax.method.space import TENSORS, Spec
from glora_jax.method.supports import COLLECTION
from glora_jax.method.trace.events import CHOSEN
from glora_jax.tree import flatten, path_name

_NOISE = 0.05  # standard deviation
_RATE = 0.1  # learning rate of the one step; large enough to move a bfloat16
# Largest difference of equal outputs, relative to the largest output; of coarser types four
# roundings.
_TOLERANCES = {'float64': 1e-12, 'float32': 1e-5}
_ROUNDINGS = 4
_ANY = float('inf')  # tolerance of what is reported and not judged
_MOST_NAMED = 3  # arrays that a row names


@dataclasses.dataclass(frozen=True)
class CheckRow:
  """One check.

  Attributes:
    name: what must hold.
    measured: how far it is from holding; 0 is exact.
    tolerance: the largest `measured` that passes; infinite where it is only reported.
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


@dataclasses.dataclass(frozen=True)
class Check:
  """What `check` found; it prints as a table.

  Attributes:
    rows: one for each check.

  Example:
    >>> from glora_jax.method.check import Check
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
    lines = [('check', 'measured', 'tolerance', 'ok', '')]
    for row in self.rows:
      numbers = f'{row.measured:.2g}', f'{row.tolerance:.2g}'
      lines.append((row.name, *numbers, 'yes' if row.ok else 'NO', row.note))
    return '\n'.join(align(lines, right=(1, 2)))


def check(adapted: Adapted, variables: Mapping[str, Any], *inputs: Any, **kwargs: Any) -> Check:
  """Measures on the model itself whether GLoRA works as it should.

  It checks that every structure with fresh supports is the base model; that the untouched model
  with folded parameters, and a fixed structure, return what `apply` returns; that every support on
  offer gets a gradient; and that a step of an optimizer changes only supports and heads. Outputs
  are compared relative to the largest of them, at the device's highest precision of matrix
  products. The genomes are the largest one and as many as it takes for every allele on offer to
  occur in every layer. Supports and heads get noise, so that no term is zero.

  Reported without a verdict: the share of parameters in matrices that are not adapted and, for a
  quantized base, the error of quantizing the folded parameters again, in weights and in outputs.
  About four programs are compiled.

  Args:
    adapted: the adapted model with a free structure; for an attached NNX model, what
      `glora_jax.nnx.as_adapted` returns.
    variables: what `adapted.init` returned, with the model's other collections if it has any.
    *inputs: inputs of the model, arrays with values.
    **kwargs: further arguments of its call, `train=False` or `rngs` for instance.

  Returns:
    A table with a row for each check.

  Raises:
    ValueError: the model is not adapted or its structure is fixed, the variables are of another
      one, variables or inputs are only shapes, or the model returns no floating-point array.

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
  if adapted.genome is not None:
    raise ValueError(
      'check tries every allele on offer, but this structure is fixed; pass adapted.fix(None) and '
      'the variables that its init returns.'
    )
  adapted.check_variables(variables)
  for owner, tree in {'variables': variables, 'inputs': (inputs, kwargs)}.items():
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree)):
      raise ValueError(
        f'check runs the model, but these {owner} are only shapes (jax.ShapeDtypeStruct); pass '
        'arrays.'
      )
  with jax.default_matmul_precision('highest'):
    return Check(tuple(_rows(adapted, variables, (inputs, kwargs))))


def _rows(adapted: Adapted, variables: Mapping[str, Any], call: Any) -> Iterator[CheckRow]:
  """The table of `check`, for the positional and keyword arguments of a call."""
  genomes, number = (found := check_genomes(adapted.spec)), f'{len(found)} genomes'
  start = {**variables, **adapted.init(jax.random.key(0), variables['params'])}
  trainable, frozen = adapted.split(variables)
  frozen['params'] = _with_noise(frozen['params'], where=lambda value: not jnp.any(value))
  variables = adapted.join(_with_noise(trainable), frozen)
  base = _compiled(functools.partial(_base, adapted))
  apply = _compiled(functools.partial(_apply, adapted))
  tolerance = _tolerance(functools.partial(base, variables, call))

  expected = base(start, call)
  identity = [_error(apply(start, call, genome), expected) for genome in genomes]
  folding, folded = [], {}
  for genome in genomes[::-1]:
    folded = {**variables, 'params': adapted.fold(variables, genome)}
    folding.append(_error(base(folded, call), apply(variables, call, genome)))
  least = genomes[0].copy()
  least[:, 0] = adapted.spec.offered_table[:, 0, 0]  # no merged kernel is needed, if none has to be
  fixed = _compiled(functools.partial(_apply, adapted.fix(least)))
  fixing = [_error(fixed(variables, call), apply(variables, call, least))]
  for name, errors, note in (
    ('identity at start', identity, f'fresh supports and the base model, {number}'),
    ('fold against apply', folding, f'folded into the untouched model, {number}'),
    ('fix against apply', fixing, 'the structure with the smallest A'),
  ):
    yield CheckRow(name, float(np.max(errors)), tolerance, f'max|dy| / max|y|: {note}')

  own, largest = variables['params'], folded['params']
  sites = [site for group in adapted.groups for site in group.members]
  covered = {path_name(p) for site in sites for p in (site.kernel_path, site.bias_path or ())}
  changed = _changed(adapted.full_precision(own), largest) - covered
  yield _count('fold leaves the rest', changed, 'other parameters that changed')
  yield from _train(adapted, variables, call, genomes)
  if has_quantized(own):
    rounded = adapted.full_precision(requantize(largest, own))
    weights = max(map(_error, jax.tree.leaves(rounded), jax.tree.leaves(largest)))
    outputs = _error(base({**variables, 'params': rounded}, call), base(folded, call))
    note = 'folded and quantized again like the base; not checked'
    yield CheckRow('requantized weights', weights, _ANY, f'max|dw| / max|w|: {note}')
    yield CheckRow('requantized outputs', outputs, _ANY, f'max|dy| / max|y|: {note}')
  others = [matrix for matrix in adapted.coverage().uncovered if matrix.reason not in CHOSEN]
  note = f'share of matrices not adapted ({len(others)}: adapted.coverage()); not checked'
  yield CheckRow('not covered', sum(matrix.share for matrix in others), _ANY, note)


def _train(
  adapted: Adapted, variables: Mapping[str, Any], call: Any, genomes: np.ndarray
) -> Iterator[CheckRow]:
  """Rows about gradients, and about a step of an optimizer."""
  trainable, frozen = adapted.split(variables)
  step = _compiled(functools.partial(_step, adapted))
  offered, reached, after = set(), set(), {}
  for genome in genomes[::-1]:
    gradients, after = step(trainable, frozen, call, genome)
    supports = jax.tree.map(np.asarray, gradients[COLLECTION])
    for layer, name, array, part in parts_read(adapted.groups, adapted.spec, genome, supports):
      offered.add(f'{layer} {name}')
      if (np.isfinite(array[part]) & (array[part] != 0)).any():
        reached.add(f'{layer} {name}')
  yield _count('gradients reach supports', offered - reached, 'supports without a gradient')
  changed = _changed(variables, adapted.join(after, frozen))  # by a step of the largest
  trained = {path_name(path) for path in flatten(trainable)}
  yield _count('frozen stays frozen', changed - trained, 'frozen arrays that a step changed')
  yield _count('trained moves', trained - changed, 'supports and heads that a step did not change')


def _count(name: str, wrong: set[str], note: str) -> CheckRow:
  """A row of which nothing may be wrong, with the names of what is."""
  named = [*sorted(wrong)[:_MOST_NAMED], *['...'] * (len(wrong) > _MOST_NAMED)]
  return CheckRow(name, len(wrong), 0, f'{note}: {", ".join(named)}' if wrong else note)


def _changed(before: Any, after: Any) -> set[str]:
  """Names of the arrays that are not the same in two trees of the same paths."""
  new = flatten(after)
  return {
    path_name(path)
    for path, old in flatten(before).items()
    if jnp.any(nn.meta.unbox(old) != nn.meta.unbox(new[path]))
  }


def _error(actual: Any, expected: Any) -> float:
  """The largest difference relative to the largest number, which may be zero if nothing differs."""
  reference = np.asarray(expected, np.float64)
  difference = np.abs(np.asarray(actual, np.float64) - reference).max()
  with np.errstate(divide='ignore'):
    return float(difference and difference / np.abs(reference).max())


def check_genomes(spec: Spec) -> np.ndarray:
  """The largest genome, and so many that every allele on offer occurs in every layer.

  Neighbouring genes are out of step, so that the forms of a layer's tensors and of neighbouring
  layers are mixed.

  Args:
    spec: the layers.

  Returns:
    int8 [genome, rows, 5].
  """
  counts = spec.num_offered
  offsets = np.add.outer(np.arange(len(spec)), np.arange(len(TENSORS)))
  places = (np.arange(counts.max())[:, None, None] + offsets) % counts
  return np.concatenate([largest_genome(spec)[None], alleles_at(spec, places)])


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
  """A compiled function of pytrees, whose leaves that are no arrays are constants."""
  programs: dict[Any, Callable[..., Any]] = {}

  def run(*given: Any) -> Any:
    sample, structure = Sample(given, {}), jax.tree.structure(given)
    if structure not in programs:
      programs[structure] = jax.jit(lambda arrays: function(*sample.arguments(arrays)[0]))
    return programs[structure](sample.arrays)

  return run


def _base(adapted: Adapted, variables: Mapping[str, Any], call: Any) -> jax.Array:
  plain = {name: value for name, value in variables.items() if name != COLLECTION}
  plain['params'] = adapted.full_precision(plain['params'])
  return _numbers(functools.partial(adapted.model.apply, plain), call)


def _apply(
  adapted: Adapted, variables: Mapping[str, Any], call: Any, genome: Any = None
) -> jax.Array:
  return _numbers(functools.partial(adapted.apply, variables, genome=genome), call)


def _numbers(run: Callable[..., Any], call: Any) -> jax.Array:
  """All floating-point numbers of a model's outputs, without the collections that it updates."""
  args, kwargs = call
  outputs = run(*args, **kwargs)
  if kwargs.get('mutable', False) is not False:
    outputs = outputs[0]
  leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(outputs)]
  numbers = [jnp.ravel(leaf) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
  if not numbers:
    raise ValueError(
      'check compares floating-point outputs, and the model returns none; pass method= or '
      'arguments with which it does.'
    )
  widest = jnp.result_type(jnp.float32, *numbers)
  return jnp.concatenate([leaf.astype(widest) for leaf in numbers])


def _step(adapted: Adapted, trainable: Any, frozen: Any, call: Any, genome: Any) -> tuple[Any, Any]:
  """Gradients of some sum of the outputs, and what is trained after a step along them."""

  def loss(trainable):
    outputs = _apply(adapted, adapted.join(trainable, frozen), call, genome)
    return jnp.vdot(jnp.cos(jnp.arange(len(outputs), dtype=outputs.dtype)), outputs)

  gradients = jax.grad(loss)(trainable)
  optimizer = optax.adamw(_RATE, weight_decay=0.5)  # which moves what has no gradient, too
  updates, _ = optimizer.update(gradients, optimizer.init(trainable), trainable)
  return gradients, optax.apply_updates(trainable, updates)


def _tolerance(program: Callable[[], Any]) -> float:
  """How far equal outputs may differ: by the coarsest floating-point type that a program has."""
  names = re.findall(r'\b(bf16|f\d+(?:_\w+)?)\[', str(jax.make_jaxpr(program)()))  # f32[2,3]
  dtypes = [jnp.dtype(name.replace('f', 'float', 1)) for name in names]
  coarsest = max(dtypes, key=lambda dtype: jnp.finfo(dtype).eps)
  return _TOLERANCES.get(coarsest.name, _ROUNDINGS * float(jnp.finfo(coarsest).eps))


def _with_noise(tree: Any, where: Callable[[Any], Any] = lambda value: True) -> Any:
  """A tree with noise on its floating-point arrays, where these are so."""
  rng = np.random.default_rng(0)

  def noisy(value):
    if not is_array(value) or not jnp.issubdtype(value.dtype, jnp.floating) or not where(value):
      return value
    return value + jnp.asarray(_NOISE * rng.standard_normal(value.shape), value.dtype)

  return jax.tree.map(noisy, tree)
