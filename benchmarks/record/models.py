"""All models of the zoos: rows, what is not covered, outputs, gradients, and fold against apply."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

import glora_jax
from benchmarks.record.comparing import Values, digest

SPACE = glora_jax.SearchSpace(ranks=(1, 2))
BOUNDS = (1e-7, 1e-6, 1e-5, 1e-2)  # of fold against apply, over the largest output


def record() -> Iterator[tuple[str, Values]]:
  """Names and entries of all models, one after the other."""
  import function_zoo
  import model_zoo
  import nnx_zoo
  from hand_count import randomized_model
  from zoo_cases import case_of

  for name, make in model_zoo.EXAMPLES.items():
    yield f'linen/{name}', _entry(_linen(make()))
    jax.clear_caches()
  for name, make in function_zoo.EXAMPLES.items():
    yield f'function/{name}', _entry(case_of(make(), heads=None, space=SPACE))
    jax.clear_caches()
  for name, make in nnx_zoo.EXAMPLES.items():
    example = make()
    model = randomized_model(example.make)
    yield f'nnx/{name}', _entry(case_of(example, model, space=SPACE))
    yield f'live/{name}', _live(example, randomized_model(example.make))
    jax.clear_caches()


def _linen(example: Any) -> Any:
  """The tests' case of a linen model, all of its collections beside the supports."""
  from comparing import vector
  from zoo_cases import Case

  base = dict(example.variables())
  params = base.pop('params')
  adapted = glora_jax.adapt(example.model, *example.inputs, space=SPACE, **example.kwargs)

  @jax.jit
  def plain(params: Any) -> Any:
    variables = {**base, 'params': params}
    return vector(example.model.apply(variables, *example.inputs, **example.kwargs))

  case = Case(example, adapted, params, plain, kernels=example.rows)
  case.variables |= base
  return case


def _rows(adapted: Any) -> list[list[Any]]:
  return [[layer.name, layer.in_features, layer.out_features, layer.bias] for layer in adapted.spec]


def _entry(case: Any) -> Values:
  """Rows, coverage, and what three structures give."""
  adapted = case.adapted
  outputs, gradients, folded = zip(*case.results, strict=True)
  uncovered = adapted.coverage().uncovered
  return {
    'rows': _rows(adapted),
    'heads': sorted('/'.join(map(str, path)) for path in adapted.head_paths),
    'uncovered': sorted([matrix.name, list(matrix.shape)] for matrix in uncovered),
    'params': [adapted.count_params(genome) for genome in case.genomes],
    'outputs': [digest(each) for each in outputs],
    'gradients': [digest(each) for each in gradients],
    'folded': [digest(each) for each in folded],
    'fold equals apply': [_apart(one, case.plain(other)) for one, _, other in case.results],
  }


def _live(example: Any, model: nnx.Module) -> Values:
  """A model that is attached: rows, outputs, and its folded parameters."""
  from trees import randomized
  from zoo_cases import call

  attached = glora_jax.nnx.attach(
    model, *example.inputs, space=SPACE, **example.options, **example.kwargs
  )
  adapted, variables = glora_jax.nnx.as_adapted(attached)
  supports = randomized(variables['glora'], seed=2)
  glora_jax.nnx.set_variables(attached, {**variables, 'glora': supports})
  folded = glora_jax.nnx.fold(attached)
  outputs, plain = (call(each, example.inputs, example.kwargs) for each in (attached, folded))
  return {
    'rows': _rows(adapted),
    'outputs': digest(outputs),
    'folded': digest(glora_jax.nnx.params(folded)),
    'fold equals apply': _apart(outputs, plain),
  }


def _apart(outputs: Any, others: Any) -> str:
  """How far two outputs are apart, as one of `BOUNDS`: rounding differs between machines."""
  outputs, others = np.asarray(outputs, np.float64), np.asarray(others, np.float64)
  apart, scale = np.abs(outputs - others).max(), np.abs(others).max()
  return next((f'to {bound:g}' for bound in BOUNDS if apart <= bound * scale), 'not')
