"""Whether GLoRA does on somebody's model what it should: one call, one table.

A model that nobody here wrote may use its parameters in ways that no test of this package knows.
`check` runs the model itself and measures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from glora_jax.limits import check_type
from glora_jax.method.adapted import Adapted, Call, name_of
from glora_jax.method.coverage import align
from glora_jax.method.genomes import alleles_at, largest_genome
from glora_jax.method.quantized import has_quantized, requantize
from glora_jax.method.sample import split_arrays
from glora_jax.method.space import TENSORS, Spec
from glora_jax.method.supports import COLLECTION
from glora_jax.method.trace.events import CHOSEN
from glora_jax.tree import flatten, path_name, union

_NOISE = 0.05  # standard deviation
_RATE = 0.1  # learning rate of the one step; large enough to move a bfloat16
# Largest difference of equal outputs, relative to the largest output; of coarser types four
# roundings.
_TOLERANCES = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 1e-5}
_ROUNDINGS = 4
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


@dataclasses.dataclass(frozen=True)
class Check:
  """What `check` found; printed, it is a table.

  Attributes:
    rows: the things that must hold.

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
  for owner, tree in {'variables': variables, 'inputs': (inputs, kwargs)}.items():
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree)):
      raise ValueError(
        f'check runs the model, and these {owner} are only shapes (jax.ShapeDtypeStruct); pass '
        'arrays.'
      )
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


def _compare_outputs(trial: Trial) -> Iterator[CheckRow]:
  """Rows about what should be the same outputs."""
  variables, number = trial.variables, f'{len(trial.genomes)} genomes'
  base = trial.base(trial.start)
  identity = [_error(trial.apply(trial.start, genome), base) for genome in trial.genomes]
  folding = []
  for genome in trial.genomes:
    folded = {**variables, 'params': trial.fold(variables, genome)}
    folding.append(_error(trial.base(folded), trial.apply(variables, genome)))
  fixing = [_error(trial.fixed(variables), trial.apply(variables, trial.by_output))]
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


class Trial:
  """An adapted model with variables and inputs.

  All outputs are vectors of the floating-point numbers that the model returns.

  Attributes:
    adapted: the adapted model.
    start: the variables with fresh supports.
    variables: the variables with noise on supports and heads, and on parameters that are zero.
    genomes: the largest, and so many that every allele on offer occurs in every layer; int8
      [genome, rows, 5].
    by_output: the largest genome whose A is as small as can be, so that no merged kernel is needed.
    tolerance: how far equal outputs may differ, relative to the largest of them.
    fold: compiled `adapted.fold`.
    base: of variables, what the untouched model returns.
    apply: of variables and a genome, what `adapted.apply` returns.
    fixed: of variables, what the fixed subnet of `by_output` returns.
  """

  def __init__(self, adapted: Adapted, variables: Mapping[str, Any], call: Call):
    self.adapted = adapted
    self.start = {**variables, **adapted.init(jax.random.key(0), variables['params'])}
    sizes = [np.size(leaf) for leaf in jax.tree.leaves(variables)]
    noise = np.random.default_rng(0).standard_normal(max(sizes) + len(sizes), np.float32)
    self.variables = jax.jit(self._prepare)(variables, _NOISE * noise)
    self.genomes = check_genomes(adapted.spec)
    self.by_output = self.genomes[0].copy()
    self.by_output[:, 0] = adapted.spec.offered_table[:, 0, 0]
    self.fold = jax.jit(adapted.fold)
    self.base = _jit_over_arrays(self._run_base, call)
    self.apply = _jit_over_arrays(self._run_adapted, call)
    self.fixed = _jit_over_arrays(self._run_fixed, call)
    self._step = _jit_over_arrays(self._run_step, call)
    coarsest = max(_floats(jax.make_jaxpr(self.base)(self.variables).jaxpr), key=_rounding)
    self.tolerance = _TOLERANCES.get(coarsest, _ROUNDINGS * _rounding(coarsest))

  def step(self, genome: np.ndarray) -> tuple[Any, Any]:
    """Gradients of some sum of the outputs, and the variables after a step along them."""
    trainable, frozen = self.adapted.split(self.variables)
    gradients, stepped = self._step(trainable, frozen, genome)
    return gradients, self.adapted.join(stepped, frozen)

  def _prepare(self, variables: Mapping[str, Any], noise: jax.Array) -> dict[str, Any]:
    trainable, frozen = self.adapted.split(variables)
    frozen = {**frozen, 'params': _with_noise(frozen['params'], noise, everywhere=False)}
    return self.adapted.join(_with_noise(trainable, noise), frozen)

  def _run_base(self, call: Call, variables: Mapping[str, Any]) -> jax.Array:
    plain = {name: value for name, value in variables.items() if name != COLLECTION}
    plain['params'] = self.adapted.full_precision(plain['params'])
    return _vector(self.adapted.model.apply(plain, *call.args, **call.kwargs), call)

  def _run_adapted(self, call: Call, variables: Mapping[str, Any], genome: Any) -> jax.Array:
    outputs = self.adapted.apply(variables, *call.args, genome=genome, **call.kwargs)
    return _vector(outputs, call)

  def _run_fixed(self, call: Call, variables: Mapping[str, Any]) -> jax.Array:
    subnet = self.adapted.fix(self.by_output)
    return _vector(subnet.apply(variables, *call.args, **call.kwargs), call)

  def _run_step(self, call: Call, trainable: Any, frozen: Any, genome: Any) -> tuple[Any, Any]:
    def loss(trainable):
      outputs = self._run_adapted(call, self.adapted.join(trainable, frozen), genome)
      return jnp.vdot(jnp.cos(jnp.arange(len(outputs), dtype=outputs.dtype)), outputs)

    gradients = jax.grad(loss)(trainable)
    optimizer = optax.adamw(_RATE, weight_decay=0.5)  # which moves what has no gradient, too
    updates, _ = optimizer.update(gradients, optimizer.init(trainable), trainable)
    return gradients, optax.apply_updates(trainable, updates)


