"""All models of the zoos: rows, what is not covered, outputs, gradients, and fold against apply."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import glora_jax
from benchmarks.record.comparing import Values, digest

SPACE = glora_jax.SearchSpace(ranks=(1, 2))
BOUNDS = (1e-7, 1e-6, 1e-5, 1e-2)  # of fold against apply, over the largest output


class Case(NamedTuple):
  """A model that is adapted.

  Attributes:
    adapted: the adapted model.
    variables: its variables, with random supports.
    rest: its collections besides, `batch_stats` for instance.
    inputs: positional arguments of its call.
    kwargs: keyword arguments of its call.
    plain: gives the outputs of the untouched model for parameters.
  """

  adapted: Any
  variables: Mapping[str, Any]
  rest: Mapping[str, Any]
  inputs: tuple[Any, ...]
  kwargs: Mapping[str, Any]
  plain: Callable[[Any], Any]


def record() -> Iterator[tuple[str, Values]]:
  """Names and entries of all models, one after the other."""
  import function_zoo
  import model_zoo
  import nnx_zoo

  for kind, zoo, make in (
    ('linen', model_zoo, _linen),
    ('function', function_zoo, _function),
    ('nnx', nnx_zoo, _nnx),
  ):
    for name, example in zoo.EXAMPLES.items():
      yield f'{kind}/{name}', _entry(make(example()))
      if kind == 'nnx':
        yield f'live/{name}', _live(example())
      jax.clear_caches()


def _case(adapted: Any, params: Any, rest: Any, example: Any, plain: Callable[[Any], Any]) -> Case:
  from comparing import random_variables

  kwargs = getattr(example, 'kwargs', {})
  variables = random_variables(adapted, params)
  return Case(adapted, variables, rest, example.inputs, kwargs, plain)


def _linen(example: Any) -> Case:
  base = dict(example.variables())
  params = base.pop('params')
  model = example.model
  adapted = glora_jax.adapt(model, *example.inputs, space=SPACE, **example.kwargs)

  @jax.jit
  def plain(params: Any) -> Any:
    return model.apply({**base, 'params': params}, *example.inputs, **example.kwargs)

  return _case(adapted, params, base, example, plain)


def _function(example: Any) -> Case:
  inputs = example.inputs
  adapted = glora_jax.adapt_function(
    example.apply, example.params, *inputs, space=SPACE, heads=None, **example.options
  )
  plain = jax.jit(lambda params: example.apply(params, *inputs))
  return _case(adapted, example.params, {}, example, plain)._replace(kwargs={})


@nnx.jit
def _call(model: nnx.Module, inputs: Any, kwargs: Any) -> Any:
  return model(*inputs, **kwargs)


def _nnx(example: Any) -> Case:
  from hand_count import randomized_model

  model = randomized_model(example.make)
  adapted = glora_jax.nnx.adapt(
    model, *example.inputs, space=SPACE, **example.options, **example.kwargs
  )

  def plain(params: Any) -> Any:
    with_params = glora_jax.nnx.with_params(model, params)
    return _call(with_params, example.inputs, example.kwargs)

  return _case(adapted, glora_jax.nnx.params(model), {}, example, plain)


def _rows(adapted: Any) -> list[list[Any]]:
  return [[layer.name, layer.in_features, layer.out_features, layer.bias] for layer in adapted.spec]


def _entry(case: Case) -> Values:
  """Rows, coverage, and what three structures give."""
  adapted, spec = case.adapted, case.adapted.spec
  genomes = [
    glora_jax.preset(spec, 'full'),
    *glora_jax.random_genomes(np.random.default_rng(0), spec, 2),
  ]

  def weighted(supports: Any, variables: Any, genome: Any) -> tuple[jax.Array, Any]:
    """One number of all outputs, and these."""
    all_variables = {**case.rest, **variables, 'glora': supports}
    outputs = adapted.apply(all_variables, *case.inputs, genome=genome, **case.kwargs)
    leaves = [jnp.ravel(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(outputs)]
    values = jnp.concatenate(leaves)
    return jnp.cos(jnp.arange(len(values))) @ values, outputs

  @jax.jit
  def computed(variables: Any, genome: Any) -> tuple[Any, Any, Any]:
    """Outputs, gradients of their weighted sum by the supports, folded parameters."""
    gradients, outputs = jax.grad(weighted, has_aux=True)(variables['glora'], variables, genome)
    return outputs, gradients, adapted.fold(variables, genome)

  results = [computed(case.variables, genome) for genome in genomes]
  uncovered = adapted.coverage().uncovered
  return {
    'rows': _rows(adapted),
    'heads': sorted('/'.join(map(str, path)) for path in adapted.head_paths),
    'uncovered': sorted([matrix.name, list(matrix.shape)] for matrix in uncovered),
    'params': [adapted.count_params(genome) for genome in genomes],
    'outputs': [digest(outputs) for outputs, _, _ in results],
    'gradients': [digest(gradients) for _, gradients, _ in results],
    'folded': [digest(folded) for _, _, folded in results],
    'fold equals apply': [_apart(outputs, case.plain(folded)) for outputs, _, folded in results],
  }


def _live(example: Any) -> Values:
  """A model that is attached: rows, outputs, and its folded parameters."""
  from hand_count import randomized_model
  from trees import randomized

  model = randomized_model(example.make)
  attached = glora_jax.nnx.attach(
    model, *example.inputs, space=SPACE, **example.options, **example.kwargs
  )
  adapted, variables = glora_jax.nnx.as_adapted(attached)
  glora_jax.nnx.set_variables(
    attached, {**variables, 'glora': randomized(variables['glora'], seed=2)}
  )
  outputs = _call(attached, example.inputs, example.kwargs)
  folded = glora_jax.nnx.fold(attached)
  return {
    'rows': _rows(adapted),
    'outputs': digest(outputs),
    'folded': digest(glora_jax.nnx.params(folded)),
    'fold equals apply': _apart(outputs, _call(folded, example.inputs, example.kwargs)),
  }


def _apart(outputs: Any, others: Any) -> str:
  """How far two outputs are apart, as one of `BOUNDS`: rounding differs between machines."""
  pairs = zip(jax.tree.leaves(outputs), jax.tree.leaves(others), strict=True)
  arrays = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
  apart = max(float(np.abs(a - b).max()) for a, b in arrays)
  scale = max(float(np.abs(b).max()) for _, b in arrays)
  return next((f'to {bound:g}' for bound in BOUNDS if apart <= bound * scale), 'not')
