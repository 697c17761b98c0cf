"""What one backward pass says about every allele at once.

The chosen form of a tensor enters the merged weights linearly: W' = W + W * A + B and
b' = b + b * D + E + C @ W. So with the gradient of the loss by W' and b', the loss of every single
change of allele, in every layer, is known to first order by an inner product. The estimates
propose; what is proposed is scored exactly.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from glora_jax.method import equation
from glora_jax.method.adapted import Adapted
from glora_jax.method.site import Site
from glora_jax.method.supports import COLLECTION
from glora_jax.search.archive import Fitness, check_fitness
from glora_jax.search.checked import Checked, check_guided
from glora_jax.search.evaluator import Batch, BoundSubnet, Evaluator, Preprocess, unchanged
from glora_jax.tree import Path, get, update


def make_guide(
  adapted: Adapted,
  preprocess: Preprocess = unchanged,
  *,
  fitness: Fitness = 'accuracy',
  block: int = 256,
  **apply_kwargs: Any,
) -> Callable[[Any, Any, jax.Array, jax.Array], jax.Array]:
  """A compiled function that estimates what every allele is worth at one genome.

  The differences of a gene's values are first-order estimates of the change of a sum over the
  images when that gene alone takes another allele: of the cross-entropy for fitness 'loss'; for
  'accuracy' of the expected error, 1 - p(label), which unlike the error itself has a gradient. It
  costs one forward and one backward pass of the folded model.

  Args:
    adapted: what `glora_jax.adapt` returned.
    preprocess: function from images to inputs of the model, applied to one block after another.
    fitness: fitness of the search, 'accuracy' or 'loss'.
    block: number of images evaluated at a time.
    **apply_kwargs: keyword arguments that the model is called with.

  Returns:
    The function `(variables, genome, images, labels) -> values`, with a genome int8 [layer, 5],
    images [image, ...], labels int [image] and values float32 [layer, 5, code]. Codes that do not
    exist have the value of the last one.

  Raises:
    ValueError: `fitness` or `block` cannot be. Of the function: there is no image, or not one label
      for each; a label is no class; the genome does not fit the model, or is a population.
  """
  evaluator = Evaluator(adapted, preprocess, block, apply_kwargs=apply_kwargs)
  check_fitness(fitness)
  return Checked(evaluator, jax.jit(_Guide(evaluator, fitness).values), check_guided)


@dataclasses.dataclass(frozen=True, eq=False)
class _Guide:
  """The function that `make_guide` compiles."""

  evaluator: Evaluator
  fitness: Fitness

  def values(
    self, variables: Any, genome: jax.Array, images: jax.Array, labels: jax.Array
  ) -> jax.Array:
    subnet = self.evaluator.fold(variables, genome)
    adapted, supports = self.evaluator.adapted, variables[COLLECTION]
    params, paths = subnet.variables['params'], _paths(adapted)
    merged = [nn.meta.unbox(get(params, path)) for path in paths]
    held, blocks = self.evaluator.blocks(images, labels)

    def loss(merged: list[jax.Array], batch: Batch) -> jax.Array:
      changed = update(params, dict(zip(paths, merged, strict=True)))
      inputs = self.evaluator.inputs(held, batch)
      return self._loss(
        subnet._replace(variables={**subnet.variables, 'params': changed}), inputs, batch
      )

    def add(totals: list[jax.Array], batch: Batch) -> tuple[list[jax.Array], None]:
      return jax.tree.map(_add, totals, jax.grad(loss)(merged, batch)), None

    # Blocks are many, and each may be less than what the last digit of their sum stands for.
    zeros = [jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in merged]
    totals, _ = jax.lax.scan(add, zeros, blocks)
    gradient = update(params, dict(zip(paths, totals, strict=True)))
    base = adapted.full_precision(variables['params'])
    return allele_values(adapted, base, supports, gradient)

  def _loss(self, subnet: BoundSubnet, inputs: jax.Array, batch: Batch) -> jax.Array:
    """The batch's summed cross-entropy, or expected number of errors."""
    logits = self.evaluator.logits(subnet, inputs)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    costs = losses if self.fitness == 'loss' else 1 - jnp.exp(-losses)
    return jnp.where(batch.is_image, costs, 0).sum()