class _Closed:
  """A model that holds what is no array among its parameters, with the `apply` of a linen model."""

  def __init__(self, model: Any, others: Any):
    self._model = model
    self._others = others
    self.__name__ = name_of(model)

  def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """What the model returns with the variables' arrays."""
    params = union(self._others, variables['params'])
    return self._model.apply({**variables, 'params': params}, *args, **kwargs)


def close_over_others(
  adapted: Adapted, variables: Mapping[str, Any]
) -> tuple[Adapted, Mapping[str, Any]]:
  """An adapted model and its variables with arrays alone, as compiled functions take them."""
  arrays, others = split_arrays(variables['params'])
  if others is None:
    return adapted, variables
  closed = dataclasses.replace(adapted, model=_Closed(adapted.model, others))
  return closed, {**variables, 'params': arrays}


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


def _jit_over_arrays(function: Callable[..., Any], call: Call) -> Callable[..., Any]:
  """A compiled function of what follows a call, whose arrays are arguments and no constants."""
  leaves, structure = jax.tree.flatten(call)
  arrays = [leaf if hasattr(leaf, 'dtype') else None for leaf in leaves]

  def run(arrays, *others):
    pairs = zip(arrays, leaves, strict=True)
    filled = [leaf if array is None else array for array, leaf in pairs]
    return function(structure.unflatten(filled), *others)

  return jax.tree_util.Partial(jax.jit(run), arrays)


def _vector(outputs: Any, call: Call) -> jax.Array:
  """All floating-point numbers of a model's outputs, without the collections that it updates."""
  if call.kwargs.get('mutable', False) is not False:
    outputs = outputs[0]
  leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(outputs)]
  numbers = [jnp.ravel(leaf) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
  if not numbers:
    raise ValueError(
      'check compares outputs, and the model returns no floating-point array; pass method= or '
      'arguments with which it does.'
    )
  widest = jnp.result_type(jnp.float32, *numbers)
  return jnp.concatenate([leaf.astype(widest) for leaf in numbers])


def _rounding(dtype: np.dtype) -> float:
  return float(jnp.finfo(dtype).eps)


def _floats(jaxpr: Any) -> set[np.dtype]:
  """The floating-point types of a program, bodies of loops, branches and calls included."""
  variables = [variable for equation in jaxpr.eqns for variable in equation.outvars]
  dtypes = {getattr(variable.aval, 'dtype', None) for variable in (*variables, *jaxpr.invars)}
  found = {dtype for dtype in dtypes if dtype is not None and jnp.issubdtype(dtype, jnp.floating)}
  parameters = jax.tree.leaves(
    [equation.params for equation in jaxpr.eqns], is_leaf=lambda value: hasattr(value, 'eqns')
  )
  inner = [getattr(value, 'jaxpr', value) for value in parameters if hasattr(value, 'eqns')]
  return found.union(*map(_floats, inner))


def _with_noise(tree: Any, noise: jax.Array, everywhere: bool = True) -> Any:
  """A tree of arrays with noise on them, or only on those that are zero throughout.

  Each array takes its part of the same numbers: programs of many draws compile slowly.
  """

  def noisy(start: int, value: jax.Array) -> jax.Array:
    if not jnp.issubdtype(value.dtype, jnp.floating):
      return value
    own = noise[start : start + value.size].reshape(value.shape).astype(value.dtype)
    return value + (own if everywhere else jnp.where((value == 0).all(), own, 0))

  leaves, structure = jax.tree.flatten(tree)
  return structure.unflatten(map(noisy, range(len(leaves)), leaves))