def _paths(adapted: Adapted) -> list[Path]:
  """Paths of the adapted layers' kernels and biases, each once."""
  sites = [site for group in adapted.groups for site in group.members]
  paths = [path for site in sites for path in (site.kernel_path, site.bias_path)]
  return list(dict.fromkeys(path for path in paths if path is not None))


def _add(total: jax.Array, gradient: jax.Array) -> jax.Array:
  return total + gradient.astype(total.dtype)


class _Linear(NamedTuple):
  """Kernel and bias of a linear layer, or a loss's gradient by them.

  Attributes:
    kernel: [stack ..., in, out], without the stack's axes under `vmap`.
    bias: [stack ..., out]; None where there is none.
  """

  kernel: jax.Array
  bias: jax.Array | None


def allele_values(adapted: Adapted, params: Any, supports: Any, gradient: Any) -> jax.Array:
  """Inner products of every form with the gradient by what the form is added to.

  Args:
    adapted: the adapted model.
    params: the base model's params, as nested dictionaries.
    supports: the supernet's supports.
    gradient: gradient of a loss by the merged kernels and biases, at their paths in such a tree.

  Returns:
    float32 [layer, 5, code]; codes that do not exist have the value of the last one.
  """
  num_codes = adapted.spec.cost_table.shape[-1]
  values = jnp.zeros((len(adapted.spec), 5, num_codes), jnp.float32)
  for group in adapted.groups:
    for site, member in group.of_members(nn.meta.unbox(get(supports, group.path))):
      layer_values = functools.partial(_layer_values, ranks=group.space.ranks, num_codes=num_codes)
      for _ in site.layout.stack:
        layer_values = jax.vmap(layer_values)
      found = layer_values(_linear(site, params), _linear(site, gradient), member)
      values = values.at[np.array(group.rows)].add(found.reshape(-1, 5, num_codes))
  return values


def _linear(site: Site, tree: Any) -> _Linear:
  """A layer's kernel and bias as matrices and vectors."""
  bias = site.bias(tree)
  vectors = None if bias is None else site.layout.vectors(bias)
  return _Linear(site.layout.matrices(site.kernel(tree)), vectors)


def _layer_values(
  layer: _Linear,
  gradient: _Linear,
  supports: Any,
  *,
  ranks: tuple[int, ...],
  num_codes: int,
) -> jax.Array:
  """Values of one layer's forms, float32 [5, code]."""
  layer, gradient, supports = (
    jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    for tree in (layer, gradient, supports)
  )

  def products(slope: jax.Array, form: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Inner products of the gradient by a tensor with the tensor's forms, [code]."""
    return jnp.stack([jnp.sum(slope * form(jnp.int32(code))) for code in range(num_codes)])

  weight_form = functools.partial(equation.weight_form, supports, ranks=ranks)
  of_a = products(gradient.kernel * layer.kernel, functools.partial(weight_form, 'A'))
  of_b = products(gradient.kernel, functools.partial(weight_form, 'B'))
  if layer.bias is None or gradient.bias is None or 'E' not in supports:
    return jnp.stack([of_a, of_b, *jnp.zeros((3, num_codes), jnp.float32)])
  prompt_form = functools.partial(equation.prompt_form, supports, ranks=ranks)
  flat_form = functools.partial(equation.flat_form, supports)
  of_c = products(layer.kernel @ gradient.bias, prompt_form)
  of_d = products(gradient.bias * layer.bias, functools.partial(flat_form, 'D'))
  of_e = products(gradient.bias, functools.partial(flat_form, 'E'))
  return jnp.stack([of_a, of_b, of_c, of_d, of_e])
